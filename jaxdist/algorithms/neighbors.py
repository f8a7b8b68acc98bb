"""What methods that talk to neighbors ask of a topology."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxdist import mixing
from jaxdist.algorithms.base import Branches
from jaxdist.errors import Refused
from jaxdist.topology import Topology


def check_topology(method: str, topology: Any) -> None:
    """Refuses what is not a topology."""
    if not isinstance(topology, Topology):
        raise Refused(
            f"{method} needs a topology and was given {topology!r}; "
            "write for example jd.topology.ring(8), its size being the number of workers"
        )


def check_doubly_stochastic(method: str, topology: Any) -> None:
    """Refuses a topology that would move the workers' mean, and names the method that can use it."""
    check_topology(method, topology)
    if topology.stochastic == "doubly":
        return
    if topology.stochastic == "column":
        cure = "jd.push_sum takes column-stochastic ones"
    else:
        cure = "transpose it for jd.push_sum, or give weights whose columns also sum to one"
    raise Refused(
        f"{method} keeps the mean only under a doubly stochastic matrix, and {topology.name} is "
        f"{topology.stochastic}-stochastic; {cure}"
    )


def check_columns(method: str, topology: Any, *, keep: bool = False) -> None:
    """Refuses a topology under which weight is lost, or in which a worker is left without any.

    Args:
      method: for the message.
      topology: what was given.
      keep: whether every worker must keep some of its own weight at every step.
    """
    check_topology(method, topology)
    if topology.stochastic == "row":
        raise Refused(
            f"{method} needs columns that sum to one, so that nothing is lost on the way, and "
            f"{topology.name} is row-stochastic; write jd.topology.from_matrix(matrix.T), or use an "
            "undirected graph"
        )
    for step, one in enumerate(topology.rounds):
        kept = one.own if keep else one.row_sums
        if (kept <= 0).any():
            i = int(kept.argmin())
            raise Refused(
                f"{method} divides by what a worker holds, and in round {step} of {topology.name} "
                f"worker {i} {'keeps' if keep else 'gets'} nothing; give it a weight of its own, with "
                f"0.5 * np.eye({topology.size}) + 0.5 * matrix"
            )


def check_symmetric(method: str, topology: Any) -> None:
    """Refuses all but one symmetric matrix for the whole run, and names the method for the others."""
    check_topology(method, topology)
    if topology.period > 1:
        what = f"{topology.name} has {topology.period} rounds"
    elif not topology.symmetric:
        what = f"that of {topology.name} is not symmetric"
    else:
        return
    cure = "jd.gradient_tracking takes directed and varying graphs"
    if topology.stochastic == "row":
        cure = f"transpose it for jd.gradient_tracking, or write jd.topology.ring({topology.size})"
    raise Refused(
        f"{method} corrects for one symmetric matrix that does not vary, and {what}; {cure}"
    )


def least_eigenvalue(topology: Topology) -> float:
    """The smallest eigenvalue of a symmetric mixing matrix."""
    return float(np.linalg.eigvalsh(topology.matrix(0))[0])


def exchanges(topology: Topology, step: int) -> int:
    """How many times one mix sends everything at this step: permutations, or one all-gather."""
    return 1 if mixing.gathers(topology) else len(topology.permutations(step).sources) - 1


def rounds(topology: Topology, *, late: int = 0) -> Branches | None:
    """The kinds of steps of a method that mixes by round step - late; None: all are alike."""
    if mixing.gathers(topology):
        return None
    different, place = mixing.distinct_rounds(topology)
    if len(different) == 1:
        return None
    return Branches(len(different), lambda step: jnp.asarray(place)[(step - late) % len(place)])
