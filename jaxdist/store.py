"""Folders behind a URL: the few file operations that are not the same there as on a local disk.

A folder is a `pathlib.Path`, or a `UPath` of universal_pathlib, which acts like one over the file systems of
fsspec: `gs://`, `s3://`, `file://`, `memory://`. A store has no rename and no fsync; one object is written
whole or not at all. So a step is copied there file by file, and its manifest last.
"""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

from jaxdist.errors import NoRoom, Refused

# What pip is to install for a scheme, where fsspec itself does not say.
PACKAGES = {
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "s3": "s3fs",
    "s3a": "s3fs",
    "az": "adlfs",
    "abfs": "adlfs",
}
EXTRA = "write pip install 'jaxdist[stores]'"


def folder(text: str | os.PathLike[str]) -> Path:
    """The folder that a path or a URL names.

    Raises:
      Refused: there is no such scheme, or its package is not installed; names the pip command. Or no
        file system has such a path: too long a name, a zero byte.

    >>> folder("runs/a")
    PosixPath('runs/a')
    """
    if not isinstance(text, str):
        return cast(Path, text)
    if "://" not in text:
        _check_path(text)
        return Path(text)
    scheme = text.split("://")[0]
    try:
        from upath import UPath
    except ImportError:
        raise Refused(f"{text}: URLs need the package universal_pathlib; {EXTRA}") from None
    try:
        # What others wrote a moment ago must be seen.
        found = UPath(text, use_listings_cache=False)
        found.fs.exists(found.path)
    except ImportError as error:
        package = PACKAGES.get(scheme)
        cure = f"write pip install {package}" if package else str(error)
        raise Refused(f"{text}: nothing here reads {scheme}://; {cure}") from None
    except Exception as error:
        # No such scheme, no such bucket, no right to it: each package has errors of its own.
        raise Refused(
            f"{text}: {' '.join(str(error).split())}; write a path, or gs://, s3://, file://"
        ) from None
    return cast(Path, found)


def _check_path(text: str) -> None:
    """Refuses what no file can be called; whether there is one is another question."""
    try:
        os.lstat(text)
    except ValueError as error:
        raise Refused(f"{text!r} is no path: {error}; write runs/NAME") from None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise Refused(f"{text!r} is no path: {error.strerror}; write runs/NAME") from None


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Inside, whatever the package of a store raises is an OSError."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise NoRoom(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def afar(path: Path) -> Any:
    """The file system of fsspec that a folder is in; None: the local disk's own."""
    return None if isinstance(path, Path) else cast(Any, path).fs


@answering()
def make(folder: Path) -> None:
    """Makes a folder where there are folders; in a store of objects there are none, only names with slashes.

    There a `mkdir` would do nothing, or make the bucket, which somebody may have misspelled.
    """
    fs = afar(folder)
    if fs is None or _renames(fs) or _schemes(fs) & {"memory"}:
        folder.mkdir(parents=True, exist_ok=True)


@answering()
def children(folder: Path) -> list[Path]:
    """What is in a folder; nothing where there is none.

    An empty folder of a store is no folder, and `Path.iterdir` raises what it raises of a file.
    """
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []


@answering()
def read(file: Path) -> bytes:
    """All of a file.

    Of an object `Path.read_bytes` asks for the size first, and then for that version of it: a writer in
    between makes it fail. This is one request.

    Raises:
      FileNotFoundError: there is none.
    """
    if fs := afar(file):
        return fs.cat_file(cast(Any, file).path)
    return file.read_bytes()


@answering()
def write(file: Path, data: str | bytes) -> None:
    """Writes a file so that a kill leaves the old text or the new one, and nothing between.

    Raises:
      OSError: it could not be written; nothing is left of it.
    """
    unfinished = file.with_name(file.name + ".tmp")
    data = data.encode() if isinstance(data, str) else data
    try:
        if fs := afar(file):
            _put(fs, file, unfinished, data)
            return
        with unfinished.open("wb") as handle:
            handle.write(data)
            handle.flush()
            os.fsync(handle.fileno())
        unfinished.replace(file)
    except OSError:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise


