"""Static permutations of workers: coloring edges, completing partial maps, recognising shifts.

Koenig, Ueber Graphen und ihre Anwendung auf Determinantentheorie und Mengenlehre, 1916: the edges
of a bipartite multigraph can be colored with as many colors as its highest degree.
"""

from collections.abc import Sequence

import numpy as np

from jaxdist.errors import Refused


def edge_color(
    senders: Sequence[int] | np.ndarray, receivers: Sequence[int] | np.ndarray, *, size: int
) -> np.ndarray:
    """Colors the edges of a bipartite multigraph so that no two of one color share an end.

    Every color is then a partial permutation: nobody sends twice and nobody receives twice. Edges
    are taken in the order given and get the lowest color free at their sender, so an order that
    groups edges which fit together keeps them together.

    Args:
      senders: for each edge its left end, in `0 .. size - 1`.
      receivers: for each edge its right end, likewise.
      size: how many nodes each side has.

    Returns:
      For each edge a color in `0 .. highest degree - 1`, int32.

    Example:
      >>> sorted(edge_color([0, 1, 2], [1, 1, 1], size=3).tolist())
      [0, 1, 2]
    """
    left, right = np.asarray(senders, int), np.asarray(receivers, int)
    if not len(left):
        return np.zeros(0, np.int32)
    colors = int(max(np.bincount(left).max(), np.bincount(right).max()))
    # ends[side][node][color] is the edge of that color at that node, or -1.
    ends = [[[-1] * colors for _ in range(size)] for _ in range(2)]
    nodes = (left.tolist(), right.tolist())
    color = [-1] * len(left)
    for edge, (u, v) in enumerate(zip(*nodes, strict=True)):
        a, b = ends[0][u].index(-1), ends[1][v].index(-1)
        if ends[1][v][a] >= 0:
            # Swap a and b along the path of edges colored a, b, a, ... that starts at v. Each left
            # node on it was entered by color a, which u lacks: so it never meets u, and a becomes
            # free at v while it stays free at u.
            path, side, node, wanted = [], 1, v, a
            while (other := ends[side][node][wanted]) >= 0:
                path.append(other)
                side = 1 - side
                node, wanted = nodes[side][other], a + b - wanted
            for other in path:
                for side in range(2):
                    ends[side][nodes[side][other]][color[other]] = -1
            for other in path:
                color[other] = a + b - color[other]
                for side in range(2):
                    ends[side][nodes[side][other]][color[other]] = other
        color[edge] = a
        ends[0][u][a] = ends[1][v][a] = edge
    return np.asarray(color, np.int32)


def complete(source: Sequence[int] | np.ndarray) -> np.ndarray:
    """Extends a partial map to a full permutation, an idle worker keeping its own where it can.

    A permute that leaves some receivers out would hand them zeros, so every receiver gets a sender;
    worker `i` gets itself unless somebody else already listens to it.

    Args:
      source: for each receiver its sender, or -1 for one that receives nothing.

    Returns:
      A full permutation, int32, that agrees with `source` wherever it is not -1.

    Raises:
      Refused: two receivers have the same sender, or a sender is not in `-1 .. n - 1`.

    Example:
      >>> complete([-1, 0, -1, -1]).tolist()
      [1, 0, 2, 3]
    """
    full = np.array(source, np.int32)
    size = len(full)
    busy = full != -1
    if not ((full >= -1) & (full < size)).all():
        wrong = int(np.flatnonzero((full < -1) | (full >= size))[0])
        raise Refused(
            f"receiver {wrong} has sender {full[wrong]}, which is not in 0..{size - 1}; "
            f"write -1 for a receiver that gets nothing"
        )
    uses = np.bincount(full[busy], minlength=size)
    if uses.max(initial=0) > 1:
        twice = int(uses.argmax())
        raise Refused(
            f"receivers {np.flatnonzero(full == twice).tolist()} share sender {twice}, so this is "
            f"no part of a permutation; split it with edge_color, one color each"
        )
    own = ~busy & (uses == 0)
    full[own] = np.flatnonzero(own)
    left_over = ~busy & ~own
    full[left_over] = np.flatnonzero((uses == 0) & ~own)
    return full


def as_shift(source: Sequence[int] | np.ndarray) -> int | None:
    """The `k` for which every worker `i` receives from `i - k` (cyclically), or None.

    Args:
      source: for each receiver its sender.

    Returns:
      `k` in `0 .. n - 1`, so 0 for the identity; None for what is not a cyclic shift.

    Example:
      >>> as_shift([3, 0, 1, 2]), as_shift([1, 0, 2, 3])
      (1, None)
    """
    wanted = np.asarray(source)
    size = len(wanted)
    if not size:
        return None
    by = int(-wanted[0]) % size
    return by if np.array_equal(wanted, (np.arange(size) - by) % size) else None
