"""MATCHA: a graph's matchings, each active at random and the important ones more often.

Wang et al., MATCHA: Speeding Up Decentralized SGD via Matching Decomposition Sampling, 2019.
arXiv:1905.09435
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np

from jaxdist.errors import Refused
from jaxdist.topology.base import Topology, check_count, check_graph
from jaxdist.topology.connectivity import components
from jaxdist.topology.rounds import metropolis

# Draws of a whole schedule before a budget is called too small for its rounds.
MOST_DRAWS = 1000


def matcha(graph: Topology, budget: float, seed: int = 0, *, rounds: int = 16) -> Topology:
    """A fraction of a graph's links in each round, drawn so that bottlenecks are used the most.

        0 --- 1       round 0:  0 --- 1     round 1:  0     1     ...
        | \\   |                                       | \\
        3     2                 3     2               3     2
                      (a path would be 3 - 0 - 2 - 1)

    The graph's links are split into matchings, at most one more than its degree d. In every round
    matching m is active with probability pₘ, independently. The probabilities make the expected
    graph mix as well as it can, that is they maximise λ₂ of its Laplacian, while their sum is
    budget times the number of matchings: what a round costs on average. A bridge that alone joins
    two halves gets a high one.

    Degree at most d, about budget · d on average; period `rounds`. No closed form for the spectral
    gap.

    The schedule is drawn once, from the seed. One whose rounds together leave workers unconnected
    is drawn again from the same stream, so the arguments always give the same schedule. A round in
    which nothing is active has the identity for its matrix: nobody sends.

    Differs from the paper in the weights: there all links get one α, which may leave a worker with
    a negative weight for its own value; here each round has the Metropolis weights of its active
    links.

    Args:
      graph: the undirected graph to take links from, for example `random_regular(16, 4, seed=0)`.
      budget: the part of the matchings that is active on average, above 0 and at most 1 (all of
        them in every round, hence a single round: the graph itself).
      seed: of the draw.
      rounds: how many rounds are drawn before they repeat. Each is a branch of the compiled step,
        so that more rounds follow the probabilities better and compile for longer.

    Returns:
      An undirected, doubly stochastic `Topology`. Its making takes a hundred eigenvalue
      decompositions, so it is meant for hundreds of workers, not thousands.

    Raises:
      Refused: a directed or varying graph, a budget out of range, or too little budget for
        so few
        rounds, which left workers unconnected in all of 1000 draws.

    Example:
      >>> import jaxdist as jd
      >>> jd.topology.matcha(jd.topology.ring(8), 0.5, seed=0)
      matcha(ring(8), 0.5, seed=0): 8 workers, degree 2, period 16

    References:
      Wang et al., MATCHA: Speeding Up Decentralized SGD via Matching Decomposition Sampling, 2019.
      arXiv:1905.09435
    """
    graph = check_graph("jd.topology.matcha", graph)
    example = "matcha(jd.topology.ring(8), 0.5, seed=0)"
    seed = check_count(example, seed, what="a seed", least=0)
    rounds = check_count(example[:-1] + ", rounds=16)", rounds, what="a number of rounds")
    if isinstance(budget, bool) or not 0 < budget <= 1:
        raise Refused(
            f"jd.topology.matcha needs a budget above 0 and at most 1 and was given {budget!r}; "
            f"write jd.topology.{example}"
        )
    name = f"matcha({graph.name}, {float(budget):g}, seed={seed})"
    every = matchings(graph)
    if budget == 1 or not every:
        return Topology(name, graph.rounds)
    likely = activation_probabilities(every, budget, size=graph.size)
    generator = np.random.default_rng(seed)
    for _ in range(MOST_DRAWS):
        active = generator.random((rounds, len(every))) < likely
        used = _union(every, np.any(active, axis=0).tolist())
        if not components(used[:, 0], used[:, 1], size=graph.size).any():
            drawn = [_union(every, row.tolist()) for row in active]
            return Topology(
                name, tuple(metropolis(p[:, 0], p[:, 1], size=graph.size) for p in drawn)
            )
    raise Refused(
        f"{name} leaves workers unconnected in rounds={rounds}, in all of {MOST_DRAWS} draws; "
        f"write rounds={max(16, 4 * rounds)}, or a budget of {min(1.0, 2 * budget):g}"
    )


def matchings(graph: Topology) -> list[np.ndarray]:
    """The links of an undirected graph as matchings, at most one more than its degree.

    Args:
      graph: an undirected topology with one round.

    Returns:
      For each matching its pairs of workers, [pairs, 2]; nobody is in two of them.

    Example:
      >>> import jaxdist as jd
      >>> [pairs.tolist() for pairs in matchings(jd.topology.path(4))]
      [[[0, 1], [2, 3]], [[1, 2]]]

    References:
      Misra, Gries, A constructive proof of Vizing's theorem, Information Processing Letters 1992.
    """
    one = graph.rounds[0]
    upper = one.receivers < one.senders
    at: list[dict[int, int]] = [{} for _ in range(graph.size)]  # at[worker][color] is the neighbor
    for u, v in zip(one.receivers[upper].tolist(), one.senders[upper].tolist(), strict=True):
        _color(at, u, v, colors=graph.degree + 1)
    found: list[list[tuple[int, int]]] = [[] for _ in range(graph.degree + 1)]
    for u, neighbors in enumerate(at):
        for color, v in neighbors.items():
            if u < v:
                found[color].append((u, v))
    return [np.array(pairs) for pairs in found if pairs]


def activation_probabilities(every: list[np.ndarray], budget: float, *, size: int) -> np.ndarray:
    """How often each matching should be active for the expected graph to mix best.

    Maximises λ₂(Σ pₘ Lₘ), which is concave in p, over 0 ≤ pₘ ≤ 1 and Σ pₘ = budget · (number of
    matchings), by a hundred steps of projected supergradient ascent from equal probabilities.

    Args:
      every: the matchings, Lₘ being the Laplacian of one.
      budget: the mean of the probabilities.
      size: how many workers.

    Returns:
      A probability for each matching; no worse than equal ones.

    Example:
      >>> import jaxdist as jd
      >>> import networkx as nx
      >>> two_cliques_and_a_bridge = jd.topology.from_networkx(nx.barbell_graph(8, 0))
      >>> every = matchings(two_cliques_and_a_bridge)
      >>> every[-1].tolist()
      [[7, 8]]
      >>> activation_probabilities(every, 0.3, size=16).round(2).tolist()
      [0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2, 1.0]
    """
    best = here = np.full(len(every), float(budget))
    highest = -np.inf
    for step in range(100):
        laplacian = np.zeros((size, size))
        for pairs, p in zip(every, here, strict=True):
            a, b = pairs.T
            laplacian[a, b] -= p
            laplacian[b, a] -= p
        np.fill_diagonal(laplacian, -laplacian.sum(axis=1))
        values, vectors = np.linalg.eigh(laplacian)
        if values[1] > highest:
            highest, best = values[1], here
        # Several vectors where lambda_2 is multiple: the mean over them is a supergradient too, and
        # unlike a single one it does not depend on the basis that eigh happened to choose.
        slow = vectors[:, 1:][:, values[1:] < values[1] + 1e-6]
        rise = np.array([((slow[p[:, 0]] - slow[p[:, 1]]) ** 2).sum() for p in every])
        rise /= max(float(np.linalg.norm(rise)), 1e-300)
        here = _projected(here + 0.3 * rise / np.sqrt(step + 1), total=budget * len(every))
    return best


def _projected(p: np.ndarray, *, total: float) -> np.ndarray:
    """The nearest point with entries in 0 .. 1 and the given sum."""
    low, high = p.min() - 1, p.max()
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.clip(p - middle, 0, 1).sum() > total else (low, middle)
    return np.clip(p - high, 0, 1)


def _union(every: list[np.ndarray], active: Iterable[bool]) -> np.ndarray:
    chosen = [pairs for pairs, on in zip(every, active, strict=True) if on]
    return np.concatenate([np.zeros((0, 2), int), *chosen])


def _color(at: list[dict[int, int]], u: int, v: int, *, colors: int) -> None:
    """Gives the new link u-v a color, changing others where it must (Misra and Gries)."""

    def free(worker: int) -> int:
        return next(c for c in range(colors) if c not in at[worker])

    def put(i: int, j: int, color: int) -> None:
        at[i][color], at[j][color] = j, i

    common = next((c for c in range(colors) if c not in at[u] and c not in at[v]), None)
    if common is not None:
        put(u, v, common)
        return
    # A fan: neighbors of u, each link's color being free at the neighbor before it.
    fan, rest = [v], dict(at[u])
    while (color := next((c for c in rest if c not in at[fan[-1]]), None)) is not None:
        fan.append(rest.pop(color))
    c, d = free(u), free(fan[-1])
    # Swap c and d along the path from u, so that d becomes free at u.
    walk, wanted = [u], d
    while (other := at[walk[-1]].get(wanted)) is not None:
        walk.append(other)
        wanted = c + d - wanted
    links = list(pairwise(walk))
    for number, (i, j) in enumerate(links):
        color = d if number % 2 == 0 else c
        del at[i][color], at[j][color]
    for number, (i, j) in enumerate(links):
        put(i, j, c if number % 2 == 0 else d)
    # The swap may have cut the fan, but then d is free where the cut is: stop at the first such.
    color_of = {neighbor: color for color, neighbor in at[u].items()}
    last = 0
    while d in at[fan[last]]:
        last += 1
    for number in range(last):
        color = color_of[fan[number + 1]]
        del at[u][color], at[fan[number + 1]][color]
        put(u, fan[number], color)
    put(u, fan[last], d)
