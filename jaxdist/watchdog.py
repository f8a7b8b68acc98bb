"""A thread that knows what the loop is doing: it says so, writes it down, and ends what is stuck.

Every process of a run has one. The loop calls `enter(phase, step)`; the thread looks twice a second.
With several processes nobody is silent for more than ten seconds, and a phase that outlasts the patience
ends the process with exit code 75 and the stacks of all its threads, for the others would wait for ever.
"""

import contextlib
import faulthandler
import json
import os
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import fail_fast, fault_plan

STUCK = 75  # the exit code of a process that waited too long
STATUS = "status"  # the folder, inside a run's, of what its processes say of themselves
QUIET_SECONDS = 10.0
TICK_SECONDS = 0.5
PATIENCE_SECONDS = 900.0
PATIENCE = "JAXDIST_PATIENCE_SECONDS"
# What is waited for while a phase lasts.
WORDS = {
    "start": "the other processes to start",
    "read": "the config and the data",
    "init": "the parameters and the folder",
    "restore": "the checkpoint to be read",
    "compile": "the step to be compiled",
    "data": "the data",
    "step": "the step, or the others in it",
    "evaluate": "the evaluation",
    "save": "the checkpoint to be written",
    "end": "the others to finish",
}


class Watch(NamedTuple):
    """What the loop tells the thread.

    Attributes:
      enter: `enter(phase, step)`: what it does from now on; phases are the keys of `WORDS`.
      follow: `follow(folder)`: from now on also write it down in this run's folder.
      now: `now()` -> the phase and the step.
    """

    enter: Callable[[str, int], None]
    follow: Callable[[Path], None]
    now: Callable[[], tuple[str, int]]


NOBODY = Watch(lambda phase, step: None, lambda folder: None, lambda: ("", 0))


def patience_seconds() -> float:
    """How long a phase may last before a process of several is ended.

    Raises:
      ValueError: the variable holds no positive number.
    """
    text = os.environ.get(PATIENCE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ValueError(
            f"{PATIENCE}={text!r}: expected seconds, more than 0; write {PATIENCE}=900"
        )
    return seconds


@contextlib.contextmanager
def watching(who: Callable[[], tuple[int, int]]) -> Iterator[Watch]:
    """Inside, the thread runs.

    Args:
      who: `who()` -> the number of this process, and how many there are. Of several, or of one that is
        supervised, it says lines on the error stream, and ends one that is stuck.

    Example:
      >>> with watching(lambda: (0, 1)) as watch:
      ...     watch.enter("step", 17)
      ...     watch.now()
      ('step', 17)
    """
    patience, plan = patience_seconds(), fault_plan.read()
    began = time.monotonic()
    now: dict[str, Any] = {"phase": "start", "step": 0, "since": began}
    spent: defaultdict[str, float] = defaultdict(float)
    folders: list[Path] = []
    over = threading.Event()

    def enter(phase: str, step: int) -> None:
        instant = time.monotonic()
        spent[now["phase"]] += instant - now["since"]
        now.update(phase=phase, step=step, since=instant)
        fault_plan.meet(plan, who()[0], phase, step)

    def aloud() -> bool:
        return who()[1] > 1 or fail_fast.supervised()

    def say(line: str) -> None:
        print(f"[process {who()[0]}] {line}", file=sys.stderr, flush=True)

    def write(rate: float) -> None:
        lasted = time.monotonic() - now["since"]
        seconds = {**spent, now["phase"]: spent[now["phase"]] + lasted}
        line = {
            "process": who()[0],
            "processes": who()[1],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "phase": now["phase"],
            "step": now["step"],
            "lasted": round(lasted, 3),
            "steps_per_second": round(rate, 3),
            "restarts": fault_plan.restarts(),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }
        for folder in folders:
            # A status is not worth a run: a full disk is found by what must be written.
            with contextlib.suppress(OSError):
                unfinished = folder / f"{who()[0]}.json.tmp"
                unfinished.write_text(json.dumps(line), "utf-8")
                unfinished.replace(folder / f"{who()[0]}.json")

    def look() -> None:
        said, at, past = began, began, 0
        rate = 0.0
        while not over.wait(TICK_SECONDS):
            instant = time.monotonic()
            lasted, step = instant - now["since"], now["step"]
            if instant - at >= 2.0:
                rate, at, past = max(step - past, 0) / (instant - at), instant, step
            write(rate)
            if not aloud():
                continue
            # This one needs no interpreter lock, which a stuck extension may hold.
            faulthandler.dump_traceback_later(patience + 30, exit=True)
            if lasted > patience:
                say(f"stuck in phase {now['phase']} of step {step} for {lasted:.0f} s; all stacks:")
                faulthandler.dump_traceback(all_threads=True)
                os._exit(STUCK)
            if instant - said >= QUIET_SECONDS - TICK_SECONDS:
                said = instant
                if lasted >= QUIET_SECONDS / 2:
                    waits = WORDS.get(now["phase"], now["phase"])
                    say(f"waiting for {waits}, at step {step}, {lasted:.0f} s so far")
                elif who()[0] == 0:
                    say(f"at step {step}, {rate:.1f} steps a second")

    def follow(folder: Path) -> None:
        with contextlib.suppress(OSError):
            (folder / STATUS).mkdir(exist_ok=True)
        folders.append(folder / STATUS)
        write(0.0)

    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        yield Watch(enter, follow, lambda: (now["phase"], now["step"]))
    finally:
        over.set()
        thread.join()
        if aloud():
            faulthandler.cancel_dump_traceback_later()
        write(0.0)
