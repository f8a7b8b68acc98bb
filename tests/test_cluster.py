"""What jaxdist takes from JAX's coordinator beyond what is public there, and what it does alone."""

import jax
import pytest
from jax._src.lib import _jax

from jaxdist import cluster


@pytest.mark.parametrize(
    "name",
    ["key_value_set", "blocking_key_value_get", "wait_at_barrier"],
)
def test_this_jax_has_the_private_methods_that_cluster_calls(name):
    assert hasattr(_jax.DistributedRuntimeClient, name), (
        f"jax {jax.__version__}: adapt jaxdist/cluster.py"
    )


def test_alone_everyone_is_this_process_and_a_barrier_is_open():
    assert cluster.place() == (0, 1)
    assert cluster.everyone("x", {"a": 1}) == [{"a": 1}]
    cluster.barrier("x", 0)
    with pytest.raises(RuntimeError, match="has joined nobody"):
        cluster.client()
