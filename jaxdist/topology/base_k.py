"""The Base-(k+1) Graph: the exact mean in about 2 log n rounds for every number of workers.

Takezawa et al., Beyond Exponential Graph: Communication-Efficient Topologies for Decentralized
Learning via Finite-time Convergence, NeurIPS 2023. arXiv:2305.11420
"""

from collections.abc import Iterable
from functools import cache

import numpy as np

from jaxdist.topology.base import Topology, check_count
from jaxdist.topology.rounds import Round, exchange

# One round while it is put together: pairs (i, j) and the weight that i and j give each other.
Links = list[tuple[int, int, float]]


def base_k(n: int, k: int) -> Topology:
    """Exact averaging in finitely many rounds, for every number of workers and every degree k.

        n = 5 = 4 + 1, k = 1      round 0: 0-1 2-3 ·      within the block of four
                                  round 1: 0-2 1-3 ·      now it agrees
                                  round 2: 0-4 1-2 3 ·    0 and 4 with weight 4/5: 4 has the mean,
                                  round 3: 0-1 2-3 ·      0 what the block lacks, and spreads it
                                  round 4: 0-2 1-3 ·

    The product of the rounds' matrices is 11ᵀ/n: spectral gap 1. Degree at most k, and at most
    2 log_{k+1} n + 2 rounds, fewer if n has only prime factors up to k + 1 (log_{k+1} n if it is a
    power of k + 1). With k = 1 it is what `one_peer_exponential` is for powers of two.

    Write n in base k + 1 and cut the workers into blocks a (k + 1)ᵖ, one for each digit a. Every
    block finds its own mean, all at once. Then, the largest first, each block exchanges with all
    smaller ones, with the one weight that gives these the right mean and leaves the block the right
    sum; a block whose turn is over spreads that sum inside. Where n = p · q, with p made of primes
    up to k + 1, this may be done for p sets of q and then across them; the shorter way is taken.

    Args:
      n: workers, any number.
      k: neighbors in a round, at most.

    Returns:
      An undirected, doubly stochastic `Topology`; every round's matrix is symmetric.

    Raises:
      Refused: n or k is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.base_k(5, 1)
      base_k(5, 1): 5 workers, degree 1, period 5
      >>> jd.topology.base_k(25, 4).period, jd.topology.base_k(25, 4).spectral_gap
      (2, 1.0)

    References:
      Takezawa et al., Beyond Exponential Graph: Communication-Efficient Topologies for
      Decentralized Learning via Finite-time Convergence, NeurIPS 2023. arXiv:2305.11420
    """
    n = check_count("base_k(6, 1)", n)
    k = check_count("base_k(6, 1)", k, what="a number of neighbors k")
    schedule = _shortest(range(n), k) or [[]]
    return Topology(f"base_k({n}, {k})", tuple(_round(links, n) for links in schedule))


def _round(links: Links, n: int) -> Round:
    table = np.array(links, np.float64).reshape(-1, 3)
    return exchange(table[:, 0].astype(int), table[:, 1].astype(int), table[:, 2], size=n)


@cache
def _factors(n: int, k: int) -> tuple[int, ...] | None:
    """The fewest factors of n that are at most k + 1; None if n has a larger prime."""
    if n == 1:
        return ()
    found = None
    for factor in range(min(n, k + 1), 1, -1):
        rest = _factors(n // factor, k) if n % factor == 0 else None
        if rest is not None and (found is None or len(rest) + 1 < len(found)):
            found = (factor, *rest)
    return found


def _clique(workers: list[int]) -> Links:
    return [(i, j, 1 / len(workers)) for at, i in enumerate(workers) for j in workers[:at]]


def _hyper(workers: range | list[int], factors: Iterable[int]) -> list[Links]:
    """Workers numbered in mixed radix; each digit is a round, those that differ in it a clique."""
    rounds, stride = [], 1
    for factor in factors:
        firsts = [w for w in range(len(workers)) if w // stride % factor == 0]
        cliques = [[workers[w + d * stride] for d in range(factor)] for w in firsts]
        rounds.append([link for clique in cliques for link in _clique(clique)])
        stride *= factor
    return rounds


def _shortest(workers: range, k: int) -> list[Links]:
    """The shorter of two ways: digits of all workers, or of sets of q and then across the sets."""
    n = len(workers)
    direct = _simple(workers, k)
    q = n
    for prime in range(2, min(k + 1, n) + 1):
        while q % prime == 0:
            q //= prime
    across = _factors(n // q, k)
    if q in (1, n) or across is None:
        return direct
    sets = [_simple(workers[first : first + q], k) for first in range(0, n, q)]
    inside = [[link for links in at for link in links] for at in zip(*sets, strict=True)]
    bridges = [_hyper(workers[member::q], across) for member in range(q)]
    beyond = [[link for links in at for link in links] for at in zip(*bridges, strict=True)]
    return min(direct, inside + beyond, key=len)


def _simple(workers: range, k: int) -> list[Links]:
    """The digit construction: blocks for the digits of n in base k + 1."""
    n, base = len(workers), k + 1
    whole = _factors(n, k)
    if whole is not None:
        return _hyper(workers, whole)
    blocks, parts = [], []
    power, rest = 1, workers
    while power * base <= n:
        power *= base
    while power:
        digit = len(rest) // power
        if digit:
            block, rest = rest[: digit * power], rest[digit * power :]
            blocks.append(block)
            parts.append([block[at : at + power] for at in range(0, len(block), power)])
        power //= base
    agree = [_hyper(block, _factors(len(block), k) or ()) for block in blocks]
    # The last block is right as soon as the others have met it; all that it does then is harmless.
    spread = [
        _merged([_hyper(part, _factors(len(part), k) or ()) for part in p]) for p in parts[:-1]
    ]
    spread.append(agree[-1])
    first = len(agree[0])
    rounds: list[Links] = [
        [link for own in agree if own for link in own[at % len(own)]] for at in range(first)
    ]
    for stage in range(max(turn + 1 + len(spread[turn]) for turn in range(len(blocks) - 1))):
        links: Links = []
        if stage < len(blocks) - 1:
            links += _meeting(blocks, parts, stage, k)
        # Blocks whose turn is over spread their sum; the last one has no turn of its own.
        over = stage if stage < len(blocks) - 1 else len(blocks)
        for turn in range(over):
            if spread[turn]:
                begun = stage - min(turn, len(blocks) - 2) - 1
                links += spread[turn][begun % len(spread[turn])]
        rounds.append(links)
    return rounds


def _merged(schedules: list[list[Links]]) -> list[Links]:
    return [[link for links in at for link in links] for at in zip(*schedules, strict=True)]


def _meeting(blocks: list[range], parts: list[list[range]], stage: int, k: int) -> Links:
    """A block meets all smaller ones: each of their workers links with one worker of each part.

    The block holds mean x, the smaller ones y on average. The weight w = |block| / (a · |all|), a
    parts, turns every smaller worker's y into the mean of all, and moves each part's sum by what is
    missing.
    """
    smaller = [worker for block in blocks[stage + 1 :] for worker in block]
    mine = len(blocks[stage])
    weight = mine / (len(parts[stage]) * (mine + len(smaller)))
    links = [(w, part[at], weight) for at, w in enumerate(smaller) for part in parts[stage]]
    # Nobody needs the others now. They agree already, so that averaging them changes nothing here,
    # but in training their models have drifted since.
    idle = [worker for part in parts[stage] for worker in part[len(smaller) :]]
    for at in range(0, len(idle), k + 1):
        links += _clique(idle[at : at + k + 1])
    return links
