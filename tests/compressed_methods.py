"""Methods that compress, with what they remember, and quadratics of matrices to run them on."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd

C = jd.compress
W = 4
QUIET = twins.quadratic(W, 5, seed=1)


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def one_way(workers, *, move=1.0):
    """Everybody to the next one, the first to a second one as well; `move`: how far from the identity."""
    links = np.eye(workers) + np.roll(np.eye(workers), 1, 0)
    links[workers // 2, 0] = 1
    return jd.topology.from_matrix(
        (1 - move) * np.eye(workers) + move * links / links.sum(0), name="one way"
    )


def path(algorithm, data, *, steps=8, devices=2):
    trainer = jd.execute(algorithm, cases.loss, workers=data.workers, mesh=mesh_of(devices))
    batch = {k: jnp.broadcast_to(v, (steps, *v.shape)) for k, v in data.arrays(0).items()}
    state, metrics = trainer.steps(trainer.init(jnp.ones(5)), batch)
    return np.concatenate([metrics["loss"], trainer.gradient_at(state).ravel()])


def end(algorithm, steps, *, data=QUIET, devices=1):
    """How far the readout is from the minimiser after so many steps, in one scan."""
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(devices))
    batch = {k: jnp.broadcast_to(v, (steps, *v.shape)) for k, v in data.arrays(0).items()}
    state, _ = trainer.steps(trainer.init(jnp.ones(5)), batch)
    return np.abs(np.asarray(trainer.readout(state)) - data.minimiser).max()


METHODS = {
    "gossip": lambda c: jd.gossip(
        optax.sgd(0.1), jd.topology.one_peer_exponential(8), compressor=c
    ),
    "push_sum": lambda c: jd.push_sum(optax.sgd(0.1), one_way(8), compressor=c),
    "all_reduce": lambda c: jd.all_reduce(optax.sgd(0.1), compressor=c),
    "diloco": lambda c: jd.diloco(optax.sgd(0.1), optax.sgd(0.7), period=3, compressor=c),
    "streaming_diloco": lambda c: jd.streaming_diloco(
        optax.sgd(0.1), optax.sgd(0.7), period=3, fragments=3, delay=2, compressor=c
    ),
}
FIRST = ("push_sum", "all_reduce, signs", "power_sgd")
# Every kind of thing that a compressed method remembers; one label, one algorithm for so many workers.
REMEMBERING = {
    "choco": lambda W: jd.choco(
        optax.sgd(0.02), jd.topology.ring(W), C.top_k(0.4), consensus_step=0.2
    ),
    "push_sum": lambda W: jd.push_sum(
        optax.sgd(0.02), one_way(W, move=0.5), compressor=C.top_k(0.4)
    ),
    "all_reduce, signs": lambda W: jd.all_reduce(
        optax.sgd(0.02), compressor=C.error_feedback(C.sign())
    ),
    "all_reduce, ef21": lambda W: jd.all_reduce(optax.sgd(0.05), compressor=C.ef21(C.int4(4))),
    "diloco": lambda W: jd.diloco(
        optax.sgd(0.02),
        optax.sgd(0.5),
        period=2,
        compressor=C.ef21(C.top_k(0.4)),
    ),
    "streaming_diloco": lambda W: jd.streaming_diloco(
        optax.sgd(0.02),
        optax.sgd(0.5),
        period=2,
        fragments=2,
        delay=1,
        compressor=C.error_feedback(C.sign()),
    ),
    "power_sgd": lambda W: jd.all_reduce(optax.sgd(0.05), reducer=C.power_sgd(1)),
    "one_bit_adam": lambda W: jd.one_bit_adam(0.01, warmup_steps=5),
    "dgc": lambda W: jd.dgc(0.02, ratio=0.2, momentum=0.5),
    "demo": lambda W: jd.demo(optax.sgd(0.05), decay=0.5, chunk=5, keep=1),
}

# One of each kind by default; the others keep arrays in the same ways.
REMEMBERED = pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FIRST else pytest.mark.slow) for name in REMEMBERING],
)


def matrices(workers, *, seed=0):
    """Quadratics of a 6 x 4 matrix and a bias, each worker with a target of its own."""
    draw = np.random.default_rng(seed)
    return {
        "w": draw.normal(size=(workers, 6, 4)),
        "b": draw.normal(size=(workers, 13)),
        "curvature": draw.uniform(0.5, 1.5, size=(workers, 6, 4)),
    }


def matrix_loss(params, batch, key):
    w = batch["curvature"] * (params["w"] - batch["w"]) ** 2
    return 0.5 * (jnp.sum(w) + jnp.sum((params["b"] - batch["b"]) ** 2)), {}


def matrix_steps(trainer, state, steps):
    """The state after so many steps on the quadratics; None: from the start."""
    if state is None:
        state = trainer.init({"w": jnp.ones((6, 4)), "b": jnp.ones(13)})
    rows = {
        k: jnp.broadcast_to(jnp.asarray(v), (steps, *v.shape))
        for k, v in matrices(trainer.workers).items()
    }
    return trainer.steps(state, rows)[0]
