"""What a run records while it trains: a line for every step, events for TensorBoard, a progress bar."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdist import events, hangup, run_folder, store
from jaxdist.errors import NoRoom
from jaxdist.executor import Trainer
from jaxdist.metric_lines import METRICS, NOTHING, Sums

PyTree = Any


class Recorder(NamedTuple):
    """Where the lines of a run go.

    Attributes:
      write: `write(step, line, sent)`: one more line, of a step in which each worker sent so many bytes.
      reach: `reach(step)`: this step has begun to run, and its line comes later.
      sync: returns when all lines are on disk.
      sums: `sums()`: what all lines so far add up to.
    """

    write: Callable[[int, dict[str, float], int], None]
    reach: Callable[[int], None]
    sync: Callable[[], None]
    sums: Callable[[], Sums]


@contextlib.contextmanager
def recording(
    folder: Path,
    *,
    begin: int,
    steps: int,
    sums: Sums = NOTHING,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Recorder]:
    """Appends to `metrics.jsonl`, shows progress on the error stream, writes TensorBoard events.

    The events need the package tensorboardX and a folder on a disk; without there are none. Of several
    processes the first one records, and all of them add up.

    Args:
      folder: the run's folder.
      begin: the step that the run goes on from.
      steps: how many it has.
      sums: what its checkpoint remembers.
      check: called before anything is written; raises an OSError if that is not to be.
    """
    began, sent = time.monotonic() - sums.seconds, sums.bytes_sent

    def now() -> Sums:
        return Sums(sums.began, sent, round(time.monotonic() - began, 3))

    with _shown(folder, begin, steps, check) as (show, reach, sync):

        def write(step: int, line: dict[str, float], bytes_sent: int) -> None:
            nonlocal sent
            sent += bytes_sent
            show(step, {**line, "bytes_sent": sent}, now().seconds)

        yield Recorder(write, reach, sync, now)


@contextlib.contextmanager
def _shown(
    folder: Path, begin: int, steps: int, check: Callable[[], None]
) -> Iterator[tuple[Any, Any, Any]]:
    """What shows a line, what a step that has begun, and what returns when all lines are stored."""
    if jax.process_index() != 0:
        yield lambda step, line, seconds: None, lambda step: None, lambda: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(file=hangup.survived(sys.stderr))
    with (
        _lines(folder, check) as (append, sync),
        Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar,
        events.written(folder) as event,
    ):
        task = bar.add_task("compiling", total=steps, completed=begin)

        def show(step: int, line: dict[str, float], seconds: float) -> None:
            append(json.dumps({"step": step, **line, "seconds": seconds}) + "\n")
            bar.update(task, description=f"loss {line['loss']:.4f}")
            event(step, line)

        yield show, lambda step: bar.update(task, completed=step), sync


@contextlib.contextmanager
def _lines(
    folder: Path, check: Callable[[], None]
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """What appends a line to the metrics, and what returns when they are stored."""
    file = folder / METRICS
    if store.afar(folder):
        # Nothing can be appended to an object: all lines are written again.
        kept = []
        with contextlib.suppress(FileNotFoundError):
            kept.append(store.read(file).decode("utf-8"))

        def store_all() -> None:
            check()
            run_folder.replace(file, "".join(kept))

        yield kept.append, store_all
        return
    # Unbuffered: an error comes with its own line, and not again when the file is closed.
    with file.open("ab", buffering=0) as lines:

        def append(line: str) -> None:
            data = line.encode()
            check()
            with store.told(folder, f"{file.name} ({len(data)} bytes)"):
                while data:
                    data = data[lines.write(data) :]

        def sync() -> None:
            check()
            with store.told(folder, file.name):
                os.fsync(lines.fileno())
            if not file.exists():
                raise NoRoom(f"{folder} is gone, and the run with it: it was removed while it ran")

        yield append, sync


def evaluate(
    trainer: Trainer, state: PyTree, accuracy: Callable[..., jax.Array], test: PyTree
) -> dict[str, float]:
    """Accuracy of the readout and of the worst worker, and how far apart the workers are.

    `consensus_distance` is the root mean square over workers of |x_i - readout|, x_i being all
    parameters of worker i.
    """
    measured = trainer.evaluate(state, accuracy, test)
    squares = jax.tree.map(
        lambda x, mean: jnp.sum(jnp.square(x - mean[None])) / trainer.workers,
        trainer.gradient_at(state),
        trainer.readout(state),
    )
    return {
        "accuracy": float(measured.readout),
        "worst_accuracy": float(jnp.min(measured.workers)),
        "consensus_distance": float(jnp.sqrt(sum(jax.tree.leaves(squares)))),
    }