def _put(fs: Any, file: Path, unfinished: Path, data: bytes) -> None:
    if not _renames(fs):
        fs.pipe_file(cast(Any, file).path, data)
        return
    unfinished.write_bytes(data)
    fs.mv(cast(Any, unfinished).path, cast(Any, file).path)


def _renames(fs: Any) -> bool:
    """Whether it is a disk behind a URL, on which a file grows while it is written, and can be renamed."""
    return bool({"file", "local"} & _schemes(fs))


def _schemes(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else {*fs.protocol}


@answering()
def create(file: Path, text: str) -> bool:
    """Writes an object that is not there; False: it is.

    Exclusive where the file system of fsspec is (memory, gcsfs and s3fs ask their store for it); elsewhere
    two may both be told True.
    """
    fs, path = afar(file), cast(Any, file).path
    try:
        if _renames(fs):
            with open(path, "x", encoding="utf-8") as handle:
                handle.write(text)
        else:
            fs.pipe_file(path, text.encode(), mode="create")
    except FileExistsError:
        return False
    return True


@answering()
def upload(
    here: Path,
    there: Path,
    *,
    last: str,
    check: Callable[[], None],
    moved: Callable[[], None] = lambda: None,
) -> None:
    """Copies every file of a local folder; the one named `last` when all others are there.

    Args:
      here: the local folder.
      there: behind a URL; made if need be.
      last: a text, written whole or not at all.
      check: called before that; raises if it is not to be.
      moved: called after every file, and every part of one where its store tells of them.
    """
    from fsspec.callbacks import Callback

    parts = Callback(hooks={"moved": lambda size, value, **more: moved()})
    files = sorted(p for p in here.rglob("*") if p.is_file())
    for file in sorted(files, key=lambda p: p == here / last):
        target = there.joinpath(*file.relative_to(here).parts)
        make(target.parent)
        if file == here / last:
            check()
            write(target, file.read_text("utf-8"))
        else:
            afar(there).put_file(str(file), cast(Any, target).path, callback=parts)
        moved()


@answering()
def download(there: Path, here: Path, names: list[str]) -> None:
    """Copies files of these names, with slashes, into a local folder."""
    for name in names:
        target = here.joinpath(*name.split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        afar(there).get_file(cast(Any, there.joinpath(*name.split("/"))).path, str(target))


@answering()
def remove(folder: Path) -> None:
    """Removes a folder and all in it."""
    if fs := afar(folder):
        # Without a file in it, it is no folder any more.
        with contextlib.suppress(FileNotFoundError):
            fs.rm(cast(Any, folder).path, recursive=True)
    else:
        shutil.rmtree(folder)


@answering()
def move(folder: Path, to: Path) -> None:
    """Gives a folder another name; in a store file by file, for there are no folders."""
    if not (fs := afar(folder)):
        folder.rename(to)
        return
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        target = to.joinpath(*file.relative_to(folder).parts)
        make(target.parent)
        fs.cp_file(cast(Any, file).path, cast(Any, target).path)
    remove(folder)


def free_bytes(folder: Path) -> int | None:
    """How many bytes there is room for; None: nobody knows."""
    with contextlib.suppress(OSError):
        if not afar(folder):
            return shutil.disk_usage(folder).free
    return None


@contextlib.contextmanager
def told(folder: Path, what: str) -> Iterator[None]:
    """Inside, an error of the disk says what was not written, and how much room there is."""
    try:
        yield
    except OSError as error:
        free = free_bytes(folder)
        room = f"no {folder}" if free is None else f"{free:,} bytes free"
        raise NoRoom(
            f"{what} was not written in {folder}: {error.strerror or error}; there is {room}; make room, "
            "and write the same command again"
        ) from error
