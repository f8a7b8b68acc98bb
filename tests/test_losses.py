"""A loss is plain JAX: whatever runs under jit runs in a worker, and never sees the others."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax
from jax.sharding import PartitionSpec as P

import jaxdist as jd
from jaxdist.isolated import isolated

W = 4
X = jax.random.normal(jax.random.key(1), (W, 8, 3))
START = jnp.array([1.0, 2.0, 0.5])
CELLS = {"lstm": nn.OptimizedLSTMCell(5), "gru": nn.GRUCell(5)}


@jax.custom_vjp
def double(x):
    return 2.0 * x


double.defvjp(lambda x: (2.0 * x, None), lambda _, slope: (jnp.ones(()),))


def scan(p, x):
    return lax.scan(lambda c, row: (c + row @ p, None), jnp.zeros(()), x)[0]


def branch(p, x):
    return lax.cond(x[0, 0] > 0, lambda: jnp.zeros(()), lambda: (x @ p).sum())


def loop(p, x):
    steps = lax.while_loop(lambda c: c < 3.0, lambda c: c + jnp.abs(x[0, 0]), jnp.zeros(()))
    return (x @ p).mean() * lax.stop_gradient(steps)


def constant_cotangent(p, x):
    return double(p.sum()) + (x @ p).sum()


def poisson(p, x):
    drawn = jax.random.poisson(jax.random.key(0), jnp.exp(lax.stop_gradient(x @ p)))
    return (drawn.astype(jnp.float32) * (x @ p)).mean()


def conjugate_gradients(p, x):
    matrix = x.T @ x + jnp.eye(3)
    return jax.scipy.sparse.linalg.cg(lambda v: matrix @ v, p)[0].sum()


def beta(p, x):
    return jax.scipy.special.betainc(2.0, 3.0, jax.nn.sigmoid(x @ p)).mean()


def ctc(p, x):
    logits = jnp.stack([x, 2.0 * x]) * p[None, None]
    lengths = jnp.zeros((2, 8)), jnp.ones((2, 4), jnp.int32), jnp.zeros((2, 4))
    return optax.ctc_loss(logits, *lengths).mean()


def recurrent(name):
    def loss(p, x):
        return jnp.square(nn.RNN(CELLS[name]).apply(p, x[None])).mean()

    return loss


LOSSES = {
    "scan": scan, "cond": branch, "while": loop, "custom_vjp": constant_cotangent, "poisson": poisson,
    "cg": conjugate_gradients, "betainc": beta, "ctc": ctc, "lstm": recurrent("lstm"),
    "gru": recurrent("gru"),
}  # fmt: skip


def start(name):
    if name in CELLS:
        return nn.RNN(CELLS[name]).init(jax.random.key(0), jnp.zeros((1, 8, 3)))
    return START


def mesh_of(devices):
    return jax.make_mesh((devices,), ("worker",), devices=jax.devices()[:devices])


def of_worker(loss):
    return lambda params, batch, key: (loss(params, batch), {})


def close(tree, expected, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), tree, expected)


# Two lanes on each of two devices by default: both mechanisms at once.
SLOW = [
    *((d, n) for d in (1, 4) for n in LOSSES),
    (2, "gru"),
    (2, "poisson"),
    (2, "betainc"),
    (2, "cg"),
]
LAYOUTS = [
    pytest.param(d, n, marks=[pytest.mark.slow] if (d, n) in SLOW else [])
    for d in (1, 2, 4)
    for n in LOSSES
]


@pytest.mark.parametrize(("devices", "name"), LAYOUTS)
def test_a_loss_that_runs_under_jit_has_the_same_gradient_in_a_worker(
    standard_promotion, name, devices
):
    loss, params = LOSSES[name], start(name)
    each = [jax.jit(jax.value_and_grad(loss))(params, x) for x in X]
    algorithm = jd.gossip(optax.sgd(0.1), jd.topology.complete(W))
    trainer = jd.execute(algorithm, of_worker(loss), workers=W, mesh=mesh_of(devices))
    state, metrics = trainer.step(trainer.init(params), X)
    np.testing.assert_allclose(metrics["loss"], np.mean([v for v, _ in each]), rtol=1e-5)
    slope = jax.tree.map(lambda *leaves: sum(leaves) / W, *[g for _, g in each])
    expected = jax.tree.map(lambda p, g: p - 0.1 * g, params, slope)
    close(trainer.readout(state), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("devices", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_a_line_search_differentiates_such_a_loss(standard_promotion, devices):
    def loss(p, x):
        return lax.scan(lambda c, row: (c + jnp.square(row @ p - 1.0), None), jnp.zeros(()), x)[0]

    best = jnp.linalg.lstsq(X.reshape(-1, 3), jnp.ones(W * 8))[0]
    for algorithm in (jd.lbfgs(), jd.all_reduce(optax.lbfgs())):
        trainer = jd.execute(algorithm, of_worker(loss), workers=W, mesh=mesh_of(devices))
        state = trainer.init(START)
        for _ in range(12):
            state, _ = trainer.step(state, X)
        np.testing.assert_allclose(trainer.readout(state), best, atol=1e-4)


@pytest.mark.parametrize("devices", [1, 2])
def test_gradients_of_gradients_are_those_of_jax(x64, devices):
    """An algorithm may differentiate `objective` twice, in reverse mode."""

    def loss(p, batch, key):
        carry = lax.scan(lambda c, row: (c + jnp.sin(row @ p), None), jnp.zeros(()), batch)[0]
        return carry, {}

    def update(grads, state, *, key, value, objective):
        direction = jnp.ones_like(state.local)

        def along(p):
            return jnp.vdot(jax.grad(objective)(p), direction)

        return jd.State(state.step + 1, state.shared, jax.grad(along)(state.local))

    def init(params):
        return jd.State(jnp.int32(0), (), params)

    algorithm = jd.Algorithm(init, lambda s: s.local, update, lambda s: jd.mean(s.local))
    trainer = jd.execute(algorithm, loss, workers=2, mesh=mesh_of(devices))
    data = np.asarray(X[:2], np.float64)
    params = jnp.asarray(START, jnp.float64)
    state, _ = trainer.step(trainer.init(params), data)
    for i in range(2):
        hessian = jax.hessian(lambda p, x=data[i]: loss(p, x, None)[0])(params)
        own = trainer.gradient_at(state)[i]
        np.testing.assert_allclose(own, hessian.sum(1), rtol=1e-10)


def test_forward_mode_through_an_isolated_function_is_refused_by_name():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(isolated(jnp.sin), (1.0,), (1.0,))


def layers(p, batch, key):
    @jax.checkpoint
    def layer(c, row):
        with jax.named_scope("tower"):
            return jnp.tanh(c + row @ p["w"]), None

    return jnp.square(lax.scan(layer, jnp.zeros(4), batch)[0]).sum(), {}


@pytest.mark.parametrize("devices", [1, 2])
def test_remat_and_the_scopes_of_a_loss_stay_in_the_program(devices):
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), layers, workers=2, mesh=mesh_of(devices))
    lowered = trainer.lower({"w": jnp.ones((3, 4))}, X[:2])
    assert "tower" in lowered.as_text(debug_info=True)
    assert "optimization_barrier" in lowered.as_text()


@pytest.mark.parametrize("options", [{}, {"accumulate": 2}, {"reproducible": True}])
def test_a_recurrent_loss_runs_on_workers_of_several_devices(options):
    def loss(w, batch, key):
        def of_example(row):
            return lax.scan(lambda c, x: (jnp.tanh(c + x * w), None), jnp.zeros(4), row)[0]

        return jnp.square(jax.vmap(of_example)(batch)).mean(), {}

    def trained(mesh, **more):
        algorithm = jd.gossip(optax.sgd(0.1), jd.topology.ring(W))
        trainer = jd.execute(algorithm, loss, workers=W, mesh=mesh, **more)
        state = trainer.init(jnp.ones(4))
        for _ in range(3):
            state, _ = trainer.step(state, X)
        return trainer.readout(state)

    mesh = jax.make_mesh((2, 2), ("worker", "fsdp"), devices=jax.devices()[:4])
    split = trained(mesh, sharding=lambda path, shape: P("fsdp") if shape else P(), **options)
    assert split.sharding.spec == P("fsdp")
    np.testing.assert_allclose(split, trained(mesh_of(1)), rtol=1e-5)


def test_a_metric_may_scan_from_a_constant():
    trainer = jd.execute(jd.gossip(optax.sgd(0.1), jd.topology.ring(W)), of_worker(scan), workers=W)
    found = trainer.evaluate(trainer.init(START), scan, X[0])
    np.testing.assert_allclose(found.workers, [scan(START, X[0])] * W, rtol=1e-6)
    np.testing.assert_allclose(found.readout, scan(START, X[0]), rtol=1e-6)


def test_what_a_loss_closes_over_stays_a_value_of_its_own():
    table = jnp.arange(8.0)
    trainer = jd.execute(
        jd.all_reduce(optax.sgd(1.0)),
        of_worker(lambda p, x: (table * x[:, 0]).mean() * p),
        workers=W,
    )
    state, _ = trainer.step(trainer.init(jnp.zeros(())), X)
    np.testing.assert_allclose(
        trainer.readout(state), -(table[None] * X[:, :, 0]).mean(), rtol=1e-5
    )


@pytest.mark.parametrize("parts", [1, 512, 1024])
def test_gradients_of_parts_are_summed_in_float32(parts):
    """In bfloat16 the sum of 1,024 ones is 256."""
    loss = of_worker(lambda p, x: jnp.mean(p * x))
    trainer = jd.execute(jd.all_reduce(optax.sgd(1.0)), loss, workers=1, accumulate=parts)
    state = trainer.init(jnp.zeros((), jnp.bfloat16))
    state, _ = trainer.step(state, np.ones((1, 1024), jnp.bfloat16))
    assert float(trainer.readout(state)) == -1.0
    assert trainer.readout(state).dtype == jnp.bfloat16


def test_the_objective_of_parts_has_the_gradient_of_the_whole():
    """Its slope is summed in float32 as well."""

    def update(grads, state, *, key, value, objective):
        new = state.local - jax.grad(objective)(state.local).astype(state.local.dtype)
        return jd.State(state.step + 1, (), new)

    algorithm = jd.Algorithm(
        lambda params: jd.State(jnp.int32(0), (), params),
        lambda s: s.local,
        update,
        lambda s: jd.mean(s.local),
    )
    loss = of_worker(lambda p, x: jnp.mean(p * x))
    trainer = jd.execute(algorithm, loss, workers=1, accumulate=1024)
    state = trainer.init(jnp.zeros((), jnp.bfloat16))
    state, _ = trainer.step(state, np.ones((1, 1024), jnp.bfloat16))
    assert float(trainer.readout(state)) == -1.0


def test_complex_aux_keeps_its_imaginary_part_over_parts():
    def loss(p, x, key):
        return jnp.mean(p * x), {"z": jax.lax.complex(0.0 * p, jnp.mean(x))}

    trainer = jd.execute(jd.all_reduce(optax.sgd(1.0)), loss, workers=1, accumulate=2)
    _, metrics = trainer.step(trainer.init(jnp.zeros(())), np.ones((1, 4), np.float32))
    assert complex(metrics["z"]) == 1j
