"""A clock: who finishes its gradient when, so who delivers, in which order."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.errors import Refused

Seconds = Callable[[jax.Array, jax.Array], jax.Array]


class Times(NamedTuple):
    """Where the simulation of all workers is: shared, computed by everybody alike.

    Attributes:
      now: simulated seconds, shape (): the last delivery so far.
      left: [W], how many seconds from `now` worker i delivers the gradient it has begun, or, where it
        is held back, the one it will begin next. Relative, so that it stays exact in long runs.
      counts: int32 [W], how many gradients worker i has delivered.
      rest: shape (), what `now` could not hold: the sum of many small steps stays right.
    """

    now: jax.Array
    left: jax.Array
    counts: jax.Array
    rest: jax.Array


class Tick(NamedTuple):
    """What happens in one tick.

    Attributes:
      active: bool [W], who delivers a gradient; everybody at most one.
      rank: int32 [W], in which order: 0, 1, ... among those who deliver; W for the others.
      at: [W], at how many simulated seconds a worker delivers; 0 where it does not.
      begins: int32 [W], after the delivery of which rank a worker begins its next gradient, and so
        which parameters it sees: its own `rank`, unless a bound held it back; W for those who begin
        none in this tick.
    """

    active: jax.Array
    rank: jax.Array
    at: jax.Array
    begins: jax.Array


@dataclass(frozen=True, eq=False, repr=False)
class Clock:
    """How long everybody's gradients take, and the discrete-event simulation that follows from it.

    All of it is a pure function of whole `[W]` vectors: everybody computes the same, nobody
    communicates, and `Times` belongs in the shared room of a state.

    Attributes:
      size: how many workers, W.
      name: how it was made.
      seconds: `seconds(count, start)` -> [W]: how long gradient number `count[i]` (from 0) of worker i
        takes if it is begun at `start[i]` simulated seconds. Above 0; infinite: never delivered.

    Example:
      >>> import jaxdist as jd
      >>> clock = jd.clock.speeds([1.0, 2.0])  # gradients a second
      >>> tick, times = clock.tick(clock.start())
      >>> tick.active.tolist(), times.now.item()
      ([False, True], 0.5)
      >>> tick, times = clock.tick(times)
      >>> tick.rank.tolist(), times.now.item()
      ([0, 1], 1.0)
    """

    size: int
    name: str
    seconds: Seconds

    def __repr__(self) -> str:
        return self.name

    def start(self) -> Times:
        """Everybody begins its first gradient at 0 seconds."""
        zero = jnp.zeros((), jnp.result_type(float))
        count = jnp.zeros(self.size, jnp.int32)
        return Times(zero, self.seconds(count, jnp.zeros(self.size, zero.dtype)), count, zero)

    def afresh(self, times: Times) -> Times:
        """Everybody begins a first gradient at the moment at which another simulation was."""
        count = jnp.zeros(self.size, jnp.int32)
        now = jnp.asarray(times.now)
        left = self.seconds(count, jnp.broadcast_to(now, (self.size,)))
        return Times(now, left, count, jnp.asarray(times.rest))

    def tick(
        self,
        times: Times,
        *,
        bound: int | jax.Array | None = None,
        alive: jax.Array | None = None,
    ) -> tuple[Tick, Times]:
        """Lets time pass until the next worker would deliver for the second time.

        With f_i the moment at which worker i delivers and d_i how long its gradient after that takes,
        everybody with f_i < min_j (f_j + d_j) delivers, in the order of (f_i, i). So nobody delivers
        twice in a tick, at least one worker delivers, and all deliveries of all ticks, put one after
        the other, are those of the discrete-event simulation: no time is rounded to a grid, and the
        fastest worker sets the pace.

        Under a `bound`, a worker that has delivered c gradients begins its next only when
        everybody has delivered at least c - bound. The slowest are never held back and it is known
        when they deliver, so it is known at once when those who wait for them begin.

        Args:
          times: where the simulation is.
          bound: by how many gradients a worker may lead the slowest; 0: nobody begins before all have
            delivered; None: nobody waits.
          alive: bool [W], who is there; None: everybody. For who is away time stands still, and nobody
            waits for it: under a bound it comes back as one of the slowest.

        Returns:
          What happened, and where the simulation is then. Where all workers have stopped for ever
          nobody delivers and time stands still.
        """
        now, kept, count, rest = times
        never = jnp.zeros(self.size, bool)
        there = ~never if alive is None else alive
        left = jnp.where(there, kept, jnp.inf)
        lead = count - _least(count, there)
        slowest = (lead == 0) & there
        waits = never if bound is None else (lead > bound) & there  # has not begun
        held = never if bound is None else lead + 1 > bound  # will have to wait, after delivering
        release = jnp.where(slowest, left, -jnp.inf).max()
        begin = jnp.where(held, jnp.maximum(left, release), left)
        after = begin + duration(self, count + 1, now + begin)
        # What is begun in a tick is delivered in a later one.
        end = jnp.where(waits, left, after).min()
        first = jnp.where(waits, jnp.inf, left).min()
        active = (left < end) | ((left == first) & ~waits & jnp.isfinite(left))
        # Those who deliver are the first in this order, so that their places are their ranks.
        place = jnp.argsort(jnp.argsort(left, stable=True), stable=True).astype(jnp.int32)
        rank = jnp.where(active, place, self.size)
        released = jnp.where(slowest, rank, 0).max()  # W unless all of the slowest deliver
        begins = jnp.where(waits, released, rank)
        begins = jnp.where(held & active, jnp.maximum(rank, released), begins)
        at = jnp.where(active, now + (left + rest), 0.0)
        passed = jnp.where(active, left, 0.0).max()
        left = jnp.where(there, jnp.where(active, after, left) - passed, kept)
        now, rest = later(now, passed, rest)
        count = count + active.astype(jnp.int32)
        if alive is not None and bound is not None:
            count = jnp.where(there, count, jnp.maximum(count, _least(count, there)))
        return Tick(active, rank, at, begins), Times(now, left, count, rest)


def _least(count: jax.Array, there: jax.Array) -> jax.Array:
    """The fewest gradients that any of those who are there has delivered; of nobody, the fewest of all."""
    return jnp.where(there | ~there.any(), count, jnp.iinfo(count.dtype).max).min()


def duration(clock: Clock, count: jax.Array, start: jax.Array) -> jax.Array:
    """`clock.seconds`, and for ever for those who begin at infinity, because they have stopped."""
    return jnp.where(jnp.isfinite(start), clock.seconds(count, start), jnp.inf)


def later(now: jax.Array, passed: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum now + passed, and what it could not hold, to be given back as `rest`.

    In float32 a plain sum goes astray by a percent after 100 000 steps of 0.1 s.
    """
    step = passed + rest
    total = now + step
    return total, jnp.where(jnp.isfinite(total), step - (total - now), 0.0)


def check_workers(example: str, workers: Any) -> None:
    """Refuses what is not a number of workers."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise Refused(
            f"jd.clock.{example.split('(')[0]} was given workers={workers!r}, expected a whole number of at "
            f"least 1; write for example jd.clock.{example}"
        )


def check_seconds(name: str, value: Any, *, write: str) -> None:
    """Refuses what is not a finite number above 0, or an array of them."""
    try:
        wrong = [
            x for x in np.ravel(np.asarray(value, np.float64)).tolist() if not 0 < x < math.inf
        ]
    except (TypeError, ValueError):
        wrong = [value]
    if wrong:
        raise Refused(
            f"{name} holds {wrong[0]!r}, expected finite numbers above 0; write for example {write}"
        )
