"""With a memory of what they left out compressed methods settle where the same without it stall."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from compressed_methods import QUIET, W, end, one_way, path

import jaxdist as jd
from jaxdist.compress import CATALOGUE

C = jd.compress


def points(algorithm, steps):
    """Where all workers are in the end."""
    return path(algorithm, QUIET, steps=steps, devices=1)[steps:].reshape(W, 5)


MEMORIES = {
    "top_k": C.top_k(0.3),
    "sign": C.sign(),
}


@pytest.mark.parametrize("name", MEMORIES)
def test_with_a_memory_all_reduce_settles_where_without_it_stalls(x64, name):
    """The workers' gradients do not vanish at the minimiser of their mean; a stall is their compression."""
    naive = C.contractive(MEMORIES[name])
    rule = optax.sgd(0.05)
    stalled = end(jd.all_reduce(rule, compressor=naive), 400)
    owed = end(jd.all_reduce(rule, compressor=C.error_feedback(MEMORIES[name])), 400)
    known = end(jd.all_reduce(rule, compressor=C.ef21(MEMORIES[name])), 400)
    assert stalled > 0.02
    assert owed < stalled / 3
    assert known < 1e-4


def with_memory(method, compressor):
    """The same method with the naive compressor, with a memory, and with nothing left out."""
    naive, known, exact = C.contractive(compressor), C.ef21(compressor), C.cast(jnp.float64)
    ring = jd.topology.ring(W)
    if method == "all_reduce":
        return [jd.all_reduce(optax.sgd(0.05), compressor=c) for c in (naive, known, exact)]
    if method == "diloco":
        rules = optax.sgd(0.02), optax.sgd(0.3)
        return [jd.diloco(*rules, period=2, compressor=c) for c in (naive, known, exact)]
    rule = optax.sgd(0.02)
    both = [jd.choco(rule, ring, c, consensus_step=0.2) for c in (compressor, exact)]
    return [jd.gossip(rule, ring, compressor=compressor), *both]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["all_reduce", "diloco", "gossip"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_every_compressor_settles_with_a_memory_and_stalls_without_it(x64, method, name):
    stalled, known, exact = (points(a, 1500) for a in with_memory(method, CATALOGUE[name]()))
    if (method, name) != (
        "all_reduce",
        "random_k",
    ):  # of one mask for all: it vanishes with the mean
        assert np.abs(stalled - exact).max() > 1e-5
        assert np.abs(known - exact).max() < np.abs(stalled - exact).max() / 100
    assert np.abs(known - exact).max() < 1e-4


@pytest.mark.parametrize("name", MEMORIES)
def test_with_a_memory_diloco_settles_where_without_it_stalls(x64, name):
    naive = C.contractive(MEMORIES[name])

    def made(compressor):
        return jd.diloco(optax.sgd(0.02), optax.sgd(0.3), period=2, compressor=compressor)

    exact = end(made(None), 1500)
    stalled = end(made(naive), 1500)
    owed = end(made(C.error_feedback(MEMORIES[name])), 1500)
    known = end(made(C.ef21(MEMORIES[name])), 1500)
    assert stalled > 0.02
    assert owed < stalled / 3
    assert abs(known - exact) < 1e-4


OWED = {
    "dgc": (
        lambda: jd.dgc(0.01, ratio=0.4, momentum=0.5, velocity="kept"),
        lambda: jd.all_reduce(optax.sgd(0.01, momentum=0.5), compressor=C.top_k(0.4)),
    ),
    "demo": (
        lambda: jd.demo(optax.sgd(0.01), chunk=5, keep=2),
        lambda: jd.all_reduce(optax.sgd(0.01), compressor=C.dct_top_k(2, chunk=5)),
    ),
}


@pytest.mark.parametrize("method", OWED)
def test_what_waits_in_a_momentum_settles_where_what_is_dropped_stalls(x64, method):
    owed, dropped = (end(make(), 2000) for make in OWED[method])
    assert dropped > 0.3
    assert owed < dropped / 30


def test_the_papers_mask_of_dgc_rests_beside_the_minimizer_at_any_rate(x64):
    ends = [end(jd.dgc(rate, ratio=0.4, momentum=0.5), int(20 / rate)) for rate in (0.02, 0.005)]
    assert 0.05 < ends[1] < 0.2
    assert ends[1] > ends[0] / 2


def test_one_bit_adam_settles_where_signs_without_residuals_stall(x64, monkeypatch):
    options = dict(learning_rate=0.005, warmup_steps=50, b1=0.9, b2=0.999)
    monkeypatch.setattr(twins.compressed, "error_feedback", twins.compressed.plain)
    dropped = twins.compressed.one_bit_adam(QUIET, 3000, np.ones(5), eps=1e-8, **options)
    stalled = np.abs(dropped.readout[-1] - QUIET.minimiser).max()
    assert stalled > 0.05
    assert end(jd.one_bit_adam(**options), 3000) < stalled / 10


@pytest.mark.parametrize("name", MEMORIES)
def test_choco_settles_where_compressed_gossip_stalls(x64, name):
    """Choco ends where it would without compression, every worker of it; gossip far from there."""
    ring, rule = jd.topology.ring(W), optax.sgd(0.02)
    exact = points(jd.gossip(rule, ring), 500)
    stalled = points(jd.gossip(rule, ring, compressor=MEMORIES[name]), 500)
    full = points(jd.choco(rule, ring, C.cast(jnp.float64), consensus_step=0.4), 500)
    known = points(jd.choco(rule, ring, MEMORIES[name], consensus_step=0.4), 500)
    assert np.abs(exact - QUIET.minimiser).max() < 0.03
    assert np.abs(stalled - exact).max() > 0.3
    np.testing.assert_allclose(known, full, atol=1e-3)


@pytest.mark.parametrize("name", MEMORIES)
def test_push_sum_settles_where_it_would_without_compression(x64, name):
    """And where the payloads alone, with no copies, stay far from it."""
    way, rule = one_way(W, move=0.5), optax.sgd(0.02)
    exact = points(jd.push_sum(rule, way), 1000)
    known = points(jd.push_sum(rule, way, compressor=MEMORIES[name]), 1000)
    np.testing.assert_allclose(known, exact, atol=1e-8)
    A, compress = way.matrix(0), {"top_k": twins.compressed.top(2)}
    n, w = np.ones((W, 5)), np.ones(W)
    for _ in range(1000):
        v = n - 0.02 * QUIET.gradient(0, n / w[:, None])
        sent_now = twins.compressed.each_of(compress.get(name, twins.compressed.scaled_sign), v)
        n, w = v - sent_now + A @ sent_now, A @ w
    assert np.abs(n / w[:, None] - exact).max() > 0.3
