"""The problems, steps and helpers that the laws of the twins share."""

import numpy as np
import optax
from twins import adagrad, adam, momentum, quadratic, scaffold, sgd
from twins.compressed import top

W, N, LR = 5, 3, 0.1
X0 = np.array([2.0, -1.0, 0.5])
QUIET = quadratic(W, N, seed=1)
NOISY = quadratic(W, N, seed=2, noise=0.5)
RULES = {
    "sgd": (sgd(LR), lambda: optax.sgd(LR)),
    "momentum": (momentum(LR, 0.9), lambda: optax.sgd(LR, momentum=0.9)),
    "nesterov": (
        momentum(LR, 0.9, nesterov=True),
        lambda: optax.sgd(LR, momentum=0.9, nesterov=True),
    ),
    "adam": (adam(LR, 0.8, 0.95, 1e-6), lambda: optax.adam(LR, b1=0.8, b2=0.95, eps=1e-6)),
    "adagrad": (adagrad(LR), lambda: optax.adagrad(LR)),
}


def everyone(t):
    """The mean over all workers, as a mixing matrix."""
    return np.full((W, W), 1 / W)


def ring(t):
    """A ring with 1/3 for oneself and for each neighbour."""
    return (np.eye(W) + np.roll(np.eye(W), 1, 0) + np.roll(np.eye(W), -1, 0)) / 3


def directed(t):
    """Column-stochastic and neither symmetric nor row-stochastic; the out-degrees differ."""
    links = np.eye(W) + np.roll(np.eye(W), 1, 0)
    links[3, 0] = links[1, 4] = links[2, 4] = 1
    return links / links.sum(0)


def changing_directed(t):
    """The directed graph with the workers renamed at every step."""
    order = np.roll(np.arange(W), t)
    return directed(t)[np.ix_(order, order)]


def matchings(t):
    """Pairs that take turns: (0 1)(2 3) at even steps, (1 2)(3 4) at odd ones."""
    M = np.eye(W)
    for i in (t % 2, t % 2 + 2):
        M[np.ix_([i, i + 1], [i, i + 1])] = 0.5
    return M


def hop(t):
    """Doubly stochastic, not symmetric, different at every step: half to the worker t + 1 on."""
    return (np.eye(W) + np.roll(np.eye(W), t % (W - 1) + 1, 0)) / 2


def top_one(v):
    """Keep the largest coordinate."""
    return np.where(np.abs(v) == np.abs(v).max(), v, 0.0)


TREE = np.zeros((W, W))
for i, j in ((0, 1), (1, 2), (1, 3), (3, 4)):
    TREE[i, j] = TREE[j, i] = 1
ARRIVALS = [[0, 3], [], [4, 1], [2], [0], [3, 1, 4], [2, 0]] * 6
ROUND_ROBIN = [[t % W] for t in range(42)]
ARGUMENTS = {
    "all_reduce": dict(inner=adam(LR)),
    "sharded_all_reduce": dict(inner=adam(LR)),
    "sign_majority": dict(inner=sgd(LR)),
    "lbfgs": dict(memory=4),
    "noise_scale": dict(inner=adam(LR)),
    "adascale": dict(inner=momentum(LR, 0.5)),
    "one_bit_adam": dict(learning_rate=LR, warmup_steps=6, b1=0.8, b2=0.9, eps=1e-8),
    "dgc": dict(learning_rate=LR, momentum=0.5, k=2),
    "demo": dict(inner=sgd(LR), decay=0.5, chunk=2, keep=1),
    "local_sgd": dict(inner=momentum(LR, 0.9), period=4, start=6),
    "slow_momentum": dict(
        inner=sgd(LR), period=4, slow_learning_rate=0.8, slow_momentum=0.5, learning_rate=LR
    ),
    "block_momentum": dict(
        inner=sgd(LR), period=4, momentum=0.5, block_learning_rate=0.8, nesterov=True
    ),
    "diloco": dict(inner=adam(LR), outer=momentum(0.7, 0.9, nesterov=True), period=4),
    "streaming_diloco": dict(
        inner=adam(LR), outer=momentum(0.7, 0.9, nesterov=True), period=4,
        fragments=[np.array([0, 2]), np.array([1])], delay=2, blend=0.5,
    ),
    "federated": dict(
        inner=sgd(LR), outer=momentum(0.5, 0.5), local_steps=4, correction=scaffold(),
        cohorts=[[0, 1, 2], [2, 3], [4, 0]] * 4,
    ),
    "elastic_averaging": dict(inner=sgd(LR), period=2, attraction=0.1),
    "gossip": dict(inner=adam(LR), matrix=hop, order="combine_then_adapt"),
    "push_sum": dict(inner=sgd(LR), matrix=changing_directed, delay=2),
    "compressed_push_sum": dict(inner=sgd(LR), matrix=directed, compressor=top(2)),
    "gradient_tracking": dict(inner=sgd(LR), matrix=hop),
    "push_diging": dict(inner=sgd(0.05), matrix=changing_directed),
    "exact_diffusion": dict(inner=sgd(LR), matrix=ring),
    "d2": dict(inner=sgd(LR), matrix=ring),
    "extra": dict(inner=sgd(LR), matrix=ring),
    "quasi_global_momentum": dict(learning_rate=LR, matrix=ring, momentum=0.9),
    "decentlam": dict(learning_rate=LR, matrix=ring, momentum=0.5),
    "relay": dict(inner=sgd(LR), tree=TREE),
    "choco": dict(inner=sgd(LR), matrix=ring, compressor=top_one, consensus_step=0.3),
    "pairwise": dict(inner=sgd(LR), matrix=matchings),
    "event_triggered": dict(inner=sgd(LR), matrix=ring, threshold=0.4, decay=0.95),
    "delayed": dict(inner=sgd(LR), delay=2),
    "downpour": dict(inner=adagrad(LR), arrivals=ARRIVALS, push_every=2, pull_every=3),
    "stale_synchronous": dict(inner=sgd(LR), arrivals=ROUND_ROBIN, bound=1),
    "delay_compensated": dict(inner=sgd(LR), arrivals=ARRIVALS, strength=0.1),
    "hogwild": dict(
        inner=momentum(LR, 0.5), arrivals=ARRIVALS,
        shown=np.random.default_rng(0).random((42, W, N)) < 0.5,
    ),
    "elastic_averaging_arrivals": dict(
        inner=sgd(LR), arrivals=ARRIVALS, period=2, attraction=0.1
    ),
}  # fmt: skip


def same(a, b, tolerance=1e-12):
    """Two traces agree, in their points and in their readouts."""
    np.testing.assert_allclose(a.points, b.points, rtol=0, atol=tolerance)
    np.testing.assert_allclose(a.readout, b.readout, rtol=0, atol=tolerance)


def same_points(a, b, tolerance=1e-12):
    np.testing.assert_allclose(a.points, b.points, rtol=0, atol=tolerance)


def far(trace, x):
    """How far the last points, or the last readout, are from x: the larger of the two."""
    return max(np.abs(trace.points[-1] - x).max(), np.abs(trace.readout[-1] - x).max())
