"""Who computes how much of a batch, so that nobody waits long: shares fixed before, or portions dealt out.

Dean et al., Large Scale Distributed Deep Networks, NIPS 2012 (Sandblaster's portions and backups).
"""

import heapq
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.clock import Clock
from jaxdist.errors import Refused

SAMPLED = 32  # gradients of each worker by which `balance` judges its speed


class Portions(NamedTuple):
    """How a batch that was cut into portions was dealt out.

    Attributes:
      worker: int [portions], whose result of a portion counts.
      finished: float [portions], at how many simulated seconds it was there.
      copies: int [portions], how often it was begun: more than 1 where backups were sent out.
      seconds: when the whole batch was done.
      equal_seconds: when it would have been done had everybody been given equally many before.
    """

    worker: np.ndarray
    finished: np.ndarray
    copies: np.ndarray
    seconds: float
    equal_seconds: float


def balance(clock: Clock, total: int) -> np.ndarray:
    """The number of examples for each worker with which the slowest is done soonest.

    A worker's seconds grow with its examples, at its mean pace by the clock. Of all whole numbers
    with the right sum these make the longest of them as short as it can be.

    Args:
      clock: how fast the workers are.
      total: examples of all workers together.

    Returns:
      int `[workers]`, which sums to `total`; a worker that is too slow for a single one gets 0. Give
      it to `jd.data.deal`.

    Raises:
      Refused: `total` is not a whole number of at least 0.

    Example:
      >>> import jaxdist as jd
      >>> jd.balance(jd.clock.speeds([4.0, 2.0, 1.0]), 16)
      array([10,  4,  2])
    """
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise Refused(f"total={total!r} is not a number of examples; write for example total=512")
    seconds = _seconds(clock)
    counts = [np.full(clock.size, k) for k in range(SAMPLED)]
    pace = np.mean([seconds(k, np.zeros(clock.size)) for k in counts], axis=0)
    if not np.isfinite(pace).any():
        raise Refused(f"{clock} never delivers: no split of {total} examples would be finished")
    # What everybody can do in the time that fractions of examples would need; the rest one by one.
    shares = np.floor(total / (pace * np.sum(1 / pace)) + 1e-9).astype(int)
    waiting = [(pace[i] * (shares[i] + 1), i) for i in range(clock.size)]
    heapq.heapify(waiting)
    for _ in range(total - shares.sum()):
        _, i = heapq.heappop(waiting)
        shares[i] += 1
        heapq.heappush(waiting, (pace[i] * (shares[i] + 1), i))
    return shares


def portions(clock: Clock, count: int, *, backups: bool = True) -> Portions:
    """Deals out portions of one batch to whoever is free, and the last ones twice.

    Everybody starts with one portion and takes the next when it is done with its own, so that a fast
    worker gets more of them. When none are left, a free worker is sent a copy of one that is still
    out: of those with the fewest copies the one begun first. The first result counts and the others
    who work on it stop. What is computed does not depend on it: give worker i the portions that
    `worker` says, by `jd.data.deal`, and the mean over all is that of the batch.

    Args:
      clock: how fast the workers are; one gradient by the clock is one portion.
      count: into how many portions the batch is cut, many more than workers.
      backups: whether the last portions are sent out again.

    Returns:
      `Portions`.

    Raises:
      Refused: `count` is not a whole number of at least 1, or a portion would never be done.

    Example:
      One worker of four is ten times slower than the others:

      >>> import jaxdist as jd
      >>> clock = jd.clock.speeds([1.0, 1.0, 1.0, 0.1])
      >>> dealt = jd.portions(clock, 36)
      >>> dealt.seconds, dealt.equal_seconds, np.bincount(dealt.worker).tolist()
      (12.0, 90.0, [12, 12, 11, 1])
      >>> jd.portions(clock, 36, backups=False).seconds
      20.0
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise Refused(f"count={count!r} is not a number of portions; write for example count=64")
    seconds = _seconds(clock)
    workers, nothing = clock.size, -1
    begun = np.zeros(workers, int)
    task, end = np.full(workers, nothing), np.full(workers, np.inf)
    worker, copies, finished = np.full(count, nothing), np.zeros(count, int), np.full(count, np.inf)
    first = np.full(count, np.inf)  # when a portion was begun first
    now = 0.0
    while np.isinf(finished).any():
        for i in np.flatnonzero(task == nothing):
            chosen = int((copies > 0).sum())  # portions are begun in their order
            if chosen == count:
                out = np.flatnonzero(np.isinf(finished)) if backups else []
                if not len(out):
                    continue
                chosen = min(out, key=lambda p: (copies[p], first[p], p))
            task[i], end[i] = chosen, now + seconds(begun, np.full(workers, now))[i]
            begun[i] += 1
            copies[chosen] += 1
            first[chosen] = min(first[chosen], now)
        now, i = end.min(), int(end.argmin())
        if np.isinf(now):
            raise Refused(
                f"{clock} never delivers {int(np.isinf(finished).sum())} of the {count} portions; "
                "write backups=True, or a clock in which somebody goes on"
            )
        worker[task[i]], finished[task[i]] = i, now
        free = task == task[i]
        task[free], end[free] = nothing, np.inf
    return Portions(worker, finished, copies, float(now), _equal_seconds(clock, count))


def _equal_seconds(clock: Clock, count: int) -> float:
    """When the last worker is done if everybody computes its equal share, one portion after the other."""
    seconds = _seconds(clock)
    share = count // clock.size + (np.arange(clock.size) < count % clock.size)
    now = np.zeros(clock.size)
    for k in range(share.max()):
        lasting = seconds(np.full(clock.size, k), now)
        now = np.where(k < share, now + lasting, now)
    return float(now.max())


def _seconds(clock: Clock):
    """The clock's seconds of NumPy arrays, in as many bits as JAX is set to."""
    compiled = jax.jit(clock.seconds)

    def of(count: np.ndarray, start: np.ndarray) -> np.ndarray:
        begin = jnp.asarray(start, jnp.result_type(float))
        return np.asarray(compiled(jnp.asarray(count, jnp.int32), begin), np.float64)

    return of
