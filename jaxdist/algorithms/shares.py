"""A flat share of the parameters for every worker: what a sharded server, or optimizer, works on.

Leaves of one dtype are joined end to end, padded with zeros to a multiple of the number of workers,
and cut into equal rows; row i is worker i's.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

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


def check_elementwise(inner: optax.GradientTransformation) -> None:
    """Refuses a rule for which a vector is more than its parts, by trying it on one.

    A share knows nothing of the others: a norm, a trust ratio or a line search over it is not that
    over the parameters.
    """
    x = jnp.asarray([1.0, -2.0, 0.5, 3.0], jnp.float32)
    g = jnp.asarray([1e3, -3.0, 0.2, 1e-2], jnp.float32)

    def moves(x: jax.Array, g: jax.Array) -> np.ndarray:
        state, total = inner.init([x]), np.zeros(x.shape)
        for _ in range(3):
            updates, state = optax.with_extra_args_support(inner).update([g], state, [x])
            total = total + np.asarray(jax.tree.leaves(updates)[0])
        return total

    with jax.numpy_dtype_promotion("standard"):  # a trial, not a training step
        whole = moves(x, g)
        parts = np.concatenate([moves(x[:1], g[:1]), moves(x[1:], g[1:])])
    if not np.allclose(whole, parts, rtol=1e-4, atol=1e-6 * np.abs(whole).min()):
        raise ValueError(
            "a sharded server runs inner on every worker's share of the parameters by itself, and this "
            "rule needs to see all of them (it moves a vector in another way than its parts); write an "
            "elementwise rule, for example optax.adagrad(0.1), or server='replicated'"
        )
