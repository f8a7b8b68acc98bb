"""With workers away for ever a method is what it is with the others alone, or it says that it can not be."""

import cases
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from cases import asynchronous
from test_conformance import by_default, follow, mesh_of, problem
from test_faults import struck

import jaxdist as jd
from jaxdist import worker
from jaxdist.errors import Refused

W = 6
SPEEDS = np.sqrt(np.linspace(1.0, 11.0, W))
# What a worker keeps for all, or is told of others, is lost with it: not meaningful without it.
REFUSED = {
    ("all_reduce", "error feedback of signs"): "jd.compress.top_k",
    ("all_reduce", "ef21 of top_k"): "jd.compress.error_feedback",
    ("diloco", "ef21 of top_k"): "jd.compress.error_feedback",
    ("sharded_all_reduce", "momentum"): r"jd.all_reduce\(rule\)",
    ("sharded_all_reduce", "leaves"): r"jd.all_reduce\(rule\)",
    ("lbfgs", "wolfe"): r"jd.all_reduce\(optax.lbfgs\(\)\)",
    ("lbfgs", "armijo"): r"jd.all_reduce\(optax.lbfgs\(\)\)",
    ("downpour", "sharded"): 'server="replicated"',
    ("stale_synchronous", "sharded"): 'server="replicated"',
    ("delay_compensated", "sharded"): 'server="replicated"',
    ("gossip", "signs, matching, adapt_then_combine"): "leave the compressor out",
    ("gossip", "signs, matching, combine_while_adapt"): "leave the compressor out",
    ("push_sum", "one way, top_k"): "leave the compressor out",
    ("push_sum", "one-way rounds, delay 3"): "write delay=0",
    ("push_sum", "one-peer, delay 1"): "write delay=0",
    ("choco", "top_k on a ring"): "write jd.gossip",
    ("one_bit_adam", "warm-up of 4"): r"jd.all_reduce\(optax.adam\(0.1\)\)",
    ("relay", "tree"): r"jd.gossip\(rule, topology\)",
    ("relay", "chain"): r"jd.gossip\(rule, topology\)",
    ("relay", "star"): r"jd.gossip\(rule, topology\)",
}
GOES_ON = [one for one in cases.ALL if one not in REFUSED]
# One for each way in which a method can count who is not there: means, votes, sums, numbers of workers in
# a formula, draws of clients, arrivals at a server, messages to neighbors.
BY_DEFAULT = [
    ("all_reduce", "top_k"),
    ("sign_majority", "momentum"),
    ("elastic_averaging", "together"),
    ("block_momentum", "the paper's momentum"),
    ("federated", "prox, by weight"),
    ("downpour", "replicated"),
    ("push_sum", "one way"),
]


def others_of(name):
    """Who is left. Draws of clients go by index: of the others alone they are the same without the last."""
    away = W - 1 if name == "federated" else 2
    return [i for i in range(W) if i != away], [away]


@pytest.fixture
def speeds(monkeypatch):
    """Lets everybody keep its own speed where a clock is made for the others alone."""

    def tell(rest):
        left = {W: SPEEDS, len(rest): SPEEDS[rest]}
        monkeypatch.setattr(asynchronous, "clock", lambda n: jd.clock.speeds(left[n].tolist()))
        asynchronous.arrivals.cache_clear()

    yield tell
    asynchronous.arrivals.cache_clear()


def alone(case, name, data, rest, steps):
    """The twin of the method, run by the others."""
    own = case.twin(len(rest))
    if "shown" in own:  # drawn by index
        own["shown"] = case.twin(W)["shown"][:, rest]
    if "matrix" in own:
        matrix, lost = case.twin(W)["matrix"], np.zeros((W, W), bool)
        there = np.isin(np.arange(W), rest)
        rows = np.allclose(matrix(0).sum(1), 1)
        keeps = "receiver" if rows and name != "push_sum" else "sender"
        own["matrix"] = lambda t: struck(matrix(t), there, lost, keeps=keeps)[np.ix_(rest, rest)]
    left = twins.Problem(data.A[rest], data.b[rest], data.e[:, rest])
    recursion = twins.TWINS[case.recursion or name]
    return recursion(left, steps, np.ones(data.dimension), **own)


