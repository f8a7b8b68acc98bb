"""Which process has stopped without ending: stopped by a signal, or held inside a library."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import peers, watchdog

# From the start of a process to its first sign of life: to import JAX on a busy host.
BEGIN_SECONDS = 60.0


class Frozen(NamedTuple):
    """A process that gives no sign of life.

    Attributes:
      process: its number.
      phase: what it was doing; empty: it has never said anything.
      step: of which step.
      seconds: for how long it has been silent.
    """

    process: int
    phase: str
    step: int
    seconds: float


def watcher(
    folder: Path, pids: Sequence[int], *, seconds: float = watchdog.FROZEN_SECONDS
) -> Callable[[], Frozen | None]:
    """Makes `look()` -> the first process whose status has not changed for so long; None: none.

    A process writes its status twice a second whatever its loop does, or touches it where the disk is full
    (`jaxdist/watchdog.py`). Time is counted here, by a clock that does not jump, and not while the host
    sleeps.

    Args:
      folder: the run's.
      pids: of the processes, in their order. A status that another one wrote is no sign.
      seconds: how long is too long.
    """
    begun = time.monotonic()
    seen: dict[int, tuple[Any, float]] = {}

    def look() -> Frozen | None:
        for process, pid in enumerate(pids):
            try:
                file = folder / peers.STATUS / f"{process}.json"
                status = json.loads(file.read_text("utf-8"))
                sign = status["time"], file.stat().st_mtime_ns
            except (OSError, ValueError):
                status, sign = dict[str, Any](pid=None), None
            if status["pid"] != pid:
                if time.monotonic() - begun > seconds + BEGIN_SECONDS and process not in seen:
                    return Frozen(process, "", 0, seconds + BEGIN_SECONDS)
                continue
            if status["phase"] == "end":
                continue
            last, since = seen.get(process, (None, 0.0))
            if last != sign:
                seen[process] = sign, time.monotonic()
            elif time.monotonic() - since > seconds:
                return Frozen(process, status["phase"], status["step"], seconds)
        return None

    return look


def stopped(pid: int) -> bool:
    """Whether a signal has stopped a process of this host."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"
    except OSError:
        return False
