"""Who arrives at a server in a step, in which order, how stale, and who takes what home.

All of it follows from the clock, which every worker computes alike: it is shared, and costs no
message.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import presence, worker
from jaxdist.algorithms.server import Turn
from jaxdist.clock import Clock, Tick, Times
from jaxdist.errors import Refused


class Book(NamedTuple):
    """What is known of all arrivals so far.

    Attributes:
      times: of the clock.
      version: int32 (), how many pushes the server has taken.
      pulled: int32 [W], the version of each worker's copy.
      staleness: int32 [4 W], how many pushes met a server newer than their copy by 0, 1, ...
        versions; the last entry counts all that were staler still.
      stale: float32 (), the sum of the staleness of all pushes.
    """

    times: Times
    version: jax.Array
    pulled: jax.Array
    staleness: jax.Array
    stale: jax.Array


def check_size(clock: Clock) -> None:
    """Refuses a clock for another number of workers, while the step is traced."""
    workers = worker.count()
    if clock.size != workers:
        raise Refused(
            f"the clock times {clock.size} workers and the run has {workers}; "
            f"give a clock of size {workers}, or workers={clock.size} to jd.execute"
        )


def open_book(clock: Clock) -> Book:
    """The book before the first arrival."""
    check_size(clock)
    workers = clock.size
    none = jnp.zeros(workers, jnp.int32)
    bins = jnp.zeros(4 * workers, jnp.int32)
    return Book(clock.start(), jnp.int32(0), none, bins, jnp.float32(0))


def arrives(clock: Clock, times: Times, *, bound: int | None = None) -> jax.Array:
    """Whether this worker arrives in the next tick."""
    return clock.tick(times, bound=bound, alive=presence.alive())[0].active[worker.index()]


def reopen(clock: Clock, old: Book, fresh: Book) -> Book:
    """The book of other workers: time goes on, everybody begins anew, and so do versions and counts."""
    return fresh._replace(times=clock.afresh(old.times))


def enter(
    book: Book, tick: Tick, times: Times, *, pushes: jax.Array, pull_at: jax.Array
) -> tuple[Turn, Book]:
    """The server's turn in this step, and the book after it.

    Args:
      book: before the step.
      tick: who arrives, and in which order.
      times: of the clock after the step.
      pushes: bool [W], who of those that arrive brings a push.
      pull_at: int32 [W], as in `Turn`.
    """
    workers = len(tick.rank)
    pushes = pushes & tick.active
    # [j, i]: whether i pushes before j does; and by the time that j pulls.
    before = (pushes[None] & (tick.rank[None] < tick.rank[:, None])).sum(1, dtype=jnp.int32)
    until = (pushes[None] & (tick.rank[None] <= pull_at[:, None])).sum(1, dtype=jnp.int32)
    lag = book.version + before - book.pulled
    bins = jnp.minimum(lag, len(book.staleness) - 1)
    book = Book(
        times=times,
        version=book.version + pushes.sum(dtype=jnp.int32),
        pulled=jnp.where(pull_at < workers, book.version + until, book.pulled),
        staleness=book.staleness.at[bins].add(pushes.astype(jnp.int32)),
        stale=book.stale + jnp.where(pushes, lag, 0).sum().astype(jnp.float32),
    )
    order = jnp.argsort(tick.rank).astype(jnp.int32)
    return Turn(order, tick.active.sum(dtype=jnp.int32), pushes, pull_at), book


def report(book: Book) -> dict[str, Any]:
    """What is recorded after a step: of the run so far, not of the step alone."""
    return {
        "simulated_seconds": book.times.now,
        "server_version": book.version,
        "staleness": book.staleness,
        "mean_staleness": book.stale / jnp.maximum(book.version, 1).astype(jnp.float32),
    }
