"""What methods that talk to neighbors ask of a topology."""

from typing import Any

from jaxdist import mixing
from jaxdist.topology import Topology


def check_topology(method: str, topology: Any) -> None:
    """Refuses what is not a topology."""
    if not isinstance(topology, Topology):
        raise ValueError(
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
    raise ValueError(
        f"{method} keeps the mean only under a doubly stochastic matrix, and {topology.name} is "
        f"{topology.stochastic}-stochastic; {cure}"
    )


def exchanges(topology: Topology, step: int) -> int:
    """How many times one mix sends everything at this step: permutations, or one all-gather."""
    return 1 if mixing.gathers(topology) else len(topology.permutations(step).sources) - 1
