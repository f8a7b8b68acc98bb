"""Small arrays that travel together: one flat buffer for many leaves.

A message has a price of its own beside that of its bytes. Leaves of one dtype that are smaller than
the run's `bucket_bytes` are therefore joined; larger ones keep their shape and travel alone, so that
their transfers can overlap with each other and with compute.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxdist import worker

PyTree = Any


def pack(
    tree: PyTree, *, rows: bool = False
) -> tuple[list[jax.Array], Callable[[list[jax.Array]], PyTree]]:
    """Flattens a pytree into the buffers that travel, and tells how to undo it.

    Args:
      tree: this worker's arrays.
      rows: whether the leaves are `[rows, n]`, all of as many rows, and are joined row by row.

    Returns:
      The buffers, and a function from such buffers back to a pytree like `tree`; with `rows`, of as
      many rows as it is given.
    """
    leaves, structure = jax.tree.flatten(tree)
    leaves = [worker.vary(jnp.asarray(x)) for x in leaves]
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        alone = x.size * x.dtype.itemsize >= worker.bucket_bytes()
        groups.setdefault(i if alone else x.dtype, []).append(i)

    buffers = [
        leaves[own[0]]
        if len(own) == 1
        else jnp.concatenate([leaves[i] if rows else leaves[i].ravel() for i in own], -1)
        for own in groups.values()
    ]

    def restore(mixed: list[jax.Array]) -> PyTree:
        out: list[Any] = [None] * len(leaves)
        for own, buffer in zip(groups.values(), mixed, strict=True):
            if len(own) == 1:
                out[own[0]] = buffer
                continue
            sizes = [leaves[i].shape[-1] if rows else leaves[i].size for i in own]
            parts = jnp.split(buffer, np.cumsum(sizes)[:-1].tolist(), -1)
            for i, part in zip(own, parts, strict=True):
                out[i] = part if rows else part.reshape(leaves[i].shape)
        return jax.tree.unflatten(structure, out)

    return buffers, restore
