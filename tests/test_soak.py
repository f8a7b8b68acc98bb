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


EVENTS = [
    {"event": "start", "time": 100.0, "restarts": 0, "step": -1},
    {"event": "failed", "time": 120.0, "restarts": 0, "step": 50},
    {"event": "start", "time": 121.0, "restarts": 1, "step": 50},
    {"event": "done", "time": 141.0, "restarts": 1, "step": 150},
]


def heard(*, lost=0.0):
    """What was heard in two lives, the second of which counts too few seconds."""
    first = {"start": 4.0, "compile": 1.0, "step": 8.0, "save": 2.0}
    second = {"start": 5.0, "step": 10.0 - lost, "data": 2.0}
    return {
        0: soak.Heard(103.0, {"time": 118.0, "step": 100, "seconds": first}),
        1: soak.Heard(122.0, {"time": 139.0, "step": 150, "seconds": second}),
    }


def test_the_seconds_of_two_lives_add_up_and_lost_steps_are_not_useful():
    found = soak.causes(EVENTS, heard())
    assert found == {"useful": 18.0, "redone": 4.0, "starting": 10.0, "unseen": 8.0, "pause": 1.0}
    assert sum(found.values()) == 41.0


def test_seconds_that_nobody_counted_are_missing_in_the_sum():
    assert sum(soak.causes(EVENTS, heard(lost=3.0)).values()) == 38.0
    of_one = {life: said for life, said in heard().items() if life == 0}
    assert sum(soak.causes(EVENTS, of_one).values()) == 21.0


def test_a_life_begins_where_its_first_status_says_and_ends_with_its_last(tmp_path):
    (tmp_path / "status").mkdir()
    found = {}
    for process, life, now, seconds in (
        (0, 0, 110.0, {"import": 2.0}),
        (0, 0, 119.0, {"import": 4.0, "step": 6.5}),  # half a second was lost
        (1, 1, 121.0, {"import": 0.5}),
        (0, 1, 122.0, {"import": 1.0}),
    ):
        one = {"process": process, "restarts": life, "time": now, "seconds": seconds}
        (tmp_path / "status" / f"{process}.json").write_text(json.dumps(one))
        told = soak.listen(tmp_path, found)
    assert [(said.began, said.last["time"]) for said in found.values()] == [
        (108.0, 119.0),
        (121.0, 122.0),
    ]
    assert [one["process"] for one in told] == [0, 1]


def test_whoever_is_killed_is_due_or_the_whole_life_is_starting():
    class Always:
        """Draws what always kills."""

        def random(self):
            return 0.0

    def told(*phases):
        return [{"phase": phase, "seconds": {phase: 1.0}} for phase in phases]

    def killed(told, *, due=False, every=None):
        return soak.targets(told, due=due, every=every, draw=Always())

    starting = told("import", "compile")
    assert killed(starting) == ("random", starting)
    assert killed(starting, every=30.0) == ("", [])
    for phase in soak.WORKING:
        assert killed(told("compile", phase)) == ("", []), phase
    # Due is who has done a step: a life that fetches its first batch still starts.
    both = told("step", "data")
    assert killed(both, due=True, every=30.0) == ("due", both[:1])
    assert killed(told("save", "compile"), due=True) == ("due", [])


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
        "6000",
        "--every",
        "1",
        "--processes",
        "2",
    ]
    assert soak.main([*short, "--workers", "4"]) == 0
    line = json.loads(capfd.readouterr().out.strip().splitlines()[-1])
    assert line["kills"] == 5
    assert line["same_bits"]
    assert line["accounted"] == pytest.approx(1.0, abs=0.01)
    assert all(seconds >= 0 for seconds in line["seconds_by_cause"].values())
    assert line["while_starting"] == 0, "each was due"
    assert 0 < line["goodput"] < 1


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.processes
def test_minutes_are_for_how_long_it_kills_and_not_how_often(capfd):
    short = ["--minutes", "0.5", "--every", "1", "--methods", "local_sgd", "--processes", "2"]
    # The first run is too short for these minutes, and says so.
    for steps in (1, 2500):
        assert soak.main([*short, "--workers", "2", "--steps", str(steps)]) == 0
    few, many = map(json.loads, capfd.readouterr().out.strip().splitlines()[-2:])
    assert few["minutes_under_fire"] < 0.5
    assert many["minutes_under_fire"] == pytest.approx(0.5, abs=0.02)
    assert few["kills"] == 0
    # About ten seconds a life.
    assert many["kills"] >= 2
    assert many["while_starting"] == 0
    assert many["same_bits"]
