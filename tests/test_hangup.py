"""A closed terminal, as with an ssh session: runs on it save and stop, unless nohup says otherwise."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading

import pytest
import runs
from test_handshake import free_port, start

from jaxdist import checkpoint, hangup

processes = pytest.mark.processes
slow = pytest.mark.slow
ALONE = ("train",)
SUPERVISED = ("launch", "--processes", "2", "--", "train")


@contextlib.contextmanager
def on_a_terminal(*arguments, ignoring=False):
    """`jaxdist ARGUMENTS` on a terminal of its own; yields the process and what closes the terminal."""
    keyboard, terminal = os.openpty()
    seat = f"os.setsid(); fcntl.ioctl({terminal}, termios.TIOCSCTTY, 0)"
    nohup = f"signal.signal(signal.SIGHUP, signal.{'SIG_IGN' if ignoring else 'SIG_DFL'})"
    main = "from jaxdist.cli import main; sys.exit(main())"
    process = subprocess.Popen(
        [sys.executable, "-c", f"import fcntl, os, signal, sys, termios; {seat}; {nohup}; {main}",
         *map(str, arguments)],
        cwd=runs.ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(runs.ROOT), "JAX_PLATFORMS": "cpu"},
        stdin=terminal, stdout=terminal, stderr=terminal, pass_fds=(terminal,),
    )  # fmt: skip
    runs.STARTED.append(process)
    os.close(terminal)
    closing = threading.Event()

    def read():
        with contextlib.suppress(OSError):
            while not closing.is_set():
                if select.select([keyboard], [], [], 0.1)[0]:
                    os.read(keyboard, 4096)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()

    def close():
        closing.set()
        reader.join()  # a terminal is there as long as anybody reads from it
        os.close(keyboard)

    try:
        yield process, close
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def saved(folder):
    return checkpoint.steps(folder / "checkpoints")


@slow
@processes
@pytest.mark.parametrize(
    "command", [ALONE, pytest.param(SUPERVISED, marks=pytest.mark.short)], ids=["alone", "launch"]
)
def test_a_closed_terminal_saves_and_stops(tmp_path, command):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    given = (*command, config, "--workdir", folder, "--slow", "0.2")
    with on_a_terminal(*given) as (process, close):
        runs.until(lambda: saved(folder))
        close()
        # And as the shell says it once more.
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGHUP)
        assert process.wait(timeout=60) == 0
    (*_, step) = saved(folder)
    assert runs.lines(folder)[-1]["step"] == step
    assert 7 < step < 40
    if command == SUPERVISED:
        assert [e["event"] for e in runs.events(folder)] == ["start", "stopping", "stopped"]
        assert runs.events(folder)[1]["cause"] == "SIGHUP"
        assert runs.events(folder)[2]["cause"] == f"stopped and saved step {step}"


@slow
@processes
@pytest.mark.parametrize("command", [ALONE, SUPERVISED], ids=["alone", "launch"])
def test_under_nohup_a_run_goes_on_without_its_terminal(tmp_path, command):
    config, folder = runs.small(tmp_path), tmp_path / "run"
    given = (*command, config, "--workdir", folder, "--slow", "0.1")
    with on_a_terminal(*given, ignoring=True) as (process, close):
        runs.until(lambda: saved(folder))
        close()
        assert process.wait(timeout=90) == 0
    assert saved(folder)[-1] == 40
    assert (folder / "run.png").exists()


@slow
@processes
def test_of_several_that_nobody_supervises_all_save_when_one_hears_it(tmp_path):
    config, folder, port = runs.small(tmp_path), tmp_path / "run", free_port()
    both = [start(i, port, config, folder, "--slow", "0.2") for i in (0, 1)]
    runs.until(lambda: [s for s in runs.statuses(folder) if s["step"] >= 8])
    for _ in range(2):
        both[1].send_signal(signal.SIGHUP)
    ends = [runs.ended(process) for process in both]
    assert [code for code, _, _ in ends] == [0, 0], ends
    assert int(ends[0][1].split("saved step ")[1].split(";")[0]) < 40


def test_nothing_more_is_said_to_a_terminal_that_is_gone():
    keyboard, terminal = os.openpty()
    with os.fdopen(terminal, "w") as stream:
        hangup.say("heard", stream)
        assert os.read(keyboard, 100) == b"heard\r\n"
        os.close(keyboard)
        hangup.say("not heard", stream)
        assert os.readlink(f"/proc/self/fd/{terminal}") == os.devnull
        print("nor this", file=stream)


def test_another_error_of_a_stream_is_one():
    read, write = os.pipe()
    os.close(read)
    stream = os.fdopen(write, "w")
    with pytest.raises(BrokenPipeError):
        hangup.say("to nobody", stream)
    with contextlib.suppress(BrokenPipeError):
        stream.close()
