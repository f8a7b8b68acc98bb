"""The lines that commands print, and how they refuse."""

import os
from pathlib import Path
from typing import NoReturn

PACKAGE = Path(__file__).parents[1]


def refuse(message: str) -> NoReturn:
    """Refuses what a command line says."""
    raise ValueError(f"{message}; jaxdist --help shows what there is")


def row(name: str, value: object) -> None:
    """Prints a name and a value."""
    print(f"{name:24}{value}")


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
        raise ValueError(f"{folder}: {error.strerror}; choose another folder") from None


def exit_code(error: BaseException) -> int:
    """The exit code of what a line is enough for; 0: it needs its traceback."""
    if isinstance(error, FloatingPointError):
        return 1
    refused = isinstance(error, ValueError | TypeError) and _ours(error)
    no_backend = isinstance(error, RuntimeError) and "Unable to initialize backend" in str(error)
    return 2 if refused or no_backend else 0


def _ours(error: BaseException) -> bool:
    """Whether jaxdist itself refused something; a mistake inside a config keeps its traceback."""
    if "Gloo" in str(error):
        # Another process is gone. JAX raises a ValueError, and takes its own frames away.
        return False
    frame = error.__traceback__
    while frame and frame.tb_next:
        frame = frame.tb_next
    return frame is not None and Path(frame.tb_frame.f_code.co_filename).is_relative_to(PACKAGE)


def leave_accelerators_alone() -> None:
    """Before JAX is imported, by commands that only compile: nothing is run, and nobody's chip is taken."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
