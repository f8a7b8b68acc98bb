"""What a supervisor makes of exit codes and of what the processes told, without starting any."""

import json
import os
import signal
import socket

import pytest

from jaxdist import cluster, fail_fast, launch, run_folder


def told(folder, process, time, code, message="x"):
    record = {
        "process": process, "time": time, "code": code, "type": "ValueError", "message": message,
        "phase": "step", "step": 9, "traceback": f"ValueError: {message}",
    }  # fmt: skip
    (folder / f"{process}.json").write_text(json.dumps(record))


class Ended:
    """A process that has ended."""

    def poll(self):
        return 0


@pytest.mark.parametrize(
    ("codes", "errors", "code", "cause", "again"),
    [
        # A peer that sees a lost connection is not why.
        ([-9, 70], {1: (2.0, 70)}, 137, "process 0 died of SIGKILL", True),
        ([2, -9], {0: (2.0, 2)}, 137, "process 1 died of SIGKILL", True),
        ([-6, 70], {1: (2.0, 70)}, 70, "process 1: ValueError in phase step of step 9", True),
        ([2, 70], {0: (3.0, 2), 1: (2.0, 70)}, 70, "process 1: ValueError", True),
        ([2, 2], {0: (2.0, 2), 1: (2.1, 2)}, 2, "refused", False),
        ([None, 1], {1: (2.0, 1)}, 1, "refused", False),
        # Nobody told why: an error before there was anybody to tell it.
        ([None, 1], {}, 1, "process 1 ended with code 1", True),
        ([2, None], {}, 2, "refused", False),
        ([None, 75], {}, 75, "process 1 ended with code 75 (stuck", True),
        # It told why: it was not stuck.
        ([None, 75], {1: (2.0, 75)}, 75, "process 1: ValueError in phase step of step 9", True),
        # As any other signal; but not where another process says more.
        ([0, -6], {}, 134, "process 1 died of SIGABRT", True),
        ([-6, 75], {}, 75, "process 1 ended with code 75 (stuck", True),
        ([-6, 2], {}, 2, "refused", False),
    ],
)
def test_the_first_thing_that_went_wrong_is_the_cause(tmp_path, codes, errors, code, cause, again):
    for process, (time, number) in errors.items():
        told(tmp_path, process, time, number)
    end = launch._end([Ended()] * len(codes), codes, tmp_path, [])
    assert (end.code, end.again) == (code, again)
    assert end.cause.startswith(cause)


def test_a_process_that_a_stop_reached_too_early_is_no_failure(tmp_path):
    end = launch._end([Ended()] * 2, [-signal.SIGTERM, None], tmp_path, [signal.SIGINT])
    assert (end.code, end.again) == (130, False)


@pytest.mark.parametrize(
    ("supervisor", "restarter", "code"),
    [("", "", 0), ("", "slurm", 75), ("here", "", 0), ("here", "slurm", 0)],
)
def test_stopped_is_not_done(tmp_path, monkeypatch, supervisor, restarter, code):
    monkeypatch.setenv(fail_fast.ERRORS, supervisor and str(tmp_path))
    monkeypatch.setenv(fail_fast.RESTARTER, restarter)
    assert fail_fast.stopped(17) == code
    end = launch._done(tmp_path, [])
    assert end.stopped == bool(supervisor)
    assert end.code == 0
    assert ("the same command goes on" in end.told) == bool(supervisor)
    # Who sent the signal to the supervisor was told by it.
    assert launch._done(tmp_path, [signal.SIGTERM]).told == ""


def test_only_a_checkpoint_with_its_manifest_is_progress(tmp_path):
    assert launch.newest(tmp_path) == -1
    for name, whole in (("7", True), ("14", False), ("21.orbax-checkpoint-tmp", True)):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
        if whole:
            (tmp_path / "checkpoints" / name / "manifest.json").touch()
    assert launch.newest(tmp_path) == 7


def test_a_port_that_is_kept_is_given_to_nobody_and_can_be_listened_on():
    with launch._port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        cluster._check_free(f"127.0.0.1:{port}")
        with socket.socket() as coordinator:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):  # as gRPC does
                coordinator.setsockopt(socket.SOL_SOCKET, option, 1)
            coordinator.bind(("127.0.0.1", port))
            coordinator.listen()
            with pytest.raises(ValueError, match=f"port {port} is not free"):
                cluster._check_free(f"127.0.0.1:{port}")


def test_of_several_processes_the_first_one_looks_into_the_folder_for_all(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    said = []
    monkeypatch.setattr(run_folder.cluster, "place", lambda: (1, 2))
    monkeypatch.setattr(
        run_folder.cluster, "everyone", lambda name, value: said.append(value) or [None, value]
    )
    # It may see what process 0 has written since: it does not look.
    run_folder.check(tmp_path, keywords={}, source="")
    assert said == [None]
    monkeypatch.setattr(run_folder.cluster, "everyone", lambda name, value: ["no room", value])
    with pytest.raises(ValueError, match="no room"):
        run_folder.check(tmp_path, keywords={}, source="")


def test_a_lock_whose_owner_is_gone_is_taken_over(tmp_path):
    (tmp_path / "status").mkdir()
    for lock in (tmp_path / "lock", tmp_path / "status" / "supervisor.lock"):
        lock.write_text("process 4194304 on a host that is gone\n")
    with launch._alone(tmp_path), run_folder.locked(tmp_path):
        own = (tmp_path / "lock").read_text()
        assert own == (tmp_path / "status" / "supervisor.lock").read_text()
        assert own.startswith(f"process {os.getpid()} on ")
        with pytest.raises(ValueError, match=rf"written to by process {os.getpid()} on "):
            run_folder.locked(tmp_path).__enter__()
