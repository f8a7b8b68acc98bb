"""Who computes how much: shares that wait least, portions with backups, and means that stay means."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd


def mesh_of(devices):
    return jax.sharding.Mesh(np.array(jax.devices()[:devices]), ("worker",))


@pytest.mark.parametrize("speeds", [[1.0, 1.0, 1.0], [4.0, 2.0, 1.0], [0.1, 3.0, 0.7], [5.0, 0.01]])
@pytest.mark.parametrize("total", [0, 1, 2, 7, 13])
def test_no_other_split_is_done_sooner(speeds, total):
    shares = jd.balance(jd.clock.speeds(speeds), total)
    splits = itertools.product(range(total + 1), repeat=len(speeds))
    best = min(max(np.divide(s, speeds)) for s in splits if sum(s) == total)
    assert shares.sum() == total
    assert (shares >= 0).all()
    assert max(shares / speeds) == pytest.approx(best)


def test_a_big_batch_is_split_by_speed_and_a_random_clock_by_its_mean():
    assert jd.balance(jd.clock.speeds([3.0, 1.0]), 4_000_000).tolist() == [3_000_000, 1_000_000]
    shares = jd.balance(jd.clock.lognormal(4, sigma=0.3, seed=1), 400)
    assert shares.sum() == 400
    assert len(set(shares.tolist())) > 1
    np.testing.assert_allclose(shares, 100, atol=25)


CLOCKS = {
    "equal": jd.clock.constant(4),
    "one slow": jd.clock.speeds([1.0, 1.0, 1.0, 0.1]),
    "all differ": jd.clock.speeds([3.0, 1.7, 1.0, 0.3]),
    "random": jd.clock.exponential_tail(4, tail_seconds=2.0, seed=0),
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_portions_are_all_done_once_and_backups_never_cost_time(clock):
    for count in (1, 3, 4, 29):
        dealt, plain = jd.portions(clock, count), jd.portions(clock, count, backups=False)
        assert dealt.worker.shape == (count,)
        assert (dealt.worker >= 0).all()
        assert (plain.copies == 1).all()
        assert (dealt.copies >= 1).all()
        assert dealt.finished.max() == dealt.seconds <= plain.seconds
        # Nobody delivers two at once.
        assert len(set(zip(dealt.worker.tolist(), dealt.finished.tolist(), strict=True))) == count


def test_portions_at_fixed_speeds_are_those_counted_by_hand():
    # Worker 1 takes 2.5 s a portion. 0: 1 2 3 4 5, 1: 2.5 5; of 6 portions the last is begun at 4.
    clock = jd.clock.speeds([1.0, 0.4])
    plain = jd.portions(clock, 5, backups=False)
    assert plain.worker.tolist() == [0, 1, 0, 0, 1]
    assert (plain.seconds, plain.equal_seconds) == (5.0, 5.0)
    # Worker 0 is free at 3, copies the portion that worker 1 began at 2.5, and has it at 4.
    dealt = jd.portions(clock, 5)
    assert dealt.worker.tolist() == [0, 1, 0, 0, 0]
    assert dealt.copies.tolist() == [1, 1, 1, 1, 2]
    assert dealt.seconds == 4.0


def test_more_portions_leave_less_to_wait_for():
    clock = jd.clock.speeds([1.0, 1.0, 1.0, 0.1])
    # Seconds for the same batch: a portion of 1/count of it takes 1/count as long.
    seconds = [jd.portions(clock, count).seconds / count for count in (4, 16, 64, 256)]
    assert seconds == sorted(seconds, reverse=True)
    ideal = 1 / 3.1
    assert seconds[-1] < 1.02 * ideal < jd.portions(clock, 256).equal_seconds / 256 / 7


def test_backups_finish_what_a_dead_worker_has_begun():
    dead = jd.clock.Clock(3, "dead", lambda count, start: jnp.array([1.0, 1.0, jnp.inf]))
    dealt = jd.portions(dead, 9)
    assert (dealt.seconds, dealt.equal_seconds) == (5.0, np.inf)
    assert 2 not in dealt.worker
    assert jd.balance(dead, 9).tolist() == [5, 4, 0]
    with pytest.raises(ValueError, match="dead never delivers 1 of the 9 portions"):
        jd.portions(dead, 9, backups=False)


def losses(x, batch):
    return 0.5 * (jnp.dot(batch["features"], x) - batch["target"]) ** 2


def weighted(x, batch, key):
    value = jnp.mean(batch["weight"] * losses(x, batch))
    return value, {"error": jnp.mean(batch["weight"] * jnp.abs(batch["target"]))}


def union(examples=23, dimension=4):
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(examples, dimension)), draw.normal(size=examples)
    return {"features": rows[0].astype(np.float32), "target": rows[1].astype(np.float32)}


SHARES = {
    "sizes": [9, 2, 0, 12],
    "one alone": [0, 0, 23, 0],
    "rows": [[0, 5, 7], list(range(8, 23)), [1, 2], [3, 4, 6]],
    "by speed": jd.balance(jd.clock.speeds([4.0, 2.0, 1.0, 0.2]), 23),
    "portions": [np.flatnonzero(jd.portions(CLOCKS["one slow"], 23).worker == i) for i in range(4)],
}


@pytest.mark.parametrize("devices", [1, 2, 4])
@pytest.mark.parametrize("shares", SHARES.values(), ids=SHARES)
def test_uneven_shares_give_the_gradient_of_the_union(shares, devices):
    whole, x = union(), np.full(4, 0.3, np.float32)
    batch = jd.data.deal(whole, shares, pad_to=24)
    trainer = jd.execute(
        jd.all_reduce(optax.sgd(1.0)), weighted, workers=4, mesh=mesh_of(devices), accumulate=3
    )
    state, metrics = trainer.step(trainer.init(x), batch)
    value, slope = jax.value_and_grad(lambda x: losses(x, whole).mean())(x)
    np.testing.assert_allclose(x - trainer.readout(state), slope, rtol=0, atol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, atol=1e-6)
    np.testing.assert_allclose(metrics["error"], np.abs(whole["target"]).mean(), atol=1e-6)


@pytest.mark.slow
def test_lbfgs_goes_the_same_way_however_its_batch_was_dealt_out(x64):
    whole = {k: v.astype(np.float64) for k, v in union().items()}
    ends = []
    for shares in (SHARES["by speed"], SHARES["portions"], [23]):
        batch, workers = jd.data.deal(whole, shares), len(shares)
        trainer = jd.execute(jd.lbfgs(), weighted, workers=workers, mesh=mesh_of(1))
        state = trainer.init(jnp.zeros(4))
        for _ in range(4):
            state, _ = trainer.step(state, batch)
        ends.append(np.asarray(trainer.readout(state)))
    assert np.abs(ends[0]).max() > 0.1
    np.testing.assert_allclose(ends, [ends[-1]] * len(ends), rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: jd.balance(jd.clock.constant(2), -1), "total=-1 is not a number of examples"),
        (lambda: jd.portions(jd.clock.constant(2), 0), "count=0 is not a number of portions"),
        (lambda: jd.data.deal({"x": np.ones(4)}, [3, 2]), "sum to 5, but the batch has 4"),
        (lambda: jd.data.deal({"x": np.ones(4)}, [3, 1], pad_to=2), "write pad_to=3"),
        (lambda: jd.data.deal({"x": np.ones(4)}, [[0, 1], [4]]), "only 0 to 3"),
        (lambda: jd.data.deal({"x": np.ones(4)}, [0.5, 0.5]), "neither numbers of examples"),
        (lambda: jd.data.deal({"x": np.ones(4), "y": np.ones(3)}, [2, 2]), "leading axes"),
        (lambda: jd.data.deal({"weight": np.ones(4)}, [2, 2]), "a weight of its own"),
    ],
)
def test_what_can_not_be_shared_out_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
