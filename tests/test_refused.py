"""What would silently mean something else, or end the process, is refused by name before compiling."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

import jaxdist as jd

W = 4
TARGETS = np.arange(4.0, dtype=np.float32)


def loss(params, target, key):
    return jnp.sum(jnp.square(params - target)), {}


def mesh_of(devices):
    return jax.make_mesh((devices,), ("worker",), devices=jax.devices()[:devices])


def mean_of_workers(average):
    """A method that averages its workers' parameters by `average`."""

    def update(grads, state, *, key, value, objective):
        local = average(state.local - 0.1 * grads)
        return jd.State(state.step + 1, (), jd.worker.vary(local))

    return jd.Algorithm(
        lambda params: jd.State(jnp.int32(0), (), params),
        lambda state: state.local,
        update,
        lambda state: jd.mean(state.local),
    )


COLLECTIVES = {
    "pmean": lambda x: lax.pmean(x, "worker"),
    "psum": lambda x: lax.psum(x, "worker") / 4,
    "size": lambda x: lax.psum(1, "worker") * x,
    "axis_size": lambda x: lax.axis_size("worker") * x,
    "axis_index": lambda x: x + lax.axis_index("worker"),
    "ppermute": lambda x: lax.ppermute(x, "worker", [(0, 0)]),
    "all_gather": lambda x: lax.all_gather(x, "worker").mean(0),
    "under a condition": lambda x: lax.cond(
        jnp.bool_(True), lambda x: jd.worker.vary(lax.pmean(x, "worker")), lambda x: x, x
    ),
}


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("name", COLLECTIVES)
def test_a_collective_of_jax_over_workers_is_refused_on_any_layout(name, devices):
    """It would be over devices: the same method on one, two and four of them had three trajectories."""
    algorithm = mean_of_workers(COLLECTIVES[name])
    trainer = jd.execute(algorithm, loss, workers=W, mesh=mesh_of(devices))
    with pytest.raises(jd.Refused, match=r"names the axis 'worker' .*jd\.mean\(tree\)"):
        trainer.init(jnp.zeros(()))
    with pytest.raises(jd.Refused, match=r"names the axis 'worker'"):
        trainer.lower(jnp.zeros(()), TARGETS)


PLACES = {
    "readout": lambda a: a._replace(readout=lambda s: lax.pmean(s.local, "worker")),
    "gradient_at": lambda a: a._replace(gradient_at=lambda s: lax.pmean(s.local, "worker")),
    "init": lambda a: a._replace(
        init=lambda p: jd.State(jnp.int32(0), (), p + lax.axis_index("worker"))
    ),
    "active": lambda a: a._replace(active=lambda s: lax.axis_index("worker") > 0),
    "report": lambda a: a._replace(report=lambda s: {"n": lax.psum(1, "worker") * jnp.ones(())}),
}


@pytest.mark.parametrize("name", PLACES)
def test_so_it_is_in_every_function_of_an_algorithm(name):
    trainer = jd.execute(PLACES[name](mean_of_workers(jd.mean)), loss, workers=W)
    with pytest.raises(jd.Refused, match=r"names the axis 'worker'"):
        trainer.init(jnp.zeros(()))


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_the_mean_that_the_message_names_is_over_workers(devices):
    trainer = jd.execute(mean_of_workers(jd.mean), loss, workers=W, mesh=mesh_of(devices))
    state = trainer.init(jnp.zeros(()))
    for _ in range(3):
        state, _ = trainer.step(state, TARGETS)
    np.testing.assert_allclose(trainer.gradient_at(state), [0.732] * W, rtol=1e-6)


