"""Lattices: rings, paths, grids and tori. Few neighbors each, Metropolis weights."""

import numpy as np

from jaxdist.topology.base import Topology, check_count
from jaxdist.topology.rounds import metropolis


def ring(n: int) -> Topology:
    """Every worker exchanges with the one before it and the one after it, in a circle.

        0 --- 1 --- 2 --- 3
        |                 |
        7 --- 6 --- 5 --- 4

    Degree 2 at any size, weights 1/3. Spectral gap, for n ≥ 3,

        2/3 (1 − cos(2π/n)) ≈ 13 / n²

    and 1 for n ≤ 2. Two workers have one neighbor each, not the same one twice.

    Args:
      n: workers.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.ring(8)
      ring(8): 8 workers, degree 2, period 1
      >>> round(jd.topology.ring(8).spectral_gap, 4)
      0.1953
    """
    n = check_count("ring(8)", n)
    workers = np.arange(n)
    return _undirected(f"ring({n})", workers, (workers + 1) % n, size=n)


def path(n: int) -> Topology:
    """A ring that was cut once: the two ends have one neighbor only.

        0 --- 1 --- 2 --- 3 --- 4

    Degree 2, weights 1/3; the ends keep 2/3. Spectral gap, for n ≥ 3,

        2/3 (1 − cos(π/n)) ≈ 3.3 / n²

    a quarter of the ring's for large n, and 1 for n ≤ 2.

    Args:
      n: workers.

    Returns:
      An undirected, doubly stochastic `Topology`; a tree, as RelaySGD needs.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.path(3).matrix(0).round(2).tolist()
      [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]
    """
    n = check_count("path(8)", n)
    return _undirected(f"path({n})", np.arange(n - 1), np.arange(1, n), size=n)


def chain(n: int) -> Topology:
    """The tree of least degree for RelaySGD. It is `path(n)` under the name that paper uses.

        0 --- 1 --- 2 --- 3 --- 4

    Degree, weights and spectral gap are those of `path`; only the name differs. News crosses it in
    n − 1 steps.

    Args:
      n: workers.

    Returns:
      An undirected, doubly stochastic `Topology`.

    Raises:
      Refused: n is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.chain(4)
      chain(4): 4 workers, degree 2, period 1

    References:
      Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, NeurIPS 2021.
      arXiv:2110.04175
    """
    n = check_count("chain(8)", n)
    return Topology(f"chain({n})", path(n).rounds)


def grid(rows: int, columns: int) -> Topology:
    """Workers on a sheet exchange with those above, below, left and right of them.

        0 --- 1 --- 2
        |     |     |
        3 --- 4 --- 5

    Worker (r, c) has number r · columns + c. Degree 4 inside, less at the border, whose weights are
    larger: no closed form for the spectral gap. With m the longer side it comes close to

        2/5 (1 − cos(π/m)) ≈ 2 / m²

    from above, m² being n for a square: a grid mixes n/2 times as fast as a path.

    Args:
      rows: rows of the sheet.
      columns: columns of the sheet.

    Returns:
      An undirected, doubly stochastic `Topology` of rows · columns workers.

    Raises:
      Refused: a side is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.grid(2, 3)
      grid(2, 3): 6 workers, degree 3, period 1
    """
    rows = check_count("grid(2, 4)", rows, what="a number of rows")
    columns = check_count("grid(2, 4)", columns, what="a number of columns")
    at = np.arange(rows * columns).reshape(rows, columns)
    a = np.concatenate([at[:, :-1].ravel(), at[:-1].ravel()])
    b = np.concatenate([at[:, 1:].ravel(), at[1:].ravel()])
    return _undirected(f"grid({rows}, {columns})", a, b, size=at.size)


def torus(rows: int, columns: int) -> Topology:
    """A grid whose borders are joined: every row and every column is a ring.

         |     |     |
       - 0 --- 1 --- 2 -
         |     |     |
       - 3 --- 4 --- 5 -
         |     |     |

    Worker (r, c) has number r · columns + c. Degree 4 and weights 1/5 if both sides are 3 or more;
    a side of 2 has one link where a longer one has two. Spectral gap, with both sides ≥ 3 and m the
    longer one,

        2/5 (1 − cos(2π/m)) ≈ 8 / m²

    Args:
      rows: length of each column.
      columns: length of each row.

    Returns:
      An undirected, doubly stochastic `Topology` of rows · columns workers.

    Raises:
      Refused: a side is not a whole number ≥ 1.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.torus(4, 4)
      torus(4, 4): 16 workers, degree 4, period 1
    """
    rows = check_count("torus(4, 4)", rows, what="a number of rows")
    columns = check_count("torus(4, 4)", columns, what="a number of columns")
    at = np.arange(rows * columns).reshape(rows, columns)
    a = np.concatenate([at.ravel(), at.ravel()])
    b = np.concatenate([np.roll(at, -1, axis=1).ravel(), np.roll(at, -1, axis=0).ravel()])
    return _undirected(f"torus({rows}, {columns})", a, b, size=at.size)


def _undirected(name: str, a: np.ndarray, b: np.ndarray, *, size: int) -> Topology:
    return Topology(name, (metropolis(a, b, size=size),))
