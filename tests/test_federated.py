"""Many clients on few workers: who is drawn, what is kept for each, and what feeds them."""

import re

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins

import jaxdist as jd
from jaxdist.data import Stream

ROUND = 3


@pytest.mark.parametrize("correction", ["fedprox", "scaffold"])
@pytest.mark.parametrize("devices", [1, 4])
def test_a_bank_of_clients_equals_the_twin_in_which_each_is_a_worker(x64, correction, devices):
    clients, workers, steps = 12, 4, 8 * ROUND
    data = twins.quadratic(clients, 5, seed=2, noise=0.3)
    drawn = jd.cohort(clients, workers, 5, clients_per_round=3)
    weights = 1.0 + np.arange(clients) % 5
    corrections = {
        "fedprox": (jd.fedprox(0.3), twins.fedprox(0.3)),
        "scaffold": (jd.scaffold(), twins.scaffold()),
    }
    ours, twin = corrections[correction]
    algorithm = jd.federated(
        optax.sgd(0.1, momentum=0.5),
        local_steps=ROUND,
        clients=clients,
        clients_per_round=3,
        client_weights=weights,
        correction=ours,
        seed=5,
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices())[:devices], ("worker",))
    trainer = jd.execute(algorithm, cases.loss, workers=workers, mesh=mesh)
    state = trainer.init(jnp.ones(5))
    readouts, losses = [np.ones(5)], []
    for t in range(steps):
        ids = drawn(t // ROUND)
        state, metrics = trainer.step(state, {k: v[ids] for k, v in data.arrays(t).items()})
        readouts.append(np.asarray(trainer.readout(state)))
        losses.append(float(metrics["loss"]))
    cohorts = [drawn(r)[drawn.delivers(r)].tolist() for r in range(steps // ROUND)]
    trace = twins.TWINS["federated"](
        data,
        steps,
        np.ones(5),
        inner=twins.momentum(0.1, 0.5),
        local_steps=ROUND,
        cohorts=cohorts,
        client_weights=weights,
        correction=twin,
    )
    np.testing.assert_allclose(readouts, np.stack(trace.readout), rtol=0, atol=1e-10)
    # The loss that is reported is that of the clients that took part.
    told = [data.loss(t, trace.points[t])[cohorts[t // ROUND]].mean() for t in range(steps)]
    np.testing.assert_allclose(losses, told, rtol=0, atol=1e-10)


def test_the_host_and_the_compiled_step_draw_the_same_clients():
    for clients, workers, part in ((1000, 8, None), (8, 8, 3), (1, 1, None), (35, 5, 1)):
        for seed in (0, 2**40 + 3):
            drawn = jd.cohort(clients, workers, seed, clients_per_round=part)
            traced = jax.jit(lambda r, drawn=drawn: (drawn(r), drawn.delivers(r)))
            for number in (0, 1, 12345):
                ids, delivers = traced(jnp.int32(number))
                assert ids.dtype == drawn(number).dtype == np.int32
                np.testing.assert_array_equal(ids, drawn(number))
                np.testing.assert_array_equal(delivers, drawn.delivers(number))


def test_clients_are_drawn_evenly_from_each_workers_own():
    drawn = jd.cohort(80, 8, 3, clients_per_round=3)
    ids = np.stack([drawn(r) for r in range(4000)])
    assert (ids // 10 == np.arange(8)).all()
    taking_part = np.stack([drawn.delivers(r) for r in range(4000)])
    assert (taking_part.sum(1) == 3).all()
    assert np.abs(taking_part.mean(0) - 3 / 8).max() < 0.03  # 4 standard deviations
    times = np.bincount(ids.ravel(), minlength=80)
    assert ((times - 400) ** 2 / 400).sum() < 130  # chi squared, 72 degrees: mean 72, deviation 12
    assert (np.stack([jd.cohort(80, 8, 4)(r) for r in range(50)]) != ids[:50]).mean() > 0.8


def test_a_stream_feeds_each_worker_the_client_that_it_drew():
    owner = np.repeat(np.arange(12), 6)  # client c owns examples 6 c to 6 c + 5
    shards = np.split(np.arange(72), 12)
    drawn = jd.cohort(12, 4, 1)
    stream = Stream(
        {"owner": owner, "x": np.arange(72)},
        shards,
        batch_size=2,
        seed=0,
        visit=lambda step: drawn(step // ROUND),
    )
    assert stream.workers == 4
    for step in range(30):
        batch = stream.batch(step)
        assert (batch["owner"] == drawn(step // ROUND)[:, None]).all()
        np.testing.assert_array_equal(batch["x"], stream.batch(step)["x"])
        np.testing.assert_array_equal(stream.batch(step, workers=[2])["x"][0], batch["x"][2])
    many = stream.batches(3, 9)["x"]
    np.testing.assert_array_equal(many, np.stack([stream.batch(3 + k)["x"] for k in range(9)]))
    # Three batches of two in one round: a client of six examples shows each of them once.
    first = np.sort(stream.batches(0, ROUND)["x"].swapaxes(0, 1).reshape(4, -1), axis=1)
    np.testing.assert_array_equal(first, np.stack([shards[c] for c in drawn(0)]))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (dict(clients=10), "clients=10 can not be dealt evenly to 4 workers"),
        (dict(clients_per_round=5), "clients_per_round=5 of 4 workers"),
        (dict(client_weights=[1.0, 2.0]), "2 entries for 4 clients"),
        (dict(client_weights=[1.0, 2.0, 0.0, 1.0]), "one positive number for each client"),
        (dict(local_steps=0), "local_steps=0"),
        (dict(correction="scaffold"), "jd.scaffold()"),
        (dict(outer=jd.topology.ring(4)), "outer="),
    ],
)
def test_what_can_not_work_is_refused_with_its_cure(options, said):
    def start():
        algorithm = jd.federated(optax.sgd(0.1), **{"local_steps": 2, **options})
        jd.execute(algorithm, cases.loss, workers=4).init(jnp.ones(5))

    with pytest.raises(ValueError, match=re.escape(said)):
        start()


def test_random_keys_of_the_inner_rule_go_on_from_round_to_round(standard_promotion):
    rule = optax.chain(optax.add_noise(1.0, 0.0, key=0), optax.sgd(0.1))
    trainer = jd.execute(jd.federated(rule, local_steps=1), cases.loss, workers=4)
    state, zeros = trainer.init(jnp.zeros(5)), {"A": np.zeros((4, 5, 5)), "b": np.zeros((4, 5))}
    zeros = {name: x.astype(np.float32) for name, x in zeros.items()}
    moved, before = [], np.zeros(5)
    for _ in range(3):
        state, _ = trainer.step(state, zeros)
        now = np.asarray(trainer.readout(state))
        moved.append(now - before)
        before = now
    assert np.abs(moved[1] - moved[0]).max() > 1e-3


@pytest.mark.parametrize("devices", [1, 8])
def test_a_step_copies_no_bank_of_clients(devices):
    mesh = jax.sharding.Mesh(np.array(jax.devices())[:devices], ("worker",))
    extra = []
    for clients in (16, 1024):
        algorithm = jd.federated(
            optax.sgd(0.1), local_steps=ROUND, clients=clients, correction=jd.scaffold()
        )
        trainer = jd.execute(algorithm, cases.loss, workers=8, mesh=mesh)
        state = trainer.init(jnp.ones(100))
        data = {"A": np.ones((8, 100, 100), np.float32), "b": np.ones((8, 100), np.float32)}
        memory = trainer.compiled.lower(state, data).compile().memory_analysis()
        assert memory.alias_size_in_bytes >= clients // devices * 400, "the bank is not donated"
        extra.append(memory.temp_size_in_bytes)
    # The bank of 1024 is 409,600 bytes on one device and 51,200 on each of eight.
    assert extra[1] - extra[0] < 4000, f"a step needs {extra} bytes beside its state"
