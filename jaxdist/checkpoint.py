"""Checkpoints that are verified before they are believed: Orbax, and a manifest of checksums.

A step is a directory `<directory>/<step>`, written by Orbax's CheckpointManager, which commits it by
a rename. Then `manifest.json` is written into it, the size and the SHA-256 of every file: a step is
*intact* if it has a manifest and every file is as listed. Nothing is restored from what is not
intact, nothing that holds NaN is saved, and nothing is written over a step that is intact.

A directory may be a URL (`jaxdist/store.py`). Then a step is written to a temporary directory of this host,
copied, its manifest last, and for restoring it is copied back and verified here.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import cluster, fail_fast, manifest, progress, scratch, store, stored_arrays
from jaxdist.algorithms.base import check_period
from jaxdist.errors import NoRoom, NotFinite, NothingIntact, Refused

PyTree = Any

# Orbax names so what it has not committed; what is being deleted is called the same.
UNFINISHED = ".orbax-checkpoint-tmp"
# Holds the number of the step that is being saved, from before Orbax begins until the manifest is there:
# a step of that number without a manifest was cut short by a kill, and never was a checkpoint.
SAVING = "saving"


class Restored(NamedTuple):
    """What was found.

    Attributes:
      state: the state, with the tree, the dtypes and the shardings of `like`.
      step: the step it was saved at.
      extra: the dict that was saved with it.
      said: one line for each newer step that was refused: which and why. Show them.
    """

    state: PyTree
    step: int
    extra: dict[str, Any]
    said: tuple[str, ...]


class Ready(NamedTuple):
    """A state that may be saved, as what is written.

    Attributes:
      about: what is remembered with it, JSON.
      arrays: the numbers of every leaf, by its place.
    """

    about: dict[str, Any]
    arrays: dict[str, Any]


def save(
    directory: str | os.PathLike[str],
    step: int,
    state: PyTree,
    *,
    extra: dict[str, Any] | None = None,
    keep: int | None = None,
) -> None:
    """Saves a state, and returns when it is on disk and verifiable.

    With several processes all of them call this, and `directory` is one that all of them see. What
    a killed save left is removed first. A step of this number that is there and *not* intact is
    set aside as `<step>.refused-<n>`.

    Args:
      directory: holds one directory per step; made if need be. With several processes a URL costs the
        memory of the whole state on each of their hosts, for the first one writes all of it.
      step: the number of this step.
      state: a `State`, or any pytree, of JAX arrays; keys (`jax.random.key`) among them are welcome.
      extra: what else to remember, anything that JSON gives back as it was.
      keep: how many steps, this one and those before it, to leave in the directory; None: all.

    Raises:
      NotFinite: a leaf holds NaN; names it, and the worker. Nothing was touched.
      Refused: a leaf that is no JAX array, an `extra` that JSON would change, a step that is there
        already. Nothing was touched.
      NoRoom: the step could not be written, because the disk is full above all. The steps before it
        are as they were; what was written of it is removed.
    """
    check_period("step", step, least=0)
    if keep is not None:
        check_period("keep", keep)
    write(directory, step, ready(state, extra=extra), keep=keep)


def ready(state: PyTree, *, extra: dict[str, Any] | None = None) -> Ready:
    """Checks a state that is to be saved; the arrays are its own, not copies.

    Raises:
      NotFinite: as `save`.
      Refused: as `save`.
    """
    leaves = stored_arrays.named(state)
    _check_values(leaves)
    about = {
        "format": manifest.FORMAT,
        "extra": _as_json(extra),
        "leaves": stored_arrays.signature(leaves),
    }
    if len(json.dumps(about)) > manifest.JSON_BYTES:
        raise Refused(
            f"extra and the names of all leaves exceed {manifest.JSON_BYTES} bytes of JSON"
        )
    return Ready(about, stored_arrays.arrays_of(leaves))


def write(
    directory: str | os.PathLike[str],
    step: int,
    ready: Ready,
    *,
    keep: int | None = None,
    check: Callable[[], None] = lambda: None,
    moved: Callable[[], None] = lambda: None,
) -> None:
    """What `save` does with a state that was checked. Computes nothing on the devices of others: a thread
    may call it while the loop goes on, where arrays need not be gathered for a URL.

    Args:
      directory: as of `save`.
      step: as of `save`.
      ready: what `ready` returned.
      keep: as of `save`.
      check: called before anything is changed, and before it counts; raises an OSError if that is not to be.
      moved: called in every process whenever a part of a file behind a URL was copied.

    Raises:
      Refused: as `save`.
      NoRoom: as `save`.
    """
    root = _root(directory)
    afar, first = store.afar(root), jax.process_index() == 0
    path = root / str(step)
    exists = path.exists() and path != _cut_short(root)
    if exists and not manifest.fault(path):
        raise Refused(f"step {step} is in {root} already, intact, and is not overwritten")
    arrays = stored_arrays.gathered(ready.arrays) if afar else ready.arrays
    cluster.barrier("found", step)
    copied = progress.of_first("copied", step, moved) if afar else None
    try:
        if first:
            check()
            store.make(root)
            _clean(root)
            if exists:
                store.move(path, _unused(path))
            store.write(root / SAVING, str(step))
        cluster.barrier("cleaned", step)
        with _here(root) as here:
            if first or not afar:
                saved = stored_arrays.write(here, step, arrays, ready.about, alone=bool(afar))
                if not saved or not (here / str(step)).is_dir():
                    raise NoRoom("Orbax did not write it")
            if first:
                check()
                manifest.write(here / str(step))
                if copied:
                    last = manifest.MANIFEST
                    store.upload(here / str(step), path, last=last, check=check, moved=copied.tell)
                (root / SAVING).unlink()
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and fail_fast.runtime_failed(error):
            raise  # of the coordinator: another process is gone, and no disk
        said = _not_saved(root, step, arrays, error)
        if first:
            # It makes room, and whatever it can not do is done by the next save.
            with contextlib.suppress(OSError):
                check()
                _clean(root)
        raise NoRoom(said) from error
    if first and keep is not None:
        # Newer steps are of a run that was given up: they neither count nor go.
        mine = [
            s for s in steps(root) if s <= step and (root / str(s) / manifest.MANIFEST).exists()
        ]
        for old in mine[:-keep]:
            check()
            _discard(root / str(old))
    if copied:  # which takes what it takes
        copied.end()
    cluster.barrier("saved", step)


def restore(
    directory: str | os.PathLike[str],
    like: PyTree,
    *,
    step: int | None = None,
) -> Restored | None:
    """Restores the newest step that is intact, bit for bit, on whatever devices `like` is on.

    Several processes take the same step: the newest that is intact for all of them.

    Args:
      directory: what `save` was given.
      like: what is expected: a state of arrays or of `jax.ShapeDtypeStruct` with shardings, which need
        not be those the state was saved with. Where there is none, the first device is taken.
      step: only this one; None: the newest, or the newest before those that are refused.

    Returns:
      A `Restored`; None if the directory holds no step at all.

    Raises:
      NothingIntact: every step is refused (all are listed); a `Refused`.
      Refused: the step is intact and has another tree, other shapes or other dtypes than `like`:
        nothing is cast, and no older step is tried.
    """
    root = _root(directory)
    leaves = stored_arrays.named(like)
    present = cluster.everyone("steps", steps(root))[0]
    if step is not None:
        if step not in present:
            raise Refused(f"there is no step {step} in {root}; there are: {present}")
        present = [step]
    if not present:
        return None
    said: list[str] = []
    for number in reversed(present):
        with _here(root) as here:
            about, fault = _fetched(root / str(number), here / str(number))
            found = [
                "a process said nothing of it" if x is None else x
                for x in cluster.everyone("fault", fault)
            ]
            if fault := next(filter(None, found), ""):
                said.append(f"step {number} refused: {fault}")
                continue
            _check_fits(number, about["leaves"], stored_arrays.signature(leaves))
            arrays = stored_arrays.read(here, number, leaves)
        state = jax.tree.unflatten(jax.tree.structure(like), arrays)
        _check_fits(
            number,
            stored_arrays.signature(stored_arrays.named(state)),
            stored_arrays.signature(leaves),
        )
        return Restored(state, number, about["extra"], tuple(said))
    raise NothingIntact(
        f"no step in {root} can be restored, and none begins anew: choose another folder, or remove them:\n  "
        + "\n  ".join(said)
    )


def set_aside(directory: str | os.PathLike[str], *, after: int) -> list[str]:
    """Gives every step after one that was restored another name, `<step>.refused-<n>`.

    All of them were refused. A run that goes on from the older one would take them for saved when it comes
    to them, and for some of those that it keeps.

    Args:
      directory: as of `restore`. With several processes all call this, and the first one does it.
      after: the step that was restored.

    Returns:
      One line for each, on the first process.
    """
    root = _root(directory)
    said = []
    for number in steps(root) if jax.process_index() == 0 else ():
        if number > after:
            kept = _unused(root / str(number))
            store.move(root / str(number), kept)
            said.append(f"step {number} is set aside as {kept.name}")
    return said


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The committed steps in a directory, oldest first, intact or not."""
    root = _root(directory)
    gone = _cut_short(root)
    names = [p.name for p in store.children(root) if p.is_dir() and p != gone]
    return sorted(int(n) for n in names if n.isascii() and n.isdecimal() and n == str(int(n)))


