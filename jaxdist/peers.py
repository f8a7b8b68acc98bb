"""What the processes of a run last wrote of themselves in its folder, and which of them keep the others.

Each writes `status/<process>.json` twice a second (`jaxdist/watchdog.py`).
"""

import contextlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

STATUS = "status"  # the folder, inside a run's
# Without a sign of life for so long a process is frozen, or its host is gone.
SILENT_SECONDS = 5.0
# What a process does in a phase, and what the others wait for meanwhile.
DOES = {
    "import": "importing JAX",
    "start": "waiting for the other processes",
    "read": "reading the config and the data",
    "init": "making the parameters",
    "restore": "restoring the checkpoint",
    "compile": "compiling",
    "data": "waiting for data",
    "step": "in the step",
    "evaluate": "evaluating",
    "save": "saving the checkpoint",
    "end": "finishing",
}
# In these the processes meet: who is in another phase keeps the others.
MEETING = ("step", "evaluate", "save", "end")
# Shares of its time in which a process of one run gets nothing done, and what to call them.
SHARES = {"held": "stopped or starved", "data": "waits for data"}
MUCH = 0.25


def read(folder: Path) -> list[dict[str, Any]]:
    """What each process last wrote, in their order."""
    found = []
    for file in (folder / STATUS).glob("*.json"):
        if file.stem.isdecimal():
            with contextlib.suppress(OSError, UnicodeDecodeError):
                found.append(record(file.read_text("utf-8")))
    return sorted((one for one in found if one), key=lambda one: one["process"])


def forget(folder: Path) -> None:
    """Removes what the processes of an earlier try wrote; whoever is alive writes it again at once."""
    for file in (folder / STATUS).glob("*.json"):
        with contextlib.suppress(OSError):
            file.unlink()


def record(text: str) -> dict[str, Any]:
    """What a line or a file of JSON holds; empty: it was torn off by a kill.

    >>> record('{"step": 7}'), record('{"st')
    ({'step': 7}, {})
    """
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def waits(mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]], *, now: float) -> str:
    """What a process waits for, as words.

    Args:
      mine: its own status.
      others: those of the others.
      now: seconds since the epoch.

    Example:
      >>> mine = {"process": 0, "phase": "step", "step": 9, "time": 100.0}
      >>> waits(mine, [{"process": 1, "phase": "data", "step": 9, "time": 100.0}], now=100.0)
      'waiting for data: process 1'
      >>> waits(mine, [{"process": 1, "phase": "save", "step": 7, "time": 90.0}], now=100.0)
      'waiting for process 1, silent for 10 s'
      >>> waits({**mine, "phase": "data"}, [], now=100.0)
      'waiting for data: process 0'
    """
    if mine["phase"] == "data":
        return f"waiting for data: process {mine['process']}"
    if mine["phase"] in MEETING and (keep := list(_keepers(mine, others, now))):
        return "; ".join(keep)
    return DOES.get(mine["phase"], mine["phase"])


def _keepers(
    mine: Mapping[str, Any], others: Sequence[Mapping[str, Any]], now: float
) -> Iterator[str]:
    for one in others:
        who = f"process {one['process']}"
        if (silent := now - one["time"]) > SILENT_SECONDS:
            yield f"waiting for {who}, silent for {silent:.0f} s"
        elif one["phase"] == "data":
            yield f"waiting for data: {who}"
        elif (one["phase"], one["step"]) != (mine["phase"], mine["step"]):
            yield f"waiting for {who}, {place(one['phase'], one['step'])}"


def place(phase: str, step: int) -> str:
    """Where a process is, in words.

    >>> place("data", 7), place("save", 7)
    ('in step 8', 'saving the checkpoint after step 7')
    """
    inside = phase in ("data", "compile", "step")
    return f"in step {step + 1}" if inside else f"{DOES.get(phase, phase)} after step {step}"


def slow(one: Mapping[str, Any], others: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a process loses time by, and the others do not.

    Example:
      >>> slow({"shares": {"held": 0.5}}, [{"shares": {"held": 0.1}}])
      ['stopped or starved 50 % of the time']
    """
    found = []
    for name, words in SHARES.items():
        share, rest = (
            one.get("shares", {}).get(name, 0.0),
            [other.get("shares", {}).get(name, 0.0) for other in others],
        )
        if rest and share >= MUCH and share >= 2 * statistics.median(rest):
            found.append(f"{words} {100 * share:.0f} % of the time")
    return found
