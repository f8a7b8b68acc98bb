"""What was seen or is prescribed: recorded durations, pauses, failures, messages on top."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist.clock.base import Clock, check_seconds
from jaxdist.errors import Refused

# A trace becomes a constant of the program.
TRACE_BYTES = 16 * 2**20

Window = tuple[int, float, float]


def recorded(file: str | Path) -> Clock:
    """Durations as they were measured, from a file; from the first row again after the last.

    Args:
      file: seconds [T, W], row t the t-th gradient of every worker: a `.json` list of T lists of W
        numbers, a `.csv` of T lines without a head, or a `.npy`. At most 16 MiB.

    Raises:
      Refused: no such file, another kind, too large, not a table, or an entry that is not a
        finite number above 0.

    Example:
      >>> import tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = Path(folder) / "seconds.csv"
      ...     _ = file.write_text("1.0,2.0\\n1.5,2.0\\n")
      ...     clock = recorded(file)
      >>> clock
      recorded(seconds.csv, 2 rows of 2 workers)
    """
    path = Path(file)
    read = {".json": _json, ".csv": _csv, ".npy": _npy}.get(path.suffix)
    if read is None:
        raise Refused(f"{path}: expected a trace in .json, .csv or .npy; rename it")
    if not path.is_file():
        raise Refused(f"{path}: no such file; write the path of a trace of seconds [T, W]")
    size = path.stat().st_size
    if size > TRACE_BYTES:
        raise Refused(
            f"{path} holds {size} bytes, and a trace at most {TRACE_BYTES}; leave out rows, for "
            "they are repeated"
        )
    try:
        table = read(path)
    except (ValueError, RecursionError, EOFError) as error:
        raise Refused(
            f"{path} is not a table of seconds: {error}; write T rows of W numbers"
        ) from error
    if table.dtype.kind not in "iuf" or table.ndim != 2 or not table.size:
        raise Refused(
            f"{path} holds {table.dtype} of shape {table.shape}, expected numbers [T, W]; "
            "write T rows of W seconds"
        )
    check_seconds(str(path), table, write="1.0 where nothing was measured")
    seconds = np.array(table, np.float64)
    rows, workers = seconds.shape

    def duration(count: jax.Array, start: jax.Array) -> jax.Array:
        return jnp.asarray(seconds, start.dtype)[
            count % rows, jnp.arange(workers, dtype=count.dtype)
        ]

    return Clock(workers, f"recorded({path.name}, {rows} rows of {workers} workers)", duration)


def pauses(clock: Clock, trace: Sequence[Window]) -> Clock:
    """The same clock, in which workers stand still for a while and then go on where they were.

    Args:
      clock: how long gradients take otherwise.
      trace: (worker, begin_seconds, end_seconds) of every pause, of one worker disjoint; an end of
        `math.inf`: for ever.

    Example:
      >>> import jaxdist as jd
      >>> pauses(jd.clock.constant(2), [(1, 0.5, 3.0)]).start().left.tolist()
      [1.0, 3.5]
    """
    windows = _windows("pauses", clock, trace)

    def seconds(count: jax.Array, start: jax.Array) -> jax.Array:
        work = clock.seconds(count, start)

        def stand(extra: jax.Array, window: tuple[jax.Array, jax.Array]):
            begin, end = window
            hit = (begin < start + work + extra) & (end > start)
            return extra + jnp.where(hit, end - jnp.maximum(begin, start), 0.0), None

        extra, _ = jax.lax.scan(stand, jnp.zeros_like(work), _arrays(windows, work.dtype))
        return work + extra

    return Clock(clock.size, f"pauses({clock.name}, {list(trace)})", seconds)


def failures(clock: Clock, trace: Sequence[Window]) -> Clock:
    """The same clock, in which workers fail, lose the gradient at hand, and begin it anew later.

    Args:
      clock: how long gradients take otherwise.
      trace: (worker, begin_seconds, end_seconds) of every failure, of one worker disjoint; an end of
        `math.inf`: it never comes back.

    Example:
      >>> import jaxdist as jd
      >>> failures(jd.clock.constant(2), [(1, 0.5, 3.0)]).start().left.tolist()
      [1.0, 4.0]
    """
    windows = _windows("failures", clock, trace)

    def seconds(count: jax.Array, start: jax.Array) -> jax.Array:
        work = clock.seconds(count, start)

        def fail(begun: jax.Array, window: tuple[jax.Array, jax.Array]):
            begin, end = window
            hit = (begin < begun + work) & (end > begun)
            return jnp.where(hit, end, begun), None

        begun, _ = jax.lax.scan(fail, start, _arrays(windows, work.dtype))
        return begun - start + work

    return Clock(clock.size, f"failures({clock.name}, {list(trace)})", seconds)


def with_messages(clock: Clock, seconds: float) -> Clock:
    """The same clock, in which every gradient takes so much longer: what its messages take.

    For methods that take a clock themselves, for example a push and a pull:
    `2 * jd.network.message(link, size_bytes)`. Nobody waits for anybody else's messages.

    Args:
      clock: how long gradients take.
      seconds: added to each; above 0.

    Example:
      >>> import jaxdist as jd
      >>> with_messages(jd.clock.constant(2), 0.5).start().left.tolist()
      [1.5, 1.5]
    """
    check_seconds("seconds", seconds, write="seconds=0.1")
    return Clock(
        clock.size,
        f"with_messages({clock.name}, {seconds})",
        lambda count, start: clock.seconds(count, start) + seconds,
    )


def _json(path: Path) -> np.ndarray:
    return np.asarray(json.loads(path.read_text("utf-8")))


def _csv(path: Path) -> np.ndarray:
    text = path.read_text("utf-8").split()
    return np.asarray([[float(x) for x in line.split(",")] for line in text])


def _npy(path: Path) -> np.ndarray:
    # Mapped, so that a head that promises more than the file holds is refused, not allocated.
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _windows(name: str, clock: Clock, trace: Sequence[Window]) -> np.ndarray:
    """Begin and end of every worker's windows in order, [most, 2, W]; what is missing never begins."""
    if not isinstance(clock, Clock):
        raise Refused(
            f"{name} was given {clock!r}, expected a clock; write jd.clock.{name}(clock, trace)"
        )
    write = f"jd.clock.{name}(clock, [(0, 10.0, 20.0)])"
    own: list[list[tuple[float, float]]] = [[] for _ in range(clock.size)]
    for one in trace:
        worker, begin, end = _window(one, clock.size, write)
        own[worker].append((begin, end))
    table = np.full((max(map(len, own), default=0), 2, clock.size), math.inf)
    for worker, windows in enumerate(own):
        before = 0.0
        for k, (begin, end) in enumerate(sorted(windows)):
            if begin < before:
                raise Refused(
                    f"{name}: those of worker {worker} overlap at {begin} seconds; write one from "
                    "the first begin to the last end"
                )
            table[k, :, worker] = begin, end
            before = end
    return table


def _window(one: Any, workers: int, write: str) -> Window:
    try:
        worker, begin, end = one
        if worker in range(workers) and 0 <= begin < end and begin < math.inf:
            return int(worker), float(begin), float(end)
    except (TypeError, ValueError):
        pass
    raise Refused(
        f"{one!r} is not (worker, begin_seconds, end_seconds) with a worker below {workers} and "
        f"0 <= begin < end; write for example {write}"
    )


def _arrays(windows: np.ndarray, dtype: Any) -> tuple[jax.Array, jax.Array]:
    table = jnp.asarray(windows, dtype)
    return table[:, 0], table[:, 1]