def test_a_collective_inside_an_inner_rule_or_a_loss_is_refused():
    def update(updates, state, params=None):
        return jax.tree.map(lambda g: -0.1 * lax.pmean(g, "worker"), updates), state

    rule = optax.GradientTransformation(lambda params: (), update)
    with pytest.raises(jd.Refused, match="names the axis 'worker'"):
        jd.execute(jd.local_sgd(rule, period=2), loss, workers=W).init(jnp.zeros(()))

    def communicates(params, target, key):
        return lax.pmean(jnp.sum(params - target), "worker"), {}

    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), communicates, workers=W)
    state = trainer.init(jnp.zeros(()))
    for call in (
        lambda: trainer.step(state, TARGETS),
        lambda: trainer.lower(jnp.zeros(()), TARGETS),
    ):
        with pytest.raises(jd.Refused, match="communicates over the axis 'worker'"):
            call()


def test_a_name_that_is_missing_in_an_algorithm_keeps_its_traceback():
    def average(x):
        raise NameError("name 'workers_mean' is not defined")

    with pytest.raises(NameError, match="workers_mean") as caught:
        jd.execute(mean_of_workers(average), loss, workers=W).init(jnp.zeros(()))
    assert not isinstance(caught.value, jd.Refused)


def test_a_collective_in_a_pmap_of_ones_own_is_allowed():
    rule = jd.as_optax(mean_of_workers(lambda x: lax.pmean(x, "worker")))
    devices = jax.devices()[:W]
    start = jnp.zeros(W)
    state = jax.pmap(rule.init, axis_name="worker", devices=devices)(start)
    step = jax.pmap(
        lambda p, s, t: rule.update(2 * (p - t), s, p), axis_name="worker", devices=devices
    )
    moved, _ = step(start, state, TARGETS)
    np.testing.assert_allclose(moved, [0.3] * W, rtol=1e-6)


COMPLEX = {"plain": 1j, "in a dict": {"w": jnp.ones(3), "z": jnp.ones(2, jnp.complex64)}}


@pytest.mark.parametrize("name", COMPLEX)
def test_complex_parameters_are_refused_by_name(name):
    """JAX's gradient ascends their imaginary part: 1j became 3.5j in five steps of descent."""

    def energy(params, target, key):
        return sum(jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(params)), {}

    trainer = jd.execute(jd.gossip(optax.sgd(0.1), jd.topology.ring(W)), energy, workers=W)
    for call in (trainer.init, lambda p: trainer.lower(p, TARGETS)):
        with pytest.raises(
            jd.Refused, match=r"params.* is complex64: expected real .*lax\.complex"
        ):
            call(COMPLEX[name])


def test_they_are_in_an_optax_loop_too():
    rule = jd.as_optax(jd.all_reduce(optax.sgd(0.1)))
    with pytest.raises(jd.Refused, match="is complex64: expected real"):
        rule.init(jnp.ones(3, jnp.complex64))


def test_real_parts_of_a_complex_model_are_trained():
    def energy(params, target, key):
        return jnp.sum(jnp.abs(lax.complex(params["real"], params["imag"])) ** 2), {}

    trainer = jd.execute(jd.all_reduce(optax.sgd(0.25)), energy, workers=W)
    state = trainer.init({"real": jnp.ones(()), "imag": jnp.ones(())})
    state, _ = trainer.step(state, TARGETS)
    assert trainer.readout(state) == {"real": 0.5, "imag": 0.5}


@pytest.mark.parametrize("devices", [1, 2])
def test_a_state_that_was_stepped_before_is_refused(devices):
    """On two devices it ended the process with a segmentation fault."""
    trainer = jd.execute(jd.all_reduce(optax.sgd(0.1)), loss, workers=W, mesh=mesh_of(devices))
    old = trainer.init(jnp.zeros(()))
    kept = jax.tree.map(jnp.copy, old)
    trainer.step(old, TARGETS)
    for call in (
        lambda: trainer.step(old, TARGETS),
        lambda: trainer.steps(old, TARGETS[None]),
        lambda: trainer.step(old._replace(step=jnp.int32(0)), TARGETS),
        lambda: trainer.gradient_at(old),
        lambda: trainer.readout(old),
        lambda: trainer.evaluate(old, lambda p, b: p, TARGETS),
    ):
        with pytest.raises(jd.Refused, match=r"given to trainer\.step before.*jnp\.copy"):
            call()
    trainer.step(kept, TARGETS)
