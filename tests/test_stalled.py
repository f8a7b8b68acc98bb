"""Processes that wait, are slow, stuck or not in step: who it is, is said, and nobody waits for ever."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import runs

from jaxdist import status

pytestmark = [pytest.mark.processes, pytest.mark.slow]
# The process that reads this is one of several: it does what the others do not.
MINE = 'int(__import__("os").environ["JAX_PROCESS_ID"])'

# A worker of its own makes the batches, and dies once.
LOADER = f"""import os
            from concurrent.futures import ProcessPoolExecutor
            from multiprocessing import get_context

            time.sleep(0.2)
            if not hasattr(self, "pool"):
                self.pool = ProcessPoolExecutor(1, get_context("spawn"))
            worker = self.pool.submit(os.getpid).result()
            if step == 13 and {MINE} == 1 and os.environ["JAXDIST_RESTARTS"] == "0":
                with open(os.environ["DIED"], "w") as file:
                    file.write(str(time.time()))
                os.kill(worker, 9)
                self.pool.submit(os.getpid).result()"""


def config_with(folder, before, after):
    """The small config with something else in it."""
    file = folder / "small.py"
    assert before in runs.SMALL
    file.write_text(runs.SMALL.replace(before, after))
    return str(file)


@pytest.mark.short
def test_slow_data_and_a_slow_process_are_named_and_ctrl_c_saves_and_leaves_nobody(tmp_path):
    late = f"13 if step == 9 and {MINE} == 1 else slow"
    config = config_with(tmp_path, "time.sleep(slow)", f"time.sleep({late})")
    folder, (keyboard, terminal) = tmp_path / "run", os.openpty()
    process = runs.launch(config, folder, "--slow", "0.3", terminal=terminal)

    def row(name, *words):
        """Waits for words in a row of `jaxdist status`."""

        def shown():
            assert process.poll() is None
            rows = dict(status.rows(folder)) if runs.statuses(folder) else {}
            return all(word in rows.get(name, "") for word in words) and rows

        return runs.until(shown)

    # Its data is late: the others wait for it in their exchange.
    rows = row("stragglers", "process 1: ", "the others wait for it")
    assert rows["phase"] == "data"
    assert rows["step"] == "9 of 40"
    assert rows["processes"] == "2 of 2"
    assert rows["last checkpoint"].startswith("step 7, ")
    assert rows["restarts"] == "0"
    # Then it gets half of the time.
    runs.until(lambda: [s for s in runs.statuses(folder) if s["step"] > 9])
    pids = {s["process"]: s["pid"] for s in runs.statuses(folder)}
    half = (
        "import os, signal, time\n"
        "while True:\n"
        f"    os.kill({pids[1]}, signal.SIGSTOP); time.sleep(0.1)\n"
        f"    os.kill({pids[1]}, signal.SIGCONT); time.sleep(0.1)\n"
    )
    slowing = subprocess.Popen([sys.executable, "-c", half])
    try:
        rows = row("stragglers", "process 1: ", "stopped or starved")
        assert "process 0" not in rows["stragglers"]
    finally:
        slowing.kill()
        slowing.wait()
        os.kill(pids[1], signal.SIGCONT)
    os.write(keyboard, b"\x03")
    code, out, err = runs.ended(process)
    assert code == 0, err
    assert "saved step" in out
    assert [e["event"] for e in runs.events(folder)] == ["start", "stopping", "stopped"]
    assert not any(map(runs.alive, pids.values()))
    for mine in (0, 1):
        told = rf"\[process {mine}\] step \d+: waiting for data: process 1 \(\d+ s\) \.\.\."
        assert re.search(told, err), err


def test_a_loader_that_dies_is_an_error_and_the_run_goes_on(tmp_path):
    config, folder = config_with(tmp_path, "time.sleep(slow)", LOADER), tmp_path / "run"
    died = tmp_path / "died"
    code, _, err = runs.ended(runs.launch(config, folder, DIED=str(died)))
    assert code == 0, err
    # All have ended, so soon after its worker.
    (failed,) = [e for e in runs.events(folder) if e["event"] == "failed"]
    assert failed["time"] - float(died.read_text()) <= 5
    assert "[process 1] concurrent.futures.process.BrokenProcessPool" in err
    assert "BrokenProcessPool in phase data of step 13; restart 1 from step 7" in err
    assert runs.lines(folder)[-1]["step"] == 40


def test_a_process_that_holds_the_interpreter_is_found_and_shows_where(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    # Slow, so that what is saved behind the loop after step 7 is there before step 13.
    process = runs.launch(config, folder, "--slow", "0.2", plan="hold:1@data=13")
    code, _, err = runs.ended(process)
    assert code == 0, err
    # What it last wrote may be half a second old; the stack is of now.
    assert "process 1 is frozen, last seen in phase " in err
    assert "no sign of life for 15 s, see the stacks above; restart 1 from step 7" in err
    assert 'fault_plan.py", line' in err
    assert re.search(r"\[process 0\] step \d+: waiting for process 1, silent for ", err)
    assert runs.lines(folder)[-1]["step"] == 40


def test_processes_that_are_not_at_one_step_are_told_both(tmp_path):
    config = config_with(tmp_path, "save_every=7", f"save_every=7 + {MINE}")
    process = runs.launch(config, tmp_path / "run", restarts=0, JAXDIST_PATIENCE_SECONDS="40")
    code, _, err = runs.ended(process)
    assert code == 70, err
    last = err.strip().split("\n")[-1]
    assert "process 0 has waited 20 s, saving the checkpoint after step 7" in last
    assert "process 1 is in step 8" in last


def test_a_busy_host_is_no_lost_process(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(4)]
    try:
        code, _, err = runs.ended(runs.launch(config, folder, processes=4), seconds=280)
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()
    assert code == 0, err
    assert [e["event"] for e in runs.events(folder)] == ["start", "done"]


def test_compiling_is_no_silence_in_one_process_either(tmp_path):
    began = time.monotonic()
    head = "    def loss_fn(params, batch, key):\n"
    config = config_with(tmp_path, head, f"{head}        __import__('time').sleep(6)\n")
    process = runs.start("train", config, "--workdir", str(tmp_path / "run"), "--steps", "2")
    code, _, err = runs.ended(process)
    assert code == 0, err
    assert time.monotonic() - began > 10
    assert "step 0: compiling (" in err


def test_importing_jax_is_no_silence(tmp_path):
    (tmp_path / "jax.py").write_text("import sys, time\ntime.sleep(11)\nsys.exit(7)\n")
    path = f"{tmp_path}:{runs.ROOT}"
    others = {
        "JAX_COORDINATOR_ADDRESS": "127.0.0.1:1",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": "1",
    }
    process = runs.start("train", runs.small(tmp_path), PYTHONPATH=path, **others)
    code, _, err = runs.ended(process)
    assert (code, err.strip()) == (7, "[process 1] step 0: importing JAX (9 s) ...")
