"""The laws every method of the catalogue must obey, whatever its file says."""

import functools

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
# One case a method for the laws that compile more, one method a family for one that does so twice;
# the others are in the slow lane.
FIRST = [(name, next(iter(own))) for name, own in cases.CASES.items()]
FAMILIES = [one for one in FIRST if any(one[0] == next(iter(family)) for family in cases.FAMILIES)]


def by_default(these, those=()):
    """Parameters: these by default, those that are not among them in the slow lane."""
    slow = [pytest.param(*one, marks=pytest.mark.slow) for one in those if one not in these]
    return pytest.mark.parametrize(("name", "label"), [*these, *slow])


ONE_EACH = by_default(FIRST)
ONE_EACH_FIRST = by_default(FIRST, cases.ALL)
ONE_A_FAMILY_FIRST = by_default(FAMILIES, FIRST)
ONE_A_FAMILY_THEN_ALL = by_default(FAMILIES, cases.ALL)


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


def problem(workers, dimension=5):
    return twins.quadratic(workers, dimension, seed=3, noise=0.3)


def batch(data, t, dtype):
    return {k: v.astype(dtype) for k, v in data.arrays(t).items()}


@functools.cache
def _shared(name, label, workers, devices, x64):
    make = cases.case(name, label).make
    return jd.execute(make(workers), cases.loss, workers=workers, mesh=mesh_of(devices))


def shared_trainer(name, label, *, workers, devices):
    """A trainer that several laws use, so that its step is compiled once for all of them."""
    return _shared(name, label, workers, devices, jax.config.jax_enable_x64)


def trajectory(algorithm, data, *, devices, steps, dtype=np.float64, parts=(), **options):
    """Points and readouts before every step, and the trainer."""
    trainer = jd.execute(
        algorithm, cases.loss, workers=data.workers, mesh=mesh_of(devices), **options
    )
    return *follow(trainer, data, steps=steps, dtype=dtype, parts=parts), trainer


def follow(trainer, data, *, steps, dtype=np.float64, parts=()):
    """Points and readouts before every step."""
    state = trainer.init(cases.start(data.dimension, dtype, parts=parts))
    points, readouts = [], []
    for t in range(steps + 1):
        points.append(cases.flat(trainer.gradient_at(state)))
        readouts.append(cases.flat(trainer.readout(state)))
        if t < steps:
            state, _ = trainer.step(state, batch(data, t, dtype))
    return np.stack(points), np.stack(readouts)


def check_twin(name, label, trainer, *, steps):
    workers, case = trainer.workers, cases.case(name, label)
    data = problem(workers)
    points, readouts = follow(trainer, data, steps=steps, parts=case.parts)
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


@ONE_EACH_FIRST
def test_equals_its_dense_matrix_recursion(x64, name, label):
    check_twin(name, label, shared_trainer(name, label, workers=6, devices=3), steps=13)


@ONE_EACH_FIRST
def test_equals_its_dense_matrix_recursion_with_a_device_each(x64, name, label):
    check_twin(name, label, shared_trainer(name, label, workers=8, devices=8), steps=9)


BRANCHED = [place for place in cases.ALL if cases.case(*place).make(6).branches is not None]


@pytest.mark.parametrize(("name", "label"), BRANCHED)
def test_a_step_of_each_kind_by_itself_is_the_same_step(x64, name, label):
    case, lanes = cases.case(name, label), mesh_of(3)
    options = {"workers": 6, "mesh": lanes, "overlap": True}
    check_twin(name, label, jd.execute(case.make(6), cases.loss, **options), steps=13)


def test_methods_whose_messages_need_no_gradient_have_kinds_of_steps():
    assert {name for name, _ in BRANCHED} == {"gossip", "push_sum", "streaming_diloco"}


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


@ONE_A_FAMILY_THEN_ALL
def test_laws_fail_where_workers_do_not_communicate(x64, monkeypatch, name, label):
    alone(monkeypatch)
    # Wrong numbers, or (a per-worker value in the shared room) refused while tracing.
    with pytest.raises((AssertionError, ValueError, TypeError)):
        check_twin(name, label, _shared.__wrapped__(name, label, 6, 3, True), steps=8)


def check_lanes_are_devices(name, label, *, layouts, steps):
    data, case = problem(24), cases.case(name, label)
    first, *others = (
        trajectory(case.make(24), data, devices=devices, steps=steps, parts=case.parts)[:2]
        for devices in layouts
    )
    for other in others:
        np.testing.assert_allclose(other[0], first[0], rtol=0, atol=1e-10)
        np.testing.assert_allclose(other[1], first[1], rtol=0, atol=1e-10)
    assert np.ptp(first[0][0], axis=0).max() == 0  # all start alike


@ONE_A_FAMILY_FIRST
def test_lanes_are_devices_in_float64(x64, name, label):
    check_lanes_are_devices(name, label, layouts=(1, 8), steps=10)


@pytest.mark.slow
@ONE_EACH
def test_lanes_are_devices_in_float64_on_any_layout(x64, name, label):
    check_lanes_are_devices(name, label, layouts=(1, 2, 3, 4, 6, 8), steps=30)


