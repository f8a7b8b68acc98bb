"""The laws every method of the catalogue must obey, whatever its file says."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd
from jaxdist import worker
from jaxdist.algorithms.base import bytes_sent
from jaxdist.catalogue import CATALOGUE

EVERY = pytest.mark.parametrize(("name", "label"), cases.ALL)
# One case a method for the laws that compile much.
ONE_EACH = pytest.mark.parametrize(
    ("name", "label"), [(name, next(iter(own))) for name, own in cases.CASES.items()]
)


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def problem(workers, dimension=5):
    return twins.quadratic(workers, dimension, seed=3, noise=0.3)


def batch(data, t, dtype):
    return {k: v.astype(dtype) for k, v in data.arrays(t).items()}


def trajectory(algorithm, data, *, devices, steps, dtype=np.float64, parts=(), **options):
    """Points and readouts before every step, and the trainer."""
    trainer = jd.execute(
        algorithm, cases.loss, workers=data.workers, mesh=mesh_of(devices), **options
    )
    state = trainer.init(cases.start(data.dimension, dtype, parts=parts))
    points, readouts = [], []
    for t in range(steps + 1):
        points.append(cases.flat(trainer.gradient_at(state)))
        readouts.append(cases.flat(trainer.readout(state)))
        if t < steps:
            state, _ = trainer.step(state, batch(data, t, dtype))
    return np.stack(points), np.stack(readouts), trainer


def check_twin(name, label, *, workers=6, devices=3, steps=13):
    data, case = problem(workers), cases.case(name, label)
    points, readouts, _ = trajectory(
        case.make(workers), data, devices=devices, steps=steps, parts=case.parts
    )
    twin = twins.TWINS[case.recursion or name](
        data, steps, np.ones(data.dimension), **case.twin(workers)
    )
    np.testing.assert_allclose(points, np.stack(twin.points), rtol=0, atol=1e-10)
    np.testing.assert_allclose(readouts, np.stack(twin.readout), rtol=0, atol=1e-10)


def test_every_method_has_a_case_and_a_twin_and_a_public_name():
    assert set(cases.CASES) == set(CATALOGUE)
    for name, entry in CATALOGUE.items():
        assert name in twins.TWINS
        assert getattr(jd, name) is entry.make


@EVERY
def test_equals_its_dense_matrix_recursion(x64, name, label):
    check_twin(name, label)


@EVERY
def test_equals_its_dense_matrix_recursion_with_a_device_each(x64, name, label):
    check_twin(name, label, workers=8, devices=8, steps=9)


def alone(monkeypatch):
    """Switches all communication off: every worker hears only itself."""
    tree_map = jax.tree.map

    def gathered(tree):
        n = worker.count()
        return tree_map(lambda x: jnp.broadcast_to(x, (n, *jnp.shape(x))), tree)

    def scattered(tree):
        n = worker.count()
        return tree_map(lambda x: n * x[: len(x) // n], tree)

    deaf = {
        "shift": lambda tree, by: tree,
        "permute": lambda tree, source: tree,
        "mean": lambda tree: tree,
        "total": lambda tree: tree_map(lambda x: worker.count() * x, tree),
        "gather": gathered,
        "scatter": scattered,
        "exchange": lambda tree: tree,
    }
    for name, own in deaf.items():
        monkeypatch.setattr(worker, name, own)


@EVERY
def test_laws_fail_where_workers_do_not_communicate(x64, monkeypatch, name, label):
    alone(monkeypatch)
    # Wrong numbers, or (a per-worker value in the shared room) refused while tracing.
    with pytest.raises((AssertionError, ValueError, TypeError)):
        check_twin(name, label, steps=8)


@ONE_EACH
def test_lanes_are_devices_in_float64(x64, name, label):
    data, case = problem(24), cases.case(name, label)
    first, *others = (
        trajectory(case.make(24), data, devices=devices, steps=30, parts=case.parts)[:2]
        for devices in (1, 2, 3, 4, 6, 8)
    )
    for other in others:
        np.testing.assert_allclose(other[0], first[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(other[1], first[1], rtol=0, atol=1e-10)
    assert np.ptp(first[0][0], axis=0).max() == 0  # all start alike


@ONE_EACH
def test_lanes_are_devices_in_float32(name, label):
    data, case = problem(24), cases.case(name, label)
    runs = [
        trajectory(case.make(24), data, devices=d, steps=10, dtype=np.float32, parts=case.parts)[1]
        for d in (1, 2, 3, 4, 6, 8)
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(other, runs[0], rtol=1e-5, atol=1e-5)


@ONE_EACH
def test_reproducible_is_bit_for_bit_on_devices_in_another_order(name, label):
    data, case = problem(8), cases.case(name, label)
    ends = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        mesh = jax.sharding.Mesh(np.array(jax.devices())[order], ("worker",))
        trainer = jd.execute(case.make(8), cases.loss, workers=8, mesh=mesh, reproducible=True)
        state = trainer.init(cases.start(parts=case.parts))
        for t in range(10):
            state, _ = trainer.step(state, batch(data, t, np.float32))
        ends.append(cases.flat(trainer.gradient_at(state)))
    assert np.array_equal(*ends)


@EVERY
def test_compiles_once_and_keeps_its_types(name, label):
    data, case = problem(8), cases.case(name, label)
    trainer = jd.execute(case.make(8), cases.loss, workers=8)
    state = trainer.init(cases.start(parts=case.parts))
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    for t in range(7):
        state, metrics = trainer.step(state, batch(data, t, np.float32))
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == types
        assert metrics["loss"].shape == ()
    assert trainer.compiled._cache_size() == 1
    assert int(state.step) == 7


@ONE_EACH
def test_a_scan_of_steps_is_the_steps(x64, name, label):
    data, case = problem(6), cases.case(name, label)
    trainer = jd.execute(case.make(6), cases.loss, workers=6, mesh=mesh_of(2))
    one, many = (trainer.init(cases.start(parts=case.parts)) for _ in range(2))
    losses = []
    for t in range(7):
        one, metrics = trainer.step(one, batch(data, t, np.float64))
        losses.append(float(metrics["loss"]))
    stacked = jax.tree.map(lambda *x: np.stack(x), *(batch(data, t, np.float64) for t in range(7)))
    many, metrics = trainer.steps(many, stacked)
    np.testing.assert_allclose(metrics["loss"], losses, atol=1e-12)
    ends = (cases.flat(trainer.gradient_at(state)) for state in (many, one))
    np.testing.assert_allclose(*ends, rtol=0, atol=1e-12)


@EVERY
def test_a_state_saved_as_arrays_and_put_back_goes_on_identically(name, label):
    data, case = problem(8), cases.case(name, label)
    trainer = jd.execute(case.make(8), cases.loss, workers=8)
    state = trainer.init(cases.start(parts=case.parts))
    for t in range(3):
        state, _ = trainer.step(state, batch(data, t, np.float32))
    places = jax.tree.map(lambda x: x.sharding, state)
    saved = jax.tree.map(lambda x: np.array(x), state)
    again = jax.device_put(saved, places)
    for t in range(3, 9):
        state, _ = trainer.step(state, batch(data, t, np.float32))
        again, _ = trainer.step(again, batch(data, t, np.float32))
    jax.tree.map(np.testing.assert_array_equal, state, again)


@EVERY
def test_declared_bytes_are_the_bytes_of_the_program(name, label):
    check_bytes(name, label)


@ONE_EACH
def test_declared_bytes_are_those_of_the_program_for_bfloat16(name, label):
    """Sums travel in float32, what is only passed on in two bytes."""
    check_bytes(name, label, dtype=jnp.bfloat16)


def check_bytes(name, label, *, dtype=None):
    data, case = problem(8), cases.case(name, label)
    algorithm = case.make(8)
    params = cases.start(dtype=dtype, parts=case.parts)
    trainer = jd.execute(algorithm, cases.loss, workers=8)
    lowered = trainer.compiled.lower(trainer.init(params), batch(data, 0, np.float32))
    found = jd.audit.collectives(lowered)
    always = sum(c.bytes for c in found if not c.branch)
    # What the executor reports: a mean of losses and, where some workers idle, of who does not.
    always -= 4 if algorithm.active is None else 8
    told = {place for t in range(24) for place in enumerate(case.branches(t))}
    assert {(c.conditional, c.branch[0]) for c in found if c.branch} <= told
    for t in range(24):
        taken = set(enumerate(case.branches(t)))
        sent = sum(c.bytes for c in found if c.branch and (c.conditional, c.branch[0]) in taken)
        assert bytes_sent(algorithm, params, t, workers=8) == always + sent
    assert any(bytes_sent(algorithm, params, t, workers=8) for t in range(24))


@EVERY
def test_a_worker_waits_at_the_steps_at_which_something_is_sent(name, label):
    case = cases.case(name, label)
    algorithm, params = case.make(8), cases.start(parts=case.parts)
    if algorithm.waits is None:  # it has a clock of its own, and reports simulated seconds itself
        trainer = jd.execute(algorithm, cases.loss, workers=8)
        given = batch(problem(8), 0, np.float32)
        _, metrics = jax.eval_shape(trainer.compiled, trainer.init(params), given)
        assert metrics["simulated_seconds"].shape == ()
        return
    for t in range(24):
        meets = algorithm.waits.meeting(t, 8) is not None
        assert meets == (bytes_sent(algorithm, params, t, workers=8) > 0)


def same_path(one, other, *, workers, steps=20):
    data = problem(workers)
    runs = [trajectory(make, data, devices=2, steps=steps) for make in (one, other)]
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=0, atol=1e-10)


def test_what_is_all_reduce_with_full_communication_equals_it(x64):
    rule = optax.sgd(0.1)
    complete = jd.topology.complete(6)
    for algorithm in (
        jd.gossip(rule, complete),
        jd.gossip(rule, complete, order="combine_then_adapt"),
        jd.push_sum(rule, complete),
        jd.gradient_tracking(rule, complete),
        jd.d2(rule, complete),
        jd.local_sgd(rule, period=1),
        jd.local_sgd(rule, period=5, start=100),
        jd.diloco(rule, optax.sgd(1.0), period=1),
        jd.streaming_diloco(rule, optax.sgd(1.0), period=1, fragments=1),
        jd.federated(rule, local_steps=1),
        jd.slow_momentum(rule, period=1, learning_rate=0.1, slow_momentum=0.0),
        jd.block_momentum(rule, period=1, momentum=0.0),
    ):
        same_path(algorithm, jd.all_reduce(rule), workers=6)


@pytest.mark.parametrize(
    "rule", [optax.sgd(0.1, momentum=0.9), optax.adam(0.05)], ids=["sgd", "adam"]
)
def test_one_worker_is_its_inner_rule(x64, standard_promotion, rule):
    data = problem(1)
    x, inner = jnp.ones(5), rule.init(jnp.ones(5))
    alone = [x]
    for t in range(20):
        one = jax.tree.map(lambda a: jnp.asarray(a[0]), data.arrays(t))
        grads = jax.grad(lambda x, one=one: cases.loss(x, one, None)[0])(x)
        updates, inner = rule.update(grads, inner, x)
        x = optax.apply_updates(x, updates)
        alone.append(x)
    for algorithm in (
        jd.all_reduce(rule),
        jd.gossip(rule, jd.topology.ring(1)),
        jd.gossip(rule, jd.topology.one_peer_exponential(1), order="combine_while_adapt"),
        jd.push_sum(rule, jd.topology.exponential(1)),
        jd.push_sum(rule, jd.topology.ring(1), delay=2),
        jd.gradient_tracking(rule, jd.topology.ring(1)),
        jd.gradient_tracking(rule, jd.topology.ring(1), order="combine_while_adapt"),
        jd.exact_diffusion(rule, jd.topology.ring(1)),
        jd.d2(rule, jd.topology.ring(1)),
        jd.extra(rule, jd.topology.ring(1)),
        jd.local_sgd(rule, period=3),
        jd.diloco(rule, optax.sgd(1.0), period=1),
    ):
        points = trajectory(algorithm, data, devices=1, steps=20)[0]
        np.testing.assert_allclose(points[:, 0], np.stack(alone), rtol=0, atol=1e-10)


def test_the_workers_mean_follows_the_mean_update(x64):
    data = problem(6)
    for order in ("adapt_then_combine", "combine_while_adapt"):
        algorithm = jd.gossip(optax.sgd(0.1), jd.topology.ring(6), order=order)
        points, readouts, _ = trajectory(algorithm, data, devices=2, steps=10)
        for t in range(10):
            moved = readouts[t] - 0.1 * data.gradient(t, points[t]).mean(0)
            np.testing.assert_allclose(readouts[t + 1], moved, atol=1e-12)


def test_local_sgd_can_average_its_memory(x64):
    data, rule = problem(6), optax.sgd(0.1, momentum=0.9)
    averaged = jd.local_sgd(rule, period=1, memory="averaged")
    same_path(averaged, jd.all_reduce(rule), workers=6)
    kept = trajectory(jd.local_sgd(rule, period=4), data, devices=2, steps=9)[1]
    other = trajectory(jd.local_sgd(rule, period=4, memory="averaged"), data, devices=2, steps=9)[1]
    assert np.abs(kept - other).max() > 1e-3


@pytest.mark.parametrize(
    "rule",
    [
        optax.adam(0.05),
        optax.lion(0.05),
        optax.adamw(optax.cosine_decay_schedule(0.1, 20)),
        optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
        optax.apply_if_finite(optax.sgd(0.1), 3),
        optax.contrib.dog(1.0),
        optax.MultiSteps(optax.sgd(0.1), 2),
        optax.adafactor(0.05),
        optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
        optax.lbfgs(0.1, linesearch=None),
    ],
    ids=["adam", "lion", "adamw", "clip", "finite", "dog", "multi", "adafactor", "inject", "lbfgs"],
)
def test_any_optax_rule_runs_inside_alike_on_lanes_and_devices(x64, standard_promotion, rule):
    data = problem(4)
    for algorithm in (
        jd.all_reduce(rule),
        jd.gossip(rule, jd.topology.ring(4)),
        jd.push_sum(rule, jd.topology.exponential(4)),
        jd.gradient_tracking(rule, jd.topology.ring(4)),
        jd.diloco(rule, optax.sgd(0.7), period=2),
    ):
        ends = [trajectory(algorithm, data, devices=d, steps=4)[1] for d in (1, 4)]
        np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-9)


def test_a_line_search_over_all_workers_reaches_the_minimum_on_any_layout(x64, standard_promotion):
    data = twins.quadratic(4, 5, seed=3)
    for devices in (1, 2, 4):
        readouts = trajectory(jd.all_reduce(optax.lbfgs()), data, devices=devices, steps=15)[1]
        np.testing.assert_allclose(readouts[-1], data.minimiser, atol=1e-7)


def test_added_noise_differs_between_workers(standard_promotion):
    rule = optax.chain(optax.add_noise(1.0, 0.0, key=0), optax.sgd(0.1))
    for devices in (1, 4):
        trainer = jd.execute(
            jd.local_sgd(rule, period=100), cases.loss, workers=4, mesh=mesh_of(devices)
        )
        state = trainer.init(jnp.zeros(5))
        zeros = {"A": np.zeros((4, 5, 5), np.float32), "b": np.zeros((4, 5), np.float32)}
        state, _ = trainer.step(state, zeros)
        assert len(np.unique(np.asarray(trainer.gradient_at(state))[:, 0])) == 4
