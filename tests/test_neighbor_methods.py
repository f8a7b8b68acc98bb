"""Laws of single methods that talk to neighbors, beside those that all methods obey."""

import cases
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from cases.base import over

import jaxdist as jd


def run(algorithm, data, steps, dtype=np.float64):
    """Points before every step."""
    trainer = jd.execute(algorithm, cases.loss, workers=data.workers)
    state, points = trainer.init(jnp.ones(data.dimension, dtype)), []
    for t in range(steps):
        points.append(np.asarray(trainer.gradient_at(state)))
        batch = {k: v.astype(dtype) for k, v in data.arrays(t).items()}
        state, _ = trainer.step(state, batch)
    return np.stack(points)


# Momentum.


@pytest.mark.parametrize("method", [jd.quasi_global_momentum, jd.decentlam])
def test_momentum_of_zero_is_gossip(x64, method):
    data, ring = twins.quadratic(4, 3, seed=0), jd.topology.ring(4)
    one = run(method(0.1, ring, momentum=0.0), data, 20)
    np.testing.assert_allclose(one, run(jd.gossip(optax.sgd(0.1), ring), data, 20), atol=1e-12)


def test_decentlam_alone_is_sgd_with_momentum(x64):
    data, alone = twins.quadratic(1, 3, seed=0), jd.topology.ring(1)
    one = run(jd.decentlam(0.1, alone, momentum=0.9), data, 20)
    other = run(jd.local_sgd(optax.sgd(0.1, momentum=0.9), period=1), data, 20)
    np.testing.assert_allclose(one, other, atol=1e-12)


@pytest.mark.parametrize("name", ["quasi_global_momentum", "decentlam"])
def test_a_schedule_that_begins_and_ends_at_zero_follows_its_rule(x64, standard_promotion, name):
    data, topology = twins.quadratic(4, 3, seed=0), jd.topology.ring(4)
    schedule = optax.linear_schedule(0.2, 0.0, 10)
    points = run(getattr(jd, name)(schedule, topology, momentum=0.5), data, 15)
    X, m, W = np.ones((4, 3)), np.zeros((4, 3)), over(topology)(0)
    for t, seen in enumerate(points):
        np.testing.assert_allclose(seen, X, atol=1e-7)  # the schedule is float32
        lr = 0.2 * max(0.0, 1 - t / 10)
        step = 0.5 * m if name == "quasi_global_momentum" else 0.0
        mixed = W @ (X - lr * (step + data.gradient(t, X)))
        moved = (X - mixed) / lr if lr else 0.0
        m = 0.5 * m + (0.5 if name == "quasi_global_momentum" else 1.0) * moved
        X = mixed if name == "quasi_global_momentum" else X - lr * m
    warm = optax.linear_schedule(0.0, 0.1, 5)
    assert np.isfinite(run(getattr(jd, name)(warm, topology, momentum=0.5), data, 15)).all()


@pytest.mark.parametrize("method", [jd.quasi_global_momentum, jd.decentlam])
def test_momentum_refuses_what_makes_no_sense(method):
    ring = jd.topology.ring(4)
    for wrong in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="learning_rate=.*positive number nor a schedule"):
            method(wrong, ring, momentum=0.9)
    for wrong in (1.0, -0.1):
        with pytest.raises(ValueError, match="write momentum=0.9"):
            method(0.1, ring, momentum=wrong)
    with pytest.raises(ValueError, match=r"write for example jd\.topology\.ring\(8\)"):
        method(0.1, 4, momentum=0.9)


# Relay.


@pytest.mark.slow
def test_relay_reaches_the_minimizer_of_data_that_differ_and_gossip_does_not(x64):
    data = twins.quadratic(7, 3, seed=0)
    for tree in (jd.topology.tree, jd.topology.star, jd.topology.chain):
        end = run(jd.relay(optax.sgd(0.05), tree(7)), data, 1000)[-1]
        np.testing.assert_allclose(end, np.tile(data.minimiser, (7, 1)), atol=1e-8)
    end = run(jd.gossip(optax.sgd(0.05), jd.topology.chain(7)), data, 500)[-1]
    assert np.abs(end - data.minimiser[None]).max() > 1e-2