@pytest.mark.slow
@ONE_EACH
def test_lanes_are_devices_in_float32(name, label):
    data, case = problem(24), cases.case(name, label)
    runs = [
        trajectory(case.make(24), data, devices=d, steps=10, dtype=np.float32, parts=case.parts)[1]
        for d in (1, 2, 3, 4, 6, 8)
    ]
    for other in runs[1:]:
        np.testing.assert_allclose(other, runs[0], rtol=1e-5, atol=1e-5)


@ONE_A_FAMILY_FIRST
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


@ONE_EACH_FIRST
def test_compiles_once_and_keeps_its_types(name, label):
    data, case = problem(8), cases.case(name, label)
    trainer = shared_trainer(name, label, workers=8, devices=8)
    state = trainer.init(cases.start(parts=case.parts))
    types = jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state)
    for t in range(7):
        state, metrics = trainer.step(state, batch(data, t, np.float32))
        assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == types
        assert metrics["loss"].shape == ()
    assert trainer.compiled._cache_size() == 1
    assert int(state.step) == 7


@ONE_A_FAMILY_FIRST
def test_a_scan_of_steps_is_the_steps(x64, name, label):
    data, case = problem(6), cases.case(name, label)
    trainer = shared_trainer(name, label, workers=6, devices=3)
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


@ONE_EACH_FIRST
def test_a_state_saved_as_arrays_and_put_back_goes_on_identically(name, label):
    data, case = problem(8), cases.case(name, label)
    trainer = shared_trainer(name, label, workers=8, devices=8)
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


@pytest.mark.slow
@ONE_EACH
def test_declared_bytes_are_those_of_the_program_for_bfloat16(name, label):
    """Sums travel in float32, what is only passed on in two bytes."""
    check_bytes(name, label, dtype=jnp.bfloat16)


def check_bytes(name, label, *, dtype=None):
    data, case = problem(8), cases.case(name, label)
    algorithm = case.make(8)
    params = cases.start(dtype=dtype, parts=case.parts)
    trainer = shared_trainer(name, label, workers=8, devices=8)
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
        trainer = shared_trainer(name, label, workers=8, devices=8)
        given = batch(problem(8), 0, np.float32)
        _, metrics = jax.eval_shape(trainer.compiled, trainer.init(params), given)
        assert metrics["simulated_seconds"].shape == ()
        return
    for t in range(24):
        meets = algorithm.waits.meeting(t, 8) is not None
        assert meets == (bytes_sent(algorithm, params, t, workers=8) > 0)


def check_same_path(algorithms, *, workers, steps=20):
    data = problem(workers)
    first, *others = (trajectory(one, data, devices=2, steps=steps)[1] for one in algorithms)
    for other in others:
        np.testing.assert_allclose(other, first, rtol=0, atol=1e-10)


def test_what_is_all_reduce_with_full_communication_equals_it(x64):
    rule = optax.sgd(0.1)
    complete = jd.topology.complete(6)
    algorithms = (
        jd.all_reduce(rule),
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
    )
    check_same_path(algorithms, workers=6)


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
    check_same_path((averaged, jd.all_reduce(rule)), workers=6)
    kept = trajectory(jd.local_sgd(rule, period=4), data, devices=2, steps=9)[1]
    other = trajectory(jd.local_sgd(rule, period=4, memory="averaged"), data, devices=2, steps=9)[1]
    assert np.abs(kept - other).max() > 1e-3


RULES = {
    "adam": optax.adam(0.05),
    "lion": optax.lion(0.05),
    "adamw": optax.adamw(optax.cosine_decay_schedule(0.1, 20)),
    "clip": optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
    "finite": optax.apply_if_finite(optax.sgd(0.1), 3),
    "dog": optax.contrib.dog(1.0),
    "multi": optax.MultiSteps(optax.sgd(0.1), 2),
    "adafactor": optax.adafactor(0.05),
    "inject": optax.inject_hyperparams(optax.sgd)(learning_rate=0.1),
    "lbfgs": optax.lbfgs(0.1, linesearch=None),
}
AROUND = {
    "all_reduce": jd.all_reduce,
    "gossip": lambda rule: jd.gossip(rule, jd.topology.ring(4)),
    "push_sum": lambda rule: jd.push_sum(rule, jd.topology.exponential(4)),
    "gradient_tracking": lambda rule: jd.gradient_tracking(rule, jd.topology.ring(4)),
    "diloco": lambda rule: jd.diloco(rule, optax.sgd(0.7), period=2),
}


@pytest.mark.parametrize(
    ("rule", "around"),
    [
        # By default every rule in one method, and every method around one rule.
        (rule, around)
        if around == "gossip" or rule == "adam"
        else pytest.param(rule, around, marks=pytest.mark.slow)
        for rule in RULES
        for around in AROUND
    ],
)
def test_any_optax_rule_runs_inside_alike_on_lanes_and_devices(
    x64, standard_promotion, rule, around
):
    data, algorithm = problem(4), AROUND[around](RULES[rule])
    ends = [trajectory(algorithm, data, devices=d, steps=4)[1] for d in (1, 4)]
    np.testing.assert_allclose(ends[0], ends[1], rtol=0, atol=1e-9)


@pytest.mark.parametrize("devices", [1, pytest.param(2, marks=pytest.mark.slow), 4])
def test_a_line_search_over_all_workers_reaches_the_minimum(x64, standard_promotion, devices):
    data = twins.quadratic(4, 5, seed=3)
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
