"""The lines that commands print, and how they refuse."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from jaxdist import fail_fast, hangup
from jaxdist.errors import Refused

PACKAGE = Path(__file__).parents[1]


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
    except RuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise MemoryError(
            f"out of device memory: {str(error).splitlines()[0][:200]}; jaxdist inspect CONFIG shows what a "
            "step needs. Three ways out: a smaller batch (or jd.execute(accumulate=...), parts of it), "
            "jax.checkpoint around layers of the loss, or a worker spread over devices by a mesh axis "
            "fsdp (docs/sharding.md)"
        ) from error


def exit_code(error: BaseException) -> int:
    """The exit code of what a line is enough for; 0: it needs its traceback."""
    if isinstance(error, FloatingPointError):
        return fail_fast.NOT_FINITE
    if type(error).__name__ == "NothingIntact":  # naming the class would import JAX
        return fail_fast.NOTHING_INTACT
    # Subclasses are of files that are missing or not allowed: somebody's mistake, with its place.
    if type(error) is OSError and _ours(error):
        return fail_fast.NO_ROOM
    refused = isinstance(error, ValueError | TypeError | MemoryError) and _ours(error)
    return 2 if refused or _no_backend(error) else 0


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


def _ours(error: BaseException) -> bool:
    """Whether jaxdist itself refused something; a mistake inside a config keeps its traceback."""
    if "Gloo" in str(error):
        # Another process is gone. JAX raises a ValueError, and takes its own frames away.
        return False
    return _raised_in(error).is_relative_to(PACKAGE)


def _raised_in(error: BaseException) -> Path:
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return Path(frame.tb_frame.f_code.co_filename) if frame else Path()


def leave_accelerators_alone() -> None:
    """Before JAX is imported, by commands that only compile: nothing is run, and nobody's chip is taken."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
