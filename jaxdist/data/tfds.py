"""Data sets that TFDS has prepared, as arrays: found on disk, decoded once, and kept decoded.

Of TFDS only what reads array_record is used, which needs no TensorFlow; how a set is prepared is in
`data/preparing.py`. Importing TFDS takes seconds, so it happens where a set is first decoded.
"""

import contextlib
import json
import logging
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxdist.errors import Refused

PREFIX = "tfds:"
ARRAYS = "jaxdist_arrays"
FEATURE = "feature "
INFO = "dataset_info.json"


def load(
    name: str,
    split: str,
    *,
    features: Sequence[str] | None = None,
    data_dir: str | os.PathLike[str] | None = None,
) -> dict[str, np.ndarray]:
    """Loads a split of a prepared data set into memory.

    The first call decodes it, example by example, which takes seconds for 10,000 images; the arrays are
    kept beside the set, and the next call reads those.

    Args:
      name: `"tfds:mnist"`; with a config `"tfds:emnist/balanced"`, a version `"tfds:mnist:3.0.1"`.
      split: as TFDS writes it: `"train"`, `"test"`, `"train[:80%]"`, `"train[1000:]"`, `"train+test"`.
      features: which; None: all that are numbers and have one shape in all examples.
      data_dir: where prepared sets are; None: `TFDS_DATA_DIR`, or `~/tensorflow_datasets`.

    Returns:
      Arrays by feature, `[examples, ...]`, read-only. int64 (all labels of TFDS) becomes int32.

    Raises:
      Refused: the set is not prepared (says how), not as array_record; a split or a feature that
        it has not, or a split without examples.
    """
    path = find(name, data_dir=data_dir)
    kept = path / ARRAYS / f"{quote(split, safe='')}.npz"
    arrays = _read(kept)
    if arrays is None:
        arrays = _decode(path, name, split)
        _keep(kept, arrays)
    missing = [feature for feature in features or () if feature not in arrays]
    if missing:
        raise Refused(
            f"{name} has no feature {missing[0]!r} of numbers in one shape: "
            f"write some of {', '.join(sorted(arrays))}"
        )
    for array in arrays.values():
        array.setflags(write=False)
    return {feature: arrays[feature] for feature in features or arrays}