def _root(directory: str | os.PathLike[str]) -> Path:
    root = store.folder(directory)
    return root if store.afar(root) else root.absolute()


@contextlib.contextmanager
def _here(root: Path) -> Iterator[Path]:
    """Where Orbax writes and reads the steps of a directory: there, or on this host for one behind a URL."""
    if not store.afar(root):
        yield root
        return
    with scratch.folder() as folder:
        yield folder


def _fetched(path: Path, here: Path) -> tuple[dict[str, Any], str]:
    """What a step says of itself, and what is wrong with it; one behind a URL is copied to `here`."""
    try:
        if path != here:
            # No more is copied than the manifest lists.
            if fault := manifest.fault(path, sums=False):
                return {}, fault
            store.download(path, here, [*manifest.files(path), manifest.MANIFEST])
        if fault := manifest.fault(here):
            return {}, fault
        return _read_about(here), ""
    except (OSError, ValueError) as error:
        return {}, manifest.line(error)


def _not_saved(root: Path, step: int, arrays: dict[str, Any], error: Exception) -> str:
    said = f"step {step} was not saved in {root}: {manifest.line(error)}"
    if store.afar(root):
        return said
    needed = sum(x.nbytes for x in arrays.values())
    free = store.free_bytes(root)
    return (
        f"{said}. It needs {needed:,} bytes and there are {'no' if free is None else f'{free:,}'} free; "
        f"make room and write --resume auto, there are steps {steps(root)}"
    )


