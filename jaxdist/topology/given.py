"""Topologies of one's own: from mixing matrices, and from networkx graphs."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from jaxdist.errors import Refused
from jaxdist.topology.base import Topology
from jaxdist.topology.rounds import Round, metropolis, round_of


def from_matrix(matrix: ArrayLike | Sequence[ArrayLike], *, name: str = "from_matrix") -> Topology:
    """A topology from its mixing matrix, or from a sequence of them that are used in turn.

        W = ⎡ 1/2  1/2   0  ⎤     row = receiver: worker 0 keeps half of its own
            ⎢  0   1/2  1/2 ⎥     and takes half of worker 1's
            ⎣ 1/2   0   1/2 ⎦

    What sums to one is recorded as `.stochastic`: rows and columns ("doubly": the mean is kept;
    what gossip needs), columns only ("column": push-sum) or rows only ("row": workers agree, though
    not on their mean). The spectral gap is computed when asked for.

    Weights are used as they are, in float64. Sums may be off by 1e-6, as those of matrices made in
    float32 are; the mean then drifts by as much a step.

    Args:
      matrix: [n, n] non-negative, or [rounds, n, n], or a sequence of [n, n].
      name: for messages and printing.

    Returns:
      A `Topology`; 0 in the matrix means that nothing is sent.

    Raises:
      Refused: not square; a negative, infinite or missing entry; matrices of different sizes;
        neither rows nor columns that sum to one; workers that never hear of each other; weights
        under which the workers never come to agree.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.from_matrix([[0.5, 0.5, 0], [0, 0.5, 0.5], [0.5, 0, 0.5]], name="cycle")
      cycle: 3 workers, degree 1, period 1, directed
      >>> jd.topology.from_matrix([[1, 0.5], [0, 0.5]])
      Traceback (most recent call last):
      jaxdist.Refused: from_matrix falls into 2 groups that never come to agree, ...
    """
    return Topology(
        name, tuple(_round(name, step, dense) for step, dense in enumerate(_matrices(name, matrix)))
    )


def from_networkx(graph: Any, *, name: str = "from_networkx") -> Topology:
    """A topology from a networkx graph, read through its own methods: networkx is not imported.

        Graph     a --- b      exchange, Metropolis weights: doubly stochastic
        DiGraph   a --> b      b listens to a; every worker splits what it has into equal parts, one
                               for itself and one for each that listens to it: column-stochastic,
                               for push-sum (doubly stochastic if all have as many listeners as
                               they listen to)

    Degree and spectral gap are the graph's. Loops are ignored, since a worker always keeps a part;
    parallel edges count once; attributes such as "weight" are not read (for weights of your own
    write `from_matrix`).

    Args:
      graph: a Graph, DiGraph, MultiGraph or MultiDiGraph. If its nodes are the numbers 0 .. n - 1,
        they are the workers; otherwise the workers are the nodes in the order of `graph.nodes`.
      name: for messages and printing.

    Returns:
      A `Topology`.

    Raises:
      Refused: not a networkx graph, no nodes, or workers that never hear of each other.

    Example:
      >>> import jaxdist as jd
      >>> import networkx as nx
      >>> jd.topology.from_networkx(nx.petersen_graph(), name="petersen")
      petersen: 10 workers, degree 3, period 1
      >>> jd.topology.from_networkx(nx.DiGraph([(0, 1), (1, 2), (2, 0), (0, 2)])).stochastic
      'column'
    """
    if not all(hasattr(graph, method) for method in ("nodes", "edges", "is_directed")):
        raise Refused(
            f"jd.topology.from_networkx needs a networkx graph and was given {graph!r}; write for "
            "example jd.topology.from_networkx(networkx.petersen_graph())"
        )
    nodes = list(graph.nodes)
    n = len(nodes)
    if not n:
        raise Refused(
            f"{name} has no nodes, and there must be at least one worker; add them, with "
            "graph.add_nodes_from(range(8))"
        )
    if set(nodes) == set(range(n)):
        nodes = range(n)
    number = {node: worker for worker, node in enumerate(nodes)}
    ends = np.array([(number[u], number[v]) for u, v, *_ in graph.edges], np.int64).reshape(-1, 2)
    if not graph.is_directed():
        return Topology(name, (metropolis(ends[:, 0], ends[:, 1], size=n),))
    ends = ends[ends[:, 0] != ends[:, 1]]
    senders, receivers = np.divmod(np.unique(ends[:, 0] * n + ends[:, 1]), n)
    part = 1 / (1 + np.bincount(senders, minlength=n))
    return Topology(name, (round_of(receivers, senders, part[senders], part),))


def _matrices(name: str, matrix: ArrayLike | Sequence[ArrayLike]) -> list[np.ndarray]:
    """The rounds' matrices, each square."""
    # Rounds of different sizes make no array: convert one by one, for a refusal that names them.
    try:
        if isinstance(matrix, list | tuple) and np.ndim(matrix[0]) == 2:
            rounds = [np.array(one, np.float64) for one in matrix]
        else:
            rounds = [np.array(matrix, np.float64)]
    except (IndexError, TypeError, ValueError) as error:
        raise Refused(
            f"{name} needs a square matrix of numbers, row = receiver, not {matrix!r:.60}; "
            "write for example [[0.5, 0.5], [0.5, 0.5]]"
        ) from error
    if rounds[0].ndim == 3:
        rounds = list(rounds[0])
    for step, dense in enumerate(rounds):
        if dense.ndim != 2 or dense.shape[0] != dense.shape[1] or not dense.size:
            raise Refused(
                f"{name}: round {step} has the shape {dense.shape}, where a square matrix [n, n] "
                "is needed, row = receiver; write for example [[0.5, 0.5], [0.5, 0.5]]"
            )
    return rounds


def _round(name: str, step: int, dense: np.ndarray) -> Round:
    wrong = np.argwhere(~(np.isfinite(dense) & (dense >= 0)))
    if len(wrong):
        i, j = wrong[0]
        value = dense[i, j]
        cure = (
            "np.maximum(matrix, 0) if that is rounding"
            if np.isfinite(value)
            else "0 where nothing is sent"
        )
        raise Refused(
            f"{name}: entry [{i}, {j}] of round {step} is {value:g}, where a weight ≥ 0 is needed; "
            f"write {cure}"
        )
    receivers, senders = np.nonzero(dense)
    others = receivers != senders
    receivers, senders = receivers[others], senders[others]
    return round_of(receivers, senders, dense[receivers, senders], dense.diagonal())
