"""Checkpoints written behind the loop's back: the loop stands while the state is copied, no longer."""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import checkpoint, store
from jaxdist.errors import NotFinite

PyTree = Any


class Saver(NamedTuple):
    """Saves that are under way, one at a time.

    Attributes:
      save: `save(step, state, extra)` waits for the save before it, checks and copies the state, and
        returns; the state may be donated then. `extra` is as of `checkpoint.save`, or None. A step that is
        there already is left. What went wrong while a step was written is raised by the next call, or at
        the end.
      wait: returns when everything is on disk and verifiable.
    """

    save: Callable[..., None]
    wait: Callable[[], None]


@contextlib.contextmanager
def saving(
    directory: str | os.PathLike[str],
    *,
    keep: int | None = None,
    asynchronously: bool = True,
    check: Callable[[], None] = lambda: None,
    moved: Callable[[], None] = lambda: None,
) -> Iterator[Saver]:
    """Inside, checkpoints are written by a thread; at the end all of them are on disk.

    A kill leaves what it leaves of `checkpoint.save`: a step without manifest, which is not believed.
    Alone a process copies the state to its host. Several copy it on their devices, which must have room
    for it, and their threads meet at the coordinator, never in a program. Several that write to
    a URL wait for every save: the whole state is gathered for it.

    Args:
      directory: as of `checkpoint.save`.
      keep: as of `checkpoint.save`.
      asynchronously: False: `save` returns when the step is on disk.
      check: as of `checkpoint.write`.
      moved: as of `checkpoint.write`.

    Yields:
      A `Saver`.

    Example:
      >>> import tempfile, jax.numpy as jnp
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with saving(folder) as saver:
      ...         saver.save(1, {"w": jnp.ones(3)})
      ...     checkpoint.steps(folder)
      [1]
    """
    write = partial(checkpoint.write, keep=keep, check=check, moved=moved)
    under_way: list[concurrent.futures.Future[None]] = []
    alone = jax.process_count() == 1
    behind = asynchronously and (alone or not store.afar(store.folder(directory)))

    def wait() -> None:
        while under_way:
            under_way.pop().result()

    def save(step: int, state: PyTree, extra: dict[str, Any] | None = None) -> None:
        wait()
        if step in checkpoint.steps(directory):
            return
        try:
            about, arrays = checkpoint.ready(state, extra=extra)
        except NotFinite as error:
            raise NotFinite(f"step {step}: {error}") from error
        if not behind:
            return write(directory, step, checkpoint.Ready(about, arrays))
        copy = jax.tree.map(_on_host, arrays) if alone else jax.block_until_ready(_copied(arrays))
        ready = checkpoint.Ready(about, copy)
        under_way.append(pool.submit(write, directory, step, ready))

    pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    try:
        yield Saver(save, wait)
        wait()
    except BaseException:
        # Alone, the thread has ended when this is left. Of several processes one may be gone, and the
        # thread would wait for it.
        pool.shutdown(wait=alone)
        raise
    pool.shutdown()


@jax.jit
def _copied(arrays: PyTree) -> PyTree:
    return jax.tree.map(jnp.copy, arrays)


def _on_host(x: jax.Array) -> jax.Array:
    """A copy on the CPU that shares no memory with `x`, whose own may be donated to the next step."""
    return jax.device_put(np.array(x, copy=True), jax.local_devices(backend="cpu")[0])
