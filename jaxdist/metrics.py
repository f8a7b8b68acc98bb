"""What a run records while it trains: a line for every step, events for TensorBoard, a progress bar."""

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxdist import events, run_folder, store
from jaxdist.executor import Trainer

PyTree = Any


class Recorder(NamedTuple):
    """Where the lines of a run go.

    Attributes:
      write: `write(step, line)`: one more line.
      sync: returns when all lines are on disk.
    """

    write: Callable[[int, dict[str, float]], None]
    sync: Callable[[], None]


@contextlib.contextmanager
def recording(folder: Path, *, begin: int, steps: int) -> Iterator[Recorder]:
    """Appends to `metrics.jsonl`, shows progress on the error stream, writes TensorBoard events.

    The events need the package tensorboardX and a folder on a disk; without there are none. Of several
    processes the first one records.

    Args:
      folder: the run's folder.
      begin: the step that the run goes on from.
      steps: how many it has.
    """
    if jax.process_index() != 0:
        yield Recorder(lambda step, line: None, lambda: None)
        return
    began = time.monotonic() - next(
        (m["seconds"] for m in reversed(run_folder.read_metrics(folder)) if "seconds" in m), 0.0
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with (
        _lines(folder) as (append, sync),
        Progress(
            *columns, TimeRemainingColumn(), console=Console(stderr=True), transient=True
        ) as bar,
        events.written(folder) as event,
    ):
        task = bar.add_task("compiling", total=steps, completed=begin)

        def write(step: int, line: dict[str, float]) -> None:
            seconds = round(time.monotonic() - began, 3)
            append(json.dumps({"step": step, **line, "seconds": seconds}) + "\n")
            bar.update(task, completed=step, description=f"loss {line['loss']:.4f}")
            event(step, line)

        yield Recorder(write, sync)


@contextlib.contextmanager
def _lines(folder: Path) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """What appends a line to the metrics, and what returns when they are stored."""
    file = folder / run_folder.METRICS
    if store.afar(folder):
        # Nothing can be appended to an object: all lines are written again.
        kept = [file.read_text("utf-8")] if file.exists() else []
        yield kept.append, lambda: run_folder.replace(file, "".join(kept))
        return
    # Unbuffered: an error comes with its own line, and not again when the file is closed.
    with file.open("ab", buffering=0) as lines:

        def append(line: str) -> None:
            data = line.encode()
            with store.told(folder, f"{file.name} ({len(data)} bytes)"):
                while data:
                    data = data[lines.write(data) :]

        def sync() -> None:
            with store.told(folder, file.name):
                os.fsync(lines.fileno())
            if not file.exists():
                raise OSError(f"{folder} is gone, and the run with it: it was removed while it ran")

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


def fetch(metrics: PyTree, trainer: Trainer) -> PyTree:
    """The metrics of a step as NumPy arrays, all of them on every process."""
    if jax.process_count() > 1:
        # Only what is not everywhere already: each such leaf is one more message.
        metrics = jax.tree.map(
            lambda x: x if x.is_fully_replicated else _everywhere(x, trainer.mesh), metrics
        )
    return jax.device_get(metrics)


@partial(jax.jit, static_argnums=1)
def _everywhere(x: jax.Array, mesh: Mesh) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec()))


@jax.jit
def finite_points(points: PyTree) -> jax.Array:
    """Whether each worker's parameters are finite: leaves `[workers, ...]` -> `[workers, leaves]`."""
    leaves = jax.tree.leaves(points)
    return jnp.stack([jnp.isfinite(x).reshape(len(x), -1).all(1) for x in leaves], axis=1)


def check_finite(step: int, finite: np.ndarray, params: PyTree, *, of: str = "gradient") -> None:
    """Stops at the first value that is NaN or infinite.

    Args:
      step: of what.
      finite: `metrics["finite"]`, bool `[workers, 1 + leaves]`, or without the column of the loss.
      params: parameters, for the names of the leaves.
      of: what the leaves are.

    Raises:
      FloatingPointError: names the step, the worker and the leaf.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(params)
    names = [f"{of}{jax.tree_util.keystr(path)}" for path, _ in leaves]
    names = ["loss", *names][-finite.shape[1] :]
    bad = np.argwhere(~finite)
    if len(bad):
        worker, leaf = bad[0]
        raise FloatingPointError(
            f"step {step}: worker {worker} has a value that is not finite in its {names[leaf]} "
            f"({len(bad)} such values in all workers and leaves); the checkpoints before it are "
            "kept; look at the data of this step, or write a smaller learning rate"
        )