@by_default(BY_DEFAULT, GOES_ON)
def test_with_a_worker_away_a_method_is_what_it_is_with_the_others_alone(x64, speeds, name, label):
    case, data = cases.case(name, label), problem(W)
    rest, away = others_of(name)
    speeds(rest)
    algorithm = jd.faulty(case.make(W), jd.faults.workers_lost(away, stop=10**6))
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(2))
    points, readouts = follow(trainer, data, steps=13, parts=case.parts)
    twin = alone(case, name, data, rest, 13)
    np.testing.assert_allclose(points[:, rest], np.stack(twin.points), rtol=0, atol=1e-10)
    # Where rows alone sum to one, mixing moves the mean: of what is kept, the next point, it is read.
    mixed_ahead = "combine_then_adapt" in label
    read = [x.mean(0) for x in twin.points] if mixed_ahead else twin.readout
    np.testing.assert_allclose(readouts, np.stack(read), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "label"), REFUSED)
def test_a_method_that_keeps_something_for_all_refuses_workers_that_are_away(name, label):
    case, lost = cases.case(name, label), jd.faults.workers_lost([2], stop=10**6)
    trainer = jd.execute(jd.faulty(case.make(W), lost), cases.loss, workers=W)
    with pytest.raises(Refused, match=rf"{name} can not .*{REFUSED[name, label]}"):
        trainer.init(cases.start(parts=case.parts))


def pull(x, target, key):
    return jnp.sum((x - target) ** 2), {}


def run(algorithm, targets, steps=8, **options):
    """The readout and the metrics after so many steps."""
    trainer = jd.execute(algorithm, pull, workers=len(targets), mesh=mesh_of(1), **options)
    state, metrics = trainer.init(jnp.zeros(())), {}
    for _ in range(steps):
        state, metrics = trainer.step(state, targets)
    return float(trainer.readout(state)), metrics


TARGETS = np.array([0.0, 1.0, 100.0, 2.0])
REST = [0, 1, 3]
LOST = jd.faults.workers_lost([2], stop=10**6)
CLOCK = {4: jd.clock.speeds([1.0, 1.3, 7.0, 0.45]), 3: jd.clock.speeds([1.0, 1.3, 0.45])}
LATE = {4: jd.clock.speeds([1.0, 1.3, 0.1, 0.45]), 3: CLOCK[3]}
ADAM = optax.adam(0.1)
# The loss over all is seen by rules that ask for it, and what is reported is of those who are there.
REPORTING = {
    "polyak": lambda n: jd.all_reduce(optax.polyak_sgd()),
    "line search": lambda n: jd.all_reduce(optax.lbfgs()),
    "power_sgd": lambda n: jd.all_reduce(ADAM, reducer=jd.compress.power_sgd(1)),
    "random_k": lambda n: jd.all_reduce(ADAM, compressor=jd.compress.random_k(0.5)),
    "noise_scale": lambda n: jd.noise_scale(optax.sgd(0.01)),
    "adascale": lambda n: jd.adascale(optax.sgd(0.01)),
    "downpour": lambda n: jd.downpour(ADAM, clock=CLOCK[n]),
    "stale_synchronous": lambda n: jd.stale_synchronous(ADAM, clock=CLOCK[n], bound=1),
    "elastic_averaging": lambda n: jd.elastic_averaging(
        optax.sgd(0.1), period=1, attraction=0.1, clock=CLOCK[n]
    ),
    "messages": lambda n: jd.event_triggered(optax.sgd(0.01), jd.topology.star(n), threshold=0.0),
    "a clock around": lambda n: jd.timed(jd.all_reduce(ADAM), LATE[n]),
}
SLOW = ("line search", "adascale", "elastic_averaging", "random_k", "stale_synchronous")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in REPORTING]
)
def test_what_is_reported_is_what_the_others_report_alone(x64, standard_promotion, name):
    make = REPORTING[name]
    read, metrics = run(jd.faulty(make(4), LOST), TARGETS)
    own_read, own = run(make(3), TARGETS[REST])
    if name == "messages":  # the weights of a smaller star are others, and so are the points
        own_read, read = own["messages_sent"], metrics["messages_sent"]
    np.testing.assert_allclose(read, own_read, rtol=1e-9)
    for what in set(own) - {"messages_sent"} - ({"loss"} if name == "messages" else set()):
        length = len(np.atleast_1d(own[what]))  # a histogram has bins by the number of workers
        np.testing.assert_allclose(np.atleast_1d(metrics[what])[:length], own[what], rtol=1e-9)


