"""Clocks are held to a discrete-event simulation: same arrivals, order, staleness, seconds."""

import json
import math
from functools import partial

import discrete_event
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdist as jd

ROWS, TICKS = 4, 24


@partial(jax.jit, static_argnums=2)
def ticks(table, bound, many):
    """Ticks of a clock whose durations are a table [T, W], stacked."""
    rows, workers = table.shape
    index = jnp.arange(workers, dtype=jnp.int32)
    clock = jd.clock.Clock(workers, "table", lambda count, start: table[count % rows, index])

    def one(times, _):
        tick, times = clock.tick(times, bound=bound)
        return times, (tick, times)

    return jax.lax.scan(one, clock.start(), length=many)[1]


def arrivals(many):
    """All deliveries of stacked ticks, one after the other."""
    tick, times = jax.tree.map(np.asarray, many)
    workers, got = tick.active.shape[1], []
    number, seen = [0] * workers, [0] * workers
    for t in range(len(tick.active)):
        before = len(got)
        assert sorted(tick.rank[t][tick.active[t]]) == list(range(tick.active[t].sum()))
        for i in np.argsort(tick.rank[t])[: tick.active[t].sum()].tolist():
            got.append(discrete_event.Delivery(tick.at[t, i].item(), i, number[i], seen[i]))
            number[i] += 1
        for i in np.flatnonzero(tick.begins[t] < workers):
            seen[i] = before + int(tick.begins[t, i]) + 1
        assert times.counts[t].tolist() == number
        assert not tick.active[t].any() or times.now[t] == tick.at[t].max()
    return got


def of_table(table):
    return lambda worker, number, start: float(table[number % len(table)][worker])


def tables(durations):
    workers = st.sampled_from([2, 5])
    return workers.flatmap(
        lambda w: st.lists(
            st.lists(durations, min_size=w, max_size=w), min_size=ROWS, max_size=ROWS
        )
    )


BOUNDS = st.sampled_from([None, 0, 1, 3])
# Eighths of a second are exact in float32, and so few of them that many arrive at once.
EIGHTHS = st.sampled_from([1, 2, 3, 4, 8, 24, 800]).map(lambda n: n / 8)


@settings(max_examples=150)
@given(tables(EIGHTHS), BOUNDS)
def test_ticks_are_the_discrete_event_simulation_exactly_ties_included(table, bound):
    got = arrivals(ticks(jnp.asarray(table, jnp.float32), bound, TICKS))
    workers = len(table[0])
    assert got == discrete_event.deliveries(of_table(table), workers, len(got), bound=bound)
    assert len(got) >= TICKS  # at least one in every tick


@settings(max_examples=100)
@given(tables(st.floats(1e-3, 1e3)), BOUNDS)
def test_ticks_are_the_discrete_event_simulation_for_any_durations(table, bound):
    with jax.enable_x64(True):
        many = ticks(jnp.asarray(table, jnp.float64), bound, TICKS)
        got = arrivals(many)
    workers = len(table[0])
    want = discrete_event.deliveries(of_table(table), workers, len(got) + workers, bound=bound)
    # Sums of at most 24 * 5 numbers in another order: each rounds by 1e-16 of at most 1e5 seconds.
    for i in range(workers):
        mine = [d.seconds for d in got if d.worker == i]
        theirs = [d.seconds for d in want if d.worker == i][: len(mine)]
        np.testing.assert_allclose(mine, theirs, rtol=1e-12, atol=1e-9)
    gaps = np.diff([d.seconds for d in want])
    if (gaps > 1e-6).all():
        assert [d[1:] for d in got] == [d[1:] for d in want[: len(got)]]


def test_a_lead_never_exceeds_its_bound_and_reaches_it():
    table = jnp.asarray([[1.0, 3.0, 10.0]] * ROWS)
    for bound in (0, 1, 2, 5):
        _, times = ticks(table, bound, 60)
        leads = np.asarray(times.counts).max(1) - np.asarray(times.counts).min(1)
        # One more is delivered than may lead: the next is not begun. Under 0 all deliver at once.
        assert leads.max() == (bound + 1 if bound else 0)
    everybody, _ = ticks(table, 0, 10)
    assert everybody.active.all()


def test_nobody_waits_without_a_bound():
    tick, times = ticks(jnp.asarray([[1.0, 4.0]] * ROWS), None, 8)
    assert times.counts[-1].tolist() == [8, 2]
    assert tick.active[:, 0].all()


