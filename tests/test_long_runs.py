"""What only exchanges move keeps its mean for a hundred thousand steps, in float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdist as jd
from jaxdist.compensated import Sum

C = jd.compress
STEPS, W, N = 100_000, 5, 3
RING, EXPONENTIAL = jd.topology.ring(W), jd.topology.exponential(W)
LINKS = np.eye(W) + np.roll(np.eye(W), 1, 0)
LINKS[3, 0] = LINKS[1, 4] = LINKS[2, 4] = 1
LINKS /= LINKS.sum(0)
ONE_WAY = jd.topology.from_matrix(LINKS, name="one way")
SLOWLY = jd.topology.from_matrix((np.eye(W) + LINKS) / 2, name="one way, slowly")
METHODS = {
    "gossip": lambda rule: jd.gossip(rule, RING),
    "gossip, int8": lambda rule: jd.gossip(rule, RING, compressor=C.int8()),
    "gossip early, int8": lambda rule: jd.gossip(
        rule, RING, order="combine_while_adapt", compressor=C.int8()
    ),
    "exact_diffusion": lambda rule: jd.exact_diffusion(rule, RING),
    "d2": lambda rule: jd.d2(rule, RING),
    "extra": lambda rule: jd.extra(rule, RING),
    "gradient_tracking": lambda rule: jd.gradient_tracking(rule, RING),
    "gradient_tracking, one way": lambda rule: jd.gradient_tracking(rule, EXPONENTIAL),
    "choco, top_k": lambda rule: jd.choco(rule, RING, C.top_k(0.34), consensus_step=0.2),
    "choco, int8": lambda rule: jd.choco(rule, RING, C.int8(), consensus_step=0.5),
    "choco, one way": lambda rule: jd.choco(rule, EXPONENTIAL, C.top_k(0.34), consensus_step=0.2),
    "event_triggered": lambda rule: jd.event_triggered(rule, RING, threshold=0.1),
    "push_sum": lambda rule: jd.push_sum(rule, ONE_WAY),
    "push_sum, int8": lambda rule: jd.push_sum(rule, SLOWLY, compressor=C.int8()),
    "push_sum, top_k": lambda rule: jd.push_sum(rule, SLOWLY, compressor=C.top_k(0.67)),
}
# So many roundings of numbers of about 1, each by chance up or down, of which W are averaged.
TOLERANCE = 4 * np.sqrt(STEPS / W) * np.finfo(np.float32).eps / 2
FREE = ("exact_diffusion", "choco, top_k")
# These keep what rounding drops of the parameters, and no sum.
OF_ROUNDINGS = ("gossip", "gossip, int8", "gossip early, int8", "event_triggered")


def loss(params, batch, key):
    return 0.5 * jnp.sum((params - batch) ** 2), {}


def ran(make, steps):
    """Readouts after so many noisy steps, and after as many more in which nothing is learned; the state."""
    rule = optax.sgd(lambda t: jnp.where(t < steps, 0.05, 0.0))
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("worker",))
    trainer = jd.execute(make(rule), loss, workers=W, mesh=mesh)
    draw = np.random.default_rng(0)
    batches = draw.normal(size=(W, N)) + 1 + draw.normal(size=(steps, W, N))
    state, readouts = trainer.init(jnp.zeros(N)), []
    for _ in range(2):
        state, _ = trainer.steps(state, batches.astype(np.float32))
        readouts.append(np.asarray(trainer.readout(state), np.float64))
    return readouts, state, batches


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_where_nothing_is_learned_the_mean_stays_however_long_it_has_been_corrected(name):
    (before, after), _, batches = ran(METHODS[name], STEPS)
    assert np.abs(before).max() < 2  # as the tolerance has it
    np.testing.assert_allclose(after, before, rtol=0, atol=TOLERANCE)
    if "push_sum" not in name:  # there unlike weights leave a bias
        mean = np.zeros(N)
        for targets in batches.astype(np.float32).astype(np.float64).mean(1):
            mean += 0.05 * (targets - mean)
        # What is rounded off is forgotten at the rate at which it learns.
        np.testing.assert_allclose(before, mean, rtol=0, atol=16 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in FREE else pytest.mark.slow) for n in METHODS]
)
def test_corrections_of_all_workers_cancel_to_the_last_bit_that_is_kept(name):
    _, state, _ = ran(METHODS[name], 2000)
    kept = [x for x in jax.tree.leaves(state.local, is_leaf=_is_sum) if _is_sum(x)]
    assert len(kept) == (0 if name in (*OF_ROUNDINGS, "push_sum") else 1)
    for one in kept:
        high, low = (np.asarray(x, np.float64) for x in one)
        # Twice 24 bits of the largest number that was added up, each of so many times.
        bound = 4000 * np.abs(high).max() * 2.0**-46
        assert np.abs(high).max() > 0
        assert np.abs((high + low).sum(0)).max() <= bound


def _is_sum(x):
    return isinstance(x, Sum)