def test_a_clock_around_faults_times_those_who_are_there(x64):
    """As one inside them does."""
    algorithm = jd.faulty(jd.all_reduce(optax.sgd(0.1)), LOST)
    _, metrics = run(algorithm, TARGETS, clock=LATE[4])
    _, alone = run(jd.all_reduce(optax.sgd(0.1)), TARGETS[REST], clock=LATE[3])
    np.testing.assert_allclose(metrics["simulated_seconds"], alone["simulated_seconds"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: jd.all_reduce(optax.sgd(0.1)),
        pytest.param(lambda: jd.downpour(ADAM, clock=CLOCK[4]), marks=pytest.mark.slow),
    ],
)
def test_faults_around_faults_all_strike(x64, standard_promotion, make):
    one, other = ([0], [2])
    lost = [jd.faults.workers_lost(who, stop=10**6) for who in (one, other, one + other)]
    ends = [
        run(jd.faulty(jd.faulty(make(), lost[0]), lost[1]), TARGETS)[0],
        run(jd.faulty(jd.faulty(make(), lost[1]), lost[0]), TARGETS)[0],
        run(jd.faulty(make(), lost[2]), TARGETS)[0],
    ]
    np.testing.assert_allclose(ends, ends[-1], rtol=1e-12)
    assert abs(ends[0] - run(jd.faulty(make(), lost[0]), TARGETS)[0]) > 0.1


def test_lost_links_and_lost_workers_strike_together(x64):
    ring, link = jd.topology.ring(4), jd.faults.link_loss(0.4, seed=1)
    worker = jd.faults.worker_loss(0.3, seed=2)
    gossip = jd.gossip(optax.sgd(0.1), ring)
    one, other = (
        run(jd.faulty(jd.faulty(gossip, a), b), TARGETS)[0]
        for a, b in ((link, worker), (worker, link))
    )
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert abs(one - run(jd.faulty(gossip, worker), TARGETS)[0]) > 1e-3


def test_where_nobody_is_there_nothing_moves_and_the_loss_is_that_of_all(x64):
    half = [jd.faults.workers_lost(who, start=2, stop=5) for who in ([0, 1], [2, 3])]
    algorithm = jd.faulty(jd.faulty(jd.all_reduce(optax.sgd(0.1, momentum=0.5)), half[0]), half[1])
    trainer = jd.execute(algorithm, pull, workers=4)
    state, points = trainer.init(jnp.zeros(())), []
    for _ in range(6):
        points.append(float(trainer.readout(state)))
        state, metrics = trainer.step(state, TARGETS)
        np.testing.assert_allclose(metrics["loss"], ((points[-1] - TARGETS) ** 2).mean())
    assert points[2] == points[3] == points[4] == points[5] != float(trainer.readout(state))


def test_faults_that_leave_nobody_for_ever_are_refused():
    lost = jd.faults.workers_lost([0, 1]), jd.faults.workers_lost([2, 3])
    algorithm = jd.faulty(jd.faulty(jd.all_reduce(optax.sgd(0.1)), lost[0]), lost[1])
    with pytest.raises(Refused, match=r"\[0, 1, 2, 3\] never come back.*name fewer"):
        run(algorithm, TARGETS)


def test_a_method_of_ones_own_counts_only_those_who_are_there(x64):
    def update(grads, state, *, key, value, objective):
        total, scattered = worker.total(grads), worker.scatter(jnp.full(4, 1.0) * grads)
        mean = worker.mean(grads)
        return jd.State(state.step + 1, (mean, total, jnp.asarray(worker.headcount())), scattered)

    algorithm = jd.Algorithm(
        init=lambda x: jd.State(jnp.int32(0), (x, x, jnp.asarray(worker.count(), jnp.int32)),
                                worker.vary(jnp.zeros(1))),
        gradient_at=lambda state: 0 * state.shared[0],
        update=update,
        readout=lambda state: state.shared[0],
    )  # fmt: skip
    for devices in (1, 2):
        trainer = jd.execute(jd.faulty(algorithm, LOST), pull, workers=4, mesh=mesh_of(devices))
        state, _ = trainer.step(trainer.init(jnp.zeros(())), TARGETS)
        assert [float(x) for x in state.shared] == [-2.0, -6.0, 3.0]
        np.testing.assert_allclose(np.ravel(state.local)[REST], -6.0)


def test_who_comes_back_to_a_bounded_server_is_one_of_the_slowest_and_holds_nobody_up(x64):
    clock, bound = jd.clock.constant(3), 1
    times, counts = clock.start(), []
    for t in range(60):
        there = jnp.asarray([True, True, not 5 <= t < 40])
        tick, times = clock.tick(times, bound=bound, alive=there)
        counts.append(np.asarray(times.counts))
        assert not (np.asarray(tick.active) & ~np.asarray(there)).any()
        assert np.asarray(tick.active).any()
    assert np.ptp(counts[-1]) <= bound + 1
    assert counts[-1].min() > 50
