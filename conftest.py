"""Test set-up: eight simulated devices, strict promotion, float64 on demand.

It stands at the root of the tree so that the doctests in `jaxdist/` run under it too.
"""

import os
import sys
import tempfile

# All of this must be in the environment before JAX is imported, in every pytest-xdist worker too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# NPROC sizes XLA's thread pool on CPU. Simulated devices wait for each other on that pool: where it
# is smaller than their number, a collective can hang for ever and then abort the process. Two
# threads for each device were seen to be safe.
os.environ.setdefault("NPROC", "16")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
# Pictures are drawn to files; no test may look for a display.
os.environ.setdefault("MPLBACKEND", "Agg")
# The key that signs the records of runs is the user's own; tests have another, and their processes too.
if not os.environ.get("PYTEST_XDIST_WORKER"):
    STATE = tempfile.TemporaryDirectory(prefix="jaxdist-state-")
    os.environ["XDG_STATE_HOME"] = STATE.name

import jax
import pytest
from hypothesis import settings

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# No deadline, for an example's first run compiles; derandomised, so that a red run is red again.
settings.register_profile("jaxdist", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("jaxdist")


@pytest.fixture
def x64():
    """Gives one test 64-bit types, in every thread that it starts."""
    # jax.enable_x64 is a context of the current thread only: a checkpoint or prefetch thread would
    # still see 32 bits. The global switch reaches them all.
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture
def standard_promotion():
    """Lets one test use third parties that mix types, which strict promotion refuses.

    Optax: schedules, and rules that correct a bias with `decay**count` (adam, adamw, lamb, yogi,
    muon). Flax: norms of anything but float32.
    """
    before = jax.config.jax_numpy_dtype_promotion
    jax.config.update("jax_numpy_dtype_promotion", "standard")
    yield
    jax.config.update("jax_numpy_dtype_promotion", before)


@pytest.fixture(autouse=True)
def no_process_outlives_its_test():
    """Ends what a test that failed has started (`tests/runs.py`)."""
    yield
    for process in getattr(sys.modules.get("runs"), "STARTED", ()):
        if process.poll() is None:
            process.kill()
            process.communicate()


@pytest.fixture(autouse=True)
def promotion_of_doctests(request):
    """Lets a doctest show what a user writes, who has standard promotion and uses adam."""
    if isinstance(request.node, pytest.DoctestItem):
        request.getfixturevalue("standard_promotion")
