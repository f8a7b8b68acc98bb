"""Other workers and other methods: what is carried, that the mean is kept, that training goes on."""

import functools

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from compressed_methods import REMEMBERED, REMEMBERING, matrix_loss, matrix_steps, one_way

import jaxdist as jd
from jaxdist.algorithms.base import method_of
from jaxdist.resize import PARAMETERS_ONLY

# One case for every rule, and for every kind of thing that a worker can keep.
RULES = {
    "lbfgs": "wolfe",
    "diloco": "nesterov",
    "federated": "scaffold, four of all",
    "choco": "top_k on a ring",
    "one_bit_adam": "warm-up of 4",
    "push_sum": "one-way rounds, delay 3",
    "gradient_tracking": "one-way rounds, adapt_then_combine",
    "exact_diffusion": "star",
    "relay": "star",
    "event_triggered": "decaying",
    "downpour": "sharded",
    "elastic_averaging": "by arrivals",
}
CHANGES = [
    pytest.param(
        *pair, to, marks=() if (to, RULES.get(pair[0])) == (6, pair[1]) else pytest.mark.slow
    )
    for pair in cases.ALL
    for to in (6, 12)
]
SERVED = ("downpour", "stale_synchronous", "delay_compensated", "hogwild")


def gentle(x, batch, key):
    """The loss of the cases with a tenth of its gradient."""
    value, aux = cases.loss(x, batch, key)
    return 0.1 * value, aux


