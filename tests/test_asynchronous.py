"""Laws of stale workers: order of arrival, staleness, stability bounds, idle devices, a sharded server."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import loss
from hypothesis import given, settings
from hypothesis import strategies as st
from test_conformance import batch, mesh_of, problem, trajectory

import jaxdist as jd


def bowl(x, batch, key):
    """x^2 / 2: curvature one."""
    return 0.5 * jnp.sum(x**2), {}


def after(algorithm, steps, *, workers, loss=bowl, start=1.0):
    """The readout after so many steps, and the metrics of all of them."""
    trainer = jd.execute(algorithm, loss, workers=workers, mesh=mesh_of(1))
    state = trainer.init(jnp.full((), start))
    state, metrics = trainer.steps(state, jnp.zeros((steps, workers)))
    return float(trainer.readout(state)), metrics


def equal_paths(reference, *others, workers, devices=2, steps=10):
    data = problem(workers)
    expected = trajectory(reference, data, devices=devices, steps=steps)[1]
    for other in others:
        path = trajectory(other, data, devices=devices, steps=steps)[1]
        np.testing.assert_allclose(path, expected, rtol=0, atol=1e-10)


# ------------------------------------------------------------------------------ what it reduces to


def test_a_bound_of_zero_and_a_delay_of_zero_are_all_reduce(x64):
    # W pushes of gradients taken at one point: a learning rate of 0.1 in total.
    push = optax.sgd(0.1 / 4)
    equal_paths(
        jd.all_reduce(optax.sgd(0.1)),
        jd.delayed(optax.sgd(0.1), delay=0),
        *(
            jd.stale_synchronous(push, clock=clock, bound=0)
            for clock in (
                jd.clock.constant(4),
                jd.clock.lognormal(4, sigma=1.0, seed=3),
                jd.clock.speeds([4.0, 1.0, 2.0, 0.25]),
            )
        ),
        workers=4,
    )


@pytest.mark.slow
def test_without_their_terms_they_are_downpour(x64):
    rule, clock = optax.adagrad(0.1), jd.clock.speeds([4.0, 1.0, 2.3, 0.7])
    equal_paths(
        jd.downpour(rule, clock=clock),
        jd.delay_compensated(rule, clock=clock, strength=0.0),
        jd.hogwild(rule, clock=clock, missed=0.0),
        jd.stale_synchronous(rule, clock=clock, bound=1000),
        workers=4,
    )


@pytest.mark.slow
def test_one_worker_alone_is_its_inner_rule(x64):
    rule, clock = optax.sgd(0.1, momentum=0.9), jd.clock.constant(1)
    equal_paths(
        jd.all_reduce(rule),
        jd.downpour(rule, clock=clock),
        jd.downpour(rule, clock=clock, server="sharded"),
        jd.pairwise(rule, jd.topology.ring(1), clock=clock),
        workers=1,
        devices=1,
    )


@pytest.mark.slow
def test_pairs_that_are_always_ready_are_gossip(x64):
    rule, pairs = optax.sgd(0.1, momentum=0.5), jd.topology.random_matching(4, 3, seed=0)
    equal_paths(
        jd.gossip(rule, pairs, order="combine_while_adapt"),
        jd.pairwise(rule, pairs, clock=jd.clock.constant(4)),
        workers=4,
    )


# --------------------------------------------------------------------------------------- stability


@pytest.mark.parametrize("delay", [0, 5])
def test_delayed_is_stable_up_to_the_known_learning_rate(x64, delay):
    edge = 2 * np.sin(np.pi / (2 * (2 * delay + 1)))
    ends = [
        after(jd.delayed(optax.sgd(c * edge), delay=delay), 5000, workers=1)[0]
        for c in (0.98, 1.02)
    ]
    assert abs(ends[0]) < 1e-3
    assert abs(ends[1]) > 1e3


@pytest.mark.parametrize("rate", [0.5, pytest.param(1.5, marks=pytest.mark.slow)])
def test_elastic_averaging_is_stable_up_to_the_known_attraction(x64, rate):
    W = 4
    together = (4 - 2 * rate) / (2 + 2 * W - W * rate)
    in_turn = (4 - 2 * rate) / (4 - rate)
    for edge, clock in ((together, None), (in_turn, jd.clock.constant(W))):
        ends = [
            after(
                jd.elastic_averaging(optax.sgd(rate), period=1, attraction=c * edge, clock=clock),
                3000,
                workers=W,
            )[0]
            for c in (0.98, 1.02)
        ]
        assert abs(ends[0]) < 1e-3
        assert not abs(ends[1]) < 1e3


# -------------------------------------------------------------------------- order, staleness, bound


def events(seconds, *, bound=None):
    """One event after another: yields worker, moment, staleness of the push and lead when it began.

    `seconds[i][k % len]` is how long gradient k of worker i takes. Nothing here knows of ticks.
    """
    W = len(seconds)
    counts, version, copies, lead = [0] * W, 0, [0] * W, [0] * W
    finish = [seconds[i][0] for i in range(W)]
    while True:
        i = min(range(W), key=lambda j: (finish[j], j))
        now = finish[i]
        yield i, now, version - copies[i], lead[i]
        version, counts[i], finish[i] = version + 1, counts[i] + 1, np.inf
        for j in range(W):
            ahead = counts[j] - min(counts)
            if finish[j] == np.inf and (bound is None or ahead <= bound):
                copies[j], lead[j] = version, ahead
                finish[j] = now + seconds[j][counts[j] % len(seconds[j])]


def table(seconds):
    """A clock that goes through a table of durations."""
    rows = np.array(seconds)

    def of(count, start):
        rows_ = jnp.asarray(rows, start.dtype)
        return jnp.take_along_axis(rows_, (count % rows.shape[1])[:, None], 1)[:, 0]

    return jd.clock.Clock(len(rows), "table", of)


# Eighths add up without rounding, so that ties are ties; a slow gradient takes 200 fast ones.
DURATIONS = st.lists(
    st.lists(st.sampled_from([0.125, 0.25, 0.375, 1.0, 1.125, 25.0]), min_size=4, max_size=4),
    min_size=3,
    max_size=3,
)


@settings(max_examples=4)
@given(DURATIONS, st.sampled_from([None, 0, 1, 2]))
def test_arrivals_are_those_of_the_event_queue_and_nobody_leads_by_more(seconds, bound):
    clock, steps, W = table(seconds), 25, 3
    rule = optax.sgd(1e-3)
    if bound is None:
        algorithm = jd.downpour(rule, clock=clock)
    else:
        algorithm = jd.stale_synchronous(rule, clock=clock, bound=bound)
    _, metrics = after(algorithm, steps, workers=W)
    histogram, queue = np.zeros(4 * W, int), events(seconds, bound=bound)
    for t in range(steps):
        while histogram.sum() < metrics["server_version"][t]:
            _, now, stale, lead = next(queue)
            histogram[min(stale, 4 * W - 1)] += 1
            assert bound is None or lead <= bound
            assert bound is None or stale <= (W - 1) * (2 * bound + 1)
        np.testing.assert_array_equal(metrics["staleness"][t], histogram)
        assert metrics["simulated_seconds"][t] == pytest.approx(now, rel=1e-6)
    assert histogram.sum() >= steps


def test_workers_of_equal_speed_are_stale_by_all_others():
    W, steps = 4, 50
    _, metrics = after(jd.downpour(optax.sgd(0.01), clock=jd.clock.constant(W)), steps, workers=W)
    expected = np.zeros(4 * W, int)
    expected[: W - 1] = 1  # the first round: 0, 1, 2 and 3 pushes came before
    expected[W - 1] = 1 + W * (steps - 1)
    np.testing.assert_array_equal(metrics["staleness"][-1], expected)
    assert metrics["server_version"][-1] == W * steps
    assert metrics["simulated_seconds"][-1] == steps
    mean = (expected * np.arange(4 * W)).sum() / (W * steps)
    assert metrics["mean_staleness"][-1] == pytest.approx(mean)


def test_a_slow_worker_holds_up_nobody_but_under_a_bound_everybody():
    clock, rule = jd.clock.speeds([1.0, 1.0, 1.0, 0.25]), optax.sgd(0.01)
    for algorithm, a_step in (
        (jd.pairwise(rule, jd.topology.ring(4), clock=clock), 1.0),
        (jd.stale_synchronous(rule, clock=clock, bound=0), 4.0),
    ):
        _, metrics = after(algorithm, 40, workers=4)
        assert metrics["simulated_seconds"][-1] == pytest.approx(40 * a_step)


# --------------------------------------------------------------------- idle devices, sharded server


def wavy(x, batch, key):
    """Only its gradient holds a cosine."""
    return jnp.sum(jnp.sin(x) * batch), {}


def unconditional(text):
    """The lines of optimized HLO that run always: reached from the entry without a conditional."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    (entry,) = re.findall(r"^ENTRY %?([\w.\-]+)", text, re.M)
    seen, queue = set(), [entry]
    while queue:
        name = queue.pop()
        if name not in seen and name in bodies:
            seen.add(name)
            for line in bodies[name].splitlines():
                if " conditional(" not in line:
                    queue += re.findall(r"%([\w.\-]+)", line)
    return [line for name in seen for line in bodies[name].splitlines()]


