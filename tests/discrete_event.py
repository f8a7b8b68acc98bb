"""A discrete-event simulation in plain Python: what clocks and timed methods are held to.

Written from the words of the documentation, with a heap of events and nothing of the package.
"""

import heapq
from collections.abc import Callable, Sequence
from typing import NamedTuple


class Delivery(NamedTuple):
    """One gradient that arrived: when, whose, which of its own, and how many arrived before it began."""

    seconds: float
    worker: int
    number: int
    seen: int


def deliveries(
    seconds: Callable[[int, int, float], float],
    workers: int,
    many: int,
    *,
    bound: int | None = None,
) -> list[Delivery]:
    """The first arrivals of workers that wait for nobody, or for the slowest under a bound.

    seconds(worker, number, start): how long a gradient takes. At equal times the lower worker first.
    """
    arrived: list[Delivery] = []
    delivered = [0] * workers
    seen = [0] * workers
    idle: list[int] = []
    events: list[tuple[float, int]] = []

    def begin(worker, now):
        seen[worker] = len(arrived)
        takes = seconds(worker, delivered[worker], now)
        if takes < float("inf"):
            heapq.heappush(events, (now + takes, worker))

    for worker in range(workers):
        begin(worker, 0.0)
    while events and len(arrived) < many:
        now, worker = heapq.heappop(events)
        arrived.append(Delivery(now, worker, delivered[worker], seen[worker]))
        delivered[worker] += 1
        idle.append(worker)
        may = [w for w in idle if bound is None or delivered[w] - min(delivered) <= bound]
        idle = [w for w in idle if w not in may]
        for w in may:
            begin(w, now)
    return arrived


def finishes(
    seconds: Callable[[int, int, float], float],
    partners: Callable[[int], Sequence[Sequence[int]]],
    cost: Callable[[int, int], float],
    *,
    workers: int,
    steps: int,
    early: bool = False,
) -> list[list[float]]:
    """When every worker is through with every step, where a step ends with messages.

    partners(step): for each worker those it needs a message from. cost(step, worker): how long that
    worker's exchange takes from the moment at which the last message is sent. early: messages are sent
    before the gradient of the step, not after it.
    """
    done = [[float("nan")] * workers for _ in range(steps)]
    computed: dict[tuple[int, int], float] = {}
    missing = {(step, w): set(partners(step)[w]) for step in range(steps) for w in range(workers)}
    latest: dict[tuple[int, int], float] = {}
    events: list[tuple[float, str, int, int]] = []

    def listeners(step, worker):
        return [w for w in range(workers) if worker in partners(step)[w]]

    def send(now, step, worker):
        for w in listeners(step, worker):
            heapq.heappush(events, (now, "message", step * workers + worker, w))

    def begin(now, step, worker):
        if step == steps:
            return
        if early:
            send(now, step, worker)
        heapq.heappush(events, (now + seconds(worker, step, now), "gradient", step, worker))

    def check(step, worker):
        if missing[step, worker] or (step, worker) not in computed or done[step][worker] >= 0:
            return
        arrives = latest.get((step, worker), 0.0) + cost(step, worker)
        done[step][worker] = max(computed[step, worker], arrives)
        begin(done[step][worker], step + 1, worker)

    for worker in range(workers):
        begin(0.0, 0, worker)
    while events:
        now, what, which, worker = heapq.heappop(events)
        if what == "gradient":
            step = which
            computed[step, worker] = now
            if not early:
                send(now, step, worker)
        else:
            step, sender = divmod(which, workers)
            missing[step, worker].discard(sender)
            latest[step, worker] = max(now, latest.get((step, worker), 0.0))
        check(step, worker)
    return done
