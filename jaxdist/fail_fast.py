"""How a process leaves: with a code that says whether to start it again, and an error where it is found.

One of several that only raised would wait for the others in the shutdown of JAX, and they for it in their
next exchange, for minutes: it ends at once.
"""

import contextlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

INTERRUPTED = 130
NOT_FINITE = 1  # Python itself and faulthandler end with this one too, after anything
FAILED = 70  # the exit code after an error that nobody foresaw
REFUSAL = 2
NOTHING_INTACT = 3  # there are checkpoints, and none can be believed
NO_ROOM = 74  # the disk is full, or gone
# EX_TEMPFAIL, the same command goes on: who waited too long, whom the runtime of JAX failed, or, where a
# restarter reads exit codes, who was stopped and has saved.
GO_ON = 75
# Another try would only say the same: a line is enough.
REFUSED = (NOT_FINITE, REFUSAL, NOTHING_INTACT, NO_ROOM)
# By name, for nothing here imports JAX.
RUNTIME_ERRORS = ("JaxRuntimeError", "XlaRuntimeError")
FAILURES = ("INTERNAL:", "UNAVAILABLE:", "ABORTED:", "DEADLINE_EXCEEDED:")
ERRORS = "JAXDIST_ERRORS"  # where a supervisor looks for errors
ERROR = "error.json"
STOPPED = "stopped"  # a file beside the errors: the step that was saved where steps are left
RESTARTER = "JAXDIST_RESTARTER"  # who starts a job again by its exit code: slurm, gke-jobset


@contextlib.contextmanager
def leaving(
    code: Callable[[BaseException], int],
    *,
    who: Callable[[], tuple[int, int]],
    now: Callable[[], tuple[str, int]],
    folder: Path,
) -> Iterator[None]:
    """Inside, an error is told and ends the process; so is `sys.exit` of a config, but with 0 or nothing.

    Args:
      code: `code(error)` -> the exit code of an error that was foreseen, else 0: 70.
      who: `who()` -> the number of this process, and how many there are.
      now: `now()` -> the phase and the step.
      folder: the run's, where the first error of a job is kept as error.json.
    """
    try:
        yield
    except SystemExit as end:
        if end.code in (None, 0):  # of --help
            raise
        # As Python would end it, were there nobody to wait for; a text is a refusal, and no number.
        number = end.code if isinstance(end.code, int) else REFUSAL
        _leave(_exited(end), code=number, process=who()[0], at=now(), folder=folder)
    except BaseException as error:
        stopped = INTERRUPTED if isinstance(error, KeyboardInterrupt) else FAILED
        _leave(error, code=code(error) or stopped, process=who()[0], at=now(), folder=folder)


def _exited(end: SystemExit) -> SystemExit:
    """What a config says when it ends its process: its text, or, of a number, where it did."""
    if not isinstance(end.code, int):
        return end
    frames = traceback.extract_tb(end.__traceback__)
    where = f"{frames[-1].filename}:{frames[-1].lineno}"
    return SystemExit(f"{where} ended with exit code {end.code}").with_traceback(end.__traceback__)


def _leave(
    error: BaseException, *, code: int, process: int, at: tuple[str, int], folder: Path
) -> NoReturn:
    text = "".join(traceback.format_exception(error))
    phase, step = at
    record = {
        "process": process,
        "time": time.time(),
        "phase": phase,
        "step": step,
        "code": code,
        "type": type(error).__name__,
        "message": str(error),
        "traceback": text,
    }
    if supervised():
        _keep(Path(os.environ[ERRORS], f"{process}.json"), record)
    if code not in REFUSED:
        if folder.is_dir():
            _keep(folder / ERROR, record)
        if not supervised():
            print(tagged(record), file=sys.stderr)
    elif process == 0:
        print(f"jaxdist: {' '.join(str(error).split())}", file=sys.stderr)
    else:
        print(f"[process {process}] {' '.join(str(error).split())}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in REFUSED and process == 0:
        # The others end when the coordinator does: they may first say what they refuse.
        time.sleep(1.0)
    os._exit(code)


def runtime_failed(error: BaseException) -> bool:
    """Whether the runtime of JAX failed in the middle of a program: it may not, in another life.

    Another process is gone, an exchange took too long, a host callback raised. JAX names its class before
    the message, and raises some of these as ValueError, with its own frames taken away.

    >>> runtime_failed(ValueError("INTERNAL: CpuCallback error calling callback: ..."))
    True
    >>> runtime_failed(ValueError("UNKNOWN: Gloo AllReduce failed: Connection closed by peer"))
    True
    >>> runtime_failed(ValueError("math domain error")), runtime_failed(KeyError("INTERNAL: x"))
    (False, False)
    """
    runtimes = type(error) is ValueError or type(error).__name__ in RUNTIME_ERRORS
    said = str(error)
    return runtimes and (said.startswith(FAILURES) or "Gloo" in said)


def supervised() -> bool:
    """Whether somebody looks at exit codes and shows the error."""
    return bool(os.environ.get(ERRORS))


def restarted() -> bool:
    """Whether something else than our supervisor starts the job again unless its exit code says not to."""
    return bool(os.environ.get(RESTARTER)) and not supervised()


def stopped(step: int) -> int:
    """The exit code of a process that was told to stop and has saved this step, not the last one.

    A supervisor is told by a file, for it does not start again what somebody stopped.
    """
    if supervised():
        with contextlib.suppress(OSError):
            Path(os.environ[ERRORS], STOPPED).write_text(str(step))
    return GO_ON if restarted() else 0


def tagged(record: dict) -> str:
    """An error as lines that all say whose it is.

    >>> print(tagged({"process": 1, "phase": "data", "step": 7, "traceback": "KeyError: 'x'"}))
    [process 1] failed in phase data of step 7
    [process 1] KeyError: 'x'
    """
    head = f"failed in phase {record['phase']} of step {record['step']}"
    lines = [head, *record["traceback"].rstrip().split("\n")]
    return "\n".join(f"[process {record['process']}] {line}" for line in lines)


def _keep(file: Path, record: dict) -> None:
    """Writes it, unless an earlier error is there: the later ones follow from it."""
    with contextlib.suppress(OSError), file.open("x", encoding="utf-8") as handle:
        json.dump(record, handle, indent=1)