@pytest.mark.parametrize("devices", [8, 4])
def test_an_idle_worker_with_a_device_of_its_own_computes_no_gradient(devices):
    algorithm = jd.downpour(optax.sgd(0.1), clock=jd.clock.constant(8))
    trainer = jd.execute(algorithm, wavy, workers=8, mesh=mesh_of(devices))
    state = trainer.init(jnp.ones(300))
    text = trainer.compiled.lower(state, jnp.ones((8, 300))).compile().as_text()
    assert " cosine(" in text
    always = any(" cosine(" in line for line in unconditional(text))
    assert always == (devices < 8)  # with lanes it is computed and masked


def test_a_sharded_server_takes_less_of_every_device():
    W, n = 8, 40_000
    clock, sizes, kinds = jd.clock.constant(W), {}, {}
    for server in ("replicated", "sharded"):
        algorithm = jd.downpour(optax.adagrad(0.1), clock=clock, server=server)
        trainer = jd.execute(algorithm, bowl, workers=W)
        lowered = trainer.compiled.lower(trainer.init(jnp.ones(n)), jnp.ones((W, 1)))
        kinds[server] = {c.kind for c in jd.audit.collectives(lowered) if c.bytes > 4}
        sizes[server] = lowered.compile().memory_analysis()
    assert kinds == {"replicated": {"all_gather"}, "sharded": {"all_to_all"}}
    whole, shared = sizes["replicated"], sizes["sharded"]
    # State: server and sum of squares, 2 n, become 2 n / W; everybody's copy stays.
    saved = whole.argument_size_in_bytes - shared.argument_size_in_bytes
    assert saved == 4 * 2 * n * (W - 1) // W
    # On the way: W n for everybody's push against n.
    assert whole.temp_size_in_bytes > 4 * W * n
    assert shared.temp_size_in_bytes < whole.temp_size_in_bytes / 2


