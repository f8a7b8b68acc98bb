"""Whom a worker of a synchronous method waits for at the end of a step: what its simulated time needs."""

from collections.abc import Callable
from typing import NamedTuple

from jaxdist import network
from jaxdist.network import Network
from jaxdist.topology import Topology

Neighbors = tuple[tuple[int, ...], ...]


class Meeting(NamedTuple):
    """One exchange at the end of a step.

    Attributes:
      listens: for each worker the others whose message it waits for; None: everybody for everybody.
      seconds: `seconds(network, bytes)` -> how long the exchange takes for each worker, from the
        bytes that the method declares to send at this step.
    """

    listens: Neighbors | None
    seconds: Callable[[Network, float], list[float]]


class Waits(NamedTuple):
    """Whom a worker waits for, at every step.

    Attributes:
      meeting: `meeting(step, workers)` -> the exchange at the end of that step; None: nobody waits.
      period: after how many steps it all repeats, counted from `start`.
      start: steps before this one are all like step 0.
      overlaps: whether what is sent was known before the gradient of this step, so that it travels
        while the gradient is computed.
    """

    meeting: Callable[[int, int], Meeting | None]
    period: int = 1
    start: int = 0
    overlaps: bool = False


def everyone(*, period: int = 1, start: int = 0, ahead: int = 0) -> Waits:
    """Everybody waits for the slowest, then for an all-reduce.

    Args:
      period: from one all-reduce to the next; the first one at the end of step period - 1.
      start: before this step there is one at every step.
      ahead: how many steps earlier than that it comes.
    """

    def meeting(step: int, workers: int) -> Meeting | None:
        def seconds(link: Network, size_bytes: float) -> list[float]:
            return [network.all_reduce(link, size_bytes, workers)] * workers

        meets = step < start or (step + 1 + ahead) % period == 0
        return Meeting(None, seconds) if meets else None

    return Waits(meeting, period, start)


def server(*, period: int = 1) -> Waits:
    """Everybody sends to a server every `period` steps and waits for what comes back to all.

    Args:
      period: from one exchange to the next; the first one at the end of step period - 1.
    """

    def meeting(step: int, workers: int) -> Meeting | None:
        def seconds(link: Network, size_bytes: float) -> list[float]:
            return [network.server_fan_in(link, size_bytes, workers)] * workers

        return Meeting(None, seconds) if (step + 1) % period == 0 else None

    return Waits(meeting, period)


def neighbors(topology: Topology, *, ahead: int = 0, overlaps: bool = False) -> Waits:
    """Everybody waits at every step for those it listens to.

    The bytes of a step are what goes out through all permutations of its round; a worker that has no
    neighbor in some of them sends nothing there.

    Args:
      topology: who listens to whom.
      ahead: step t uses round t + ahead.
      overlaps: whether the exchange can hide behind the gradient of the same step.
    """

    def meeting(step: int, workers: int) -> Meeting | None:
        listens = topology.neighbors(step + ahead)
        if not any(listens):
            return None
        heard_by = [0] * workers
        for others in listens:
            for other in others:
                heard_by[other] += 1
        degrees = [max(len(a), b) for a, b in zip(listens, heard_by, strict=True)]
        permutations = max(1, len(topology.permutations(step + ahead).sources) - 1)

        def seconds(link: Network, size_bytes: float) -> list[float]:
            each = size_bytes / permutations
            return [network.neighbor_exchange(link, each, degree) for degree in degrees]

        return Meeting(listens, seconds)

    return Waits(meeting, topology.period, overlaps=overlaps)
