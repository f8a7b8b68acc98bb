"""Who takes part in the step that is being traced: told by `jd.faulty`, asked by all that counts workers."""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_ALIVE: contextvars.ContextVar[jax.Array | None] = contextvars.ContextVar("alive", default=None)
# Part of the key of JAX's tracing caches, so that no branch keeps the workers of another trace.
_TRACE = jax.make_user_context(None)


@contextlib.contextmanager
def attended(who: jax.Array | None) -> Iterator[None]:
    """Tells who takes part in what is traced inside.

    Args:
      who: bool `[workers]`, the same for every worker; None: everybody.
    """
    token = _ALIVE.set(who)
    try:
        with _TRACE(object()):
            yield
    finally:
        _ALIVE.reset(token)


def alive() -> jax.Array | None:
    """Who takes part in this step: bool `[workers]`, the same for every worker; None: everybody.

    `worker.mean`, `total` and `scatter` are over those who do. What `gather`, `exchange`, `shift` and
    `permute` bring from a worker that is away it has not sent: leave it out by this.
    """
    return _ALIVE.get()
