"""Checkpoints that are verified before they are believed: Orbax, and a manifest of checksums.

A step is a directory `<directory>/<step>`, written by Orbax's CheckpointManager, which commits it by
a rename. Then `manifest.json` is written into it, the size and the SHA-256 of every file: a step is
*intact* if it has a manifest and every file is as listed. Nothing is restored from what is not
intact, nothing that holds NaN is saved, and nothing is written over a step that is intact.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import SingleDeviceSharding

from jaxdist import cluster
from jaxdist.algorithms.base import check_period

PyTree = Any

MANIFEST = "manifest.json"
FORMAT = 1
# What a file claims to be JSON may have at most so many bytes; it is looked at before it is read.
JSON_BYTES = 16 * 2**20
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
      directory: holds one directory per step; made if need be.
      step: the number of this step.
      state: a `State`, or any pytree, of JAX arrays; keys (`jax.random.key`) among them are welcome.
      extra: what else to remember, anything that JSON gives back as it was.
      keep: how many steps, this one and those before it, to leave in the directory; None: all.

    Raises:
      ValueError: a leaf that holds NaN or is no JAX array, an `extra` that JSON would change, a step
        that is there already. Nothing was touched.
    """
    check_period("step", step, least=0)
    if keep is not None:
        check_period("keep", keep)
    root = _root(directory)
    leaves = _named(state)
    _check_values(leaves)
    about = {"format": FORMAT, "extra": _as_json(extra), "leaves": _signature(leaves)}
    if len(json.dumps(about)) > JSON_BYTES:
        raise ValueError(f"extra and the names of all leaves exceed {JSON_BYTES} bytes of JSON")
    path = root / str(step)
    exists = path.exists() and path != _cut_short(root)
    if exists and not _fault(path):
        raise ValueError(f"step {step} is in {root} already, intact, and is not overwritten")
    cluster.barrier("found", step)
    if jax.process_index() == 0:
        root.mkdir(parents=True, exist_ok=True)
        _clean(root)
        if exists:
            path.rename(_unused(path))
        (root / SAVING).write_text(str(step), "utf-8")
    cluster.barrier("cleaned", step)
    arrays = {str(i): _data(x) for i, (_, x) in enumerate(leaves) if x.size}
    with _manager(root, read_only=False) as manager:
        saved = manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
            force=True,
        )
        manager.wait_until_finished()
    if not saved or not path.is_dir():
        raise RuntimeError(f"Orbax did not save step {step} in {root}")
    if jax.process_index() == 0:
        _write_manifest(path)
        (root / SAVING).unlink()
        if keep is not None:
            # Newer steps are of a run that was given up: they neither count nor go.
            mine = [s for s in steps(root) if s <= step and (root / str(s) / MANIFEST).exists()]
            for old in mine[:-keep]:
                gone = (root / str(old)).rename(root / f"{old}{UNFINISHED}")
                shutil.rmtree(gone)
    cluster.barrier("saved", step)


def restore(
    directory: str | os.PathLike[str],
    like: PyTree,
    *,
    step: int | None = None,
) -> Restored | None:
    """Restores the newest step that is intact, bit for bit, on whatever devices `like` is on.

    Args:
      directory: what `save` was given.
      like: what is expected: a state of arrays or of `jax.ShapeDtypeStruct` with shardings, which need
        not be those the state was saved with. Where there is none, the first device is taken.
      step: only this one; None: the newest, or the newest before those that are refused.

    Returns:
      A `Restored`; None if the directory holds no step at all.

    Raises:
      ValueError: every step is refused (all are listed), or the step is intact and has another tree,
        other shapes or other dtypes than `like`: nothing is cast, and no older step is tried.
    """
    root = _root(directory)
    leaves = _named(like)
    present = steps(root)
    if step is not None:
        if step not in present:
            raise ValueError(f"there is no step {step} in {root}; there are: {present}")
        present = [step]
    if not present:
        return None
    said: list[str] = []
    for number in reversed(present):
        path = root / str(number)
        if fault := _fault(path):
            said.append(f"step {number} refused: {fault}")
            continue
        try:
            about = _read_about(path)
        except (OSError, ValueError) as error:
            said.append(f"step {number} refused: {_line(error)}")
            continue
        _check_fits(number, about["leaves"], _signature(leaves))
        arrays = _read_arrays(root, number, leaves)
        state = jax.tree.unflatten(jax.tree.structure(like), arrays)
        _check_fits(number, _signature(_named(state)), _signature(leaves))
        return Restored(state, number, about["extra"], tuple(said))
    raise ValueError(f"no step in {root} can be restored:\n  " + "\n  ".join(said))


