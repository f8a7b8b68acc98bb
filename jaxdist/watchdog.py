"""A thread that knows what the loop is doing: it says so, writes it down, and ends what is stuck.

Every process of a run has one. The loop calls `enter(phase, step)`; the thread looks twice a second.
Nobody is silent for more than ten seconds. Of several processes, one in whose phase the patience ends
is ended with exit code 75 and the stacks of all its threads, for the others would wait for ever.
"""

import contextlib
import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import fail_fast, fault_plan, hangup, peers
from jaxdist.errors import Refused

QUIET_SECONDS = 10.0
TICK_SECONDS, LOOK_SECONDS = 0.02, 0.5
PATIENCE_SECONDS, WAITING_SECONDS = 900.0, 10.0
PATIENCE = "JAXDIST_PATIENCE_SECONDS"
# A process whose thread is silent for so long is frozen: stopped, or held inside a library.
FROZEN_SECONDS = 15.0
# On this signal a process shows the stacks of all its threads, even while a library holds the interpreter.
STACKS = signal.SIGUSR1


class Watch(NamedTuple):
    """What the loop tells the thread.

    Attributes:
      enter: `enter(phase, step)`: what it does from now on; phases are the keys of `peers.DOES`.
      follow: `follow(folder)`: from now on also write it down in this run's folder.
      now: `now()` -> the phase and the step.
      moved: `moved()`: it is still in that phase and gets on: the patience begins anew.
    """

    enter: Callable[[str, int], None]
    follow: Callable[[Path], None]
    now: Callable[[], tuple[str, int]]
    moved: Callable[[], None]


NOBODY = Watch(lambda phase, step: None, lambda folder: None, lambda: ("", 0), lambda: None)


def patience_seconds() -> float:
    """How long a phase may last before a process of several is ended.

    Raises:
      Refused: the variable holds no positive number.
    """
    text = os.environ.get(PATIENCE, str(PATIENCE_SECONDS))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise Refused(f"{PATIENCE}={text!r}: expected seconds, more than 0; write {PATIENCE}=900")
    return seconds