def on_one(algorithm, workers, *, loss=cases.loss):
    """On one device a program compiles fastest; that lanes are devices is a law elsewhere."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("worker",))
    return jd.execute(algorithm, loss, workers=workers, mesh=mesh)


def batches(data, first, steps):
    rows = [data.arrays(t) for t in range(first, first + steps)]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}


@pytest.mark.parametrize(("name", "label", "workers"), CHANGES)
def test_the_readout_is_kept_and_training_goes_on(x64, name, label, workers):
    case = cases.case(name, label)
    # At the rates of the cases a server, which adds up what all push, does not settle.
    loss, steps = (gentle, 120) if name in SERVED else (cases.loss, 60)
    before = on_one(case.make(8), 8, loss=loss)
    after = on_one(case.make(workers), workers, loss=loss)
    problem = twins.quadratic(8, 5, seed=3, noise=0.3)
    state = before.init(cases.start(dtype=np.float64, parts=case.parts))
    state, _ = before.steps(state, batches(problem, 0, 13))
    if label in ("scaffold, four of all", "prox, by weight"):
        with pytest.raises(ValueError, match="middle of a round of jd.federated"):
            jd.resize(state, before, after)
        state, _ = before.steps(state, batches(problem, 13, 2))
    told = cases.flat(before.readout(state))
    new, said = jd.resize(state, before, after)
    assert after.algorithm.resize is not None, "a method of the catalogue states its rule"
    assert "\n" not in said
    np.testing.assert_allclose(cases.flat(after.readout(new)), told, rtol=0, atol=1e-10)
    assert int(new.step) == int(state.step)
    points = cases.flat(after.gradient_at(new))
    assert points.shape == (workers, 5)
    assert np.ptp(points, axis=0).max() == 0
    # Other workers have other data, and another minimizer: it is neared.
    other = twins.quadratic(workers, 5, seed=4)
    new, metrics = after.steps(new, batches(other, 13, steps))
    assert np.isfinite(metrics["loss"]).all()
    assert np.isfinite(cases.flat(after.readout(new))).all()
    away = [np.linalg.norm(x - other.minimiser) for x in (told, cases.flat(after.readout(new)))]
    # Biased methods rest beside it.
    assert away[1] < (0.5 * away[0] if name in SERVED else away[0])


EXACT = {
    "gradient_tracking": lambda W: jd.gradient_tracking(optax.sgd(0.05), jd.topology.ring(W)),
    "exact_diffusion": lambda W: jd.exact_diffusion(optax.sgd(0.1), jd.topology.ring(W)),
    "extra": lambda W: jd.extra(optax.sgd(0.1), jd.topology.ring(W)),
    "scaffold": lambda W: jd.federated(optax.sgd(0.05), local_steps=3, correction=jd.scaffold()),
}


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_method_finds_the_minimizer_of_the_other_workers_exactly(x64, name):
    before, after = on_one(EXACT[name](8), 8), on_one(EXACT[name](6), 6)
    eight, six = (twins.quadratic(W, 3, seed=1) for W in (8, 6))
    state, _ = before.steps(before.init(jnp.ones(3)), batches(eight, 0, 20))
    assert np.ptp(cases.flat(before.gradient_at(state)), axis=0).max() > 1e-3
    state, _ = jd.resize(state, before, after)
    state, _ = after.steps(state, batches(six, 20, 1500))
    np.testing.assert_allclose(after.readout(state), six.minimiser, rtol=0, atol=1e-9)


def means(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64).mean(0), tree)


def test_means_of_residuals_trackers_corrections_and_weights_are_kept(x64):
    problem = twins.quadratic(8, 5, seed=3)
    for name, label in (
        ("gossip", "one-peer, adapt_then_combine"),
        ("gradient_tracking", "one way, combine_while_adapt"),
        ("exact_diffusion", "ring"),
        ("quasi_global_momentum", "matrix"),
        ("diloco", "nesterov"),
    ):
        case = cases.case(name, label)
        before, after = on_one(case.make(8), 8), on_one(case.make(12), 12)
        state, _ = before.steps(before.init(jnp.ones(5)), batches(problem, 0, 14))
        new, _ = jd.resize(state, before, after)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
            means(state.local),
            means(new.local),
        )
        jax.tree.map(np.testing.assert_array_equal, state.shared, new.shared)


@REMEMBERED
def test_what_compression_has_left_out_keeps_its_mean(x64, name):
    """Residuals, copies, estimates, velocities: their mean, or of shares of one array, all of it."""
    before, after = (on_one(REMEMBERING[name](W), W, loss=matrix_loss) for W in (8, 6))
    state = matrix_steps(before, None, 12)
    new, said = jd.resize(state, before, after)
    assert said != PARAMETERS_ONLY
    told = before.readout(state), state.shared
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-12),
        (after.readout(new), new.shared),
        told,
    )
    remembered, kept = state.local, new.local
    if name == "push_sum":
        # Numerators and weights have no mean to keep but the readout; flows are of the new links.
        (_, weights), _, remembered, flow, _ = state.local
        assert min(np.ptp(weights), *(np.abs(s).max() for s in jax.tree.leaves(flow.high))) > 0.05
        _, _, kept, flow, _ = new.local
        for h, s in zip(jax.tree.leaves(kept), jax.tree.leaves(flow.high), strict=True):
            moved = np.tensordot(one_way(6, move=0.5).matrix(0), h, 1) - h
            np.testing.assert_allclose(s, moved, rtol=0, atol=1e-12)
            np.testing.assert_allclose(np.asarray(s).sum(0), 0, atol=1e-12)
    if name == "choco":  # what rounding has dropped is too small to be seen here
        remembered, kept = ((*one[:3], one[3].high) for one in (remembered, kept))
    pairs = zip(jax.tree.leaves(remembered), jax.tree.leaves(kept), strict=True)
    for a, b in ((np.asarray(a), np.asarray(b)) for a, b in pairs):
        assert np.ptp(a) > 1e-3
        if a.shape[1:] == b.shape[1:]:
            np.testing.assert_allclose(means(b), means(a), rtol=0, atol=1e-12)
        else:  # a share each; what fills the last one up is nobody's
            size = min(a.size, b.size)
            np.testing.assert_array_equal(b.ravel()[:size], a.ravel()[:size])


def test_what_a_sharded_server_has_not_been_sent_keeps_its_sum(x64):
    def trainer(workers):
        clock = jd.clock.speeds([1.0 + i / 7 for i in range(workers)])
        rule = jd.downpour(optax.adagrad(0.1), clock=clock, push_every=3, server="sharded")
        return on_one(rule, workers)

    before, after = trainer(8), trainer(6)
    state, _ = before.steps(before.init(jnp.ones(5)), batches(twins.quadratic(8, 5, seed=3), 0, 13))
    new, _ = jd.resize(state, before, after)
    sums = np.asarray(state.local[1]).sum(0)
    assert np.abs(sums).max() > 0.1
    np.testing.assert_allclose(np.asarray(new.local[1]).sum(0), sums, rtol=0, atol=1e-12)
    seconds = [
        trainer.algorithm.report(s)["simulated_seconds"]
        for trainer, s in ((before, state), (after, new))
    ]
    assert seconds[0] == seconds[1] > 0


def test_every_client_of_a_bank_keeps_its_control_variate():
    def trainer(workers):
        rule = jd.federated(
            optax.sgd(0.1), local_steps=2, clients=24, correction=jd.scaffold(), seed=1
        )
        return on_one(rule, workers)

    before, after = trainer(8), trainer(6)
    data = twins.quadratic(8, 5, seed=3)
    rows = {k: x.astype(np.float32) for k, x in batches(data, 0, 8).items()}
    state, _ = before.steps(before.init(jnp.ones(5)), rows)
    new, _ = jd.resize(state, before, after)
    banks = [np.asarray(s.local[2][2]).reshape(24, 5) for s in (state, new)]
    assert (np.abs(banks[0]).sum(1) > 0).sum() > 8
    np.testing.assert_array_equal(*banks)
    # Beside the bank everybody has a copy of the row of the client it is in the round to come.
    clients = jd.cohort(24, 6, 1)(int(new.step) // 2)
    np.testing.assert_array_equal(new.local[2][1], banks[1][clients])


def test_random_keys_stay_different(standard_promotion):
    rule = optax.chain(optax.add_noise(1.0, 0.0, key=0), optax.sgd(0.1))
    before, after = (on_one(jd.local_sgd(rule, period=100), W) for W in (4, 6))
    new, _ = jd.resize(before.init(jnp.zeros(5)), before, after)
    zeros = {"A": np.zeros((6, 5, 5), np.float32), "b": np.zeros((6, 5), np.float32)}
    new, _ = after.step(new, zeros)
    assert len(np.unique(np.asarray(after.gradient_at(new))[:, 0])) == 6


def test_simulated_seconds_go_on():
    def trainer(workers):
        rule = jd.timed(jd.all_reduce(optax.sgd(0.1)), jd.clock.constant(workers, seconds=2.0))
        return on_one(rule, workers)

    before, after = trainer(4), trainer(6)
    data = {k: x.astype(np.float32) for k, x in twins.quadratic(4, 5, seed=1).arrays(0).items()}
    state, _ = before.step(before.init(jnp.ones(5)), data)
    new, _ = jd.resize(state, before, after)
    assert after.algorithm.report(new)["simulated_seconds"] == 2.0


def test_what_can_not_be_resized_is_named():
    ring = [on_one(jd.gossip(optax.sgd(0.1), jd.topology.ring(W)), W) for W in (8, 6)]
    state = ring[0].init(jnp.ones(5))
    with pytest.raises(ValueError, match="state is of 8 workers and before of 6"):
        jd.resize(state, ring[1], ring[0])
    other = on_one(jd.gossip(optax.sgd(0.1, momentum=0.9), jd.topology.ring(6)), 6)
    with pytest.raises(ValueError, match=r"another method; write after.init\(before.readout"):
        jd.resize(state, ring[0], other)
    all_reduce = on_one(jd.all_reduce(optax.sgd(0.1)), 6)
    with pytest.raises(ValueError, match="another method"):
        jd.resize(state, ring[0], all_reduce)
    alone = on_one(jd.noise_scale(optax.sgd(0.1)), 1)
    with pytest.raises(ValueError, match="there is one worker"):
        jd.resize(state, ring[0], alone)


def test_every_method_of_the_catalogue_has_its_name_whatever_its_arguments():
    """Also under faults and a clock, in a partial, and inside a method that changes its update."""
    for name, own in cases.CASES.items():
        for case in own.values():
            made = case.make(6)
            assert method_of(made) == name
            assert method_of(jd.faulty(made, jd.faults.link_loss(0.1, seed=0))) == name
            if made.waits:
                assert method_of(jd.timed(made, jd.clock.constant(6))) == name
            assert method_of(made._replace(update=functools.partial(made.update))) == name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (
            lambda W: jd.gossip(optax.sgd(0.1), jd.topology.ring(W)),
            lambda W: jd.local_sgd(optax.sgd(0.1), period=4),
        ),
        (
            lambda W: jd.exact_diffusion(optax.sgd(0.1), jd.topology.ring(W)),
            lambda W: jd.extra(optax.sgd(0.1), jd.topology.ring(W)),
        ),
        (
            lambda W: jd.downpour(optax.sgd(0.1), clock=jd.clock.constant(W)),
            lambda W: jd.hogwild(optax.sgd(0.1), clock=jd.clock.constant(W), missed=0.1),
        ),
    ],
)
def test_two_methods_that_keep_alike_arrays_are_refused_by_name(one, other):
    before, after = on_one(one(8), 8), on_one(other(6), 6)
    state = before.init(jnp.ones(5))
    alike = after.init(jnp.ones(5))
    assert jax.tree.structure(state) == jax.tree.structure(alike), "nothing else tells them apart"
    names = method_of(before.algorithm), method_of(after.algorithm)
    with pytest.raises(
        ValueError, match=rf"before is of {names[0]} and after of {names[1]}, .*write after"
    ):
        jd.resize(state, before, after)


def test_one_method_with_other_arguments_and_in_other_hands_is_accepted():
    def under_faults(made):
        return jd.faulty(made, jd.faults.link_loss(0.1, seed=0))

    def of_my_own(made):
        def update(grads, state, **given):
            return made.update(grads, state, **given)

        return made._replace(update=update)

    def ring(W, rate):
        return jd.gossip(optax.sgd(rate), jd.topology.ring(W))

    other = jd.gossip(optax.sgd(0.2), jd.topology.complete(6), order="combine_then_adapt")
    clocks = [jd.clock.constant(W) for W in (8, 6)]
    for before, after in (
        (ring(8, 0.1), other),
        (ring(8, 0.1), under_faults(other)),
        (under_faults(ring(8, 0.1)), other),
        (of_my_own(ring(8, 0.1)), of_my_own(other)),
        (jd.timed(ring(8, 0.1), clocks[0]), jd.timed(other, clocks[1])),
        (ring(8, 0.1), ring(6, 0.1)._replace(update=functools.partial(ring(6, 0.1).update))),
    ):
        trainers = on_one(before, 8), on_one(after, 6)
        new, _ = jd.resize(trainers[0].init(jnp.ones(5)), *trainers)
        np.testing.assert_array_equal(trainers[1].readout(new), jnp.ones(5))


def test_a_method_without_a_rule_begins_anew_at_its_parameters():
    rules = [jd.gossip(optax.sgd(0.1), jd.topology.ring(W))._replace(resize=None) for W in (8, 6)]
    before, after = (on_one(rule, W) for rule, W in zip(rules, (8, 6), strict=True))
    state = before.init(jnp.arange(5.0))._replace(step=jnp.int32(7))
    new, said = jd.resize(state, before, after)
    assert (int(new.step), said) == (0, PARAMETERS_ONLY)
    np.testing.assert_array_equal(after.readout(new), jnp.arange(5.0))


def test_from_one_method_to_the_next_the_parameters_are_carried(x64):
    """A pair is a readout and an init, so that one way through all of them sees every half."""
    told = jnp.linspace(1.0, 2.0, 5)
    for name, own in cases.CASES.items():
        case = next(iter(own.values()))
        trainer = on_one(case.make(6), 6)
        given = jnp.split(told, np.cumsum(case.parts)[:-1].tolist()) if case.parts else told
        told = jnp.concatenate(jax.tree.leaves(trainer.readout(trainer.init(given))))
        np.testing.assert_allclose(
            told, jnp.linspace(1.0, 2.0, 5), rtol=0, atol=1e-12, err_msg=name
        )


@pytest.mark.slow
def test_from_every_method_to_every_other_the_parameters_are_carried(x64):
    trainers, told = {}, {}
    problem = twins.quadratic(6, 5, seed=3)
    for name, own in cases.CASES.items():
        case = next(iter(own.values()))
        if not case.parts:
            trainers[name] = on_one(case.make(6), 6)
            state, _ = trainers[name].steps(
                trainers[name].init(jnp.ones(5)), batches(problem, 0, 12)
            )
            told[name] = trainers[name].readout(state)
    for params in told.values():
        for name, after in trainers.items():
            new = after.init(params)
            assert int(new.step) == 0
            np.testing.assert_allclose(after.readout(new), params, rtol=0, atol=1e-12, err_msg=name)
