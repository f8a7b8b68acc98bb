"""What running an algorithm promises: refusals before compiling, idle workers, other people's loops."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd
from jaxdist import worker


def pull(x, target, key):
    """A worker pulls to its own target."""
    return jnp.sum((x - target) ** 2), {}


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


TARGETS = np.arange(24, dtype=np.float32).reshape(8, 3)
SGD = optax.sgd(0.1)


# --- refusals: one line, with the cure, before anything is compiled


@pytest.mark.parametrize("workers", [0, -1, 2.5, True, "8"])
def test_a_number_of_workers_that_is_none_is_refused(workers):
    with pytest.raises(ValueError, match=r"is not a number of workers; write"):
        jd.execute(jd.all_reduce(SGD), pull, workers=workers)


def test_workers_that_do_not_fit_the_devices_are_refused():
    with pytest.raises(
        ValueError, match=r"workers=9 cannot be shared evenly by 8 devices.*workers=16"
    ):
        jd.execute(jd.all_reduce(SGD), pull, workers=9, mesh=mesh_of(8))


def test_a_mesh_without_a_worker_axis_is_refused():
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    with pytest.raises(ValueError, match=r"none named 'worker'; write jax.make_mesh"):
        jd.execute(jd.all_reduce(SGD), pull, workers=8, mesh=mesh)


def test_a_topology_of_another_size_is_refused():
    trainer = jd.execute(jd.gossip(SGD, jd.topology.ring(6)), pull, workers=8)
    with pytest.raises(ValueError, match=r"connects 6 workers and the run has 8; give"):
        trainer.init(jnp.zeros(3))


def test_an_optax_rule_in_place_of_an_algorithm_is_refused():
    with pytest.raises(ValueError, match=r"write jd.execute\(jd.all_reduce\(rule\)"):
        jd.execute(SGD, pull, workers=8)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda x, b, k: (x - b, {}), "returned a loss of float32"),
        (
            lambda x, b, k: jnp.sum(x - b),
            "expected a scalar loss and a dict; write return loss, {}",
        ),
        (lambda x, b, k: (jnp.sum(x - b), jnp.zeros(())), "expected a scalar loss and a dict"),
        (lambda x, b, k: (jnp.sum(x - b), {"loss": 1.0}), "holds a key 'loss'"),
        (lambda x, b, k: (jnp.sum(b > 0), {}), "expected one floating-point number"),
        (lambda x, b, k: (worker.mean(jnp.sum(x - b)), {}), "inside loss_fn"),
        (
            lambda x, b, k: (jax.lax.pmean(jnp.sum(x - b), "worker"), {}),
            "communicates over the axis",
        ),
    ],
    ids=["vector", "no aux", "aux not a dict", "aux loss", "integer", "mean", "pmean"],
)
def test_a_loss_that_is_not_one_is_refused_before_compiling(loss, message):
    trainer = jd.execute(jd.all_reduce(SGD), loss, workers=8)
    state = trainer.init(jnp.zeros(3))
    with pytest.raises(ValueError, match=message):
        trainer.step(state, TARGETS)
    assert trainer.compiled._cache_size() == 0
    assert not state.shared[0].is_deleted()  # and nothing is lost


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (TARGETS[:7], r"batch has shape \(7, 3\).*with 8 workers"),
        ({"a": TARGETS, "b": np.zeros(())}, r"batch\['b'\] has shape \(\)"),
        ({}, "holds no arrays"),
    ],
)
def test_a_batch_that_does_not_lead_with_the_workers_is_refused(batch, message):
    trainer = jd.execute(jd.all_reduce(SGD), pull, workers=8)
    state = trainer.init(jnp.zeros(3))
    with pytest.raises(ValueError, match=message):
        trainer.step(state, batch)
    with pytest.raises(ValueError, match=r"steps, workers"):
        trainer.steps(state, TARGETS)


def test_parts_that_do_not_divide_the_examples_are_refused():
    trainer = jd.execute(jd.all_reduce(SGD), pull, workers=8, accumulate=2)
    with pytest.raises(ValueError, match=r"accumulate=2 does not divide"):
        trainer.step(trainer.init(jnp.zeros(3)), TARGETS)


@pytest.mark.parametrize("params", [{}, {"a": "text"}, None])
def test_parameters_that_are_not_arrays_are_refused(params):
    with pytest.raises(ValueError, match=r"holds no arrays|not an array of numbers"):
        jd.execute(jd.all_reduce(SGD), pull, workers=8).init(params)


def test_methods_refuse_the_topology_and_numbers_they_cannot_use():
    push = jd.topology.from_matrix([[0.5, 0.25, 0.0], [0.5, 0.5, 0.5], [0.0, 0.25, 0.5]])
    assert push.stochastic == "column"
    with pytest.raises(ValueError, match=r"column-stochastic; jd.push_sum takes"):
        jd.gossip(SGD, push)
    pull_only = jd.topology.from_matrix(push.matrix(0).T)
    with pytest.raises(ValueError, match=r"row-stochastic; transpose it"):
        jd.gossip(SGD, pull_only)
    with pytest.raises(ValueError, match=r"needs a topology.*jd.topology.ring"):
        jd.gossip(SGD, 8)
    with pytest.raises(ValueError, match=r"order='other' is unknown; write one of adapt"):
        jd.gossip(SGD, jd.topology.ring(8), order="other")
    with pytest.raises(ValueError, match=r"not an optax.GradientTransformation"):
        jd.all_reduce(0.1)
    with pytest.raises(ValueError, match=r"period=0 is not a number of steps"):
        jd.local_sgd(SGD, period=0)


def test_a_topology_given_to_a_method_that_has_none_is_refused():
    ring = jd.topology.ring(8)
    for give in (
        lambda: jd.all_reduce(SGD, ring),
        lambda: jd.local_sgd(SGD, ring, period=2),
        lambda: jd.diloco(SGD, SGD, ring, period=2),
    ):
        with pytest.raises(ValueError, match=r"no use for: .* write jd.gossip\(rule, topology\)"):
            give()
    with pytest.raises(ValueError, match=r"outer=ring\(8\).* is not an optax"):
        jd.diloco(SGD, ring, period=2)


# --- the shared room


def sharing(update):
    return jd.Algorithm(
        init=lambda params: jd.State(jnp.int32(0), params, ()),
        gradient_at=lambda state: state.shared,
        update=update,
        readout=lambda state: state.shared,
    )


def by_cond(grads, state, **_):
    shared = jax.lax.cond(grads.sum() > 0, lambda x: x + 1, lambda x: x, state.shared)
    return state._replace(step=state.step + 1, shared=shared)


def by_switch_on_constants(grads, state, **_):
    shared = jax.lax.cond(grads.sum() > 0, lambda: jnp.ones(3), lambda: jnp.zeros(3))
    return state._replace(step=state.step + 1, shared=shared)


def by_value(grads, state, **_):
    return state._replace(step=state.step + 1, shared=state.shared - grads)


def by_step(grads, state, **_):
    return state._replace(step=state.step + worker.index())


@pytest.mark.parametrize("update", [by_cond, by_switch_on_constants, by_value, by_step])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_per_worker_value_in_the_shared_room_is_refused(update, devices):
    trainer = jd.execute(sharing(update), pull, workers=8, mesh=mesh_of(devices))
    with pytest.raises(ValueError, match=r"per-worker value"):
        trainer.init(jnp.zeros(3))


def test_jax_alone_does_not_see_the_cond_with_a_device_each():
    """Why the step is always traced with two lanes: here eight devices hold different 'shared' values."""

    def step(target):
        shared = jax.lax.cond(target.sum() > 50, lambda: jnp.ones(()), lambda: jnp.zeros(()))
        return shared

    spec = jax.sharding.PartitionSpec
    mapped = jax.shard_map(step, mesh=mesh_of(8), in_specs=spec("worker"), out_specs=spec())
    shards = [float(s.data) for s in jax.jit(mapped)(TARGETS).addressable_shards]
    assert set(shards) == {0.0, 1.0}


def test_a_state_that_changes_type_is_refused():
    def widened(grads, state, **_):
        return state._replace(step=state.step + 1, shared=state.shared.astype(jnp.float16))

    with pytest.raises(ValueError, match=r"float32.*into float16"):
        jd.execute(sharing(widened), pull, workers=8).init(jnp.zeros(3))


def test_trainers_may_alternate():
    """No index of one trace may be found in another (branches of cond are cached by JAX)."""
    algorithm = jd.local_sgd(SGD, period=2)
    trainers = [jd.execute(algorithm, pull, workers=8, mesh=mesh_of(d)) for d in (1, 2, 8, 4)]
    states = [trainer.init(jnp.zeros(3)) for trainer in trainers]
    for _ in range(4):
        states = [t.step(s, TARGETS)[0] for t, s in zip(trainers, states, strict=True)]
    ends = [np.asarray(t.readout(s)) for t, s in zip(trainers, states, strict=True)]
    for end in ends[1:]:
        np.testing.assert_allclose(end, ends[0], rtol=1e-5)


# --- idle workers


def every_other():
    """Workers of one parity deliver at even steps, the others at odd ones; all add up what they get."""

    def active(state):
        return (worker.index() + state.step) % 2 == 0

    def update(grads, state, *, value, **_):
        params, total = state.local
        return jd.State(state.step + 1, (), (params - 0.1 * grads, total + value))

    return jd.Algorithm(
        init=lambda p: jd.State(jnp.int32(0), (), worker.vary((p, jnp.zeros(())))),
        gradient_at=lambda state: state.local[0],
        update=update,
        readout=lambda state: worker.mean(state.local[0]),
        active=active,
    )


@pytest.mark.parametrize("devices", [1, 2, 4, 8])
def test_idle_workers_deliver_nothing(devices):
    trainer = jd.execute(every_other(), pull, workers=8, mesh=mesh_of(devices))
    state, metrics = trainer.step(trainer.init(jnp.zeros(3)), TARGETS)
    points = np.asarray(trainer.gradient_at(state))
    busy = np.arange(8) % 2 == 0
    np.testing.assert_allclose(points[busy], 0.2 * TARGETS[busy], rtol=1e-6)
    assert (points[~busy] == 0).all()
    np.testing.assert_allclose(metrics["loss"], (TARGETS[busy] ** 2).sum(1).mean(), rtol=1e-6)
    state, _ = trainer.step(state, TARGETS)
    assert (np.asarray(trainer.gradient_at(state))[~busy] > 0).all()


@pytest.mark.parametrize("devices", [2, 8])
def test_metrics_of_workers_are_their_own_and_cost_no_message(devices):
    def loss(x, batch, key):
        return jnp.sum((x - batch) ** 2), {"aim": batch}

    trainers = [
        jd.execute(algorithm, loss, workers=8, mesh=mesh_of(devices), metrics="workers")
        for algorithm in (jd.local_sgd(SGD, period=10), every_other())
    ]
    for trainer in trainers:
        state = trainer.init(jnp.zeros(3))
        lowered = trainer.compiled.lower(state, TARGETS)
        assert not [c for c in jd.audit.collectives(lowered) if not c.branch]
        for _ in range(2):
            state, metrics = trainer.step(state, TARGETS)
            each = metrics["workers"]
            active = np.asarray(metrics.get("active", np.ones(8, bool)))
            assert set(metrics) - {"active"} == {"workers"}
            assert ("active" in metrics) == (trainer.algorithm.active is not None)
            np.testing.assert_array_equal(each["aim"], TARGETS * active[:, None])
            assert each["loss"].shape == (8,)
        batches = np.stack([TARGETS] * 3)
        _, metrics = trainer.steps(state, batches)
        assert metrics["workers"]["loss"].shape == (3, 8)
    assert active.sum() == 4


@pytest.mark.parametrize("devices", [1, 2, 8])
def test_a_scan_of_steps_reports_the_means_of_those_that_deliver(devices):
    def loss(x, batch, key):
        return jnp.sum((x - batch) ** 2), {"aim": batch}

    trainer = jd.execute(every_other(), loss, workers=8, mesh=mesh_of(devices))
    one, many = trainer.init(jnp.zeros(3)), trainer.init(jnp.zeros(3))
    _, found = trainer.steps(many, np.stack([TARGETS] * 3))
    for t in range(3):
        one, expected = trainer.step(one, TARGETS)
        jax.tree.map(
            lambda a, b, t=t: np.testing.assert_allclose(a[t], b, rtol=1e-6), found, expected
        )
        busy = np.arange(8) % 2 == t % 2
        np.testing.assert_allclose(expected["aim"], TARGETS[busy].mean(0), rtol=1e-6)


@pytest.mark.parametrize(("devices", "inside"), [(8, True), (2, False)])
def test_an_idle_worker_with_a_device_to_itself_computes_nothing(devices, inside):
    def loss(x, batch, key):
        return jnp.sum(jnp.dot(batch, x) ** 2), {}

    trainer = jd.execute(every_other(), loss, workers=8, mesh=mesh_of(devices))
    state = trainer.init(jnp.zeros(3))
    text = trainer.compiled.lower(state, np.ones((8, 4, 3), np.float32)).as_text()
    branches = text[text.index("stablehlo.case") :] if "stablehlo.case" in text else ""
    assert ("dot_general" in branches) == inside


# --- keys, parts, precision


def test_every_worker_and_step_has_a_key_of_its_own_on_any_layout():
    def noisy(x, batch, key):
        return jnp.sum(x * jax.random.normal(key, (3,))), {"bits": jax.random.uniform(key)}

    points = []
    for devices in (1, 4, 8):
        trainer = jd.execute(
            jd.local_sgd(SGD, period=10), noisy, workers=8, mesh=mesh_of(devices), seed=5
        )
        state = trainer.init(jnp.zeros(3))
        state, first = trainer.step(state, TARGETS)
        points.append(np.asarray(trainer.gradient_at(state)))
        _, second = trainer.step(state, TARGETS)
        assert float(first["bits"]) != float(second["bits"])
    assert len(np.unique(points[0][:, 0])) == 8
    np.testing.assert_allclose(points[1], points[0], rtol=1e-6)
    expected = jax.random.normal(
        jax.random.fold_in(jax.random.fold_in(jax.random.key(5), 0), 2), (3,)
    )
    np.testing.assert_allclose(points[2][2], -0.1 * expected, rtol=1e-6)


@pytest.mark.parametrize("devices", [2, 8])
def test_parts_add_up_to_one_big_batch(x64, devices):
    draw = np.random.default_rng(0)
    data = {"x": draw.normal(size=(8, 12, 4)), "y": draw.normal(size=(8, 12))}

    def regression(w, batch, key):
        error = jnp.dot(batch["x"], w) - batch["y"]
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}

    ends = []
    for parts in (1, 2, 3, 12):
        trainer = jd.execute(
            jd.gossip(SGD, jd.topology.ring(8)),
            regression,
            workers=8,
            mesh=mesh_of(devices),
            accumulate=parts,
        )
        state = trainer.init(jnp.ones(4))
        for _ in range(5):
            state, metrics = trainer.step(state, data)
        ends.append((trainer.gradient_at(state), metrics["loss"], metrics["error"]))
    for other in ends[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), other, ends[0])


def test_bfloat16_compute_keeps_a_float32_state():
    seen = []

    def regression(w, batch, key):
        seen.append((w.dtype, batch["x"].dtype, batch["n"].dtype))
        return jnp.mean(jnp.dot(batch["x"], w) ** 2), {}

    draw = np.random.default_rng(0)
    data = {"x": draw.normal(size=(8, 16, 4)).astype(np.float32), "n": np.zeros((8, 1), np.int32)}
    ends = []
    for dtype in (None, jnp.bfloat16):
        trainer = jd.execute(jd.all_reduce(SGD), regression, workers=8, compute_dtype=dtype)
        state = trainer.init(jnp.ones(4))
        for _ in range(5):
            state, metrics = trainer.step(state, data)
        assert state.shared[0].dtype == metrics["loss"].dtype == jnp.float32
        ends.append(np.asarray(state.shared[0]))
    assert seen[-1] == (jnp.bfloat16, jnp.bfloat16, jnp.int32)
    np.testing.assert_allclose(ends[1], ends[0], rtol=0.03)
    assert not np.array_equal(ends[1], ends[0])


def test_nothing_downcasts_float64(x64):
    data = twins.quadratic(8, 5, seed=0)
    trainer = jd.execute(jd.gossip(SGD, jd.topology.ring(8)), cases.loss, workers=8)
    state, metrics = trainer.step(trainer.init(jnp.ones(5)), data.arrays(0))
    assert trainer.readout(state).dtype == metrics["loss"].dtype == jnp.float64


# --- donation, evaluation


def test_the_callers_parameters_survive_and_the_old_state_is_donated():
    for given in (jnp.zeros(3), np.zeros(3, np.float32)):
        trainer = jd.execute(jd.gossip(SGD, jd.topology.ring(8)), pull, workers=8)
        state = trainer.init(given)
        old = state.local[0]
        for _ in range(3):
            state, _ = trainer.step(state, TARGETS)
        assert old.is_deleted()
        assert np.asarray(given).tolist() == [0, 0, 0]


def test_evaluate_gives_the_readout_and_each_workers_own_model():
    for devices in (2, 8):
        trainer = jd.execute(jd.local_sgd(SGD, period=100), pull, workers=8, mesh=mesh_of(devices))
        state, _ = trainer.step(trainer.init(jnp.zeros(3)), TARGETS)
        metric = lambda x, offset: {"sum": jnp.sum(x) + offset}  # noqa: E731
        got = trainer.evaluate(state, metric, np.float32(1))
        points = np.asarray(trainer.gradient_at(state))
        np.testing.assert_allclose(got.workers["sum"], points.sum(1) + 1, rtol=1e-6)
        np.testing.assert_allclose(got.readout["sum"], points.mean(0).sum() + 1, rtol=1e-6)


def test_a_bare_scalar_and_a_python_number_are_parameters():
    for params in (0.0, jnp.zeros(()), np.float64(0)):
        trainer = jd.execute(jd.all_reduce(SGD), pull, workers=8)
        state, _ = trainer.step(trainer.init(params), np.arange(8, dtype=np.float32))
        assert trainer.readout(state).shape == ()


# --- other people's loops


@pytest.mark.parametrize(
    "algorithm",
    [
        jd.all_reduce(SGD),
        jd.gossip(SGD, jd.topology.one_peer_exponential(8)),
        jd.gossip(SGD, jd.topology.star(8)),
        jd.local_sgd(SGD, period=2),
        jd.diloco(SGD, optax.sgd(0.7, momentum=0.9), period=2),
    ],
    ids=["all_reduce", "one-peer", "star", "local_sgd", "diloco"],
)
def test_an_algorithm_runs_inside_a_pmap_of_ones_own(algorithm):
    def one(state, target):
        point = algorithm.gradient_at(state)
        value, grads = jax.value_and_grad(lambda x: pull(x, target, None)[0])(point)
        return algorithm.update(grads, state, key=jax.random.key(0), value=value, objective=None)

    start = jax.pmap(lambda _: algorithm.init(jnp.zeros(3)), axis_name="worker")(TARGETS)
    step = jax.pmap(one, axis_name="worker")
    read = jax.pmap(algorithm.readout, axis_name="worker")
    trainer = jd.execute(algorithm, pull, workers=8)
    state, mine = start, trainer.init(jnp.zeros(3))
    for _ in range(6):
        state, (mine, _) = step(state, TARGETS), trainer.step(mine, TARGETS)
    np.testing.assert_allclose(read(state)[3], trainer.readout(mine), rtol=1e-5)


@pytest.mark.parametrize("mapped", ["pmap", "shard_map"])
def test_as_optax_follows_the_trainer(mapped):
    algorithm = jd.diloco(SGD, optax.sgd(0.7, momentum=0.9), period=3)
    rule = jd.as_optax(algorithm)

    def init(_):
        params = jnp.zeros(3)
        return worker.vary(params), jax.tree.map(lambda x: worker.vary(x), rule.init(params))

    def step(carry, target):
        params, state = carry
        grads = jax.grad(lambda x: pull(x, target, None)[0])(params)
        updates, state = rule.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    if mapped == "pmap":
        start, go = (jax.pmap(f, axis_name="worker") for f in (init, step))
        carry = start(TARGETS)
        for _ in range(7):
            carry = go(carry, TARGETS)
        points = np.asarray(carry[0])
    else:
        spec = jax.sharding.PartitionSpec

        def whole(targets):
            params = worker.vary(jnp.zeros(3))
            state = rule.init(jnp.zeros(3))
            for _ in range(7):
                params, state = step((params, state), targets[0])
            return params[None]

        points = np.asarray(
            jax.jit(
                jax.shard_map(
                    whole, mesh=mesh_of(8), in_specs=spec("worker"), out_specs=spec("worker")
                )
            )(TARGETS)
        )
    trainer = jd.execute(algorithm, pull, workers=8)
    state = trainer.init(jnp.zeros(3))
    for _ in range(7):
        state, _ = trainer.step(state, TARGETS)
    np.testing.assert_allclose(points, trainer.gradient_at(state), rtol=1e-5, atol=1e-6)
