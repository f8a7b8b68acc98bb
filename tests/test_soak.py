"""The soak: its accounting, and a short one of real kills."""

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs

spec = importlib.util.spec_from_file_location("soak", runs.ROOT / "benchmarks" / "soak.py")
soak = importlib.util.module_from_spec(spec)
spec.loader.exec_module(soak)


def test_the_seconds_of_two_lives_add_up_and_lost_steps_are_not_useful():
    events = [
        {"event": "start", "time": 100.0, "restarts": 0, "step": -1},
        {"event": "failed", "time": 120.0, "restarts": 0, "step": 50},
        {"event": "start", "time": 121.0, "restarts": 1, "step": 50},
        {"event": "done", "time": 141.0, "restarts": 1, "step": 150},
    ]
    last = {
        0: {"step": 100, "seconds": {"start": 4.0, "compile": 1.0, "step": 8.0, "save": 2.0}},
        1: {"step": 150, "seconds": {"start": 5.0, "step": 10.0, "data": 2.0}},
    }
    found = soak.causes(events, last)
    assert found == {"useful": 18.0, "redone": 4.0, "starting": 10.0, "unseen": 8.0, "pause": 1.0}
    assert sum(found.values()) == 41.0


def commands():
    """The command lines of all that runs here."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield (folder / "cmdline").read_text("utf-8", errors="replace")


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_soak_that_is_stopped_leaves_nobody(tmp_path, number):
    script = str(runs.ROOT / "benchmarks" / "soak.py")
    environment = {**os.environ, "PYTHONPATH": str(runs.ROOT), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen([sys.executable, script, "--methods", "gossip"], env=environment)
    runs.STARTED.append(process)

    def running():
        folders = list(tmp_path.glob("*/gossip-calm"))
        return [s["pid"] for folder in folders for s in runs.statuses(folder)]

    pids = runs.until(running)
    process.send_signal(number)
    assert process.wait(60) == 128 + number
    runs.until(lambda: not any(map(runs.alive, pids)), seconds=10)
    assert not [command for command in commands() if str(tmp_path) in command]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.processes
def test_five_kills_change_no_bit_and_all_seconds_are_accounted_for(capfd):
    short = [
        "--kills",
        "5",
        "--methods",
        "diloco",
        "--steps",
        "600",
        "--every",
        "1",
        "--processes",
        "2",
    ]
    assert soak.main([*short, "--workers", "4"]) == 0
    line = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert line["kills"] == 5
    assert line["same_bits"]
    assert line["accounted"] == pytest.approx(1.0, abs=0.02)
    assert 0 < line["goodput"] < 1
