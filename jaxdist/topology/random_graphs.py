"""Graphs drawn at random from a seed: regular ones and Erdos-Renyi ones."""

import math

import numpy as np

from jaxdist.errors import Refused
from jaxdist.topology.base import Topology, check_count
from jaxdist.topology.connectivity import components
from jaxdist.topology.rounds import metropolis

# Draws before a probability is called too small: what connects once in fifty draws gets through.
MOST_DRAWS = 200


def random_regular(n: int, degree: int, *, seed: int) -> Topology:
    """Everyone has the same number of neighbors, drawn at random.

        0   1   2   3   4   5      three lines end at every worker,
         \\__|___|__/    |   |      which ones is the seed's business
          ...

    Degree as asked, weights 1/(degree + 1). For a random draw and large n the spectral gap is near

        (d − 2√(d − 1)) / (d + 1)       d = degree ≥ 3

    whatever n is: constant degree and constant gap. Stubs are paired at random, pairs that would be
    loops or double edges are broken up and paired again; a graph that is not connected is drawn
    again from the same stream, so a seed always gives the same graph.

    Args:
      n: workers.
      degree: neighbors of each, below n; n · degree is even. From 3 on nearly all draws
        are connected.
      seed: of the draw.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: a degree of n or more, n · degree odd, or too few neighbors to connect n workers.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.random_regular(16, 3, seed=0)
      random_regular(16, 3, seed=0): 16 workers, degree 3, period 1

    References:
      Steger, Wormald, Generating Random Regular Graphs Quickly, Combinatorics, Probability and
      Computing 1999. Friedman, A proof of Alon's second eigenvalue conjecture, 2004.
      arXiv:cs/0405020
    """
    example = "random_regular(16, 3, seed=0)"
    n = check_count(example, n)
    degree = check_count(example, degree, what="a degree", least=0)
    seed = check_count(example, seed, what="a seed", least=0)
    call = "jd.topology.random_regular"
    if degree >= n:
        raise Refused(
            f"{call}: {n} workers have at most {n - 1} neighbors each, not {degree}; write "
            f"{call}({n}, {n - 1}, seed={seed}) or {call}({degree + 1}, {degree}, seed={seed})"
        )
    if n * degree % 2:
        raise Refused(
            f"{call}: {n} workers with {degree} neighbors each would need half an edge; write "
            f"{call}({n}, {degree - 1 if degree > 2 else degree + 1}, seed={seed}) or "
            f"{call}({n + 1}, {degree}, seed={seed})"
        )
    if degree < min(2, n - 1):
        raise Refused(
            f"{call}: {degree} neighbors each can not connect {n} workers; write "
            f"{call}({n}, {min(3 + n % 2, n - 1)}, seed={seed})"
        )
    generator = np.random.default_rng(seed)
    while True:
        a, b = _regular(n, degree, generator)
        if not components(a, b, size=n).any():
            break
    return Topology(f"random_regular({n}, {degree}, seed={seed})", (metropolis(a, b, size=n),))


def erdos_renyi(n: int, probability: float, *, seed: int) -> Topology:
    """Every pair of workers is linked with the same probability, independently.

        0 --- 1     2
        |   \\     / |       each of the n(n − 1)/2 lines is there with the probability
        3     4 --- 5

    Mean degree (n − 1) · probability, the highest somewhat above it; Metropolis weights. No closed
    form for the spectral gap. A graph that is not connected is drawn again from the same stream, so
    a seed always gives the same graph; connected draws are common from about ln n / n on.

    Args:
      n: workers.
      probability: of each link, in 0 .. 1.
      seed: of the draw.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: a probability outside 0 .. 1, or so small that 200 draws were all disconnected.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.erdos_renyi(16, 0.3, seed=0).size
      16

    References:
      Erdos, Renyi, On Random Graphs I, Publicationes Mathematicae 1959.
    """
    example = "erdos_renyi(16, 0.3, seed=0)"
    n = check_count(example, n)
    seed = check_count(example, seed, what="a seed", least=0)
    call = "jd.topology.erdos_renyi"
    if isinstance(probability, bool) or not 0 <= probability <= 1:
        raise Refused(
            f"{call} needs a probability in 0 .. 1 and was given {probability!r}; write "
            f"{call}({n}, {_enough(n)}, seed={seed})"
        )
    generator = np.random.default_rng(seed)
    # Pairs i < j are numbered row by row; row i begins at first[i].
    first = np.concatenate([[0], np.cumsum(np.arange(n - 1, 0, -1))])
    every = n * (n - 1) // 2
    for _ in range(MOST_DRAWS):
        count = generator.binomial(every, probability)
        number = generator.choice(every, count, replace=False) if every else np.zeros(0, int)
        a = np.searchsorted(first, number, side="right") - 1
        b = number - first[a] + a + 1
        if not components(a, b, size=n).any():
            name = f"erdos_renyi({n}, {float(probability):g}, seed={seed})"
            return Topology(name, (metropolis(a, b, size=n),))
    raise Refused(
        f"{call}({n}, {probability:g}) was drawn {MOST_DRAWS} times and was never connected; write "
        f"{call}({n}, {_enough(n)}, seed={seed})"
    )


def _enough(n: int) -> float:
    return round(min(1.0, (math.log(n) + 2) / n), 3)


def _regular(n: int, degree: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The edges of a random regular graph, connected or not."""
    if 2 * degree > n - 1:
        # Pairing stubs gets stuck when few pairs are left to choose from. What is left out of a
        # dense regular graph is a sparse regular graph.
        missing = np.ones((n, n), bool)
        missing[_regular(n, n - 1 - degree, generator)] = False
        a, b = np.nonzero(np.triu(missing & missing.T, 1))
        return a, b
    while True:
        keys, stubs, failures = np.zeros(0, np.int64), np.repeat(np.arange(n), degree), 0
        while len(stubs) and failures < 50:
            stubs = generator.permutation(stubs)
            low, high = np.minimum(stubs[::2], stubs[1::2]), np.maximum(stubs[::2], stubs[1::2])
            key = low * n + high
            good = np.zeros(len(key), bool)
            good[np.unique(key, return_index=True)[1]] = True
            good &= (low < high) & ~np.isin(key, keys)
            keys = np.concatenate([keys, key[good]])
            stubs = np.concatenate([low[~good], high[~good]])
            failures = 0 if good.any() else failures + 1
        if not len(stubs):
            return np.divmod(keys, n)
