"""How long gradients take: equally long, by hardware, at random, or with stragglers."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import keys
from jaxdist.clock.base import Clock, check_seconds, check_workers
from jaxdist.errors import Refused


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
        raise Refused(
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
        raise Refused(f"every={every!r} is not a number of gradients; write for example every=8")

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
    key = keys.key(seed)

    def one(worker: jax.Array, count: jax.Array) -> jax.Array:
        return sample(jax.random.fold_in(jax.random.fold_in(key, worker), count), dtype=dtype)

    return jax.vmap(one)(jnp.arange(len(count), dtype=jnp.int32), count)