def steps(directory: str | os.PathLike[str]) -> list[int]:
    """The committed steps in a directory, oldest first, intact or not."""
    root = _root(directory)
    gone = _cut_short(root)
    names = [p.name for p in root.iterdir() if p.is_dir() and p != gone] if root.is_dir() else []
    return sorted(int(n) for n in names if n.isascii() and n.isdecimal() and n == str(int(n)))


def _root(directory: str | os.PathLike[str]) -> Path:
    if "://" in os.fspath(directory):
        raise ValueError(f"{directory} is no path of a file system; mount it, and write the path")
    return Path(directory).absolute()


def _manager(root: Path, *, read_only: bool) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        create=False, read_only=read_only, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(root, options=options)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax warns that a directory opened for reading is read only."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _named(tree: PyTree) -> list[tuple[str, Any]]:
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path).lstrip("."), leaf) for path, leaf in flat]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _data(x: Any) -> jax.Array:
    return jax.random.key_data(x) if _is_key(x) else x


def _signature(leaves: list[tuple[str, Any]]) -> list[Any]:
    for name, x in leaves:
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise ValueError(f"{name} is {x!r}, no array; write jnp.asarray({x!r})")
    return [[name, list(x.shape), str(x.dtype)] for name, x in leaves]


def _check_values(leaves: list[tuple[str, Any]]) -> None:
    checks: list[tuple[str, jax.Array]] = []
    for name, x in leaves:
        if not isinstance(x, jax.Array):
            raise ValueError(f"{name} is a {type(x).__name__}, no JAX array; use jnp.asarray")
        if jnp.issubdtype(x.dtype, jnp.inexact):
            # Infinity is a value that rules start from (the best loss so far).
            checks.append((name, jnp.isnan(x).any()))
    if bad := [name for name, nan in checks if bool(nan)]:
        raise ValueError(f"not saved, there is NaN in: {', '.join(bad)}")


def _as_json(extra: dict[str, Any] | None) -> dict[str, Any]:
    extra = {} if extra is None else extra
    try:
        same = json.loads(json.dumps(extra, allow_nan=False)) == extra
    except (TypeError, ValueError) as error:
        raise ValueError(f"extra can not be written as JSON: {_line(error)}") from error
    if not same or not isinstance(extra, dict):
        raise ValueError("extra must be a dict that JSON gives back as it is: str keys, no tuples")
    return extra


def _files(path: Path) -> dict[str, Path]:
    found = {p.relative_to(path).as_posix(): p for p in sorted(path.rglob("*")) if p.is_file()}
    return {name: p for name, p in found.items() if name not in (MANIFEST, f"{MANIFEST}.tmp")}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sum(files: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _write_manifest(path: Path) -> None:
    files = {name: [p.stat().st_size, _sha256(p)] for name, p in _files(path).items()}
    text = json.dumps({"format": FORMAT, "files": files, "sha256": _own_sum(files)}, indent=1)
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


def _read_json(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > JSON_BYTES:
        raise ValueError(f"{path.name} has {size} bytes, at most {JSON_BYTES} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is no JSON: {_line(error)}") from error
    if not isinstance(value, dict) or value.get("format") != FORMAT:
        raise ValueError(f"{path.name} is not of format {FORMAT}")
    return value


def _fault(path: Path) -> str:
    """What is wrong with a step, in one line; empty: it is intact."""
    if not (path / MANIFEST).exists():
        return f"it has no {MANIFEST}, its save was cut short"
    try:
        manifest = _read_json(path / MANIFEST)
        listed = manifest.get("files")
        if not isinstance(listed, dict) or _own_sum(listed) != manifest.get("sha256"):
            return f"{MANIFEST} does not have the checksum it states"
        found = _files(path)
        if lost := sorted(listed.keys() - found.keys()):
            return f"{lost[0]} is missing"
        if more := sorted(found.keys() - listed.keys()):
            return f"{more[0]} is not in {MANIFEST}"
        for name, (size, checksum) in listed.items():
            if found[name].stat().st_size != size:
                return f"{name} has {found[name].stat().st_size} bytes, not {size}"
            if _sha256(found[name]) != checksum:
                return f"{name} has another checksum"
    except (OSError, ValueError, TypeError) as error:
        return _line(error)
    return ""


def _read_about(path: Path) -> dict[str, Any]:
    for name, file in _files(path).items():
        # Orbax reads these; the arrays lie elsewhere and are bounded by the shapes of `like`.
        if file.name.startswith("_") and file.stat().st_size > JSON_BYTES:
            raise ValueError(f"{name} has {file.stat().st_size} bytes, at most {JSON_BYTES}")
    about = _read_json(path / "about" / "metadata")
    leaves, extra = about.get("leaves"), about.get("extra")
    described = isinstance(leaves, list) and all(
        isinstance(x, list) and len(x) == 3 for x in leaves
    )
    if not described or not isinstance(extra, dict):
        raise ValueError("about/metadata lacks leaves or extra")
    return about


def _read_arrays(root: Path, step: int, leaves: list[tuple[str, Any]]) -> list[jax.Array]:
    targets: dict[str, jax.ShapeDtypeStruct] = {}
    for i, (_, x) in enumerate(leaves):
        if x.size:
            data = jax.eval_shape(_data, jax.ShapeDtypeStruct(x.shape, x.dtype))
            targets[str(i)] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_sharding(x))
    _check_stored(root / str(step) / "state", targets)
    with _quiet(), _manager(root, read_only=True) as manager:
        read = manager.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        )["state"]
    return [_finished(read.get(str(i)), x) for i, (_, x) in enumerate(leaves)]