def find(name: str, *, data_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of a prepared data set, of its newest version if none is named.

    Raises:
      Refused: it is not prepared, and how to prepare it; or in a format that needs TensorFlow.
    """
    folder, version = _parse(name)
    root = directory(data_dir)
    versions = sorted(_versions(root / folder), key=lambda p: [int(n) for n in p.name.split(".")])
    versions = [p for p in versions if version in ("", p.name)]
    if not versions:
        configs = [p.name for p in _folders(root / folder) if _versions(p)]
        if configs and not version:
            raise Refused(
                f"{name} is prepared with the configs {', '.join(configs)}: "
                f"write {PREFIX}{folder}/{configs[0]}"
            )
        where = "" if data_dir is None else f" --data-dir {root}"
        short = name.removeprefix(PREFIX)
        extra = "" if short == "digits" else "pip install -c constraints.txt '.[prepare]' and "
        raise Refused(
            f"{name} is not prepared in {root}: write {extra}jaxdist data prepare {short}{where}, or "
            "set TFDS_DATA_DIR to where it is"
        )
    path = versions[-1]
    kind = json.loads((path / INFO).read_text("utf-8")).get("fileFormat", "tfrecord")
    if kind != "array_record":
        raise Refused(
            f"{path} is prepared as {kind}, which only TensorFlow reads: move it away and write "
            f"jaxdist data prepare {folder}"
        )
    return path


def directory(data_dir: str | os.PathLike[str] | None = None) -> Path:
    """Where prepared data sets are."""
    given = data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return Path(given).expanduser().absolute()


def prepared(data_dir: str | os.PathLike[str] | None = None) -> list[str]:
    """All that is prepared there, as names for `load`.

    Example:
      >>> prepared("/nowhere")
      []
    """
    root = directory(data_dir)
    sets = [p for p in _folders(root) if p.name != "downloads"]
    sets += [config for each in sets for config in _folders(each)]
    return sorted(
        f"{PREFIX}{folder.relative_to(root).as_posix()}:{version.name}"
        for folder in sets
        for version in _versions(folder)
    )


def _parse(name: str) -> tuple[str, str]:
    """`tfds:mnist:3.0.1` -> its folder and its version, which may be empty."""
    folder, _, version = name.removeprefix(PREFIX).partition(":")
    parts = folder.split("/")
    if (
        not name.startswith(PREFIX)
        or len(parts) > 2
        or not all(p.isidentifier() for p in parts[:1])
    ):
        raise Refused(f"{name!r} names no data set: write {PREFIX}mnist or {PREFIX}mnist:3.0.1")
    if any(part in ("", ".", "..") for part in parts):
        raise Refused(f"{name!r} names no config: write {PREFIX}emnist/balanced")
    return folder, version


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir()) if path.is_dir() else []


def _versions(path: Path) -> list[Path]:
    """The versions of a set that were prepared to their end."""
    return [
        p
        for p in _folders(path)
        if (p / INFO).is_file() and all(part.isdecimal() for part in p.name.split("."))
    ]


def _decode(path: Path, name: str, split: str) -> dict[str, np.ndarray]:
    import tensorflow_datasets as tfds

    builder: Any = tfds.builder_from_directory(path)
    sizes = ", ".join(f"{part} ({info.num_examples})" for part, info in builder.info.splits.items())
    try:
        with _quiet():
            source = builder.as_data_source(split=split)
            count = len(source)
            first = source[0] if count else {}
    except ValueError as error:
        said = " ".join(str(error).split())
        if "length" in said:
            said = "it holds no examples"
        raise Refused(f"split={split!r} of {name}: {said}; there are: {sizes}") from None
    arrays = {}
    for feature, value in first.items():
        value = np.asarray(value)
        if value.dtype.kind in "biuf":
            arrays[feature] = np.empty((count, *value.shape), value.dtype)
    for begin in range(0, count, 256):
        rows = range(begin, min(begin + 256, count))
        for row, example in zip(rows, source.__getitems__(list(rows)), strict=True):
            for feature in [f for f, a in arrays.items() if np.shape(example[f]) != a.shape[1:]]:
                del arrays[feature]  # of many shapes, as sentences and photographs are
            for feature, array in arrays.items():
                array[row] = example[feature]
    return {feature: _narrow(array) for feature, array in arrays.items()}


def _narrow(array: np.ndarray) -> np.ndarray:
    """int64 as int32, which JAX would make of it by itself, where nothing is lost."""
    limits = np.iinfo(np.int32)
    if array.dtype == np.int64 and limits.min <= array.min() and array.max() <= limits.max:
        return array.astype(np.int32)
    return array


def _read(file: Path) -> dict[str, np.ndarray] | None:
    """What was kept; None: nothing was, or its checksums (a zip file has them) do not hold."""
    try:
        with file.open("rb") as handle, np.load(handle, allow_pickle=False) as arrays:
            return {name.removeprefix(FEATURE): arrays[name] for name in arrays}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _keep(file: Path, arrays: dict[str, np.ndarray]) -> None:
    """Keeps arrays, in one move; where nothing may be written they are decoded again next time."""
    unfinished = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with contextlib.suppress(OSError):
        try:
            file.parent.mkdir(exist_ok=True)
            with unfinished.open("wb") as handle:
                # With a prefix, or a feature named `file` would be an argument of savez.
                savez: Any = np.savez
                savez(handle, **{FEATURE + name: array for name, array in arrays.items()})
            unfinished.replace(file)
        finally:
            unfinished.unlink(missing_ok=True)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """TFDS recommends OpenCV each time an image is decoded without it."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
