"""Compressed methods send what they declare, equal their exact counterparts, and keep what they owe."""

import cases
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from compressed_methods import (
    METHODS,
    QUIET,
    REMEMBERED,
    REMEMBERING,
    W,
    matrices,
    matrix_loss,
    matrix_steps,
    mesh_of,
    one_way,
    path,
)

import jaxdist as jd
from jaxdist import checkpoint, worker
from jaxdist.compress import CATALOGUE
from jaxdist.saving import saving

C = jd.compress


BRANCH = {
    "gossip": lambda t: (f"case {t % 3}",),
    "push_sum": lambda t: (),
    "all_reduce": lambda t: (),
    "diloco": lambda t: (f"case {int((t + 1) % 3 == 0)}",),
    "streaming_diloco": lambda t: (f"case {(t + 1) % 3 + 1 if t else 0}",),
}


def sent(algorithm, params, loss):
    trainer = jd.execute(algorithm, loss, workers=8, mesh=mesh_of(8))
    batch = np.zeros((8, 1), np.float32)
    lowered = trainer.compiled.lower(trainer.init(params), batch)
    by_branch = jd.audit.bytes_by_branch(jd.audit.collectives(lowered))
    by_branch[()] -= 4  # the loss that is reported
    return by_branch


def flat_loss(params, batch, key):
    leaves = jax.tree.leaves(params)
    return sum(jnp.sum(x.astype(jnp.float32) ** 2) for x in leaves) + batch.sum(), {}


# Streaming reduces as diloco does and push-sum mixes as gossip does: of each route one compressor.
PAIRS = [(m, name) for m in ("gossip", "all_reduce", "diloco") for name in CATALOGUE]
PAIRS += [(m, c) for m in ("streaming_diloco", "push_sum") for c in ("sign", "top_k", "random_k")]


@pytest.mark.parametrize(("method", "name"), PAIRS)
def test_declared_bytes_are_those_of_the_program(method, name):
    params = {"w": jnp.ones((7, 5)), "b": jnp.ones(3), "h": jnp.ones(6, jnp.bfloat16)}
    algorithm = METHODS[method](CATALOGUE[name]())
    by_branch = sent(algorithm, params, flat_loss)
    with worker.counted(8):
        for t in range(6):
            own = BRANCH[method](t)
            found = by_branch.get((), 0) + (by_branch.get(own, 0) if own else 0)
            assert algorithm.sends(params, t) == found
    if method == "gossip":
        assert algorithm.sends(params, 0) == CATALOGUE[name]().bytes(params)


def test_one_fragment_at_once_is_diloco_compressed_alike(x64):
    compressor = C.error_feedback(C.sign())
    one = jd.streaming_diloco(
        optax.sgd(0.1), optax.sgd(0.7), period=2, fragments=1, compressor=compressor
    )
    both = jd.diloco(optax.sgd(0.1), optax.sgd(0.7), period=2, compressor=compressor)
    data = twins.quadratic(W, 5, seed=1)
    np.testing.assert_allclose(path(one, data), path(both, data), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ["all_reduce", "gossip", "diloco", "push_sum"])
def test_a_lossless_compressor_changes_nothing(x64, method):
    data = twins.quadratic(8, 5, seed=1)
    off, on = (path(METHODS[method](c), data) for c in (None, C.cast(jnp.float64)))
    np.testing.assert_allclose(on, off, rtol=0, atol=1e-12)


