"""The checksums of a checkpoint: what is written beside it, and what is wrong with it, in a line."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from jaxdist.errors import Refused

MANIFEST = "manifest.json"
FORMAT = 1
# What a file claims to be JSON may have at most so many bytes; it is looked at before it is read.
JSON_BYTES = 16 * 2**20


def files(path: Path) -> dict[str, Path]:
    """Every file below a step by its name, the manifest left out."""
    every = sorted((p for p in path.rglob("*") if p.is_file()), key=str)
    found = {"/".join(p.relative_to(path).parts): p for p in every}
    return {name: p for name, p in found.items() if name not in (MANIFEST, f"{MANIFEST}.tmp")}


def saved(directory: Path) -> list[int]:
    """The steps in a local directory that were saved to their end, by their manifests; damaged or not."""
    names = [path.parent.name for path in directory.glob(f"*/{MANIFEST}")]
    return sorted(int(name) for name in names if name.isdecimal())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sum(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def write(path: Path) -> None:
    """Lists the files of a step, for good: the list is on disk when this returns."""
    listed = {name: [p.stat().st_size, _sha256(p)] for name, p in files(path).items()}
    text = json.dumps({"format": FORMAT, "files": listed, "sha256": _own_sum(listed)}, indent=1)
    unfinished = path / f"{MANIFEST}.tmp"
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path / MANIFEST)
    entry = os.open(path, os.O_RDONLY)
    try:
        os.fsync(entry)
    finally:
        os.close(entry)


def read_json(path: Path) -> dict[str, Any]:
    """An object of our format; a Refused says what else a file is."""
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise Refused(f"{path.name} has {size} bytes, at most {JSON_BYTES} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{path.name} is no JSON: {line(error)}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        found = value.get("format") if isinstance(value, dict) else None
        newer = isinstance(found, int) and found > FORMAT
        raise Refused(
            f"{path.name} is of format {str(found)[:20]}, and this jaxdist reads {FORMAT}"
            + ("; a newer one wrote it: install that" if newer else "")
        )
    return value


def fault(path: Path, *, sums: bool = True) -> str:
    """What is wrong with a step, in one line; empty: it is intact.

    Args:
      path: the step's directory.
      sums: False: only names and sizes are looked at.
    """
    if not (path / MANIFEST).exists():
        return f"it has no {MANIFEST}, its save was cut short"
    try:
        manifest = read_json(path / MANIFEST)
        listed = manifest.get("files")
        if not isinstance(listed, dict) or _own_sum(listed) != manifest.get("sha256"):
            return f"{MANIFEST} does not have the checksum it states"
        found = files(path)
        if lost := sorted(listed.keys() - found.keys()):
            return f"{lost[0]} is missing"
        if more := sorted(found.keys() - listed.keys()):
            return f"{more[0]} is not in {MANIFEST}"
        for name, (size, checksum) in listed.items():
            if found[name].stat().st_size != size:
                return f"{name} has {found[name].stat().st_size} bytes, not {size}"
            if sums and _sha256(found[name]) != checksum:
                return f"{name} has another checksum"
    except (OSError, ValueError, TypeError) as error:
        return line(error)
    return ""


def line(error: BaseException) -> str:
    """An error in one line; of a long one its beginning, and its end, where most say the cause."""
    text = " ".join(str(error).split())
    short = text if len(text) <= 200 else f"{text[:100]} ... {text[-100:]}"
    return f"{type(error).__name__}: {short}"
