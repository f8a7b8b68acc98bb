"""One process works and the others wait: it tells that it gets on, so that nobody is taken for stuck.

Where it tells nothing any more, the patience of `jaxdist/watchdog.py` ends in all of them.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

from jaxdist import cluster

TELL_SECONDS = 1.0  # not each part of a file is worth a message
LONGEST_SECONDS = 3600.0  # between two messages; a watchdog ends the wait earlier
MORE, DONE = "more", "done"


class Progress(NamedTuple):
    """Of a piece of work that process 0 does for all.

    Attributes:
      tell: `tell()`: process 0 got on. In any thread.
      end: `end()`: process 0 is done; in the others it returns when that is so.
    """

    tell: Callable[[], None]
    end: Callable[[], None]


def of_first(name: str, step: int, moved: Callable[[], None]) -> Progress:
    """Makes what process 0 tells by, and the others hear.

    Args:
      name: of the work; all call with the same names in the same order.
      step: after how many steps.
      moved: called, in every process, whenever process 0 got on.

    Example:
      >>> said = []
      >>> tell, end = of_first("saved", 7, lambda: said.append("moved"))
      >>> tell(); end(); said
      ['moved']
    """
    mine, count = cluster.place()
    if count == 1:
        return Progress(moved, lambda: None)
    key, store = cluster.once(f"{name} step {step}"), cluster.client()
    told, number = time.monotonic(), 0

    def tell() -> None:
        nonlocal told, number
        moved()
        if (instant := time.monotonic()) - told >= TELL_SECONDS:
            store.key_value_set(f"{key}/{number}", MORE)
            told, number = instant, number + 1

    def done() -> None:
        store.key_value_set(f"{key}/{number}", DONE)

    def hear() -> None:
        word, at = MORE, 0
        while word == MORE:
            word = store.blocking_key_value_get(f"{key}/{at}", int(1000 * LONGEST_SECONDS))
            at += 1
            moved()

    return Progress(tell, done) if mine == 0 else Progress(lambda: None, hear)