@contextlib.contextmanager
def watching(
    who: Callable[[], tuple[int, int]], *, joining: Callable[[], str] = lambda: ""
) -> Iterator[Watch]:
    """Inside, the thread runs.

    Args:
      who: `who()` -> the number of this process, and how many there are. One of several, or one that is
        supervised, is ended when it is stuck.
      joining: `joining()` -> who has joined so far, in words; asked in the phase `start`. Until the first
        `enter` the phase is `import`.

    Example:
      >>> with watching(lambda: (0, 1)) as watch:
      ...     watch.enter("step", 17)
      ...     watch.now()
      ('step', 17)
    """
    patience, plan = patience_seconds(), fault_plan.read()
    began = time.monotonic()
    now: dict[str, Any] = {"phase": "import", "step": 0, "since": began, "moved": began}
    spent: defaultdict[str, float] = defaultdict(float)
    folders: list[Path] = []
    over = threading.Event()

    def enter(phase: str, step: int) -> None:
        instant = time.monotonic()
        spent[now["phase"]] += instant - now["since"]
        now.update(phase=phase, step=step, since=instant, moved=instant)
        fault_plan.meet(plan, who()[0], phase, step)

    def moved() -> None:
        now["moved"] = time.monotonic()

    def several() -> bool:
        return who()[1] > 1 or fail_fast.supervised()

    def say(line: str) -> None:
        mine = f"[process {who()[0]}] " if several() else ""
        hangup.say(f"{mine}step {now['step']}: {line}", sys.stderr)

    def about(rate: float, shares: dict[str, float]) -> dict[str, Any]:
        lasted = time.monotonic() - now["since"]
        seconds = {**spent, now["phase"]: spent[now["phase"]] + lasted}
        return {
            "process": who()[0],
            "processes": who()[1],
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time": time.time(),
            "phase": now["phase"],
            "step": now["step"],
            "lasted": round(lasted, 3),
            "steps_per_second": round(rate, 3),
            "shares": {name: round(share, 3) for name, share in shares.items()},
            "restarts": fault_plan.restarts(),
            "supervised": fail_fast.supervised(),
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
        }

    def write(line: dict[str, Any]) -> None:
        for folder in folders:
            file = folder / peers.STATUS / f"{who()[0]}.json"
            # A status is not worth a run: a full disk is found by what must be written.
            try:
                unfinished = file.with_name(f"{file.name}.tmp")
                unfinished.write_text(json.dumps(line), "utf-8")
                unfinished.replace(file)
            except OSError:
                # A sign of life needs no room.
                with contextlib.suppress(OSError):
                    os.utime(file)

    def waiting(line: dict[str, Any]) -> str:
        told = [one for folder in folders for one in peers.read(folder)]
        others = [
            one
            for one in told
            if one["process"] != line["process"] and one["restarts"] == line["restarts"]
        ]
        words = peers.waits(line, others, now=time.time())
        who_came = joining() if line["phase"] == "start" else ""
        return f"{words} ({line['lasted']:.0f} s) ...{who_came and f' {who_came}'}"

    def look() -> None:
        quiet = QUIET_SECONDS - 2 * LOOK_SECONDS
        said = looked = at = began
        warned = began - quiet
        past, late, in_data, rate = 0, 0.0, 0.0, 0.0
        shares: dict[str, float] = {}
        while not over.is_set():
            asleep = time.monotonic()
            over.wait(TICK_SECONDS)
            instant = time.monotonic()
            # Whoever is stopped, or has no core, wakes up late.
            late += max(instant - asleep - TICK_SECONDS, 0.0)
            if instant - looked < LOOK_SECONDS:
                continue
            looked = instant
            if (long := instant - at) >= 2.0:
                line = about(rate, shares)
                data = line["seconds"].get("data", 0.0)
                rate, past = max(line["step"] - past, 0) / long, line["step"]
                shares = {"held": late / long, "data": max(data - in_data, 0.0) / long}
                at, late, in_data = instant, 0.0, data
            line = about(rate, shares)
            write(line)
            if several():
                # This one needs no interpreter lock, which a stuck extension may hold.
                faulthandler.dump_traceback_later(patience + FROZEN_SECONDS, exit=True, file=2)
                # Who only waits in an exchange leaves later: the stacks of the other one say why.
                later = WAITING_SECONDS if line["phase"] in peers.MEETING else 0.0
                if (still := time.monotonic() - now["moved"]) > patience + later:
                    say(f"stuck in phase {line['phase']} for {still:.0f} s; all stacks:")
                    faulthandler.dump_traceback(file=2, all_threads=True)
                    os._exit(fail_fast.GO_ON)
            # Everybody says what takes long; of what goes well the first one speaks for all.
            if line["lasted"] >= quiet and instant - warned >= quiet:
                said = warned = instant
                say(waiting(line))
            elif instant - said >= quiet and who()[0] == 0 and not sys.stderr.isatty():
                said = instant
                stands = not rate or line["lasted"] >= QUIET_SECONDS / 2
                say(waiting(line) if stands else f"{rate:.1f} steps a second")

    def follow(folder: Path) -> None:
        if folder in folders:
            return
        with contextlib.suppress(OSError):
            (folder / peers.STATUS).mkdir(exist_ok=True)
        folders.append(folder)
        write(about(0.0, {}))

    faulthandler.register(STACKS, file=2, all_threads=True)
    thread = threading.Thread(target=look, name="watchdog", daemon=True)
    thread.start()
    try:
        fault_plan.meet(plan, who()[0], "import", 0)
        yield Watch(enter, follow, lambda: (now["phase"], now["step"]), moved)
    finally:
        over.set()
        thread.join()
        faulthandler.unregister(STACKS)
        if several():
            faulthandler.cancel_dump_traceback_later()
        write(about(0.0, {}))
