"""What push-sum, gradient tracking, exact diffusion, D2 and EXTRA promise beside their recursions."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from cases import loss

import jaxdist as jd
from jaxdist import compensated, lanes, mixing

W, N = 5, 3
QUIET = twins.quadratic(W, N, seed=1)
SGD = optax.sgd(0.05)
RING = jd.topology.ring(W)
LINKS = np.eye(W) + np.roll(np.eye(W), 1, 0)
LINKS[3, 0] = LINKS[1, 4] = LINKS[2, 4] = 1
ONE_WAY = jd.topology.from_matrix(LINKS / LINKS.sum(0), name="one way")
ROWS = jd.topology.from_matrix(LINKS.T / LINKS.T.sum(1, keepdims=True), name="rows")
FAST = optax.sgd(0.3)
CORRECTED = {
    "gradient_tracking": jd.gradient_tracking(FAST, RING),
    "push_diging": jd.gradient_tracking(optax.sgd(0.1), ONE_WAY, order="push_diging"),
    "exact_diffusion": jd.exact_diffusion(FAST, RING),
    "d2": jd.d2(FAST, RING),
    "extra": jd.extra(FAST, RING),
}


def trainer_of(algorithm, objective=loss):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("worker",))
    return jd.execute(algorithm, objective, workers=W, mesh=mesh)


def after(algorithm, steps, dtype):
    trainer = trainer_of(algorithm)
    state = trainer.init(jnp.ones(N, dtype))
    batches = {
        k: jnp.broadcast_to(jnp.asarray(a, dtype), (steps, *a.shape))
        for k, a in QUIET.arrays(0).items()
    }
    state, _ = trainer.steps(state, batches)
    return np.asarray(trainer.gradient_at(state), np.float64)


@pytest.mark.parametrize("name", CORRECTED)
def test_low_precision_parameters_stay_at_the_minimizer(name):
    # A correction kept in bfloat16 would take the workers' mean for a walk: the roundings add up.
    assert np.abs(after(CORRECTED[name], 1500, jnp.bfloat16) - QUIET.minimiser).max() < 0.015
    assert np.abs(after(jd.gossip(FAST, RING), 1500, jnp.bfloat16) - QUIET.minimiser).max() > 0.15


def bent(rate):
    """A rule that rests where its gradients vanish and is not linear in them."""
    return optax.stateless(lambda grads, _: jax.tree.map(lambda g: -rate * jnp.tanh(g), grads))


def test_a_rule_that_is_not_linear_keeps_only_tracking_exact(x64):
    tracked = after(jd.gradient_tracking(bent(0.05), RING), 2500, jnp.float64)
    np.testing.assert_allclose(tracked, np.tile(QUIET.minimiser, (W, 1)), rtol=0, atol=1e-9)
    for method in (jd.exact_diffusion, jd.d2, jd.extra):
        points = after(method(bent(0.05), RING), 2500, jnp.float64)
        np.testing.assert_allclose(points, np.tile(points[0], (W, 1)), rtol=0, atol=1e-9)
        # All agree where the mean of the updates vanishes.
        np.testing.assert_allclose(np.tanh(QUIET.gradient(0, points)).mean(0), 0, atol=1e-9)
        assert np.abs(points - QUIET.minimiser).max() > 1e-2


def test_one_peer_rounds_average_exactly_by_change(x64):
    topology = jd.topology.one_peer_exponential(8)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("worker",))
    run = jax.jit(
        lanes.over_workers(
            lambda x: _mixed_thrice(x, topology), (0,), 0, workers=8, mesh=mesh, bucket_bytes=100
        )
    )
    values = np.random.default_rng(0).normal(size=(8, 3))
    np.testing.assert_allclose(run(values), np.tile(values.mean(0), (8, 1)), atol=1e-12)


def _mixed_thrice(x, topology):
    for t in range(3):
        x = x + compensated.value(mixing.change(x, topology, jnp.int32(t)))
    return x


@pytest.mark.parametrize("topology", [RING, ONE_WAY], ids=["doubly", "column"])
def test_change_is_what_mix_adds_and_arriving_is_its_other_part(x64, topology):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("worker",))
    values = np.random.default_rng(0).normal(size=(W, 3))
    t = jnp.int32(0)
    of = {
        name: jax.jit(
            lanes.over_workers(
                lambda x, part=part: part(x, topology, t), (0,), 0, workers=W, mesh=mesh
            )
        )(values)
        for name, part in (
            ("mix", mixing.mix),
            ("change", lambda *a: compensated.value(mixing.change(*a))),
            ("arriving", mixing.arriving),
        )
    }
    matrix = topology.matrix(0)
    np.testing.assert_allclose(of["mix"], matrix @ values, atol=1e-14)
    np.testing.assert_allclose(of["change"], matrix @ values - values, atol=1e-14)
    np.testing.assert_allclose(
        of["arriving"], (matrix - np.diag(np.diag(matrix))) @ values, atol=1e-14
    )


def wide_loss(params, batch, key):
    x = params["a"].astype(jnp.float32).sum() + params["b"].sum()
    return (x - batch) ** 2, {}


@pytest.mark.parametrize(
    ("make", "exchanges"),
    [
        (lambda t: jd.push_sum(SGD, t), 1),
        (lambda t: jd.push_sum(SGD, t, delay=2), 1),
        (lambda t: jd.gradient_tracking(SGD, t), 2),
        (lambda t: jd.gradient_tracking(SGD, t, order="push_diging"), 1),
        (lambda t: jd.exact_diffusion(SGD, t), 1),
        (lambda t: jd.extra(SGD, t), 1),
    ],
    ids=["push_sum", "delay", "tracking", "push_diging", "exact_diffusion", "extra"],
)
def test_messages_have_the_precision_of_the_parameters_and_travel_in_one_bucket(make, exchanges):
    algorithm = make(jd.topology.ring(8))
    trainer = jd.execute(algorithm, wide_loss, workers=8, bucket_bytes=10**6)
    params = {"a": jnp.ones(7, jnp.bfloat16), "b": jnp.ones((2, 3)), "c": jnp.ones(5)}
    lowered = trainer.compiled.lower(trainer.init(params), jnp.ones(8))
    sent = [c for c in jd.audit.collectives(lowered) if c.kind == "collective_permute"]
    assert sum(c.bytes for c in sent) == algorithm.sends(params, 5)
    assert {c.dtype for c in sent} == {"bf16", "f32"}
    # Two neighbors, two types, once; the first order of tracking needs two exchanges in a row.
    assert len(sent) == 4 * exchanges


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: jd.push_sum(SGD, ROWS), ["row-stochastic", "matrix.T"]),
        (lambda: jd.push_sum(SGD, RING, delay=-1), ["delay=-1", "at least 0"]),
        (
            lambda: jd.push_sum(SGD, jd.topology.from_matrix(LAZY), delay=1),
            ["worker 1 keeps nothing", "np.eye(3)"],
        ),
        (lambda: jd.push_sum(SGD, 8), ["jd.topology.ring(8)"]),
        (lambda: jd.push_sum(0.1, RING), ["optax.sgd(0.1)"]),
        (lambda: jd.gradient_tracking(SGD, ROWS), ["row-stochastic", "matrix.T"]),
        (lambda: jd.gradient_tracking(SGD, RING, order="x"), ["order='x'", "push_diging"]),
        (
            lambda: jd.exact_diffusion(SGD, jd.topology.one_peer_exponential(8)),
            ["3 rounds", "jd.gradient_tracking"],
        ),
        (lambda: jd.d2(SGD, jd.topology.exponential(8)), ["symmetric", "jd.gradient_tracking"]),
        (lambda: jd.extra(SGD, ONE_WAY), ["symmetric", "jd.gradient_tracking"]),
        (lambda: jd.exact_diffusion(SGD, ROWS), ["transpose", "jd.topology.ring(5)"]),
        (
            lambda: jd.d2(SGD, jd.topology.ring(8)),
            ["-0.333333", "jd.exact_diffusion", "0.5 * np.eye(8) + 0.5"],
        ),
    ],
)
def test_what_can_not_work_is_refused_with_the_line_to_write(make, words):
    pattern = ".*".join(map(re.escape, words))
    with pytest.raises(ValueError, match=pattern):
        make()


LAZY = np.array([[0.5, 0.5, 0.5], [0.5, 0.0, 0.5], [0.0, 0.5, 0.0]])
