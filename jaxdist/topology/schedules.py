"""Schedules of one neighbor at a time: the cheapest rounds there are."""

import numpy as np

from jaxdist.errors import Refused
from jaxdist.topology.base import Topology, check_count
from jaxdist.topology.connectivity import components
from jaxdist.topology.graphs import check_power_of_two, hops_below
from jaxdist.topology.rounds import Round, exchange, shifts


def one_peer_exponential(n: int) -> Topology:
    """Everyone listens to one worker a round: 1 behind, then 2 behind, then 4, and again.

        round 0: 0 → 1 → 2 → 3 → ...     round 1: 0 → 2 → 4 → ...     round 2: 0 → 4 → ...

    Degree 1, period ⌈log₂ n⌉, directed, weights 1/2 and 1/2: the price of one message a step, and
    about the mixing of `exponential`. The average after a period is exact if and only if n is a
    power of two; then the spectral gap is 1. Otherwise it is

        1 − max over k = 1 .. n − 1 of Π_t |cos(π k 2ᵗ / n)| ^ (1 / period)

    For a number of workers that is no power of two, `base_k` is exact.

    Args:
      n: workers, any number.

    Returns:
      A directed, doubly stochastic `Topology` of ⌈log₂ n⌉ rounds, each one cyclic shift.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> topology = jd.topology.one_peer_exponential(8)
      >>> topology
      one_peer_exponential(8): 8 workers, degree 1, period 3, directed
      >>> topology.spectral_gap
      1.0
      >>> [topology.neighbors(step)[0] for step in range(3)]
      [(7,), (6,), (4,)]

    References:
      Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training, NeurIPS
      2021. arXiv:2110.13363. Assran et al., Stochastic Gradient Push for Distributed Deep Learning,
      ICML 2019. arXiv:1811.10792
    """
    n = check_count("one_peer_exponential(8)", n)
    rounds = [shifts([hop], size=n) for hop in hops_below(n)]
    return Topology(f"one_peer_exponential({n})", tuple(rounds or [shifts([], size=n)]))


def one_peer_hypercube(n: int) -> Topology:
    """Pairs whose numbers differ in one bit exchange: bit 0, then bit 1, and again.

        round 0: 0-1 2-3 4-5 6-7     round 1: 0-2 1-3 4-6 5-7     round 2: 0-4 1-5 2-6 3-7

    Degree 1, period log₂ n, undirected, weights 1/2 and 1/2. Averages exactly in a period: spectral
    gap 1. Unlike in `one_peer_exponential` the two of a pair hold the same afterwards, and every
    round's matrix is symmetric.

    Args:
      n: workers, a power of two.

    Returns:
      An undirected, doubly stochastic `Topology` of log₂ n rounds.

    Raises:
      Refused: n is not a power of two; the message has the nearest ones.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.one_peer_hypercube(8)
      one_peer_hypercube(8): 8 workers, degree 1, period 3

    References:
      Shi et al., Finite-time Convergent Gossiping, IEEE/ACM Transactions on Networking 2016.
    """
    n = check_power_of_two("one_peer_hypercube", n, instead="one_peer_exponential")
    workers = np.arange(n)
    rounds = [_pairs(*_lower(workers, workers ^ bit), size=n) for bit in hops_below(n)]
    return Topology(f"one_peer_hypercube({n})", tuple(rounds or [shifts([], size=n)]))


def random_matching(n: int, rounds: int, *, seed: int) -> Topology:
    """In every round the workers are paired at random, and the two of a pair take their mean.

        round 0: 0-5 1-2 3-4     round 1: 0-3 1-5 2-4     ...     as the seed has it

    Degree 1, period `rounds`, undirected, weights 1/2 and 1/2; for odd n one worker idles in each
    round. No closed form for the spectral gap; it is about 0.3 from eight rounds on. (Pairs that
    are drawn anew for ever halve the expected squared disagreement a round: 1 − 1/√2 = 0.29.)

    The schedule is drawn once, from the seed. One whose pairs leave workers unconnected over the
    whole period is drawn again from the same stream, so a seed always gives the same schedule.

    Args:
      n: workers.
      rounds: how many rounds before they repeat; at least 2 for more than two workers.
      seed: of the draw.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: one round for more than two workers, which can not connect them.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.random_matching(6, 4, seed=0)
      random_matching(6, 4, seed=0): 6 workers, degree 1, period 4

    References:
      Boyd et al., Randomized Gossip Algorithms, IEEE Transactions on Information Theory 2006.
    """
    example = "random_matching(8, 16, seed=0)"
    n = check_count(example, n)
    rounds = check_count(example, rounds, what="a number of rounds")
    seed = check_count(example, seed, what="a seed", least=0)
    if rounds == 1 and n > 2:
        raise Refused(
            f"jd.topology.random_matching can not connect {n} workers in rounds=1, where everyone "
            f"meets one other; write jd.topology.random_matching({n}, 8, seed={seed})"
        )
    generator = np.random.default_rng(seed)
    while True:
        drawn = [generator.permutation(n)[: n // 2 * 2].reshape(-1, 2) for _ in range(rounds)]
        every = np.concatenate(drawn)
        if not components(every[:, 0], every[:, 1], size=n).any():
            break
    return Topology(
        f"random_matching({n}, {rounds}, seed={seed})",
        tuple(_pairs(pairs[:, 0], pairs[:, 1], size=n) for pairs in drawn),
    )


def _lower(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return a[a < b], b[a < b]


def _pairs(a: np.ndarray, b: np.ndarray, *, size: int) -> Round:
    return exchange(a, b, np.full(len(a), 0.5), size=size)
