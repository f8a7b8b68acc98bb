"""What the processes of a run are doing, read from its folder by somebody else.

Each process writes `status/<process>.json` twice a second (`jaxdist/peers.py`), their supervisor a line for
each start and end (`jaxdist/launch.py`). Behind a URL process 0 says what it does in its lock, every few
seconds (`jaxdist/lease.py`). Nothing here imports JAX.
"""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jaxdist import launch, lease, manifest, metric_lines, peers, store
from jaxdist.errors import Refused

# Processes of one run may be some steps apart; so many are not explained by a queue of steps.
BEHIND_STEPS = 16


def rows(folder: Path, *, now: float | None = None) -> Iterator[tuple[str, str]]:
    """Names and values to be shown.

    Args:
      folder: a run's.
      now: seconds since the epoch; None: the clock's.

    Raises:
      Refused: it holds no status.
    """
    now = time.time() if now is None else now
    if store.afar(folder):
        yield from _afar(folder, now)
        return
    told = peers.read(folder)
    newest = max((one["restarts"] for one in told), default=0)
    processes = [one for one in told if one["restarts"] == newest]
    # Of processes that nobody supervises, what a supervisor once wrote says nothing.
    alone = told and not any(one.get("supervised", True) for one in told)
    events = [] if alone else supervisor(folder)
    if not processes and not events:
        raise Refused(f"{folder} holds no status: expected the folder of a run; write runs/NAME")
    yield "run folder", str(folder)
    last = events[-1]["event"] if events else None
    if last and last != "start":
        yield "supervisor", f"{last}: {events[-1].get('cause', '')}"
    if processes:
        slowest = min(processes, key=lambda one: (one["step"], one["phase"] in peers.MEETING))
        yield "phase", slowest["phase"]
        yield "step", f"{slowest['step']}{_of(folder)}"
        yield "steps a second", f"{slowest['steps_per_second']:.1f}"
        yield "processes", f"{len(processes)} of {processes[0]['processes']}"
        wrong = {one["process"]: odd(one, processes, now) for one in processes}
        late = [
            f"process {process}: {'; '.join(words)}" for process, words in wrong.items() if words
        ]
        yield "stragglers", ", ".join(late) or "none"
    yield "last checkpoint", _checkpoint(folder, now)
    yield "restarts", str(sum(event["event"] == "start" for event in events[1:]))
    for cause, count in Counter(e["cause"] for e in events if e["event"] == "failed").items():
        yield "  because", f"{cause}{f' ({count} times)' if count > 1 else ''}"
    for one in processes:
        said = f"{one['phase']} of step {one['step']} for {one['lasted']:.1f} s, {one['host']} {one['pid']}"
        yield f"process {one['process']}", said


def _afar(folder: Path, now: float) -> Iterator[tuple[str, str]]:
    """The rows of a run behind a URL: what its lock, its checkpoints and its metrics say."""
    lock, saved, lines = (
        lease.look(folder),
        launch.newest(folder),
        metric_lines.read_metrics(folder),
    )
    if not lock and not lines and saved < 0:
        raise Refused(f"{folder} holds no status: expected the folder of a run; write s3://B/NAME")
    yield "run folder", str(folder)
    recorded = max(lines[-1]["step"] if lines else 0, saved)
    if lock.get("phase"):
        yield "phase", str(lock["phase"])
    yield "step", f"{max(recorded, lock.get('step', 0))}{_of(folder)}"
    yield "last checkpoint", _checkpoint(folder, now)
    ago = f", {max(now - lock['time'], 0):.0f} s ago by their clock" if "time" in lock else ""
    yield "written to by", f"{lock.get('who', 'nobody knows')}{ago}" if lock else "nobody"
    yield (
        "not known",
        "other processes, who is behind, restarts: only process 0 is seen behind a URL",
    )


def odd(one: dict[str, Any], processes: list[dict[str, Any]], now: float) -> list[str]:
    """What is wrong with a process: it is silent, behind, slow, or what the others wait for.

    Example:
      >>> one = {"step": 3, "time": 90.0, "phase": "data", "lasted": 8.0}
      >>> other = {"step": 30, "time": 100.0, "phase": "step", "lasted": 8.0}
      >>> odd(one, [one, other], 100.0)
      ['silent for 10 s', '27 steps behind', 'the others wait for it']
    """
    ahead = max(other["step"] for other in processes) - one["step"]
    silent = now - one["time"]
    # The one that is not in an exchange is the one that keeps the others there.
    others = [other for other in processes if other is not one]
    inside = [other["phase"] == "step" and other["lasted"] > 2 for other in others]
    keeps = one["phase"] == "data" and one["lasted"] > 2 and bool(inside) and all(inside)
    ended = one["phase"] == "end"
    return [
        *([f"silent for {silent:.0f} s"] if silent > peers.SILENT_SECONDS and not ended else []),
        *([f"{ahead} steps behind"] if ahead >= BEHIND_STEPS else []),
        *(["the others wait for it"] if keeps else []),
        *([] if ended else peers.slow(one, others)),
    ]


def supervisor(folder: Path) -> list[dict[str, Any]]:
    """What the newest supervisor wrote."""
    file = folder / peers.STATUS / launch.EVENTS
    lines = file.read_text("utf-8").splitlines() if file.exists() else []
    found = [event for event in map(peers.record, lines) if event]
    return [event for event in found if event["pid"] == found[-1]["pid"]]


def _of(folder: Path) -> str:
    """How many steps there are, if the config calls them so."""
    file = folder / "experiment.json"
    record = peers.record(store.read(file).decode("utf-8", "replace")) if file.exists() else {}
    steps = record.get("keywords", {}).get("steps")
    return f" of {steps}" if steps else ""


def _checkpoint(folder: Path, now: float) -> str:
    step = launch.newest(folder)
    if step < 0:
        return "none"
    ago = now - (folder / "checkpoints" / str(step) / manifest.MANIFEST).stat().st_mtime
    return f"step {step}, {max(ago, 0):.0f} s ago"
