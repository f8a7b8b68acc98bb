"""Where methods come to rest under a fixed rate: at the minimizer, or where a linear solve says.

The problem is a sum of quadratics with a matrix and a minimizer of its own for every worker, so that
a method that does not communicate, or that mixes at the wrong place, ends elsewhere. To add a method:
a row in EXACT if it reaches the minimizer; in BIASED otherwise, with a function `(problem) -> points
[W, n], readout [n]` made of `Solve`, which knows nothing of the method's code.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import twins
from cases import loss

import jaxdist as jd
from jaxdist.catalogue import decentralized

W, N, RATE, MOMENTUM = 5, 3, 0.1, 0.5
QUIET = twins.quadratic(W, N, seed=1)
EXACTLY = 1e-10
SGD = optax.sgd(RATE)


def rest(algorithm, *, steps, problem=QUIET, dtype=np.float64):
    """Every worker's point and the readout after many steps on the same batch."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("worker",))
    trainer = jd.execute(algorithm, loss, workers=problem.workers, mesh=mesh)
    state = trainer.init(jnp.ones(problem.dimension, dtype))
    batches = {
        name: np.broadcast_to(array.astype(dtype), (steps, *array.shape))
        for name, array in problem.arrays(0).items()
    }
    state, _ = trainer.steps(state, batches)
    return np.asarray(trainer.gradient_at(state)), np.asarray(trainer.readout(state))


def one_way(n):
    """Column-stochastic, neither symmetric nor row-stochastic."""
    links = np.eye(n) + np.roll(np.eye(n), 1, 0)
    links[3, 0] = links[1, 4] = links[2, 4] = 1
    return links / links.sum(0)


RING = jd.topology.ring(W)
STAR = jd.topology.star(W)
ONE_PEER = jd.topology.one_peer_exponential(W)
MATCHING = jd.topology.random_matching(W, 4, seed=0)
ONE_WAY = jd.topology.from_matrix(one_way(W), name="one way")
order = np.roll(np.arange(W), 2)
ONE_WAY_ROUNDS = jd.topology.from_matrix([one_way(W), one_way(W)[np.ix_(order, order)]])


class Solve:
    """Operators on all workers' parameters in one vector [W n], of which a fixed point is made."""

    eye = np.eye(W * N)
    gradient = np.zeros((W * N, W * N))  # block-diagonal: the gradients are H x - H b
    for i in range(W):
        gradient[i * N : (i + 1) * N, i * N : (i + 1) * N] = QUIET.A[i]
    pull = gradient @ QUIET.b.ravel()

    @staticmethod
    def over(matrix):
        """A matrix between workers, on every coordinate alike."""
        return np.kron(matrix, np.eye(N))

    @classmethod
    def step(cls, matrix, rate):
        """x -> M (x - rate (H x - H b)) as a linear map and a constant."""
        M = cls.over(matrix)
        return M @ (cls.eye - rate * cls.gradient), rate * M @ cls.pull

    @classmethod
    def at_rest(cls, linear, constant):
        """The x with x = linear x + constant, [W, n]."""
        return np.linalg.solve(cls.eye - linear, constant).reshape(W, N)


def adapt_then_combine(topology, rate=RATE):
    """The first point of the cycle that a period of affine steps ends in; its mean."""
    linear, constant = Solve.eye, np.zeros(W * N)
    for t in range(topology.period):
        step, add = Solve.step(topology.matrix(t), rate)
        linear, constant = step @ linear, step @ constant + add
    points = Solve.at_rest(linear, constant)
    return points, points.mean(0)


def combine_then_adapt(topology):
    """The points y = W x of the cycle y = W(t) (y - rate g(y)), x = y - rate g(y).

    At rest y is the point of adapt_then_combine. The readout is the mean of the y.
    """
    return adapt_then_combine(topology)


def combine_while_adapt(topology):
    points = Solve.at_rest(
        Solve.over(topology.matrix(0)) - RATE * Solve.gradient, RATE * Solve.pull
    )
    return points, points.mean(0)


def push_sum(topology, delay=0):
    """D z = A (D z - rate g(z)), D the weights at rest; with a delay some of them are under way."""
    A = topology.matrix(0)
    values, vectors = np.linalg.eig(A)
    weights = np.real(vectors[:, np.argmax(np.real(values))])
    away = 1 - np.diag(A)
    # The senders' weights of `delay` steps are under way; with those at rest they add up to W.
    weights *= W / (weights.sum() + delay * away @ weights)
    D, M = Solve.over(np.diag(weights)), Solve.over(A)
    z = np.linalg.solve(D - M @ (D - RATE * Solve.gradient), RATE * M @ Solve.pull)
    sent = (D @ z - RATE * (Solve.gradient @ z - Solve.pull)).reshape(W, N)
    numerators = (D @ z).reshape(W, N)
    return z.reshape(W, N), (numerators.sum(0) + delay * away @ sent) / W


