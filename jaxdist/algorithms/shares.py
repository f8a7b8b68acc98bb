"""A flat share of the parameters for every worker: what a sharded server, or optimizer, works on.

Leaves of one dtype are joined end to end, padded with zeros to a multiple of the number of workers,
and cut into equal rows; row i is worker i's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def split(tree: PyTree, workers: int) -> list[jax.Array]:
    """A pytree as one array `[workers, ...]` for each dtype.

    >>> [rows.shape for rows in split({"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, 4)]
    [(4, 3)]
    """
    leaves = jax.tree.leaves(tree)
    rows = []
    for own in _by_dtype(leaves):
        flat = jnp.concatenate([leaves[i].ravel() for i in own])
        rows.append(jnp.pad(flat, (0, -len(flat) % workers)).reshape(workers, -1))
    return rows


def join(rows: list[jax.Array], like: PyTree) -> PyTree:
    """The pytree that was split, from all its rows; `like` tells structure, shapes and dtypes."""
    leaves, structure = jax.tree.flatten(like)
    out: list[Any] = [None] * len(leaves)
    for own, one in zip(_by_dtype(leaves), rows, strict=True):
        ends = np.cumsum([leaves[i].size for i in own]).tolist()
        for i, part in zip(own, jnp.split(one.ravel(), ends)[:-1], strict=True):
            out[i] = part.reshape(leaves[i].shape)
    return jax.tree.unflatten(structure, out)


def _by_dtype(leaves: list[Any]) -> list[list[int]]:
    groups: dict[Any, list[int]] = {}
    for i, x in enumerate(leaves):
        groups.setdefault(x.dtype, []).append(i)
    return list(groups.values())


def rows(tree: PyTree, workers: int) -> PyTree:
    """Every leaf by itself as `[workers, n]`: structure and paths stay what they are.

    >>> jax.tree.map(jnp.shape, rows({"w": jnp.ones((3, 2)), "b": jnp.ones(3)}, 4))
    {'b': (4, 1), 'w': (4, 2)}
    """
    return jax.tree.map(lambda x: split(x, workers)[0], tree)


def unrows(tree: PyTree, like: PyTree) -> PyTree:
    """The pytree that `rows` was given; `like` tells its shapes."""
    return jax.tree.map(lambda x, of: join([x], of), tree, like)