@pytest.mark.slow
def test_a_sharded_server_takes_any_pytree(x64):
    def two(params, batch, key):
        return loss(params["w"].ravel()[:5] + params["b"].astype(jnp.float64), batch, key)

    data, clock = problem(4), jd.clock.speeds([4.0, 1.0, 2.3, 0.7])
    ends = []
    for server in ("replicated", "sharded"):
        algorithm = jd.downpour(optax.sgd(0.05), clock=clock, server=server)
        trainer = jd.execute(algorithm, two, workers=4, mesh=mesh_of(2))
        state = trainer.init({"w": jnp.ones((3, 2)), "b": jnp.ones((), jnp.float32)})
        for t in range(6):
            state, _ = trainer.step(state, batch(data, t, np.float64))
        ends.append(trainer.readout(state))
    assert ends[0]["w"].shape == (3, 2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ends)
    assert np.abs(ends[0]["w"] - 1).max() > 0.1


# --------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jd.downpour(optax.sgd(0.1), clock=1.0), "clock=jd.clock.speeds"),
        (lambda: jd.downpour(optax.sgd(0.1), clock=CLOCK, push_every=0), "push_every=0"),
        (lambda: jd.downpour(optax.sgd(0.1), clock=CLOCK, server="split"), "replicated, sharded"),
        (lambda: jd.stale_synchronous(optax.sgd(0.1), clock=CLOCK, bound=-1), "bound=-1"),
        (lambda: jd.delay_compensated(optax.sgd(0.1), clock=CLOCK, strength=-1), "strength=-1"),
        (lambda: jd.hogwild(optax.sgd(0.1), clock=CLOCK, missed=1.0), "missed=1.0"),
        (lambda: jd.elastic_averaging(optax.sgd(0.1), period=1, attraction=2), "attraction=2"),
        (lambda: jd.delayed(optax.sgd(0.1), delay=-1), "delay=-1"),
        (
            lambda: jd.pairwise(optax.sgd(0.1), jd.topology.one_peer_exponential(4), clock=CLOCK),
            "random_matching",
        ),
        (
            lambda: jd.downpour(
                optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1)),
                clock=CLOCK,
                server="sharded",
            ),
            "elementwise",
        ),
        (lambda: after(jd.downpour(optax.sgd(0.1), clock=CLOCK), 1, workers=2), "times 4 workers"),
    ],
)
def test_what_cannot_work_is_refused_with_the_line_to_write(make, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        make()


CLOCK = jd.clock.constant(4)


@pytest.mark.parametrize(
    "rule",
    [optax.sgd(0.1, momentum=0.9), optax.adagrad(0.1), optax.adam(0.1), optax.lion(0.1)],
    ids=["momentum", "adagrad", "adam", "lion"],
)
def test_elementwise_rules_are_let_through_by_a_sharded_server(rule):
    jd.downpour(rule, clock=CLOCK, server="sharded")