def test_a_million_steps_of_a_tenth_of_a_second_stay_right():
    clock = jd.clock.constant(2, seconds=0.1)

    @jax.jit
    def run():
        return jax.lax.fori_loop(0, 200_000, lambda _, at: clock.tick(at)[1], clock.start())

    # float32 holds 20 000 s to 2 ms; a plain sum would be a hundred seconds off.
    assert abs(run().now.item() - 200_000 * np.float32(0.1)) < 2e-3


CLOCKS = {
    "constant": jd.clock.constant(3, seconds=0.5),
    "speeds": jd.clock.speeds([1.0, 0.7123, 2.917]),
    "lognormal": jd.clock.lognormal(3, mean_seconds=2.0, sigma=1.0, seed=7),
    "exponential_tail": jd.clock.exponential_tail(3, least_seconds=0.3, tail_seconds=2.0, seed=1),
    "periodic_straggler": jd.clock.periodic_straggler(3, factor=7.0, every=4),
    "with_messages": jd.clock.with_messages(jd.clock.speeds([1.0, 0.7123, 2.917]), 0.25),
}
WINDOWS = [(0, 0.25, 2.0), (0, 5.0, 5.5), (1, 3.0, 9.0), (2, 4.0, math.inf)]


def run_clock(clock, many=TICKS):
    step = jax.jit(clock.tick)
    times, seen = clock.start(), []
    for _ in range(many):
        tick, times = step(times)
        seen.append((tick, times))
    return jax.tree.map(lambda *x: jnp.stack(x), *seen)


@pytest.mark.parametrize("name", CLOCKS)
def test_every_clock_runs_as_the_simulation_of_its_own_durations(x64, name):
    clock = CLOCKS[name]
    draw = jax.jit(clock.seconds)
    numbers = [draw(jnp.full(3, n, jnp.int32), jnp.zeros(3)).tolist() for n in range(TICKS + 2)]
    got = arrivals(run_clock(clock))
    want = discrete_event.deliveries(lambda w, n, _: numbers[n][w], 3, len(got))
    assert [d[1:] for d in got] == [d[1:] for d in want]
    np.testing.assert_allclose([d.seconds for d in got], [d.seconds for d in want], rtol=1e-12)


def paused(work, start, windows):
    """Second by second, in 64ths: work is done only outside the windows."""
    now, left = start, work
    while left > 0:
        if now == math.inf or any(a <= now and b == math.inf for a, b in windows):
            return math.inf
        if not any(a <= now < b for a, b in windows):
            left -= 1 / 64
        now += 1 / 64
    return now - start


def failed(work, start, windows):
    """Attempts one after the other, until none of the windows touches it."""
    begun = start
    while True:
        hit = [b for a, b in windows if a < begun + work and b > begun]
        if not hit:
            return begun + work - start
        begun = min(hit)
        if begun == math.inf:
            return math.inf


@pytest.mark.parametrize(("make", "rule"), [("pauses", paused), ("failures", failed)])
def test_pauses_and_failures_follow_their_windows(make, rule):
    clock = getattr(jd.clock, make)(jd.clock.speeds([1.0, 2.0, 4.0]), WINDOWS)
    own = [[(a, b) for w, a, b in WINDOWS if w == i] for i in range(3)]
    got = arrivals(run_clock(clock, 30))
    takes = [1.0, 0.5, 0.25]
    want = discrete_event.deliveries(lambda w, n, now: rule(takes[w], now, own[w]), 3, len(got))
    assert got == want
    assert max(d.number for d in got if d.worker == 2) == 15  # it stopped for ever at 4 seconds


def test_nobody_delivers_once_all_have_stopped():
    clock = jd.clock.failures(jd.clock.constant(2), [(0, 0.5, math.inf), (1, 2.5, math.inf)])
    tick, times = run_clock(clock, 6)
    assert np.asarray(tick.active).sum(0).tolist() == [0, 2]
    assert times.now[-1] == 2.0


def test_durations_depend_on_seed_worker_and_count_only():
    def made(seed):
        return jd.clock.lognormal(4, sigma=1.0, seed=seed).seconds

    count, start = jnp.asarray([0, 0, 5, 5], jnp.int32), jnp.zeros(4)
    a, b = made(0)(count, start), made(0)(count, start + 100.0)
    assert (a == b).all()
    assert len(set(a.tolist())) == 4
    assert not (a == made(1)(count, start)).any()
    many = made(0)(jnp.arange(4, dtype=jnp.int32)[::-1], start)
    assert many[0] != many[3]