LOSSLESS = {
    "error_feedback": lambda r: jd.all_reduce(r, compressor=C.error_feedback(C.top_k(1.0))),
    "ef21": lambda r: jd.all_reduce(r, compressor=C.ef21(C.cast(jnp.float64))),
    "dgc": lambda r: jd.dgc(0.1, ratio=1.0, momentum=0.5, velocity="kept"),
    "demo": lambda r: jd.demo(r, chunk=5, keep=5),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_a_memory_with_nothing_left_out_is_all_reduce(x64, name):
    rule = optax.sgd(0.1, momentum=0.5)
    exact, same = (path(make(rule), QUIET) for make in (jd.all_reduce, LOSSLESS[name]))
    np.testing.assert_allclose(same, exact, rtol=0, atol=1e-10)


def test_every_route_hands_over_what_its_compressor_made():
    """Whole numbers and bits are exchanged and gathered, never added up on the wire."""
    routes = {
        "int8": [
            ("all_to_all", "i8"),
            ("all_to_all", "f32"),
            ("all_gather", "i8"),
            ("all_gather", "f32"),
        ],
        "sign": [
            ("all_to_all", "ui8"),
            ("all_to_all", "f32"),
            ("all_gather", "ui8"),
            ("all_gather", "f32"),
        ],
        "top_k": [("all_gather", "f32"), ("all_gather", "ui8")],
        "random_k": [("all_reduce", "f32")],
    }
    for name, route in routes.items():
        trainer = jd.execute(METHODS["all_reduce"](CATALOGUE[name]()), flat_loss, workers=8)
        batch = np.zeros((8, 1), np.float32)
        lowered = trainer.compiled.lower(trainer.init(jnp.ones(64)), batch)
        found = [(c.kind, c.dtype) for c in jd.audit.collectives(lowered)]
        found.remove(("all_reduce", "f32"))  # the loss that is reported
        assert sorted(found) == sorted(route), name


@pytest.mark.parametrize("memory", ["plain", "error_feedback", "ef21", "one_bit_adam"])
def test_signs_of_parts_of_many_numbers_are_the_recursion(x64, memory):
    """A scaled sign loses nothing of one number; eleven on four workers are parts of three, filled up."""
    data, parts = twins.quadratic(W, 11, seed=3, noise=0.3), twins.compressed
    if memory == "one_bit_adam":
        options = dict(learning_rate=0.05, warmup_steps=3, b1=0.8, b2=0.9)
        algorithm = jd.one_bit_adam(**options)
        twin = parts.one_bit_adam(data, 12, np.ones(11), eps=1e-8, **options)
    else:
        compressor = C.sign() if memory == "plain" else getattr(C, memory)(C.sign())
        algorithm = jd.all_reduce(optax.sgd(0.05), compressor=compressor)
        mean = getattr(parts, memory)(parts.exchanged(parts.scaled_sign))
        twin = twins.TWINS["all_reduce"](data, 12, np.ones(11), inner=twins.sgd(0.05), mean=mean)
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(2))
    state = trainer.init(jnp.ones(11))
    for t in range(12):
        state, _ = trainer.step(state, data.arrays(t))
        np.testing.assert_allclose(trainer.readout(state), twin.readout[t + 1], rtol=0, atol=1e-10)


def test_compressed_push_sum_loses_nothing(x64):
    """Its mean moves by the mean update, however coarse the payload is and wherever workers are."""
    algorithm = jd.push_sum(optax.sgd(0.1), one_way(W, move=0.5), compressor=C.ternary())
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(2))
    state = trainer.init(jnp.ones(5))
    for t in range(20):
        at, before = np.array(trainer.gradient_at(state)), np.array(trainer.readout(state))
        state, _ = trainer.step(state, QUIET.arrays(t))
        moved = before - 0.1 * QUIET.gradient(t, at).mean(0)
        np.testing.assert_allclose(trainer.readout(state), moved, rtol=0, atol=1e-12)
    assert np.ptp(at, axis=0).max() > 1e-2


def test_rounding_moves_compressed_push_sum_by_less_than_a_last_place_a_step():
    algorithm = jd.push_sum(optax.sgd(0.0), one_way(W), compressor=C.int8(4))
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(1))
    batch = {
        k: jnp.broadcast_to(v.astype(np.float32), (2000, *v.shape))
        for k, v in QUIET.arrays(0).items()
    }
    state, _ = trainer.steps(trainer.init(jnp.linspace(0.1, 0.7, 5)), batch)
    moved = np.abs(trainer.readout(state) / np.linspace(0.1, 0.7, 5) - 1)
    assert moved.max() < 2000 * np.finfo(np.float32).eps


