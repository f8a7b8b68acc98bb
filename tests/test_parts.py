"""A compressor sees the numbers of a part and no filling, whatever the sizes are."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_conformance import mesh_of

import jaxdist as jd
from jaxdist import lanes
from jaxdist.compress import CATALOGUE, Compressor, contractive
from jaxdist.reduction import average
from jaxdist.reduction.routes import SECOND

W = 4
SIZES = (1, 5, 8, 11)  # parts that are short, empty, and all full


def averaging():
    """Everything becomes the mean of the array: what filling would change most."""
    return Compressor(
        "averaging",
        lambda key, x: {"mean": x.mean(keepdims=True)},
        lambda payload, like: jnp.broadcast_to(payload["mean"], like.shape).astype(like.dtype),
        False,
        lambda size: 1 - 1 / max(size, 1),
    )


COMPRESSORS = {
    **CATALOGUE,
    "averaging": averaging,
    "int8, shrunk": lambda: contractive(CATALOGUE["int8"]()),
    "qsgd, shrunk": lambda: contractive(CATALOGUE["qsgd"]()),
}
BY_DEFAULT = ("averaging",)


def passed(compressor, key, x):
    """What a receiver makes of an array."""
    return compressor.decode(compressor.encode(key, x), x) if x.size else x


def by_hand(compressor, x, key, leaf):
    """The mean of one leaf `[W, size]`, part by part as long as it is."""
    fold, size = jax.random.fold_in, x.shape[1]
    if compressor.route != "exchange":
        keys = [key if compressor.route == "sum" else fold(key, i) for i in range(W)]
        return (
            sum(passed(compressor, fold(k, leaf), row) for k, row in zip(keys, x, strict=True)) / W
        )
    part, out = -(-size // W), []
    for owner in range(W):
        own = x[:, owner * part : (owner + 1) * part]
        keys = [jax.random.split(fold(fold(key, i), leaf), W)[owner] for i in range(W)]
        mean = sum(passed(compressor, k, row) for k, row in zip(keys, own, strict=True)) / W
        out.append(passed(compressor, fold(fold(fold(key, owner), SECOND), leaf), mean))
    return jnp.concatenate(out)


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in BY_DEFAULT else pytest.mark.slow) for n in COMPRESSORS],
)
def test_a_mean_of_payloads_is_made_of_the_real_numbers_alone(x64, name):
    compressor, key = COMPRESSORS[name](), jax.random.key(7)
    draw = np.random.default_rng(0)
    leaves = [jnp.asarray(draw.normal(size=(W, n)) + 2.0) for n in SIZES]
    mean = lanes.over_workers(
        lambda tree: average(tree, compressor, key=key).mean, (0,), None,
        workers=W, mesh=mesh_of(2), bucket_bytes=1 << 20,
    )  # fmt: skip
    hand = jax.jit(lambda tree: [by_hand(compressor, x, key, i) for i, x in enumerate(tree)])
    for got, expected in zip(jax.jit(mean)(leaves), hand(leaves), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-12)


def slope(x, batch, key):
    return x.sum() + 0 * batch, {}


@pytest.mark.parametrize(
    ("algorithm", "steps", "moved"),
    [
        (jd.all_reduce(optax.sgd(1.0), compressor=jd.compress.sign()), 1, -1.0),
        pytest.param(jd.one_bit_adam(0.05, warmup_steps=10), 60, -3.0, marks=pytest.mark.slow),
    ],
    ids=["all_reduce", "one_bit_adam"],
)
def test_equal_gradients_move_all_numbers_alike(algorithm, steps, moved):
    trainer = jd.execute(algorithm, slope, workers=8)
    state, _ = trainer.steps(trainer.init(jnp.zeros(57)), np.zeros((steps, 8), np.float32))
    np.testing.assert_allclose(trainer.readout(state), moved, rtol=1e-4)
