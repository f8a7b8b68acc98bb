"""The lines that commands print, and how they refuse."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jaxdist import fail_fast, hangup
from jaxdist.errors import NoMemory, NoRoom, NotFinite, NothingIntact, Refused


def refuse(message: str) -> NoReturn:
    """Refuses what a command line says."""
    raise Refused(f"{message}; jaxdist --help shows what there is")


def row(name: str, value: object) -> None:
    """Prints a name and a value."""
    hangup.say(f"{name:24}{value}", sys.stdout)


def rows(line: dict[str, float]) -> None:
    """Prints what an evaluation found."""
    words = {
        "accuracy": ("test accuracy", ".4f"),
        "worst_accuracy": ("  of the worst worker", ".4f"),
        "consensus_distance": ("consensus distance", ".3e"),
        "bytes_sent": ("bytes sent per worker", ",.0f"),
    }
    for name, (word, form) in words.items():
        if name in line:
            row(word, format(line[name], form))


def check_writable(folder: Path) -> None:
    """Refuses a folder that can not be written to."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"{folder}: {error.strerror}; choose another folder") from None


@contextlib.contextmanager
def memory_explained() -> Iterator[None]:
    """Inside, XLA's dump for want of device memory becomes a line with three ways out."""
    try:
        yield
    except (RuntimeError, ValueError) as error:  # either, as `fail_fast.runtime_failed` says
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise NoMemory(
            f"out of device memory: {str(error).splitlines()[0][:200]}; jaxdist inspect CONFIG shows what a "
            "step needs. Three ways out: a smaller batch (or jd.execute(accumulate=...), parts of it), "
            "jax.checkpoint around layers of the loss, or a worker spread over devices by a mesh axis "
            "fsdp (docs/sharding.md)"
        ) from error


def exit_code(error: BaseException) -> int:
    """The exit code of an error that was foreseen; 0: of any other.

    For all but `fail_fast.GO_ON`, which may come of a mistake in a host callback, a line is enough.
    """
    if isinstance(error, NotFinite):
        return fail_fast.NOT_FINITE
    if isinstance(error, NothingIntact):
        return fail_fast.NOTHING_INTACT
    if isinstance(error, NoRoom) or getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return fail_fast.NO_ROOM
    if isinstance(error, Refused | NoMemory) or _no_backend(error):
        return fail_fast.REFUSAL
    return fail_fast.GO_ON if fail_fast.runtime_failed(error) else 0


def said(error: BaseException) -> str:
    """What is said of an error that has an exit code."""
    if not _no_backend(error):
        return str(error)
    # JAX has no words for a platform that was not installed: an assertion fails.
    text = (
        str(error)
        or f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS')}: there is no such backend here"
    )
    return f"{text}; unset JAX_PLATFORMS, or install the extra: tpu, cuda"


def _no_backend(error: BaseException) -> bool:
    if isinstance(error, AssertionError):
        return _raised_in(error).name == "xla_bridge.py"
    return isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)


def _raised_in(error: BaseException) -> Path:
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return Path(frame.tb_frame.f_code.co_filename) if frame else Path()


def leave_accelerators_alone() -> None:
    """Before JAX is imported, by commands that only compile: nothing is run, and nobody's chip is taken."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
