"""Batches made ahead of time, in a thread of their own."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def prefetch(make: Callable[[int], Any], start: int, *, ahead: int = 2) -> Iterator[Iterator[Any]]:
    """Inside, `make(start), make(start + 1), ...` are computed while the consumer does other things.

    What `make` raises is raised where its batch is asked for.

    Args:
      make: step -> batch; called in another thread, in order.
      start: the first step.
      ahead: how many batches may wait.

    Yields:
      An iterator without end.

    Example:
      >>> with prefetch(lambda step: step * step, 3) as squares:
      ...     [next(squares) for _ in range(3)]
      [9, 16, 25]
    """
    ready: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(ahead)
    closed = threading.Event()

    def put(item: tuple[Any, BaseException | None]) -> None:
        while not closed.is_set():
            with contextlib.suppress(queue.Full):
                return ready.put(item, timeout=0.1)

    def work() -> None:
        step = start
        while not closed.is_set():
            try:
                put((make(step), None))
            except BaseException as error:
                put((None, error))
                return
            step += 1

    def batches() -> Iterator[Any]:
        while True:
            batch, error = ready.get()
            if error is not None:
                raise error
            yield batch

    thread = threading.Thread(target=work, name="jaxdist-prefetch", daemon=True)
    thread.start()
    try:
        yield batches()
    finally:
        closed.set()
        thread.join()
