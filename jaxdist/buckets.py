"""Small arrays that travel together: one flat buffer for many leaves.

A message has a price of its own beside that of its bytes. Leaves of one dtype that are smaller than
the run's `bucket_bytes` are therefore joined; larger ones keep their shape and travel alone, so that
their transfers can overlap with each other and with compute.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import worker

PyTree = Any


def pack(
    tree: PyTree, *, leading: int = 0
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]:
    """Flattens a pytree into the buffers that travel, and tells how to undo it.

    Args:
      tree: this worker's arrays.
      leading: how many first axes all leaves have in common and keep.

    Returns:
      The buffers, and a function from such buffers back to a pytree like `tree`. The buffers that it is
      given may have further axes in front; so will the leaves.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [worker.vary(jnp.asarray(x)) for x in leaves]
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alone = x.size * x.dtype.itemsize >= worker.bucket_bytes()
        groups.setdefault(i if alone else x.dtype, []).append(i)

    def flat(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:leading], -1)

    buffers = [
        leaves[own[0]]
        if len(own) == 1
        else jnp.concatenate([flat(leaves[i]) for i in own], leading)
        for own in groups.values()
    ]

    def restore(mixed: list[jax.Array]) -> PyTree:
        out: list[Any] = [None] * len(leaves)
        for own, buffer in zip(groups.values(), mixed, strict=True):
            if len(own) == 1:
                out[own[0]] = buffer
                continue
            shapes = [leaves[i].shape[leading:] for i in own]
            ends = np.cumsum([math.prod(shape) for shape in shapes])[:-1].tolist()
            for i, shape, part in zip(own, shapes, jnp.split(buffer, ends, axis=-1), strict=True):
                out[i] = part.reshape(*part.shape[:-1], *shape)
        return jax.tree.unflatten(structure, out)

    return buffers, restore
