"""Ctrl-C and SIGTERM as a question that the loop asks between two steps."""

import contextlib
import signal
from collections.abc import Callable, Iterator
from typing import Any

import jax
from jax.experimental import multihost_utils

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def asked(say: Callable[[str], None]) -> Iterator[Callable[[int], bool]]:
    """Inside, Ctrl-C and SIGTERM do not end the process; a second one does, at once.

    Yields:
      `stop(step)` -> whether to stop before this step. With several processes it is JAX that hears
      SIGTERM, and all of them are told the same at the same step; a second one ends it at once.

    Example:
      >>> with asked(print) as stop:
      ...     stop(0)
      ...     signal.raise_signal(signal.SIGTERM)
      ...     stop(1)
      False
      stopping: this step is saved; once more to stop at once
      True
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        came.append(number)
        for each in SIGNALS:
            signal.signal(each, signal.SIG_DFL)
        say("stopping: this step is saved; once more to stop at once")

    before = {number: signal.signal(number, note) for number in SIGNALS}
    try:
        yield lambda step: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
