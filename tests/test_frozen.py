"""A process that writes no status is frozen; one that has ended, or is another's, is not."""

import json
import os
import time

from jaxdist import frozen


def write(folder, process, **more):
    (folder / "status").mkdir(exist_ok=True)
    line = {"pid": 10 + process, "phase": "step", "step": 7, "time": time.time(), **more}
    (folder / "status" / f"{process}.json").write_text(json.dumps(line))


def test_only_a_living_process_that_is_silent_is_frozen(tmp_path):
    look = frozen.watcher(tmp_path, [10, 11, 12, 13], seconds=0.2)
    assert look() is None
    for process in range(4):
        write(tmp_path, process)
    write(tmp_path, 1, phase="end")
    write(tmp_path, 2, pid=99)  # what an earlier life left
    assert look() is None
    time.sleep(0.3)
    write(tmp_path, 0)
    assert look() == frozen.Frozen(3, "step", 7, 0.2)
    write(tmp_path, 3)
    assert look() is None


def test_a_clock_that_jumps_is_no_silence(tmp_path):
    look = frozen.watcher(tmp_path, [10], seconds=0.2)
    for told in (1e9, 2e9, 5.0):  # forward and back
        write(tmp_path, 0, time=told)
        assert look() is None
        time.sleep(0.15)
    assert look() is None
    time.sleep(0.1)
    assert look() is not None


def test_a_process_that_can_only_touch_its_status_lives(tmp_path):
    look = frozen.watcher(tmp_path, [10], seconds=0.2)
    write(tmp_path, 0)
    for _ in range(3):
        assert look() is None
        time.sleep(0.15)
        os.utime(tmp_path / "status" / "0.json")
    assert look() is None