BIASED = {
    "gossip, ring": (jd.gossip(SGD, RING), lambda: adapt_then_combine(RING)),
    "gossip, star": (jd.gossip(SGD, STAR), lambda: adapt_then_combine(STAR)),
    "gossip, one-peer": (jd.gossip(SGD, ONE_PEER), lambda: adapt_then_combine(ONE_PEER)),
    "gossip, matchings": (jd.gossip(SGD, MATCHING), lambda: adapt_then_combine(MATCHING)),
    # At rest momentum is a larger rate.
    "gossip, momentum": (
        jd.gossip(optax.sgd(RATE, momentum=MOMENTUM), RING),
        lambda: adapt_then_combine(RING, RATE / (1 - MOMENTUM)),
    ),
    "gossip, combine_then_adapt": (
        jd.gossip(SGD, RING, order="combine_then_adapt"),
        lambda: combine_then_adapt(RING),
    ),
    "gossip, combine_while_adapt": (
        jd.gossip(SGD, RING, order="combine_while_adapt"),
        lambda: combine_while_adapt(RING),
    ),
    # Momentum that is a memory of the way vanishes at rest, and so does a threshold that decays.
    "quasi_global_momentum, ring": (
        jd.quasi_global_momentum(RATE, RING, momentum=MOMENTUM),
        lambda: adapt_then_combine(RING),
    ),
    "decentlam, ring": (
        jd.decentlam(RATE, RING, momentum=MOMENTUM),
        lambda: adapt_then_combine(RING),
    ),
    "event_triggered, ring": (
        jd.event_triggered(SGD, RING, threshold=0.5, decay=0.9),
        lambda: adapt_then_combine(RING),
    ),
    "push_sum, ring": (jd.push_sum(SGD, RING), lambda: adapt_then_combine(RING)),
    "push_sum, one way": (jd.push_sum(SGD, ONE_WAY), lambda: push_sum(ONE_WAY)),
    "push_sum, delay 1": (jd.push_sum(SGD, ONE_WAY, delay=1), lambda: push_sum(ONE_WAY, 1)),
    "push_sum, delay 3": (jd.push_sum(SGD, ONE_WAY, delay=3), lambda: push_sum(ONE_WAY, 3)),
}

SLOW = optax.sgd(0.05)
HEAVY = optax.sgd(0.05, momentum=MOMENTUM)
EXACT = {
    **{
        f"gradient_tracking, {order}, {name}": jd.gradient_tracking(SLOW, topology, order=order)
        for order in ("adapt_then_combine", "combine_while_adapt", "push_diging")
        for name, topology in {
            "ring": RING,
            "one-peer": ONE_PEER,
            "one way": ONE_WAY,
            "one-way rounds": ONE_WAY_ROUNDS,
        }.items()
    },
    "gradient_tracking, momentum": jd.gradient_tracking(HEAVY, RING),
    "gradient_tracking, matchings": jd.gradient_tracking(SLOW, MATCHING),
    "exact_diffusion, ring": jd.exact_diffusion(SGD, RING),
    "exact_diffusion, star": jd.exact_diffusion(SGD, STAR),
    "exact_diffusion, momentum": jd.exact_diffusion(HEAVY, RING),
    "d2, ring": jd.d2(SGD, RING),
    "d2, momentum": jd.d2(HEAVY, RING),
    "extra, ring": jd.extra(SGD, RING),
    "extra, star": jd.extra(SGD, STAR),
    "extra, momentum": jd.extra(HEAVY, RING),
    "relay, chain": jd.relay(SLOW, jd.topology.chain(W)),
    "relay, momentum": jd.relay(HEAVY, jd.topology.star(W)),
}


def test_every_method_that_talks_to_neighbors_has_a_place_to_rest():
    assert {name.split(",")[0] for name in {**BIASED, **EXACT}} == {*decentralized.ENTRIES}


@pytest.mark.parametrize("name", BIASED)
def test_a_biased_method_stops_where_a_linear_solve_says(x64, name):
    algorithm, solve = BIASED[name]
    points, readout = solve()
    steps = 480  # a multiple of every period
    found = rest(algorithm, steps=steps)
    np.testing.assert_allclose(found[0], points, rtol=0, atol=EXACTLY)
    np.testing.assert_allclose(found[1], readout, rtol=0, atol=EXACTLY)
    assert np.abs(points - QUIET.minimiser).max() > 1e-2


@pytest.mark.parametrize("name", EXACT)
def test_an_exact_method_reaches_the_minimizer(x64, name):
    points, readout = rest(EXACT[name], steps=1500)
    np.testing.assert_allclose(points, np.tile(QUIET.minimiser, (W, 1)), rtol=0, atol=EXACTLY)
    np.testing.assert_allclose(readout, QUIET.minimiser, rtol=0, atol=EXACTLY)