def test_choco_without_compression_is_gossip(x64):
    ring, rule = jd.topology.ring(W), optax.sgd(0.1, momentum=0.5)
    exact = path(jd.gossip(rule, ring), QUIET)
    same = path(jd.choco(rule, ring, C.cast(jnp.float64), consensus_step=1.0), QUIET)
    np.testing.assert_allclose(same, exact, rtol=0, atol=1e-12)


def test_neighbors_copies_stay_those_of_their_owners(x64):
    ring = jd.topology.ring(W)
    algorithm = jd.choco(optax.sgd(0.1), ring, C.int4(4), consensus_step=0.3)
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(2))
    state = trainer.init(jnp.ones(5))
    for t in range(20):
        state, _ = trainer.step(state, QUIET.arrays(t))
    _, _, own, flow, _ = state.local
    own = np.asarray(own)
    assert np.ptp(own, axis=0).min() > 1e-3
    np.testing.assert_allclose(flow.high, ring.matrix(0) @ own - own, atol=1e-12)


def low_rank_twin(data, steps, *, rate, rank, start, warm):
    """PowerSGD written from the paper's Algorithms 1 and 2, one matrix and one vector, plain SGD."""
    workers = len(data["w"])
    w, b, q, e = np.ones((6, 4)), np.ones(13), warm, np.zeros_like(data["w"])
    for t in range(steps):
        g = data["curvature"] * (w - data["w"])
        if t < start:
            step = g.mean(0)
        else:
            m = g + e
            p = np.linalg.qr(np.mean([m[i] @ q for i in range(workers)], 0))[0]
            own = [m[i].T @ p for i in range(workers)]
            q = np.mean(own, 0)
            step = p @ q.T
            e = np.stack([m[i] - p @ own[i].T for i in range(workers)])
        w = w - rate * step
        b = b - rate * (b - data["b"]).mean(0)
    return w, b


def low_rank_run(reducer, steps, *, devices=2, rate=0.1):
    algorithm = jd.all_reduce(optax.sgd(rate), reducer=reducer)
    trainer = jd.execute(algorithm, matrix_loss, workers=W, mesh=mesh_of(devices))
    warm = trainer.init({"w": jnp.ones((6, 4)), "b": jnp.ones(13)}).shared[2]
    return trainer.readout(matrix_steps(trainer, None, steps)), warm


@pytest.mark.parametrize(("devices", "start"), [(1, 0), (4, 0), (2, 5)])
def test_power_sgd_is_the_papers_recursion(x64, devices, start):
    got, warm = low_rank_run(C.power_sgd(1, start=start), 12, devices=devices)
    w, b = low_rank_twin(matrices(W), 12, rate=0.1, rank=1, start=start, warm=warm[0])
    np.testing.assert_allclose(got["w"], w, atol=1e-10)
    np.testing.assert_allclose(got["b"], b, atol=1e-10)


def test_power_sgd_is_exact_until_its_start_and_converges_after_it(x64):
    exact, _ = low_rank_run(None, 8)
    same, _ = low_rank_run(C.power_sgd(1, start=8), 8)
    np.testing.assert_allclose(same["w"], exact["w"], atol=1e-12)
    data = matrices(W)
    minimum = (data["curvature"] * data["w"]).mean(0) / data["curvature"].mean(0)
    settled, _ = low_rank_run(C.power_sgd(1), 800, rate=0.05)
    np.testing.assert_allclose(settled["w"], minimum, atol=1e-3)


def test_power_sgd_sends_what_it_declares():
    params = {"w": jnp.ones((6, 4)), "b": jnp.ones(3), "h": jnp.ones((8, 3, 3), jnp.bfloat16)}
    for start in (0, 4):
        algorithm = jd.all_reduce(optax.sgd(0.1), reducer=C.power_sgd(2, start=start))
        by_branch = sent(algorithm, params, flat_loss)
        for t in (0, 5):
            branch = (f"case {int(t < start)}",) if start else ()
            found = by_branch.get((), 0) + (by_branch[branch] if branch else 0)
            assert algorithm.sends(params, t) == found
    assert algorithm.sends(params, 5) == 4 * (2 * (6 + 4) + 3 + 2 * (8 + 9))