def _check_stored(path: Path, targets: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses arrays whose files state another shape or dtype: Orbax would cast them in silence."""
    stored: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(path))
    stored = getattr(stored, "tree", stored)
    for name, target in targets.items():
        has = tuple(stored[name].shape), jnp.dtype(stored[name].dtype)
        if has != (target.shape, target.dtype):
            raise ValueError(f"array {name} is {has[1]}{list(has[0])} in its files")


def _sharding(x: Any) -> Any:
    return getattr(x, "sharding", None) or SingleDeviceSharding(jax.local_devices()[0])


def _finished(read: jax.Array | None, like: Any) -> jax.Array:
    """Makes keys of the data of keys, and the arrays that have no elements."""
    if not _is_key(like):
        return (
            jax.device_put(jnp.zeros(like.shape, like.dtype), _sharding(like))
            if read is None
            else read
        )
    impl: list[Any] = []
    shape = jax.ShapeDtypeStruct(like.shape, like.dtype)
    data = jax.eval_shape(lambda k: (impl.append(jax.random.key_impl(k)), _data(k))[1], shape)
    read = jnp.zeros(data.shape, data.dtype) if read is None else read
    return jax.device_put(jax.random.wrap_key_data(read, impl=impl[0]), _sharding(like))


def _check_fits(step: int, saved: list[Any], wanted: list[Any]) -> None:
    """Refuses another tree, other shapes, other dtypes, with the leaves named."""
    names = [[str(leaf[0]) for leaf in leaves] for leaves in (saved, wanted)]
    if names[0] != names[1]:
        lost, more = sorted({*names[1]} - {*names[0]}), sorted({*names[0]} - {*names[1]})
        raise ValueError(
            f"step {step} has another tree: it lacks {lost[:3]} and has {more[:3]} besides; restore it "
            "with the algorithm, the rule and the model it was saved with"
        )
    for (name, *has), (_, *wants) in zip(saved, wanted, strict=True):
        for what, a, b in zip(("shape", "dtype"), has, wants, strict=True):
            if a != b:
                raise ValueError(f"step {step}: {name} has {what} {a}, and {b} is expected")


def _cut_short(root: Path) -> Path | None:
    """The step whose save a kill cut short after Orbax had committed it."""
    try:
        step = root / (root / SAVING).read_text("utf-8")
    except OSError:
        return None
    named = step.name.isascii() and step.name.isdecimal() and step.parent == root
    return step if named and step.is_dir() and not (step / MANIFEST).exists() else None


def _clean(root: Path) -> None:
    if gone := _cut_short(root):
        shutil.rmtree(gone.rename(gone.with_name(f"{gone.name}{UNFINISHED}")))
    for path in root.iterdir():
        if UNFINISHED in path.name and path.name.split(".")[0].isdecimal() and path.is_dir():
            shutil.rmtree(path)


def _unused(path: Path) -> Path:
    number = 1
    while (other := path.with_name(f"{path.name}.refused-{number}")).exists():
        number += 1
    return other


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