def _check_values(leaves: list[tuple[str, Any]]) -> None:
    checks: list[tuple[str, jax.Array, jax.Array]] = []
    for name, x in leaves:
        if not isinstance(x, jax.Array):
            raise Refused(f"{name} is a {type(x).__name__}, no JAX array; use jnp.asarray")
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # Infinity is a value that rules start from (the best loss so far).
            checks.append((name, x, jnp.isnan(x).any()))
    if bad := [f"{name}{_whose(name, x)}" for name, x, nan in checks if bool(nan)]:
        raise NotFinite(f"not saved, there is NaN in: {', '.join(bad)}")


def _whose(name: str, x: jax.Array) -> str:
    """Which worker has NaN, of what each keeps for itself in a `State`."""
    if not name.startswith("local") or not x.ndim:
        return ""
    rows = jnp.isnan(x).reshape(len(x), -1).any(1)
    return f" of worker {np.flatnonzero(stored_arrays.whole(rows))[0]}"


def _as_json(extra: dict[str, Any] | None) -> dict[str, Any]:
    extra = {} if extra is None else extra
    try:
        same = json.loads(json.dumps(extra, allow_nan=False)) == extra
    except (TypeError, ValueError) as error:
        raise Refused(f"extra can not be written as JSON: {manifest.line(error)}") from error
    if not same or not isinstance(extra, dict):
        raise Refused("extra must be a dict that JSON gives back as it is: str keys, no tuples")
    return extra


def _read_about(path: Path) -> dict[str, Any]:
    for name, file in manifest.files(path).items():
        # Orbax reads these; the arrays lie elsewhere and are bounded by the shapes of `like`.
        if file.name.startswith("_") and file.stat().st_size > manifest.JSON_BYTES:
            raise Refused(f"{name} has {file.stat().st_size} bytes, at most {manifest.JSON_BYTES}")
    about = manifest.read_json(path / "about" / "metadata")
    leaves, extra = about.get("leaves"), about.get("extra")
    described = isinstance(leaves, list) and all(
        isinstance(x, list) and len(x) == 3 for x in leaves
    )
    if not described or not isinstance(extra, dict):
        raise Refused("about/metadata lacks leaves or extra")
    return about


def _check_fits(step: int, saved: list[Any], wanted: list[Any]) -> None:
    """Refuses another tree, other shapes, other dtypes, with the leaves named."""
    names = [[str(leaf[0]) for leaf in leaves] for leaves in (saved, wanted)]
    if names[0] != names[1]:
        lost, more = sorted({*names[1]} - {*names[0]}), sorted({*names[0]} - {*names[1]})
        raise Refused(
            f"step {step} has another tree: it lacks {lost[:3]} and has {more[:3]} besides; restore it "
            "with the algorithm, the rule and the model it was saved with"
        )
    for (name, *has), (_, *wants) in zip(saved, wanted, strict=True):
        for what, a, b in zip(("shape", "dtype"), has, wants, strict=True):
            if a != b:
                raise Refused(f"step {step}: {name} has {what} {a}, and {b} is expected")


def _cut_short(root: Path) -> Path | None:
    """The step whose save a kill cut short after Orbax had committed it."""
    try:
        name = store.read(root / SAVING).decode("utf-8", "replace")
    except OSError:
        return None
    step = root / name if name.isascii() and name.isdecimal() else root
    named = step != root and step.is_dir() and not (step / manifest.MANIFEST).exists()
    return step if named else None


def _clean(root: Path) -> None:
    if gone := _cut_short(root):
        _discard(gone)
    for path in store.children(root):
        if UNFINISHED in path.name and path.name.split(".")[0].isdecimal() and path.is_dir():
            store.remove(path)


def _discard(path: Path) -> None:
    """Removes a step so that a kill leaves it whole, or as what is no step."""
    if not store.afar(path):
        gone = path.with_name(f"{path.name}{UNFINISHED}")
        store.move(path, gone)
        store.remove(gone)
        return
    # There is no rename: it becomes a step whose save was cut short.
    store.write(path.parent / SAVING, path.name)
    (path / manifest.MANIFEST).unlink(missing_ok=True)
    store.remove(path)
    (path.parent / SAVING).unlink()


def _unused(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.refused-{number}")).exists():
        number += 1
    return other
