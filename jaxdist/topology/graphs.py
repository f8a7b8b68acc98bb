"""Graphs with short ways: trees and hubs, cubes, exponential hops, groups, everyone to everyone.

All but `exponential` are undirected with Metropolis weights (see `rounds.metropolis`).
"""

from collections.abc import Callable

import numpy as np

from jaxdist.errors import Refused
from jaxdist.topology.base import Topology, check_count, check_graph
from jaxdist.topology.lattices import ring
from jaxdist.topology.rounds import metropolis, shifts


def tree(n: int, *, branching: int = 2) -> Topology:
    """A balanced tree, filled level by level: the parent of worker i is (i − 1) // branching.

              0
            /   \\
          1       2
         / \\     /
        3   4   5

    Degree branching + 1 (a parent and the children). The spectral gap has no closed form; for the
    binary tree it comes close to 1 / (4n) from above, the two halves meeting in the root only. News
    crosses it in about 2 log₂ n steps.

    Args:
      n: workers.
      branching: children of each worker but the last ones; 1 gives the path.

    Returns:
      An undirected, doubly stochastic `Topology`; a tree, as RelaySGD needs.

    Raises:
      Refused: n or branching is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.tree(6).neighbors(0)
      ((1, 2), (0, 3, 4), (0, 5), (1,), (1,), (2,))

    References:
      Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, NeurIPS 2021.
      arXiv:2110.04175
    """
    n = check_count("tree(8)", n)
    branching = check_count("tree(8, branching=2)", branching, what="a branching")
    children = np.arange(1, n)
    name = f"tree({n})" if branching == 2 else f"tree({n}, branching={branching})"
    return _undirected(name, children, (children - 1) // branching, size=n)


def hypercube(n: int) -> Topology:
    """Workers exchange with those whose number differs from theirs in one bit.

        2 --- 3        6 --- 7
        |     |   and  |     |   joined corner by corner
        0 --- 1        4 --- 5

    Degree d = log₂ n, weights 1/(d + 1). Spectral gap 2/(d + 1), and 1 for one worker.

    Args:
      n: workers, a power of two.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: n is not a power of two; the message has the nearest ones.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.hypercube(16), round(jd.topology.hypercube(16).spectral_gap, 12)
      (hypercube(16): 16 workers, degree 4, period 1, 0.4)
    """
    n = check_power_of_two("hypercube", n, instead="exponential")
    workers = np.arange(n)
    bits = 1 << np.arange(n.bit_length() - 1)
    others = workers ^ bits[:, None]
    return _undirected(f"hypercube({n})", np.tile(workers, len(bits)), others.ravel(), size=n)


def star(n: int) -> Topology:
    """Everyone exchanges with worker 0 only.

            1
            |
        4 - 0 - 2
            |
            3

    Degree n − 1, that of the hub; weights 1/n. Spectral gap 1/n for n ≥ 3 and 1 below. A parameter
    server in gossip's clothes: the leaves keep almost all of their own, so it mixes slowly.

    Args:
      n: workers, the hub among them.

    Returns:
      An undirected, doubly stochastic `Topology`; a tree, as RelaySGD needs.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.star(5)
      star(5): 5 workers, degree 4, period 1
    """
    n = check_count("star(8)", n)
    return _undirected(f"star({n})", np.zeros(n - 1, int), np.arange(1, n), size=n)


def complete(n: int) -> Topology:
    """Everyone exchanges with everyone: one round gives the exact mean.

        0 --- 1
        |  X  |
        3 --- 2

    Degree n − 1, weights 1/n. Spectral gap 1. It costs n − 1 messages a worker where a reduction
    costs two; for training take `all_reduce`, which computes the same.

    Args:
      n: workers.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.complete(4).spectral_gap
      1.0
    """
    n = check_count("complete(8)", n)
    return Topology(f"complete({n})", (shifts(list(range(1, n)), size=n),))


def exponential(n: int) -> Topology:
    """Worker i listens to the workers 1, 2, 4, 8, ... places behind it, as long as that is below n.

        7 → 0   6 → 0   4 → 0      and so for every worker (here n = 8)

    Degree d = ⌈log₂ n⌉, directed, weights 1/(d + 1). Spectral gap 2/(d + 1) for even n, and more
    than that for odd n ≥ 3; 1 for one worker.

    Args:
      n: workers, any number.

    Returns:
      A directed, doubly stochastic `Topology`.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.exponential(8)
      exponential(8): 8 workers, degree 3, period 1, directed
      >>> jd.topology.exponential(8).neighbors(0)[0]
      (4, 6, 7)

    References:
      Ying et al., Exponential Graph is Provably Efficient for Decentralized Deep Training, NeurIPS
      2021. arXiv:2110.13363
    """
    n = check_count("exponential(8)", n)
    return Topology(f"exponential({n})", (shifts(hops_below(n), size=n),))


def hierarchical(
    groups: int,
    group_size: int,
    *,
    links: int = 1,
    between: Callable[[int], Topology] = ring,
) -> Topology:
    """Dense inside groups, sparse outside: for hosts that are fast inside and slow to each other.

        0 --- 1          4 --- 5
        |  X  |          |  X  |        groups 0..3 and 4..7, all to all inside,
        3 --- 2          7 --- 6        worker 0 linked to worker 4
        |                |
        +----------------+

    Worker w belongs to group w // group_size. The first `links` members of a group exchange with
    the members of the same place in those groups that `between` makes neighbors. Degree
    group_size − 1, and for the linked members the degree of `between` more. No closed form for the
    spectral gap: for g groups in a ring it is at most links / group_size times that of `ring(g)`.

    Args:
      groups: how many groups.
      group_size: workers in each.
      links: how many members of each group talk to other groups, 1 .. group_size.
      between: makes the graph of the groups from their number; undirected, and its weights are
        not used.

    Returns:
      An undirected, doubly stochastic `Topology` of groups · group_size workers.

    Raises:
      Refused: a number that is not whole or out of range; a directed or varying `between`.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.hierarchical(2, 4)
      hierarchical(2, 4): 8 workers, degree 4, period 1
      >>> jd.topology.hierarchical(2, 4).neighbors(0)[4]
      (0, 5, 6, 7)
    """
    example = "hierarchical(2, 4)"
    groups = check_count(example, groups, what="a number of groups")
    group_size = check_count(example, group_size, what="a group size")
    links = check_count("hierarchical(2, 4, links=1)", links, what="a number of links")
    if links > group_size:
        raise Refused(
            f"jd.topology.hierarchical has {group_size} workers in a group and was asked to link "
            f"{links} of them; write links={group_size}"
        )
    outside = check_graph("jd.topology.hierarchical", between(groups))
    at = np.arange(groups * group_size).reshape(groups, group_size)
    first, second = np.triu_indices(group_size, 1)
    a = np.concatenate([at[:, first].ravel(), at[outside.rounds[0].receivers, :links].ravel()])
    b = np.concatenate([at[:, second].ravel(), at[outside.rounds[0].senders, :links].ravel()])
    extra = "" if links == 1 else f", links={links}"
    extra += "" if between is ring else f", between={outside.name.split('(')[0]}"
    return _undirected(f"hierarchical({groups}, {group_size}{extra})", a, b, size=at.size)


def hops_below(n: int) -> list[int]:
    """The powers of two below n, in integers: a float logarithm is off by one for large n."""
    return [1 << k for k in range((n - 1).bit_length())]


def check_power_of_two(builder: str, n: int, *, instead: str) -> int:
    """The number of workers if it is a power of two, else a Refused with the nearest ones."""
    n = check_count(f"{builder}(8)", n)
    if n & (n - 1):
        below = 1 << (n.bit_length() - 1)
        raise Refused(
            f"jd.topology.{builder} needs a power of two and was given {n}; write "
            f"jd.topology.{builder}({below}) or jd.topology.{builder}({2 * below}), or "
            f"jd.topology.{instead}({n}), which takes any number"
        )
    return n


def _undirected(name: str, a: np.ndarray, b: np.ndarray, *, size: int) -> Topology:
    return Topology(name, (metropolis(a, b, size=size),))
