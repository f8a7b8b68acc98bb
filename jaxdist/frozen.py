"""Which process has stopped without ending: stopped by a signal, or held inside a library."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jaxdist import watchdog

FROZEN_SECONDS = 30.0


def watcher(
    folder: Path, pids: Sequence[int], *, seconds: float = FROZEN_SECONDS
) -> Callable[[], int | None]:
    """Makes `look()` -> the first process whose status has not changed for so long; None: none.

    A process writes its status twice a second whatever its loop does (`jaxdist/watchdog.py`). Time is
    counted here, by a clock that does not jump, and not while the host sleeps.

    Args:
      folder: the run's.
      pids: of the processes, in their order. A status that another one wrote is no sign.
      seconds: how long is too long.
    """
    seen: dict[int, tuple[float, float]] = {}

    def look() -> int | None:
        for process, pid in enumerate(pids):
            try:
                status = json.loads(
                    (folder / watchdog.STATUS / f"{process}.json").read_text("utf-8")
                )
            except (OSError, ValueError):
                continue  # it has not got so far
            if status["pid"] != pid or status["phase"] == "end":
                continue
            written, since = seen.get(process, (0.0, 0.0))
            if written != status["time"]:
                seen[process] = status["time"], time.monotonic()
            elif time.monotonic() - since > seconds:
                return process
        return None

    return look
