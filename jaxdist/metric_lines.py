"""The lines of metrics.jsonl read back, however damaged, and the sums that no lost line can change."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxdist import store

METRICS = "metrics.jsonl"
# What every line has, as a number; whatever else stands in it is a number too.
ALWAYS = ("step", "loss", "bytes_sent", "seconds")
SUMS = "sums"  # their name in what a checkpoint remembers
NAMED = 5  # so many damaged lines or missing spans are named


class Sums(NamedTuple):
    """What a run has added up, as every checkpoint remembers it.

    Attributes:
      began: the step after which its first line comes: 0, or that of the run it was begun from.
      bytes_sent: by each worker, since then.
      seconds: on the wall, since then, those of earlier starts included.
    """

    began: int = 0
    bytes_sent: int = 0
    seconds: float = 0.0

    def as_extra(self) -> dict[str, Any]:
        """As a checkpoint takes it."""
        return {SUMS: self._asdict()}


NOTHING = Sums()


class Found(NamedTuple):
    """What a file of metrics holds.

    Attributes:
      lines: those that are intact, in their order.
      texts: the same as they stand there, without their ends.
      bad: the numbers of the others, from 1. What a kill tore off the end is none.
      data: all of it.
    """

    lines: list[dict[str, Any]]
    texts: list[bytes]
    bad: list[int]
    data: bytes


def read_metrics(
    folder: Path, *, say: Callable[[str], None] = lambda line: None
) -> list[dict[str, Any]]:
    """The intact lines of a run's metrics.

    Args:
      folder: the run's.
      say: what to do with a line that says which others there are.
    """
    found = _found(folder)
    if found.bad:
        say(_damaged(folder, found))
    return found.lines


def sums(extra: dict[str, Any], folder: Path, step: int) -> Sums:
    """What a checkpoint remembers of the sums.

    Args:
      extra: the dict that was saved with it. One that remembers none is of a jaxdist that left them to
        the lines, or was saved by hand: then the newest line up to its step is believed.
      folder: the run's.
      step: of the checkpoint.
    """
    given = extra.get(SUMS)
    if isinstance(given, dict) and given.keys() == {*Sums._fields}:
        return Sums(**given)
    lines = [line for line in read_metrics(folder) if line["step"] <= step]
    if not lines:
        return Sums(began=step)
    return Sums(lines[0]["step"] - 1, lines[-1]["bytes_sent"], lines[-1]["seconds"])


def truncate_metrics(folder: Path, step: int, began: int, *, say: Callable[[str], None]) -> None:
    """Drops the lines of steps that are to be done again, and damaged ones; says what is missing.

    A file with damaged lines is kept beside, as metrics.jsonl.damaged-<n>.

    Args:
      folder: the run's.
      step: the one that the run goes on from.
      began: the one after which its first line comes.
      say: what to do with a line for the user.

    Raises:
      OSError: it could not be written.
    """
    found, file = _found(folder), folder / METRICS
    if found.bad:
        kept = _unused(file)
        _write(kept, found.data)
        say(f"{_damaged(folder, found)}; the file as it was is kept as {kept.name}")
    steps = [line["step"] for line in found.lines]
    if again := sorted({s for s in steps if s > step}):
        say(f"steps {spans(again)} were recorded and not saved: they are done again")
    if lost := sorted({*range(began + 1, step + 1)} - {*steps}):
        say(
            f"{file} lacks {len(lost)} of the steps up to {step}: {spans(lost)}; they are not done again, "
            "and the sums of bytes and seconds count them"
        )
    texts = [text for s, text in zip(steps, found.texts, strict=True) if s <= step]
    data = b"".join(text + b"\n" for text in texts)
    if data != found.data:
        _write(file, data)


def spans(numbers: Iterable[int]) -> str:
    """Numbers in ascending order, as a text.

    >>> spans([1, 2, 3, 7, 9, 10])
    '1 to 3, 7, 9 to 10'
    """
    ends: list[list[int]] = []
    for number in numbers:
        if ends and number == ends[-1][1] + 1:
            ends[-1][1] = number
        else:
            ends.append([number, number])
    told = [f"{a} to {b}" if a < b else str(a) for a, b in ends]
    return ", ".join([*told[:NAMED], *(["..."] if len(told) > NAMED else [])])


def _found(folder: Path) -> Found:
    try:
        data = store.read(folder / METRICS)
    except FileNotFoundError:
        data = b""
    texts = data.split(b"\n")[:-1]
    parsed = [_parsed(text) for text in texts]
    bad = [number for number, line in enumerate(parsed, 1) if line is None]
    kept = [(line, text) for line, text in zip(parsed, texts, strict=True) if line is not None]
    return Found([line for line, _ in kept], [text for _, text in kept], bad, data)


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A line; None: it is damaged."""
    try:
        line = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(line, dict) or not {*ALWAYS} <= line.keys():
        return None
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in line.values())
    return line if numbers and isinstance(line["step"], int) else None


def _damaged(folder: Path, found: Found) -> str:
    bad, count = len(found.bad), len(found.bad) + len(found.lines)
    return (
        f"{folder / METRICS}: {bad} of {count} lines {'is' if bad == 1 else 'are'} damaged and left out "
        f"(line {spans(found.bad)})"
    )


def _unused(file: Path) -> Path:
    number = 1
    while (other := file.with_name(f"{file.name}.damaged-{number}")).exists():
        number += 1
    return other


def _write(file: Path, data: bytes) -> None:
    with store.told(file.parent, file.name):
        store.write(file, data)
