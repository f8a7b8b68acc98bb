"""Simulated seconds of synchronous methods are those of a discrete-event simulation with messages."""

import math

import cases
import discrete_event
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdist as jd
from jaxdist import elapsed, network
from jaxdist.network import PRESETS, Network

LINK = Network("slow", latency_seconds=0.25, bytes_per_second=80.0, source="20 bytes: 0.25 s")
PARAMS = np.ones(5, np.float32)  # 20 bytes
SGD = optax.sgd(0.1)


def loss(x, batch, key):
    return jnp.sum((x - batch) ** 2), {}


def simulated(algorithm, clock, link, steps, *, devices=1):
    """metrics["simulated_seconds"] of every step, and the last state."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))
    trainer = jd.execute(algorithm, loss, workers=clock.size, mesh=mesh, clock=clock, network=link)
    state = trainer.init(PARAMS)
    batches = jnp.ones((steps, clock.size, 5), jnp.float32)
    state, metrics = trainer.steps(state, batches)
    return np.asarray(metrics["simulated_seconds"]), state


def everyone(met):
    def partners(workers):
        alone, all_others = [[]] * workers, [list(range(workers))] * workers
        return lambda step: all_others if met(step) else alone

    return partners


def listening(topology, ahead=0):
    def partners(step):
        # An exchange begins when both ends are there: one's own messages have to leave as well.
        return [[*others, i] for i, others in enumerate(topology.neighbors(step + ahead))]

    return lambda workers: partners


RING, ONE_PEER = jd.topology.ring(6), jd.topology.one_peer_exponential(6)
STAR = jd.topology.star(6)
MATCHING = jd.topology.random_matching(6, 3, seed=0)


def gossip_cost(topology):
    def cost(step, worker):
        heard = topology.neighbors(step)
        degree = max(len(heard[worker]), sum(worker in others for others in heard))
        return network.neighbor_exchange(LINK, 20, degree)

    return cost


ALL_REDUCE = network.all_reduce(LINK, 20, 6)
METHODS = {
    "all_reduce": (jd.all_reduce(SGD), everyone(lambda t: True), lambda t, w: ALL_REDUCE, False),
    "local_sgd": (
        jd.local_sgd(SGD, period=4, start=3),
        everyone(lambda t: t < 3 or (t + 1) % 4 == 0),
        lambda t, w: ALL_REDUCE * (t < 3 or (t + 1) % 4 == 0),
        False,
    ),
    "diloco": (
        jd.diloco(SGD, SGD, period=5),
        everyone(lambda t: (t + 1) % 5 == 0),
        lambda t, w: ALL_REDUCE * ((t + 1) % 5 == 0),
        False,
    ),
    "ring": (jd.gossip(SGD, RING), listening(RING), gossip_cost(RING), False),
    "star": (jd.gossip(SGD, STAR), listening(STAR), gossip_cost(STAR), False),
    "one_peer": (jd.gossip(SGD, ONE_PEER), listening(ONE_PEER), gossip_cost(ONE_PEER), False),
    "matching": (jd.gossip(SGD, MATCHING), listening(MATCHING), gossip_cost(MATCHING), False),
    "ahead": (
        jd.gossip(SGD, ONE_PEER, order="combine_then_adapt"),
        listening(ONE_PEER, 1),
        gossip_cost(ONE_PEER),
        False,
    ),
    "overlapping": (
        jd.gossip(SGD, RING, order="combine_while_adapt"),
        listening(RING),
        gossip_cost(RING),
        True,
    ),
}
TABLE = np.random.default_rng(0).integers(1, 40, (7, 6)) / 8


def table_clock(table):
    rows, workers = table.shape
    index = jnp.arange(workers, dtype=jnp.int32)

    def seconds(count, start):
        return jnp.asarray(table, start.dtype)[count % rows, index]

    return jd.clock.Clock(workers, "table", seconds)


def of_table(table):
    return lambda worker, number, start: float(table[number % len(table)][worker])


def ends(algorithm, clock, link, steps):
    """When every worker is through with every step, [steps, W], without training anything."""
    zero = jnp.zeros(())
    start = elapsed.Elapsed(zero, jnp.zeros(clock.size), zero)

    def one(before, step):
        after = elapsed.advance(algorithm, clock, link, PARAMS, step, before)
        return after, after.now + after.lag

    return jax.lax.scan(one, start, jnp.arange(steps, dtype=jnp.int32))[1]


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("link", [None, LINK], ids=["free", "slow"])
def test_seconds_are_those_of_the_discrete_event_simulation(x64, name, link):
    algorithm, partners, cost, early = METHODS[name]
    got = ends(algorithm, table_clock(TABLE), link, 17)
    want = discrete_event.finishes(
        of_table(TABLE),
        partners(6),
        cost if link else lambda step, worker: 0.0,
        workers=6,
        steps=17,
        early=early,
    )
    np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.parametrize("name", ["local_sgd", "one_peer"])
def test_a_run_reports_them(name):
    algorithm, clock = METHODS[name][0], table_clock(TABLE)
    seconds, state = simulated(algorithm, clock, LINK, 9, devices=2)
    every = ends(algorithm, clock, LINK, 9)
    np.testing.assert_allclose(seconds, every.max(1), rtol=1e-6)
    # What is shared has the last step of everybody, for whoever resumes it.
    now, lag, _ = state.shared[1]
    np.testing.assert_allclose(now + lag, every[-1], rtol=1e-6)


ROUNDS = [jd.topology.ring(4), jd.topology.path(4), jd.topology.one_peer_exponential(4)]


@pytest.mark.parametrize("topology", ROUNDS, ids=["ring", "path", "one_peer"])
@pytest.mark.parametrize("order", ["combine_while_adapt", "adapt_then_combine"])
def test_gossip_waits_for_its_neighbors_and_nobody_else(topology, order):
    algorithm = jd.gossip(SGD, topology, order=order)
    run = jax.jit(lambda table: ends(algorithm, table_clock(table), None, 8))

    @settings(max_examples=25)
    @given(st.lists(st.sampled_from([1, 2, 8, 24, 800]), min_size=12, max_size=12))
    def law(eighths):
        table = np.asarray(eighths, np.float32).reshape(3, 4) / 8
        want = discrete_event.finishes(
            of_table(table),
            topology.neighbors,
            lambda t, w: 0.0,
            workers=4,
            steps=8,
            early=order == "combine_while_adapt",
        )
        # Eighths of a second are exact.
        assert run(table).tolist() == want

    law()


def test_stragglers_hold_up_all_reduce_more_than_neighbors_or_local_steps():
    clock = jd.clock.lognormal(8, sigma=1.0, seed=0)
    together = ends(jd.all_reduce(SGD), clock, None, 32)[-1].max()
    around = ends(jd.gossip(SGD, jd.topology.ring(8)), clock, None, 32)[-1].max()
    apart = ends(jd.local_sgd(SGD, period=8), clock, None, 32)[-1].max()
    assert max(around, apart) < together
    in_turn = jd.clock.periodic_straggler(8, factor=10.0, every=8)
    # Somebody is slow at every step; everybody is slow once in eight steps.
    assert ends(jd.all_reduce(SGD), in_turn, None, 32)[-1].max() == 32 * 10
    assert ends(jd.local_sgd(SGD, period=8), in_turn, None, 32)[-1].max() == 4 * (7 + 10)
    # In turn, and by chance in the order of the ring: what is late is handed on for ever.
    assert ends(jd.gossip(SGD, jd.topology.ring(8)), in_turn, None, 32)[-1].max() == 32 * 10


def test_a_worker_that_stops_for_ever_stops_those_who_wait_for_it():
    clock = jd.clock.failures(jd.clock.constant(4), [(0, 2.5, math.inf)])
    every = ends(jd.all_reduce(SGD), clock, None, 6)
    assert every.max(1).tolist() == [1.0, 2.0, *[math.inf] * 4]
    every = ends(jd.gossip(SGD, jd.topology.path(4)), clock, None, 4)
    stopped = [[0] * 4, [0] * 4, [1, 1, 0, 0], [1, 1, 1, 0]]
    assert np.isinf(every).tolist() == [[bool(x) for x in row] for row in stopped]
    assert every[3, 3] == 4.0


def test_what_a_method_computes_and_sends_is_what_it_was():
    algorithm, clock = METHODS["ring"][0], jd.clock.lognormal(6, sigma=1.0, seed=0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:3]), ("worker",))
    batch = {"A": np.tile(np.eye(5, dtype=np.float32), (6, 1, 1))}
    batch["b"] = np.arange(30, dtype=np.float32).reshape(6, 5)
    points, sent, seconds = [], [], []
    for options in ({}, {"clock": clock, "network": PRESETS["ethernet_1g"]}):
        trainer = jd.execute(algorithm, cases.loss, workers=6, mesh=mesh, **options)
        state = trainer.init(PARAMS)
        lowered = trainer.compiled.lower(state, batch)
        sent.append(jd.audit.bytes_by_branch(jd.audit.collectives(lowered)))
        for _ in range(5):
            state, metrics = trainer.step(state, batch)
        points.append(np.asarray(trainer.gradient_at(state)))
        seconds.append(metrics.get("simulated_seconds"))
        assert trainer.compiled._cache_size() == 1
    np.testing.assert_array_equal(*points)
    assert sent[0] == sent[1]
    assert seconds[0] is None
    assert seconds[1] > 5


def test_more_bandwidth_and_less_latency_take_less_time():
    clock, rule = jd.clock.constant(6), jd.all_reduce(SGD)
    links = [PRESETS["home_uplink"], PRESETS["ethernet_1g"], PRESETS["nvlink4"], None]
    last = [ends(rule, clock, link, 3)[-1].max() for link in links]
    assert last == sorted(last, reverse=True)
    assert last[0] > last[1]
    assert last[-1] == 3.0


def test_mistakes_are_refused_with_the_line_to_write():
    clock, rule = jd.clock.constant(4), jd.all_reduce(SGD)
    with pytest.raises(ValueError, match=r"clock of 2, or workers=4"):
        jd.execute(rule, loss, workers=2, clock=clock)
    with pytest.raises(ValueError, match=r"write clock=jd\.clock\.constant"):
        jd.execute(rule, loss, workers=4, network=LINK)
    with pytest.raises(ValueError, match=r"clock=3 is not a clock"):
        jd.execute(rule, loss, workers=4, clock=3)
    with pytest.raises(ValueError, match=r"network='ethernet_10g' is not a network"):
        jd.timed(rule, clock, "ethernet_10g")
    with pytest.raises(ValueError, match=r"waits=jaxdist\.waiting\.everyone"):
        jd.timed(rule._replace(waits=None), clock)
    with pytest.raises(ValueError, match=r"sends="):
        jd.timed(rule._replace(sends=None), clock, LINK)