def test_relay_of_two_is_all_reduce_and_of_one_its_rule(x64):
    rule = optax.sgd(0.1)
    for workers in (1, 2):
        data = twins.quadratic(workers, 3, seed=0)
        one = run(jd.relay(rule, jd.topology.chain(workers)), data, 20)
        np.testing.assert_allclose(one, run(jd.all_reduce(rule), data, 20), atol=1e-12)


def test_relay_with_nothing_to_learn_keeps_everybody_where_they_are():
    data = twins.quadratic(6, 3, seed=0)
    points = run(jd.relay(optax.sgd(0.0), jd.topology.tree(6)), data, 30, np.float32)
    np.testing.assert_allclose(points, 1.0, rtol=1e-6)


def test_relay_refuses_what_is_no_tree():
    for wrong in (jd.topology.ring(5), jd.topology.one_peer_exponential(4)):
        with pytest.raises(ValueError, match=r"write for example jd\.topology\.tree\("):
            jd.relay(optax.sgd(0.1), wrong)
    with pytest.raises(ValueError, match="connects 5 workers and the run has 4"):
        run(
            jd.relay(optax.sgd(0.1), jd.topology.tree(5)),
            twins.quadratic(4, 3, seed=0),
            1,
            np.float32,
        )


# Messages only when there is something to say.


def messages(algorithm, data, steps):
    """The part of the messages that was due at each step."""
    trainer = jd.execute(algorithm, cases.loss, workers=data.workers)
    state, parts = trainer.init(jnp.ones(data.dimension)), []
    for t in range(steps):
        batch = {k: v.astype(np.float32) for k, v in data.arrays(t).items()}
        state, metrics = trainer.step(state, batch)
        parts.append(float(metrics["messages_sent"]))
    return np.array(parts)


def test_without_a_threshold_everybody_speaks_and_it_is_gossip(x64):
    data, star, rule = twins.quadratic(5, 3, seed=0), jd.topology.star(5), optax.sgd(0.1)
    one = run(jd.event_triggered(rule, star, threshold=0.0), data, 20)
    np.testing.assert_allclose(one, run(jd.gossip(rule, star), data, 20), atol=1e-12)


def test_the_mean_follows_the_mean_update_whoever_speaks(x64):
    data, ring = twins.quadratic(5, 3, seed=0, noise=0.3), jd.topology.ring(5)
    points = run(jd.event_triggered(optax.sgd(0.1), ring, threshold=0.5), data, 20)
    for t in range(19):
        moved = points[t].mean(0) - 0.1 * data.gradient(t, points[t]).mean(0)
        np.testing.assert_allclose(points[t + 1].mean(0), moved, atol=1e-12)


def test_the_reported_messages_are_those_of_the_workers_that_spoke():
    data, star, rule = twins.quadratic(5, 3, seed=0), jd.topology.star(5), optax.sgd(0.1)
    # Eight links one way: four out of the hub, one out of each leaf.
    parts = messages(jd.event_triggered(rule, star, threshold=0.3), data, 40)
    assert set(np.round(parts * 8).tolist()) <= set(range(9))
    np.testing.assert_allclose(parts * 8, np.round(parts * 8), atol=1e-6)
    assert 0.0 < parts.mean() < 0.9
    assert messages(jd.event_triggered(rule, star, threshold=0.0), data, 10).tolist() == [1.0] * 10
    assert messages(jd.event_triggered(rule, star, threshold=1e9), data, 10).tolist() == [0.0] * 10


def test_a_decaying_threshold_ends_where_gossip_does_with_fewer_messages(x64):
    data, ring, rule = twins.quadratic(5, 3, seed=0), jd.topology.ring(5), optax.sgd(0.1)
    decaying = jd.event_triggered(rule, ring, threshold=0.5, decay=0.97)
    ends = [run(one, data, 1000)[-1] for one in (decaying, jd.gossip(rule, ring))]
    np.testing.assert_allclose(*ends, atol=1e-9)


def test_event_triggered_refuses_what_makes_no_sense():
    rule, ring = optax.sgd(0.1), jd.topology.ring(4)
    with pytest.raises(ValueError, match="threshold=-1 is not a distance"):
        jd.event_triggered(rule, ring, threshold=-1)
    for wrong in (0.0, 1.5):
        with pytest.raises(ValueError, match="write for example decay=0.99"):
            jd.event_triggered(rule, ring, threshold=0.1, decay=wrong)