def test_random_durations_have_the_mean_they_promise():
    count = jnp.zeros(20_000, jnp.int32)
    lognormal = jd.clock.lognormal(20_000, mean_seconds=3.0, sigma=0.5, seed=0)
    tail = jd.clock.exponential_tail(20_000, least_seconds=1.0, tail_seconds=2.0, seed=0)
    for clock in (lognormal, tail):
        mean = clock.seconds(count, jnp.zeros(20_000)).mean()
        assert abs(mean - 3.0) < 5 * 2.0 / 20_000**0.5  # five standard errors


@pytest.mark.parametrize("kind", ["csv", "json", "npy"])
def test_a_recorded_trace_is_read_and_repeated(tmp_path, kind):
    table = [[1.0, 2.0], [0.5, 3.0], [1.0, 1.0]]
    file = tmp_path / f"trace.{kind}"
    if kind == "npy":
        np.save(file, np.asarray(table))
    elif kind == "json":
        file.write_text(json.dumps(table))
    else:
        file.write_text("\n".join(",".join(map(str, row)) for row in table))
    got = arrivals(run_clock(jd.clock.recorded(file)))
    assert got == discrete_event.deliveries(of_table(table), 2, len(got))


BAD = {
    "ragged.json": "[[1.0, 2.0], [1.0]]",
    "words.json": '[["1.0"]]',
    "flat.json": "[1.0, 2.0]",
    "empty.json": "[]",
    "cut.json": "[[1.0",
    "deep.json": "[" * 100_000,
    "zero.csv": "1.0,0.0",
    "below.csv": "1.0,-2.0",
    "nan.csv": "1.0,nan",
    "endless.json": "[[Infinity]]",
    "empty.csv": "",
    "head.csv": "a,b\n1.0,2.0",
    "cut.npy": "\x93NUMPY",
    "trace.txt": "1.0",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_traces_are_refused_by_name_with_the_cure(tmp_path, name):
    file = tmp_path / name
    file.write_text(BAD[name], "latin-1")
    with pytest.raises(ValueError, match=rf"{name}.*(write|rename)"):
        jd.clock.recorded(file)


def test_large_missing_and_dishonest_traces_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no such file"):
        jd.clock.recorded(tmp_path / "none.json")
    np.save(tmp_path / "objects.npy", np.asarray([[{}]], object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        jd.clock.recorded(tmp_path / "objects.npy")
    with (tmp_path / "huge.npy").open("wb") as file:
        shape = {"descr": "<f8", "fortran_order": False, "shape": (2**40, 2)}
        np.lib.format.write_array_header_1_0(file, shape)
        file.write(b"0" * 64)
    with pytest.raises(ValueError, match=r"huge.npy is not a table"):
        jd.clock.recorded(tmp_path / "huge.npy")
    with (tmp_path / "large.csv").open("wb") as file:
        file.truncate(17 * 2**20)
    with pytest.raises(ValueError, match="leave out rows"):
        jd.clock.recorded(tmp_path / "large.csv")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: jd.clock.constant(0), "workers=0"),
        (lambda: jd.clock.constant(2, seconds=0.0), "seconds holds 0.0"),
        (lambda: jd.clock.constant(2, seconds=math.nan), "seconds holds nan"),
        (lambda: jd.clock.speeds([]), "one speed for each worker"),
        (lambda: jd.clock.speeds([1.0, -1.0]), "-1.0"),
        (lambda: jd.clock.speeds([1.0, math.inf]), "inf"),
        (lambda: jd.clock.lognormal(2, sigma=-1.0, seed=0), "sigma holds -1.0"),
        (lambda: jd.clock.exponential_tail(2, tail_seconds=0.0, seed=0), "tail_seconds"),
        (lambda: jd.clock.periodic_straggler(2, factor=2.0, every=0), "every=0"),
        (lambda: jd.clock.with_messages(jd.clock.constant(2), -1.0), "-1.0"),
        (lambda: jd.clock.pauses(jd.clock.constant(2), [(2, 0.0, 1.0)]), "below 2"),
        (lambda: jd.clock.pauses(jd.clock.constant(2), [(0, 2.0, 1.0)]), "begin < end"),
        (lambda: jd.clock.pauses(jd.clock.constant(2), [(0, 0.0, math.nan)]), "begin < end"),
        (
            lambda: jd.clock.failures(jd.clock.constant(2), [(0, 0.0, 2.0), (0, 1.0, 3.0)]),
            "overlap",
        ),
        (lambda: jd.clock.failures(3, []), "expected a clock"),
    ],
)
def test_bad_arguments_are_refused_by_value(make, says):
    with pytest.raises(ValueError, match=says):
        make()
