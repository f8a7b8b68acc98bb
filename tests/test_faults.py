"""What methods keep when links drop messages and workers are away."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from test_conformance import batch, mesh_of, problem

import jaxdist as jd
from jaxdist import faults, lanes, mixing


def draws(happens, workers, steps):
    """The masks of every step as NumPy arrays; all there, and nothing lost, where there are none."""
    everyone, nothing = np.ones(workers, bool), np.zeros((workers, workers), bool)
    for t in range(steps):
        now = faults.masks(happens, jnp.int32(t), workers)
        yield (
            everyone if now.alive is None else np.asarray(now.alive),
            nothing if now.dropped is None else np.asarray(now.dropped),
        )


def struck(matrix, alive, dropped, *, keeps="receiver"):
    """A mixing matrix without the lost messages, their weights given back, entry by entry."""
    W = matrix.copy()
    for i, j in np.argwhere(~np.eye(len(W), dtype=bool)):
        if dropped[i, j] or not alive[i] or not alive[j]:
            end = i if keeps == "receiver" else j
            W[end, end] += W[i, j]
            W[i, j] = 0.0
    return W


def mixed(x, topology, t, devices=1, **options):
    """`jd.mix` of the rows of x."""
    run = lanes.over_workers(
        lambda x: jd.mix(x, topology, jnp.int32(t), **options), (0,), 0,
        workers=len(x), mesh=mesh_of(devices),
    )  # fmt: skip
    return np.asarray(jax.jit(run)(x))


GRAPHS = {
    "ring": jd.topology.ring(6),
    "star": jd.topology.star(6),
    "base_k": jd.topology.base_k(6, 1),
    "exponential": jd.topology.exponential(6),
    "one-peer": jd.topology.one_peer_exponential(6),
    "gathered": jd.topology.matcha(jd.topology.complete(6), 0.5, rounds=20),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize(("keeps", "devices"), [("receiver", 2), ("sender", 6)])
def test_mix_gives_the_weight_of_a_lost_message_to_one_end(x64, monkeypatch, name, keeps, devices):
    if name == "gathered":
        monkeypatch.setattr(mixing, "MOST_BRANCHES", 4)
        assert mixing.gathers(GRAPHS[name])
    topology, draw = GRAPHS[name], np.random.default_rng(0)
    x = draw.normal(size=(6, 3))
    for t in {0, topology.period - 1}:
        alive, dropped = draw.random(6) < 0.8, np.triu(draw.random((6, 6)) < 0.3, 1)
        dropped |= dropped.T
        options = dict(alive=jnp.asarray(alive), dropped=jnp.asarray(dropped), keeps=keeps)
        matrix = struck(topology.matrix(t), alive, dropped, keeps=keeps)
        got = mixed(x, topology, t, devices, **options)
        np.testing.assert_allclose(got, matrix @ x, atol=1e-14)
        np.testing.assert_allclose(
            mixed(x, topology, t, devices), topology.matrix(t) @ x, atol=1e-14
        )
        np.testing.assert_array_equal(got[~alive], x[~alive])


@pytest.mark.parametrize("name", ["ring", "star", "base_k"])
def test_the_mean_of_those_who_are_there_is_preserved(name):
    topology, draw = GRAPHS[name], np.random.default_rng(1)
    x = draw.normal(size=(6, 3)).astype(np.float32)
    for t in range(3):
        alive = draw.random(6) < 0.7
        # Lost one way only: on an undirected graph a link is there for both or for none.
        dropped = jnp.asarray(draw.random((6, 6)) < 0.2)
        got = mixed(x, topology, t, 2, alive=jnp.asarray(alive), dropped=dropped)
        np.testing.assert_allclose(got[alive].mean(0), x[alive].mean(0), atol=1e-6)
        x = got


def test_what_the_sender_keeps_is_lost_to_nobody(x64):
    links = np.eye(5) + np.roll(np.eye(5), 1, 0)
    links[3, 0] = links[1, 4] = 1
    topology = jd.topology.from_matrix(links / links.sum(0))
    x, draw = np.random.default_rng(2).normal(size=(5, 3)), np.random.default_rng(3)
    for t in range(2):
        dropped = jnp.asarray(draw.random((5, 5)) < 0.3)
        got = mixed(x, topology, t, 1, dropped=dropped)
        np.testing.assert_allclose(got.sum(0), x.sum(0), atol=1e-13)
        assert np.abs(got.sum(1) - mixed(x, topology, t).sum(1)).max() > 1e-3
        x = got


LOSSES = {
    "links": jd.faults.link_loss(0.3, seed=5),
    "workers": jd.faults.worker_loss(0.3, seed=5),
}


def walk(algorithm, data, happens, steps, devices=2):
    trainer = jd.execute(
        jd.faulty(algorithm, happens), cases.loss, workers=data.workers, mesh=mesh_of(devices)
    )
    state, points = trainer.init(jnp.ones(data.dimension)), []
    for t in range(steps + 1):
        points.append(np.asarray(trainer.gradient_at(state)))
        state, metrics = trainer.step(state, batch(data, t, np.float64))
        assert np.isfinite(metrics["loss"])
    return np.stack(points)


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("gossip", "matching, adapt_then_combine"),
        ("gossip", "one-peer, combine_while_adapt"),
        ("quasi_global_momentum", "one-peer"),
        ("decentlam", "star"),
        ("event_triggered", "decaying"),
    ],
)
def test_under_lost_links_a_method_is_its_recursion_with_the_struck_matrix(x64, name, label):
    data, case = problem(6), cases.case(name, label)
    own, masks = case.twin(6), list(draws(LOSSES["links"], 6, 16))
    matrix = own["matrix"]
    own["matrix"] = lambda t: struck(matrix(t), *masks[t])
    points = walk(case.make(6), data, LOSSES["links"], 15)
    twin = twins.TWINS[name](data, 15, np.ones(data.dimension), **own)
    np.testing.assert_allclose(points, np.stack(twin.points), rtol=0, atol=1e-10)


@pytest.mark.parametrize("devices", [1, 6])
def test_a_worker_that_is_away_stands_still_and_the_others_go_on(x64, devices):
    data, ring = problem(6), jd.topology.ring(6)
    points = walk(jd.gossip(optax.sgd(0.1), ring), data, LOSSES["workers"], 15, devices)
    X = np.ones((6, 5))
    for t, (alive, dropped) in enumerate(draws(LOSSES["workers"], 6, 15)):
        moved = X - 0.1 * data.gradient(t, X) * alive[:, None]
        X = struck(ring.matrix(t), alive, dropped) @ moved
        np.testing.assert_allclose(points[t + 1], X, atol=1e-12)


def test_reductions_are_over_those_who_are_there(x64):
    data, lost = problem(4), jd.faults.workers_lost([1], start=3)
    points = walk(jd.all_reduce(optax.sgd(0.1)), data, lost, 10)
    x, rest = np.ones(5), [0, 2, 3]
    for t in range(10):
        gradient = data.gradient(t, np.tile(x, (4, 1)))
        x = x - 0.1 * (gradient if t < 3 else gradient[rest]).mean(0)
        np.testing.assert_allclose(points[t + 1], np.tile(x, (4, 1)), atol=1e-12)


def test_the_readout_is_the_mean_of_those_who_are_there(x64):
    data = problem(4)
    algorithm = jd.faulty(
        jd.gossip(optax.sgd(0.1), jd.topology.ring(4)), jd.faults.workers_lost([2], start=2)
    )
    trainer = jd.execute(algorithm, cases.loss, workers=4)
    state = trainer.init(jnp.ones(5))
    for t in range(6):
        state, _ = trainer.step(state, batch(data, t, np.float64))
    points = np.asarray(trainer.gradient_at(state))
    np.testing.assert_allclose(trainer.readout(state), points[[0, 1, 3]].mean(0), atol=1e-12)


def test_workers_come_back_where_they_were(x64):
    data, away = problem(4), jd.faults.workers_lost([2], start=3, stop=6)
    points = walk(jd.gossip(optax.sgd(0.1), jd.topology.ring(4)), data, away, 9)
    assert (points[3, 2] == points[4:7, 2]).all()
    assert np.abs(points[7, 2] - points[6, 2]).max() > 1e-3


def test_relay_uses_the_message_before_a_lost_one(x64):
    data, tree = problem(6), jd.topology.tree(6)
    points = walk(jd.relay(optax.sgd(0.05), tree), data, LOSSES["links"], 20)
    near = tree.neighbors(0)
    # To whom -> from whom -> as many x0 as there are workers behind that link.
    graph = tree.matrix(0) > 0
    heard = {}
    for i in range(6):
        for j in near[i]:
            cut = graph.copy()
            cut[i, j] = cut[j, i] = False
            heard[i, j] = np.linalg.matrix_power(cut.astype(int), 6)[j].astype(bool).sum() * 1.0
    X = np.ones((6, 5))
    for t, (_, dropped) in enumerate(draws(LOSSES["links"], 6, 20)):
        h, before = X - 0.05 * data.gradient(t, X), dict(heard)
        for i, j in before:
            if not dropped[i, j]:
                heard[i, j] = h[j] + sum(before[j, k] for k in near[j] if k != i)
        X = np.stack([h[i] + sum(heard[i, j] for j in near[i]) for i in range(6)]) / 6
        np.testing.assert_allclose(points[t + 1], X, rtol=0, atol=1e-12)


def test_faults_depend_on_the_seed_and_the_step_only_and_are_as_frequent_as_said():
    for make in (jd.faults.link_loss, jd.faults.worker_loss):
        one, again, other = (list(draws(make(0.2, seed=s), 12, 60)) for s in (0, 0, 1))
        for number in (0, 1):
            a, b, c = (np.stack([step[number] for step in run]) for run in (one, again, other))
            np.testing.assert_array_equal(a, b)
            if (make is jd.faults.link_loss) == (number == 1):
                assert (a != c).any()
                assert len({step.tobytes() for step in a}) > 30
    alive = np.stack([a for a, _ in draws(jd.faults.worker_loss(0.2, seed=0), 12, 400)])
    assert abs(alive.mean() - 0.8) < 0.02
    dropped = np.stack([d for _, d in draws(jd.faults.link_loss(0.2, seed=0), 12, 400)])
    assert abs(dropped[:, ~np.eye(12, dtype=bool)].mean() - 0.2) < 0.01
    assert (dropped == dropped.transpose(0, 2, 1)).all()
    assert all(a.any() for a, _ in draws(jd.faults.worker_loss(1.0, seed=0), 3, 5))


def test_survivors_that_never_hear_of_each_other_are_refused():
    data, chain = problem(4), jd.topology.chain(4)
    for method in (jd.gossip, jd.relay):
        with pytest.raises(ValueError, match=r"without the workers \[1\].*falls into 2 groups"):
            walk(method(optax.sgd(0.1), chain), data, jd.faults.workers_lost([1]), 1)
    with pytest.raises(ValueError, match="names worker 7 of a run with 4"):
        walk(jd.gossip(optax.sgd(0.1), chain), data, jd.faults.workers_lost([7], stop=3), 1)


def test_faults_refuse_what_makes_no_sense():
    for make in (jd.faults.link_loss, jd.faults.worker_loss):
        with pytest.raises(ValueError, match=r"probability=1.5 of .* write .*\(0.01, seed=0\)"):
            make(1.5, seed=0)
    with pytest.raises(ValueError, match="loses nobody"):
        jd.faults.workers_lost([1], start=5, stop=5)


def test_a_thousand_rounds_are_one_program_that_sends_what_is_declared():
    topology = jd.topology.random_matching(16, 1000, seed=0)
    params = {"a": jnp.ones(7, jnp.bfloat16), "b": jnp.ones((2, 3))}

    def wide(params, batch, key):
        return params["a"].astype(jnp.float32).sum() + params["b"].sum() * batch, {}

    for algorithm in (
        jd.gossip(optax.sgd(0.1), topology),
        jd.push_sum(optax.sgd(0.1), topology),
        jd.gradient_tracking(optax.sgd(0.1), topology),
    ):
        lowered = jd.execute(algorithm, wide, workers=16).lower(params, jnp.ones(16))
        assert lowered.as_text().count("\n") < 1000
        found = jd.audit.collectives(lowered)
        assert {c.kind for c in found} == {"all_gather", "all_reduce"}
        assert not any(c.branch for c in found)
        sent = sum(c.bytes for c in found if c.kind == "all_gather")
        # Eight devices with two workers each.
        assert {2 * algorithm.sends(params, t) for t in range(0, 1000, 97)} == {sent}
