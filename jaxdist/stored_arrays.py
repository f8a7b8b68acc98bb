"""The arrays of a checkpoint, as Orbax writes and reads them."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from jaxdist.errors import Refused

PyTree = Any


def named(tree: PyTree) -> list[tuple[str, Any]]:
    """The leaves of a pytree with their paths."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return [(jax.tree_util.keystr(path).lstrip("."), leaf) for path, leaf in flat]


def _is_key(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def data_of(x: Any) -> jax.Array:
    """The numbers that make up a leaf: its own, or those of its keys."""
    return jax.random.key_data(x) if _is_key(x) else x


def signature(leaves: list[tuple[str, Any]]) -> list[Any]:
    """Path, shape and dtype of every leaf, as JSON; refuses what is no array."""
    for name, x in leaves:
        if not (hasattr(x, "shape") and hasattr(x, "dtype")):
            raise Refused(f"{name} is {x!r}, no array; write jnp.asarray({x!r})")
    return [[name, list(x.shape), str(x.dtype)] for name, x in leaves]


def arrays_of(leaves: list[tuple[str, Any]]) -> dict[str, jax.Array]:
    """The numbers of every leaf that has some, by its place."""
    return {str(i): data_of(x) for i, (_, x) in enumerate(leaves) if x.size}


def whole(x: Any) -> np.ndarray:
    """A whole array, in every process."""
    if isinstance(x, np.ndarray) or x.is_fully_addressable:
        return np.asarray(x)
    if x.is_fully_replicated:
        return np.asarray(x.addressable_data(0))
    return multihost_utils.process_allgather(x, tiled=True)


def gathered(arrays: dict[str, Any]) -> dict[str, Any]:
    """The same arrays, all of each in the first process, so that it can write them alone."""
    return arrays if jax.process_count() == 1 else {name: whole(x) for name, x in arrays.items()}


def _manager(root: Path, *, read_only: bool, alone: bool = False) -> ocp.CheckpointManager:
    # Named processes meet at the coordinator; unnamed ones would in a program on their devices, and
    # that is not for a thread beside the loop.
    count = jax.process_count()
    meet = None if count == 1 else {0} if alone else {*range(count)}
    options = ocp.CheckpointManagerOptions(
        create=False,
        read_only=read_only,
        enable_async_checkpointing=False,
        multiprocessing_options=ocp.options.MultiprocessingOptions(active_processes=meet),
    )
    manager = ocp.CheckpointManager(root, options=options)
    # Only the loop asks JAX whether to stop: a question about an earlier step, from the thread that saves,
    # would move the step at which all are to stop behind the loop, which then never hears of it.
    manager.reached_preemption = _not_asked
    return manager


def _not_asked(step: int) -> bool:
    return False


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


def write(
    root: Path, step: int, arrays: dict[str, Any], about: dict[str, Any], *, alone: bool = False
) -> bool:
    """Writes a step, and whether Orbax says that it did.

    Args:
      root: the directory of all steps.
      step: its number.
      arrays: what `arrays_of` returned, or the same on the host.
      about: JSON to lie beside them.
      alone: no other process writes a part of it.
    """
    with _manager(root, read_only=False, alone=alone) as orbax:
        saved = orbax.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(arrays), about=ocp.args.JsonSave(about)
            ),
            force=True,
        )
        orbax.wait_until_finished()
    return saved


def read(root: Path, step: int, leaves: list[tuple[str, Any]]) -> list[jax.Array]:
    """The leaves of a step, where `leaves` are and of their shapes and dtypes; refuses others."""
    targets: dict[str, jax.ShapeDtypeStruct] = {}
    for i, (_, x) in enumerate(leaves):
        if x.size:
            data = jax.eval_shape(data_of, jax.ShapeDtypeStruct(x.shape, x.dtype))
            targets[str(i)] = jax.ShapeDtypeStruct(data.shape, data.dtype, sharding=_sharding(x))
    _check_stored(root / str(step) / "state", targets)
    with _quiet(), _manager(root, read_only=True) as orbax:
        found = orbax.restore(
            step, args=ocp.args.Composite(state=ocp.args.StandardRestore(targets))
        )["state"]
    return [_finished(found.get(str(i)), x) for i, (_, x) in enumerate(leaves)]


def _check_stored(path: Path, targets: dict[str, jax.ShapeDtypeStruct]) -> None:
    """Refuses arrays whose files state another shape or dtype: Orbax would cast them in silence."""
    stored: Any = ocp.StandardCheckpointHandler().metadata(epath.Path(path))
    stored = getattr(stored, "tree", stored)
    for name, target in targets.items():
        has = tuple(stored[name].shape), jnp.dtype(stored[name].dtype)
        if has != (target.shape, target.dtype):
            raise Refused(f"array {name} is {has[1]}{list(has[0])} in its files")


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
    data = jax.eval_shape(lambda k: (impl.append(jax.random.key_impl(k)), data_of(k))[1], shape)
    read = jnp.zeros(data.shape, data.dtype) if read is None else read
    return jax.device_put(jax.random.wrap_key_data(read, impl=impl[0]), _sharding(like))
