"""Checkpoints written behind the loop's back: the loop pays for a copy to the host, no more."""

import concurrent.futures
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxdist import checkpoint, stored_arrays

PyTree = Any


class Saver(NamedTuple):
    """Saves that are under way, one at a time.

    Attributes:
      save: `save(step, state)` waits for the save before it, copies the state to the host, and returns;
        the state may be donated then. A step that is there already is left. What a save raised is
        raised by the next call, or at the end.
      wait: returns when everything is on disk and verifiable.
    """

    save: Callable[[int, PyTree], None]
    wait: Callable[[], None]


@contextlib.contextmanager
def saving(
    directory: str | os.PathLike[str], *, keep: int | None = None, asynchronously: bool = True
) -> Iterator[Saver]:
    """Inside, checkpoints are written by a thread; at the end all of them are on disk.

    A kill leaves what it leaves of `checkpoint.save`: a step without manifest, which is not believed.
    With several processes every save is finished before `save` returns: all of them would have to
    meet in their threads.

    Args:
      directory: as of `checkpoint.save`.
      keep: as of `checkpoint.save`.
      asynchronously: False: `save` returns when the step is on disk.

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
    under_way: list[concurrent.futures.Future[None]] = []
    behind = asynchronously and jax.process_count() == 1

    def wait() -> None:
        while under_way:
            under_way.pop().result()

    def save(step: int, state: PyTree) -> None:
        wait()
        if step in checkpoint.steps(directory):
            return
        if not behind:
            return checkpoint.save(directory, step, state, keep=keep)
        copy = jax.tree.map(_on_host, state)
        under_way.append(pool.submit(checkpoint.save, directory, step, copy, keep=keep))

    # The pool is left last: whatever happens, the thread has ended then.
    with concurrent.futures.ThreadPoolExecutor(1, "checkpoint") as pool:
        yield Saver(save, wait)
        wait()


def _on_host(x: jax.Array) -> jax.Array:
    """A copy on the CPU that shares no memory with `x`, whose own may be donated to the next step."""
    cpu = jax.local_devices(backend="cpu")[0]
    copy = jax.device_put(np.array(stored_arrays.data_of(x), copy=True), cpu)
    if copy.dtype == x.dtype:
        return copy
    return jax.random.wrap_key_data(copy, impl=jax.random.key_impl(x))