def test_the_residual_follows_a_learning_rate_that_moves(x64, standard_promotion):
    """With the schedule given, it is error feedback with the learning rate inside the residual."""

    def rate(t):
        return 0.1 * 0.8**t

    top = C.top_k(0.4)
    inside = np.ones(5)
    owed = np.zeros((W, 5))
    for t in range(9):
        step = rate(t) * QUIET.gradient(0, np.tile(inside, (W, 1))) + owed
        sent_now = twins.compressed.each_of(twins.compressed.top(2), step)
        owed, inside = step - sent_now, inside - sent_now.mean(0)
    ends = [
        path_end(jd.all_reduce(optax.sgd(rate), compressor=c), 9)
        for c in (C.error_feedback(top, learning_rate=rate), C.error_feedback(top))
    ]
    np.testing.assert_allclose(ends[0], inside, atol=1e-12)
    assert np.abs(ends[1] - inside).max() > 1e-3


def path_end(algorithm, steps):
    trainer = jd.execute(algorithm, cases.loss, workers=W, mesh=mesh_of(2))
    batch = {k: jnp.broadcast_to(v, (steps, *v.shape)) for k, v in QUIET.arrays(0).items()}
    return np.asarray(trainer.readout(trainer.steps(trainer.init(jnp.ones(5)), batch)[0]))


@pytest.mark.slow
def test_the_random_ones_are_alike_on_lanes_and_devices(x64):
    for algorithm in (
        jd.all_reduce(optax.sgd(0.1), compressor=C.int8(4)),
        jd.choco(optax.sgd(0.1), jd.topology.ring(W), C.random_k(0.4), consensus_step=0.3),
    ):
        one, two = (path(algorithm, QUIET, devices=d, steps=4) for d in (1, 4))
        np.testing.assert_allclose(one, two, rtol=0, atol=1e-10)


def test_private_draws_differ_between_workers_and_shared_ones_do_not():
    trainer = jd.execute(
        jd.choco(optax.sgd(0.0), jd.topology.ring(4), C.ternary(), consensus_step=0.5),
        cases.loss,
        workers=4,
        mesh=mesh_of(2),
    )
    batch = {k: v.astype(np.float32) for k, v in QUIET.arrays(0).items()}
    params = jnp.linspace(0.1, 1.0, 5)
    state, _ = trainer.step(trainer.init(params), batch)
    assert len(np.unique(np.asarray(state.local[2]), axis=0)) > 1
    trainer = jd.execute(
        jd.choco(optax.sgd(0.0), jd.topology.ring(4), C.random_k(0.4), consensus_step=0.5),
        cases.loss,
        workers=4,
        mesh=mesh_of(2),
    )
    state, _ = trainer.step(trainer.init(params), batch)
    assert len(np.unique(np.asarray(state.local[2]), axis=0)) == 1


def test_one_bit_adam_is_adam_while_it_warms_up(x64, standard_promotion):
    exact = path(jd.all_reduce(optax.adam(0.05)), QUIET)
    same = path(jd.one_bit_adam(0.05, warmup_steps=20), QUIET)
    np.testing.assert_allclose(same, exact, atol=1e-10)


def test_a_number_that_had_no_gradient_in_the_warm_up_stays_under_one_bit_adam(x64):
    """As an embedding row that nobody has used: a bit gives it a momentum, and nothing to divide it by."""
    data = twins.quadratic(W, 11, seed=3, noise=0.3)
    data.A[:, 4:7, :] = data.A[:, :, 4:7] = 0.0
    options = dict(learning_rate=0.05, warmup_steps=3, b1=0.8, b2=0.9)
    twin = twins.compressed.one_bit_adam(data, 60, np.ones(11), eps=1e-8, **options)
    trainer = jd.execute(jd.one_bit_adam(**options), cases.loss, workers=W, mesh=mesh_of(1))
    many = {k: np.stack([data.arrays(t)[k] for t in range(60)]) for k in ("A", "b")}
    state, _ = trainer.steps(trainer.init(jnp.ones(11)), many)
    np.testing.assert_allclose(trainer.readout(state), twin.readout[-1], rtol=0, atol=1e-10)
    moved = np.abs(trainer.readout(state) - 1)
    assert moved[4:7].max() == 0
    assert np.delete(moved, range(4, 7)).min() > 1e-3
    assert np.abs(state.shared[1][4:7]).max() > 1e-3  # the momentum that they were given


