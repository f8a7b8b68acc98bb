"""Every method on a recurrent loss: the trajectory is that of the same loss without a loop, on any layout."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import twins
from jax.sharding import PartitionSpec as P

import jaxdist as jd

WORKERS, STEPS = 6, 4
FIRST = [(name, next(iter(own))) for name, own in cases.CASES.items()]
DEFAULT = [one for one in FIRST if any(one[0] == next(iter(family)) for family in cases.FAMILIES)]
METHODS = [pytest.param(*one, marks=[] if one in DEFAULT else [pytest.mark.slow]) for one in FIRST]


def halves(path, shape):
    """Every vector of parameters split in two."""
    return P("fsdp") if shape and shape[0] % 2 == 0 else P()


def layouts():
    """Lanes alone; lanes on workers of two devices; the whole batch in each of two parts."""
    devices = np.array(jax.devices())
    lanes = jax.sharding.Mesh(devices[:3], ("worker",))
    split = jax.sharding.Mesh(devices[:6].reshape(3, 2), ("worker", "fsdp"))
    return {
        "lanes": {"mesh": lanes},
        "fsdp": {"mesh": split, "sharding": halves},
        "parts": {"mesh": lanes, "accumulate": 2, "batch_axes": None},
    }


def trajectory(case, data, loss, **options):
    trainer = jd.execute(case.make(WORKERS), loss, workers=WORKERS, **options)
    state, points = trainer.init(cases.start(data.dimension, np.float64, parts=case.parts)), []
    for t in range(STEPS):
        state, _ = trainer.step(state, data.arrays(t))
        points.append(cases.flat(trainer.gradient_at(state)))
    return np.stack(points), trainer


@pytest.mark.parametrize(("name", "label"), METHODS)
def test_a_recurrent_loss_follows_the_trajectory_of_the_loss_itself(x64, name, label):
    case = cases.case(name, label)
    data = twins.quadratic(WORKERS, sum(case.parts) or 6, seed=3, noise=0.3)
    expected, _ = trajectory(case, data, cases.loss, mesh=layouts()["lanes"]["mesh"])
    for layout, options in layouts().items():
        found, trainer = trajectory(case, data, cases.recurrent_loss, **options)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10, err_msg=layout)
    params = cases.start(data.dimension, jnp.float64, parts=case.parts)
    program = trainer.lower(params, data.arrays(0)).as_text(debug_info=True)
    assert "energy" in program  # the user's scope
    assert "optimization_barrier" in program  # what keeps recomputation from being merged
