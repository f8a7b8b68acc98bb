"""A topology: who listens to whom, with which weights, at which step. A frozen value."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from jaxdist.errors import Refused
from jaxdist.topology.connectivity import components, describe, strong_components
from jaxdist.topology.rounds import Permutations, Round, same
from jaxdist.topology.spectrum import second_modulus

# How far a row or column may be from one: matrices that were made in float32 pass.
TOLERANCE = 1e-6
# What converges more slowly than this does not converge in any run.
LEAST_GAP = 1e-9


@dataclass(frozen=True, eq=False, repr=False)
class Topology:
    """Who listens to whom, with which weights, at which step.

    The rounds are used in turn and then again from the first. They are stored as edges, so a
    schedule for thousands of workers is small; what is derived from them is computed when asked
    for, and kept. Two topologies are equal if their names and all their weights are.

    Attributes:
      name: how it was made, for example `ring(8)`.
      rounds: one period, each a `Round`.

    Raises:
      Refused: rounds of different sizes; neither rows nor columns that sum to one; workers that
        never hear of each other; weights under which the workers never come to agree.

    Example:
      >>> import jaxdist as jd
      >>> topology = jd.topology.ring(4)
      >>> topology
      ring(4): 4 workers, degree 2, period 1
      >>> topology.matrix(0).round(2).tolist()[0]
      [0.33, 0.33, 0.0, 0.33]
      >>> topology.permutations(0).sources.tolist()
      [[0, 1, 2, 3], [3, 0, 1, 2], [1, 2, 3, 0]]
    """

    name: str
    rounds: tuple[Round, ...]

    def __post_init__(self) -> None:
        check_sizes(self.name, self.rounds)
        check_sums(self.name, self.rounds)
        check_connected(self.name, self.rounds, balanced=self.stochastic == "doubly")
        if not all((one.own > 0).all() for one in self.rounds):
            check_converges(self.name, self.rounds)

    def __repr__(self) -> str:
        kind = ", directed" if self.directed else ""
        if self.stochastic != "doubly":
            kind += f", {self.stochastic}-stochastic"
        plural = "" if self.size == 1 else "s"
        return (
            f"{self.name}: {self.size} worker{plural}, degree {self.degree}, "
            f"period {self.period}{kind}"
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Topology)
            and (self.name, self.size, self.period) == (other.name, other.size, other.period)
            and all(map(same, self.rounds, other.rounds))
        )

    def __hash__(self) -> int:
        return hash((self.name, self.size, self.period))

    @property
    def size(self) -> int:
        """How many workers."""
        return self.rounds[0].size

    @property
    def period(self) -> int:
        """After how many steps the rounds begin again."""
        return len(self.rounds)

    def matrix(self, step: int = 0) -> np.ndarray:
        """The mixing matrix at a step, float64 [n, n], row = receiver, read-only."""
        return self._round(step).matrix

    def permutations(self, step: int = 0) -> Permutations:
        """The mixing matrix at a step as a sum of weighted full permutations, the identity first.

        There are at most one more than the highest in- or out-degree of that round. Where its edges
        fall into as few cyclic shifts, the permutations are these shifts; otherwise they come from
        an edge coloring. Places that a permutation only fills up have weight 0.
        """
        return self._round(step).permutations

    def neighbors(self, step: int = 0) -> tuple[tuple[int, ...], ...]:
        """For each worker the others that it listens to at a step, in order."""
        one = self._round(step)
        ends = np.searchsorted(one.receivers, np.arange(self.size + 1)).tolist()
        senders = one.senders.tolist()
        return tuple(tuple(senders[ends[i] : ends[i + 1]]) for i in range(self.size))

    @cached_property
    def degree(self) -> int:
        """The most others that any worker listens to in any round."""
        return max(one.degree for one in self.rounds)

    @cached_property
    def directed(self) -> bool:
        """Whether in some round a worker listens to one that does not listen back."""
        return any(one.mirror is None for one in self.rounds)

    @cached_property
    def symmetric(self) -> bool:
        """Whether the matrix of every round equals its transpose, to 1e-12."""
        return all(
            one.mirror is not None
            and np.allclose(one.weights[one.mirror], one.weights, rtol=0, atol=1e-12)
            for one in self.rounds
        )

    @cached_property
    def stochastic(self) -> Literal["doubly", "row", "column"]:
        """What sums to one: rows and columns, rows only, or columns only."""
        rows = all(_near_one(one.row_sums) for one in self.rounds)
        columns = all(_near_one(one.column_sums) for one in self.rounds)
        return "doubly" if rows and columns else "row" if rows else "column"

    @cached_property
    def spectral_gap(self) -> float:
        """By how much disagreement shrinks a step, from 0 (never) to 1 (exact within a period).

        It is 1 - |lambda_2| ^ (1 / period), lambda_2 being the eigenvalue of second largest modulus
        of the product of all matrices of a period, the first one applied first. One worker: 1.

        Computed when first asked for. Circulant rounds (ring, exponential, complete, one-peer
        exponential) are cheap at any size; others cost an eigenvalue decomposition, minutes for
        several thousand workers.
        """
        return 1.0 - second_modulus(self.rounds) ** (1 / self.period)

    def _round(self, step: int) -> Round:
        return self.rounds[operator.index(step) % len(self.rounds)]


def check_count(
    example: str, value: Any, *, what: str = "a number of workers", least: int = 1
) -> int:
    """An argument that is a whole number and large enough, as a plain int.

    Args:
      example: a right call of the builder; it also names the builder.
      value: what was given.
      what: what it stands for.
      least: the smallest value that makes sense.

    Raises:
      Refused: anything else; the message carries the example.
    """
    # bool is an int to Python, and ring(True) is a slip.
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        wrong = f"a whole number, and was given {value!r}"
    elif value < least:
        wrong = f"at least {least}, and was given {value}"
    else:
        return int(value)
    raise Refused(
        f"jd.topology.{example.split('(')[0]} needs {what} that is {wrong}; "
        f"write for example jd.topology.{example}"
    )


def check_graph(builder: str, graph: Topology) -> Topology:
    """The topology if it is one undirected graph, else a Refused."""
    if not isinstance(graph, Topology) or graph.directed or graph.period != 1:
        raise Refused(
            f"{builder} needs an undirected graph that does not vary and was given {graph!r}; "
            "write for example jd.topology.ring(8)"
        )
    return graph


def check_sizes(name: str, rounds: Sequence[Round]) -> None:
    """Refuses a schedule without rounds, and rounds for different numbers of workers."""
    if not rounds:
        raise Refused(f"{name} has no rounds; give at least one matrix, for example np.eye(1)")
    for step, one in enumerate(rounds):
        if one.size != rounds[0].size:
            raise Refused(
                f"{name}: round {step} is for {one.size} workers and round 0 for {rounds[0].size}; "
                "give matrices of one size"
            )


def check_sums(name: str, rounds: Sequence[Round]) -> None:
    """Refuses weights of which neither the rows nor the columns sum to one in every round."""
    kinds = []
    for step, one in enumerate(rounds):
        rows, columns = _near_one(one.row_sums), _near_one(one.column_sums)
        if not rows and not columns:
            i, j = _worst(one.row_sums), _worst(one.column_sums)
            raise Refused(
                f"{name}: row {i} of round {step} sums to {one.row_sums[i]:.9g} and column {j} to "
                f"{one.column_sums[j]:.9g}, where all rows or all columns must sum to 1 (within "
                f"{TOLERANCE:g}); write matrix / matrix.sum(axis=1, keepdims=True), or axis=0 for "
                "push-sum"
            )
        kinds.append((rows, columns))
    if not any(all(kind[side] for kind in kinds) for side in (0, 1)):
        by_rows, by_columns = kinds.index((True, False)), kinds.index((False, True))
        raise Refused(
            f"{name}: in round {by_rows} only the rows sum to 1 and in round {by_columns} only the "
            "columns, and no method can use both; transpose one kind, with matrix.T"
        )


def check_connected(name: str, rounds: Sequence[Round], *, balanced: bool) -> None:
    """Refuses workers that never hear of each other over a period."""
    size = rounds[0].size
    receivers = np.concatenate([one.receivers for one in rounds])
    senders = np.concatenate([one.senders for one in rounds])
    labels, cure = components(receivers, senders, size=size), "join them by one more edge"
    # What flows into any set of workers flows out of it when rows and columns both sum to one, so
    # that one-way reach need not be looked at.
    if not labels.any() and not balanced:
        labels = strong_components(senders, receivers, size=size)
        cure = "add edges so that every worker hears of every other"
    if labels.any():
        raise Refused(
            f"{name} falls into {len(np.unique(labels))} groups that never come to agree, over its "
            f"{_count(len(rounds), 'round')}: {describe(labels)}; {cure}, "
            f"or write jd.topology.ring({size})"
        )


def check_converges(name: str, rounds: Sequence[Round]) -> None:
    """Refuses weights that pass values around for ever: an even ring with no self weight."""
    second = second_modulus(rounds)
    if 1 - second ** (1 / len(rounds)) > LEAST_GAP:
        return
    size, period = rounds[0].size, len(rounds)
    raise Refused(
        f"{name} never converges: the second largest eigenvalue over its {_count(period, 'round')} "
        f"has modulus {second:.9f}, and it must be below 1; add a self weight, with "
        f"0.5 * np.eye({size}) + 0.5 * matrix"
    )


def _near_one(sums: np.ndarray) -> bool:
    return bool((np.abs(sums - 1) <= TOLERANCE).all())


def _worst(sums: np.ndarray) -> int:
    return int(np.abs(sums - 1).argmax())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