RING, SGD = jd.topology.ring(4), optax.sgd(0.1)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: jd.gossip(SGD, RING, compressor=C.ef21(C.sign())), "jd.choco"),
        (lambda: jd.gossip(SGD, RING, compressor="sign"), "write for example jd.compress.top_k"),
        (
            lambda: jd.all_reduce(SGD, compressor=C.power_sgd(2)),
            "write reducer=jd.compress.power_sgd",
        ),
        (lambda: jd.all_reduce(SGD, compressor=C.sign(), reducer=C.power_sgd(2)), "write either"),
        (lambda: jd.all_reduce(SGD, compressor=3), "jd.compress.error_feedback"),
        (lambda: jd.diloco(SGD, SGD, period=2, compressor=3), "jd.compress.top_k"),
        (
            lambda: jd.choco(
                SGD, jd.topology.one_peer_exponential(8), C.sign(), consensus_step=0.1
            ),
            "write jd.topology.exponential(8)",
        ),
        (lambda: jd.choco(SGD, RING, C.sign(), consensus_step=0), "less for a coarser compressor"),
        (lambda: C.error_feedback(C.ef21(C.sign())), "give it jd.compress.sign()"),
        (lambda: C.error_feedback(C.sign(), learning_rate=0.1), "leave it out"),
        (lambda: C.power_sgd(0), "at least 1"),
        (lambda: jd.one_bit_adam(0.1, warmup_steps=0), "at least 1"),
        (lambda: jd.dgc(0.1, ratio=2), "at most 1"),
        (lambda: jd.dgc(0.1, ratio=0.1, velocity="lost"), "masked, kept"),
        (lambda: jd.demo(SGD, chunk=4), "from 1 to 4"),
        (lambda: jd.sign_majority(SGD, RING), "no use for"),
        (lambda: jd.push_sum(SGD, RING, compressor=C.sign(), delay=1), "write delay=0"),
        (lambda: jd.push_sum(SGD, RING, compressor=C.ef21(C.sign())), "jd.compress.sign() itself"),
        (
            lambda: jd.push_sum(SGD, jd.topology.one_peer_exponential(8), compressor=C.sign()),
            "write jd.topology.exponential(8)",
        ),
    ],
)
def test_a_wrong_argument_is_refused_with_the_line_to_write(make, said):
    with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
        make()


def test_bytes_that_depend_on_the_number_of_workers_ask_for_it():
    with pytest.raises(ValueError, match="with jd.worker.counted"):
        jd.all_reduce(SGD, compressor=C.sign()).sends(jnp.ones(5), 0)


@REMEMBERED
def test_what_is_remembered_is_in_checkpoints(tmp_path, name):
    """A run that goes on from the disk goes on bit for bit; without its memory it would not."""
    trainer = jd.execute(REMEMBERING[name](W), matrix_loss, workers=W, mesh=mesh_of(2))
    state = matrix_steps(trainer, None, 7)
    with saving(tmp_path) as saver:
        saver.save(7, state)
    start = trainer.init({"w": jnp.ones((6, 4)), "b": jnp.ones(13)})
    found = checkpoint.restore(tmp_path, start, step=7).state
    forgot = trainer.init(trainer.readout(found))._replace(step=found.step + 0)
    ends = [jax.tree.map(np.asarray, matrix_steps(trainer, s, 7)) for s in (state, found, forgot)]
    jax.tree.map(np.testing.assert_array_equal, *ends[:2])
    assert not all(map(np.array_equal, *map(jax.tree.leaves, ends[1:])))
