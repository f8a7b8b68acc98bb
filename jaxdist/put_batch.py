"""Batches on devices: each leaf with its workers, each process only what its own devices get."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxdist.errors import Refused
from jaxdist.worker import AXIS

PyTree = Any


def put_batch(batch: PyTree, shardings: PyTree) -> PyTree:
    """Puts every leaf of a batch on the devices.

    Args:
      batch: leaves on the host or on devices.
      shardings: where each leaf is to lie.

    Raises:
      Refused: 64-bit integers that 32 bits do not hold, which JAX would cut without a word.
    """

    def put(path: Any, x: Any, where: NamedSharding) -> jax.Array:
        if isinstance(x, jax.Array):
            return jax.device_put(x, where)
        check_integers(f"batch{jax.tree_util.keystr(path)}", x)
        return put_whole(x, where)

    return jax.tree_util.tree_map_with_path(put, batch, shardings)


def put_whole(x: Any, where: Any) -> jax.Array:
    """Puts a value on the devices of all processes; each reads only what its own devices get."""
    if where.is_fully_addressable or not getattr(x, "is_fully_addressable", True):
        return jax.device_put(x, where)
    # Here device_put would first send the value around, to compare what the processes hold.
    return jax.make_array_from_callback(np.shape(x), where, lambda rows: np.asarray(x)[rows])


def examples_sharding(
    x: Any, mesh: Mesh, *, leading: int, spread: bool, examples: bool
) -> NamedSharding:
    """Where a leaf `[..., workers, examples, ...]` lies: with its workers.

    Args:
      x: the leaf.
      mesh: the devices.
      leading: how many axes stand before that of the workers.
      spread: whether a worker has several devices.
      examples: whether the leaf holds examples, which are then split over a worker's devices.
    """
    spec = [*[None] * leading, AXIS]
    count = np.shape(x)[leading + 1] if np.ndim(x) > leading + 1 else 0
    if spread and examples and "fsdp" in mesh.shape and count and count % mesh.shape["fsdp"] == 0:
        # The examples of a worker are split over its devices: each computes on its own part.
        spec.append("fsdp")
    return NamedSharding(mesh, PartitionSpec(*spec))


def check_integers(name: str, x: Any) -> None:
    """Refuses 64-bit integers that JAX would cut to 32 bits: an id of 2**33 + 5 would become 5.

    >>> check_integers("batch['ids']", np.array([7, 2**31 - 1]))
    >>> check_integers("batch['ids']", np.array([2**33 + 5]))
    Traceback (most recent call last):
    jaxdist.Refused: batch['ids'] holds 8589934597, ...
    """
    array = np.asarray(x)
    if array.dtype.kind not in "iu" or array.dtype.itemsize <= 4 or not array.size:
        return
    kept = jnp.iinfo(jax.dtypes.canonicalize_dtype(array.dtype))
    least, most = array.min(), array.max()
    if least < kept.min or most > kept.max:
        value = most if most > kept.max else least
        raise Refused(
            f"{name} holds {value}, which is cut to {kept.dtype} without 64-bit types: expected numbers "
            f"from {kept.min} to {kept.max}; number the ids anew, as np.unique(ids, return_inverse=True)[1], "
            'or write jax.config.update("jax_enable_x64", True)'
        )
