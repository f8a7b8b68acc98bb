"""Simulated compute times: who finishes its gradient when, so who delivers, in which order."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

    def tick(self, times: Times, *, bound: int | None = None) -> tuple[Tick, Times]:
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

        Returns:
          What happened, and where the simulation is then. Where all workers have stopped for ever
          nobody delivers and time stands still.
        """
        now, left, count, rest = times
        lead = count - count.min()
        slowest = lead == 0
        never = jnp.zeros(self.size, bool)
        waits = never if bound is None else lead > bound  # has not begun
        held = never if bound is None else lead + 1 > bound  # will have to wait, after delivering
        release = jnp.where(slowest, left, -jnp.inf).max()
        begin = jnp.where(held, jnp.maximum(left, release), left)
        after = begin + self.seconds(count + 1, now + begin)
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
        left = jnp.where(active, after, left) - passed
        now, rest = later(now, passed, rest)
        count = count + active.astype(jnp.int32)
        return Tick(active, rank, at, begins), Times(now, left, count, rest)


def later(now: jax.Array, passed: jax.Array, rest: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Kahan's sum now + passed, and what it could not hold, to be given back as `rest`.

    In float32 a plain sum goes astray by a percent after 100 000 steps of 0.1 s.
    """
    step = passed + rest
    total = now + step
    return total, jnp.where(jnp.isfinite(total), step - (total - now), 0.0)


def constant(workers: int, *, seconds: float = 1.0) -> Clock:
    """All gradients of all workers take equally long.

    Args:
      workers: how many.
      seconds: of every gradient.

    Example:
      >>> clock = constant(4)
      >>> tick, times = clock.tick(clock.start())
      >>> tick.rank.tolist(), times.now.item()
      ([0, 1, 2, 3], 1.0)
    """
    check_workers("constant(8)", workers)
    check_seconds("seconds", seconds, write="seconds=1.0")
    return _fixed(f"constant({workers}, seconds={seconds})", np.full(workers, float(seconds)))


def speeds(gradients_per_second: Sequence[float]) -> Clock:
    """Every worker has a speed of its own and keeps it: hardware of several generations.

    Args:
      gradients_per_second: one number above 0 for each worker.

    Example:
      >>> speeds([1.0, 1.0, 0.25])
      speeds([1.0, 1.0, 0.25])
    """
    given = np.asarray(gradients_per_second, np.float64)
    if given.ndim != 1 or not given.size:
        raise ValueError(
            f"speeds has shape {given.shape}, expected one speed for each worker; "
            "write jd.clock.speeds([1.0, 0.5])"
        )
    check_seconds("gradients_per_second", given, write="speeds([1.0, 0.5])")
    return _fixed(f"speeds({given.tolist()})", 1 / given)


def lognormal(workers: int, *, mean_seconds: float = 1.0, sigma: float, seed: int) -> Clock:
    """Every gradient takes mean_seconds exp(sigma z - sigma^2 / 2), z standard normal.

    z is drawn anew for every worker and gradient from (seed, worker, count).

    Args:
      workers: how many.
      mean_seconds: the expected duration.
      sigma: the standard deviation of the logarithm.
      seed: of the draws.

    Example:
      >>> clock = lognormal(4, mean_seconds=2.0, sigma=0.5, seed=0)
      >>> tick, times = clock.tick(clock.start())
      >>> bool(times.now > 0)
      True
    """
    check_workers("lognormal(8, sigma=0.5, seed=0)", workers)
    check_seconds("mean_seconds", mean_seconds, write="mean_seconds=1.0")
    check_seconds("sigma", sigma, write="sigma=0.5")

    def seconds(count: jax.Array, start: jax.Array) -> jax.Array:
        z = _draw(jax.random.normal, seed, count, start.dtype)
        return mean_seconds * jnp.exp(sigma * z - sigma**2 / 2)

    name = f"lognormal({workers}, mean_seconds={mean_seconds}, sigma={sigma}, seed={seed})"
    return Clock(workers, name, seconds)


def exponential_tail(
    workers: int, *, least_seconds: float = 1.0, tail_seconds: float, seed: int
) -> Clock:
    """Every gradient takes least_seconds + tail_seconds e, e exponential with mean 1.

    The classic model of stragglers: the slowest of W is later by about tail_seconds log W.

    Args:
      workers: how many.
      least_seconds: what every gradient takes at least.
      tail_seconds: the mean of what comes on top.
      seed: of the draws, made from (seed, worker, count).

    Example:
      >>> clock = exponential_tail(4, least_seconds=1.0, tail_seconds=0.5, seed=0)
      >>> bool(clock.start().left.min() > 1.0)
      True
    """
    check_workers("exponential_tail(8, tail_seconds=0.5, seed=0)", workers)
    check_seconds("least_seconds", least_seconds, write="least_seconds=1.0")
    check_seconds("tail_seconds", tail_seconds, write="tail_seconds=0.5")

    def seconds(count: jax.Array, start: jax.Array) -> jax.Array:
        return least_seconds + tail_seconds * _draw(
            jax.random.exponential, seed, count, start.dtype
        )

    name = (
        f"exponential_tail({workers}, least_seconds={least_seconds}, "
        f"tail_seconds={tail_seconds}, seed={seed})"
    )
    return Clock(workers, name, seconds)


def periodic_straggler(workers: int, *, seconds: float = 1.0, factor: float, every: int) -> Clock:
    """Every worker is slower by a factor once in a while, in turn.

    Gradient number c of worker i takes factor x seconds where c and i leave the same remainder
    modulo `every`, and `seconds` elsewhere.

    Args:
      workers: how many.
      seconds: of an ordinary gradient.
      factor: how many times as long a slow one takes.
      every: how many gradients of a worker from one slow one to the next.

    Example:
      >>> periodic_straggler(4, factor=10.0, every=4).start().left.tolist()
      [10.0, 1.0, 1.0, 1.0]
    """
    check_workers("periodic_straggler(8, factor=10.0, every=8)", workers)
    check_seconds("seconds", seconds, write="seconds=1.0")
    check_seconds("factor", factor, write="factor=10.0")
    if isinstance(every, bool) or not isinstance(every, int) or every < 1:
        raise ValueError(f"every={every!r} is not a number of gradients; write for example every=8")

    def duration(count: jax.Array, start: jax.Array) -> jax.Array:
        slow = count % every == jnp.arange(workers, dtype=jnp.int32) % every
        return jnp.where(slow, factor * seconds, seconds).astype(start.dtype)

    name = f"periodic_straggler({workers}, seconds={seconds}, factor={factor}, every={every})"
    return Clock(workers, name, duration)


def _fixed(name: str, seconds: np.ndarray) -> Clock:
    """Worker i takes seconds[i], always."""
    return Clock(len(seconds), name, lambda count, start: jnp.asarray(seconds, start.dtype))


def _draw(sample: Callable[..., jax.Array], seed: int, count: jax.Array, dtype: Any) -> jax.Array:
    """One sample for each worker, a pure function of (seed, worker, count)."""
    key = jax.random.key(seed)

    def one(worker: jax.Array, count: jax.Array) -> jax.Array:
        return sample(jax.random.fold_in(jax.random.fold_in(key, worker), count), dtype=dtype)

    return jax.vmap(one)(jnp.arange(len(count), dtype=jnp.int32), count)


def check_workers(example: str, workers: Any) -> None:
    """Refuses what is not a number of workers."""
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ValueError(
            f"jd.clock.{example.split('(')[0]} was given workers={workers!r}, expected a whole number of at "
            f"least 1; write for example jd.clock.{example}"
        )


def check_seconds(name: str, value: Any, *, write: str) -> None:
    """Refuses what is not a finite number above 0, or an array of them."""
    try:
        wrong = [x for x in np.ravel(np.asarray(value, np.float64)) if not 0 < x < math.inf]
    except (TypeError, ValueError):
        wrong = [value]
    if wrong:
        raise ValueError(
            f"{name} holds {wrong[0]!r}, expected finite numbers above 0; write for example {write}"
        )
