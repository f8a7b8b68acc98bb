"""Events for TensorBoard, where tensorboardX is installed; a run goes on where they can not be written."""

import contextlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jaxdist import store

FLUSH_SECONDS = 10.0


@contextlib.contextmanager
def written(folder: Path) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Inside, `write(step, line)` writes every number of a line as an event.

    There is no thread behind it, as tensorboardX has one: a full disk ends that thread, and its queue then
    keeps the loop for ever.

    Args:
      folder: the run's; behind a URL there are no events.

    Yields:
      `write`.
    """
    try:
        from tensorboardX.proto import event_pb2
        from tensorboardX.record_writer import RecordWriter
        from tensorboardX.summary import scalar
    except ImportError:
        yield lambda step, line: None
        return
    event: Any = vars(event_pb2)["Event"]  # made when that is imported
    writers: list[Any] = []
    flushed = [time.time()]

    @contextlib.contextmanager
    def unless_lost() -> Iterator[None]:
        try:
            yield
        except OSError as error:
            print(f"jaxdist: no more events for TensorBoard: {error}", file=sys.stderr)
            while writers:
                with contextlib.suppress(OSError):
                    writers.pop().close()

    def write(step: int, line: dict[str, float]) -> None:
        now = time.time()
        with unless_lost():
            for writer in writers:
                for name, value in line.items():
                    made = event(wall_time=now, step=step, summary=scalar(name, value))
                    writer.write(made.SerializeToString())
                if now - flushed[0] > FLUSH_SECONDS:
                    flushed[0] = now
                    writer.flush()

    if not store.afar(folder):
        with unless_lost():
            (folder / "events").mkdir(exist_ok=True)
            name = f"events.out.tfevents.{time.time():.0f}.{socket.gethostname()}"
            writers.append(RecordWriter(str(folder / "events" / name)))
            head = event(wall_time=flushed[0], file_version="brain.Event:2")
            writers[0].write(head.SerializeToString())
    try:
        yield write
    finally:
        with unless_lost():
            for writer in writers:
                writer.close()
