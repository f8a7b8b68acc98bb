"""Where something else starts a job again by its exit code: stopped and saved is not done."""

import os
import signal

import pytest
import runs
from test_handshake import free_port, start

from jaxdist import checkpoint

pytestmark = [pytest.mark.processes, pytest.mark.slow]


@pytest.mark.short
def test_a_stopped_job_ends_as_one_that_goes_on_although_the_first_to_leave_ends_all(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"

    def job():
        port, slowly = free_port(), ("--slow", "0.2")
        return [start(i, port, config, folder, *slowly, JAXDIST_RESTARTER="slurm") for i in (0, 1)]

    both = job()
    runs.until(lambda: [s for s in runs.statuses(folder) if s["step"] >= 8])
    both[1].send_signal(signal.SIGTERM)
    runs.until(lambda: any(process.poll() is not None for process in both))
    ends = []
    for process in both:  # as srun --kill-on-bad-exit does
        if process.poll() is None:
            process.kill()
        ends.append(runs.ended(process))
    codes, (out, err) = [code for code, _, _ in ends], ends[0][1:]
    assert 75 in codes, err
    assert {*codes} <= {75, -signal.SIGKILL}
    step = int(out.split("saved step ")[1].split(";")[0])
    assert 8 <= step < 40
    assert "to go on: jaxdist train" in out
    assert (folder / "run.png").exists()
    assert checkpoint.steps(folder / "checkpoints")[-1] == step
    ends = [runs.ended(process) for process in job()]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert f"resuming: step {step} of 40" in ends[0][1]


@pytest.mark.parametrize(("restarter", "expected"), [("gke-jobset", 75), ("", 0)])
def test_left_alone_all_processes_leave_with_that_code(tmp_path, restarter, expected):
    config, folder, port = runs.small(tmp_path), tmp_path / "run", free_port()
    plan = {"JAXDIST_TEST_FAULTS": "1", "JAXDIST_FAULT_PLAN": "term:0@step=9,term:1@step=9"}
    more = {**plan, "JAXDIST_RESTARTER": restarter}
    both = [start(i, port, config, folder, **more) for i in (0, 1)]
    ends = [runs.ended(process) for process in both]
    assert [code for code, _, _ in ends] == [expected, expected], ends
    assert "saved step" in ends[0][1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_process_that_is_stopped_goes_on_too(tmp_path, number):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    given = ("train", config, "--workdir", str(folder), "--slow", "0.2")
    process = runs.start(*given, JAXDIST_RESTARTER="slurm")
    runs.until(lambda: checkpoint.steps(folder / "checkpoints"))
    os.kill(process.pid, number)
    code, out, err = runs.ended(process)
    assert code == 75, err
    assert "to go on: jaxdist train" in out


@pytest.mark.short
@pytest.mark.parametrize(("restarter", "expected"), [("gke-jobset", 75), ("", 2)])
def test_a_process_that_comes_late_may_come_in_the_next_life(tmp_path, restarter, expected):
    alone = start(
        0, free_port(), runs.small(tmp_path), tmp_path / "run", JAXDIST_START_SECONDS="3",
        JAXDIST_RESTARTER=restarter,
    )  # fmt: skip
    code, _, err = runs.ended(alone)
    assert code == expected, err
    assert "of 2 processes connected" in err


def test_never_is_said_to_the_first_life_only(tmp_path):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    given = (config, folder, "--resume", "never")
    # One life before its first checkpoint, one after it.
    code, _, err = runs.ended(runs.launch(*given, plan="kill:1@step=3,kill:0@step=17/1"))
    assert code == 0, err
    assert err.count("died of SIGKILL; restart") == 2
    assert runs.lines(folder)[-1]["step"] == 40
    by_slurm = {"SLURM_RESTART_COUNT": "1"}
    for more, code in (({}, 2), (by_slurm, 0)):
        again = runs.start("train", config, "--workdir", str(folder), "--resume", "never", **more)
        assert runs.ended(again)[0] == code
