"""Links that drop messages and workers that are away: who hears whom at a step, drawn in the graph."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Sequence
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import keys, presence
from jaxdist.errors import Refused


class Faults(NamedTuple):
    """What goes wrong and when: functions of the shared step, so that all workers know the same.

    Attributes:
      alive: `alive(step, workers)` -> bool `[workers]`: who takes part; None: all do.
      dropped: `dropped(step, workers)` -> bool `[workers, workers]`, row = receiver: which messages
        are lost; None: none is.
      gone: those who from some step on never come back.
    """

    alive: Callable[[jax.Array, int], jax.Array] | None = None
    dropped: Callable[[jax.Array, int], jax.Array] | None = None
    gone: frozenset[int] = frozenset()


class Masks(NamedTuple):
    """The faults of the step that is being traced, and the name of the method that they strike."""

    alive: jax.Array | None = None
    dropped: jax.Array | None = None
    gone: frozenset[int] = frozenset()
    method: str = ""


_NOW: contextvars.ContextVar[Masks | None] = contextvars.ContextVar("faults", default=None)
# As in presence.py: no branch keeps the masks of another trace.
_TRACE = jax.make_user_context(None)


def link_loss(probability: float, *, seed: int) -> Faults:
    """Every link fails at every step with the same probability, both ways at once.

    Args:
      probability: from 0 to 1.
      seed: of the draw; which links fail at a step depends on it and on the step only.

    Raises:
      Refused: a probability out of range.
    """
    _check("link_loss", probability)

    def dropped(step: jax.Array, workers: int) -> jax.Array:
        draw = jax.random.bernoulli(_key(seed, step), probability, (workers, workers))
        once = jnp.triu(draw, 1)
        return once | once.T

    return Faults(dropped=dropped)


def worker_loss(probability: float, *, seed: int) -> Faults:
    """Every worker is away at every step with the same probability, and comes back by itself.

    At a step at which all would be away, all are there.

    Args:
      probability: from 0 to 1.
      seed: of the draw.

    Raises:
      Refused: a probability out of range.
    """
    _check("worker_loss", probability)

    def alive(step: jax.Array, workers: int) -> jax.Array:
        here = ~jax.random.bernoulli(_key(seed, step), probability, (workers,))
        return here | ~here.any()

    return Faults(alive=alive)


def workers_lost(workers: Sequence[int], *, start: int = 0, stop: int | None = None) -> Faults:
    """Certain workers are away from a step on, for ever or until they come back.

    Args:
      workers: which.
      start: the first step without them.
      stop: the first step with them again; None: they never come back.

    Raises:
      Refused: no worker, or a stop that is not after the start.
    """
    if not workers or (stop is not None and stop <= start):
        raise Refused(
            f"workers_lost({list(workers)}, start={start}, stop={stop}) loses nobody; "
            "write for example workers_lost([3], start=100, stop=200)"
        )

    def alive(step: jax.Array, count: int) -> jax.Array:
        if max(workers) >= count:
            raise Refused(f"workers_lost names worker {max(workers)} of a run with {count}")
        away = (step >= start) & (True if stop is None else step < stop)
        named = np.isin(np.arange(count), np.asarray(workers))
        return ~(away & jnp.asarray(named))

    return Faults(alive=alive, gone=frozenset(workers) if stop is None else frozenset())


def masks(faults: Faults, step: jax.Array, workers: int) -> Masks:
    """The faults of one step as arrays."""
    return Masks(
        None if faults.alive is None else faults.alive(step, workers),
        None if faults.dropped is None else faults.dropped(step, workers),
        faults.gone,
    )


@contextlib.contextmanager
def happening(*these: Masks) -> Iterator[None]:
    """Lets these faults strike everything that is traced inside, beside those that do already.

    Raises:
      Refused: nobody would be left for ever.
    """
    both = reduce(_both, these, current())
    if both.alive is not None and len(both.gone) == len(both.alive):
        raise Refused(
            f"the workers {sorted(both.gone)} never come back, and nobody else is there; name fewer, "
            "or give a stop to jd.faults.workers_lost"
        )
    token = _NOW.set(both)
    try:
        with _TRACE(object()), presence.attended(both.alive):
            yield
    finally:
        _NOW.reset(token)


def _both(a: Masks, b: Masks) -> Masks:
    def joined(a: Any, b: Any, how: Callable[[Any, Any], Any]) -> Any:
        return (b if a is None else a) if a is None or b is None else how(a, b)

    return Masks(
        joined(a.alive, b.alive, jnp.logical_and),
        joined(a.dropped, b.dropped, jnp.logical_or),
        a.gone | b.gone,
        b.method or a.method,
    )


def current() -> Masks:
    """The faults of the step that is being traced."""
    return _NOW.get() or Masks()


def refuse_away(reason: str, cure: str) -> None:
    """Refuses, while tracing, what can not go on without a worker that is away.

    Args:
      reason: why, a clause.
      cure: what to write instead.

    Raises:
      Refused: workers may be away.
    """
    now = current()
    if now.alive is not None:
        raise Refused(
            f"jd.faulty takes workers away, and {now.method or 'this'} can not go on without them: "
            f"{reason}; {cure}"
        )


def refuse_any(reason: str, cure: str) -> None:
    """Refuses, while tracing, what can bear neither a lost message nor a worker that is away.

    Args:
      reason: why, a clause.
      cure: what to write instead.

    Raises:
      Refused: messages may be lost, or workers be away.
    """
    now = current()
    if now.alive is not None or now.dropped is not None:
        raise Refused(f"{now.method or 'this'} can not run under jd.faulty: {reason}; {cure}")


def _key(seed: int, step: jax.Array) -> jax.Array:
    return jax.random.fold_in(keys.key(seed), step)


def _check(name: str, probability: float) -> None:
    if not 0 <= probability <= 1:
        raise Refused(
            f"probability={probability!r} of {name} is not in 0..1; write {name}(0.01, seed=0)"
        )
