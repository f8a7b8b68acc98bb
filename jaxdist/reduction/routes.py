"""The mean of payloads, by the route that their compressor names.

`sum`: payloads drawn with one key are added up by an all-reduce. `gather`: everybody gets all payloads, and
adds them up. `exchange`: every worker gets a part of everybody's array (all-to-all), averages in at least
float32, compresses the mean once more, and hands it to all (all-gather). Whole numbers are never added on
the wire, where they would overflow.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import buckets, faults, keys, worker
from jaxdist.compress.base import Compressor, decode_leaves, encode_leaves
from jaxdist.reduction.base import PyTree, mean, mean_bytes, wide_shape

# No step and no leaf has this number: keys folded with it are for the second of two compressions.
SECOND = np.uint32(2**32 - 1)


class Average(NamedTuple):
    """A mean of payloads.

    Attributes:
      mean: the same for every worker.
      own: what this worker's payload stands for.
      residual: what the second compression left out, for the part that is this worker's.
    """

    mean: PyTree
    own: PyTree
    residual: PyTree


def average(
    tree: PyTree, compressor: Compressor, *, key: jax.Array, residual: PyTree = ()
) -> Average:
    """The mean over workers of what their payloads stand for.

    Args:
      tree: this worker's arrays, floating point. Every leaf is compressed by itself.
      compressor: what travels.
      key: the same for every worker.
      residual: of the second compression, see `second_residual`; (): none is kept.

    Communication:
      See `average_bytes`. Payloads of small leaves travel together.
    """
    if compressor.route == "sum":
        return _summed(tree, compressor, key)
    own_key = jax.random.fold_in(key, worker.index())
    if compressor.route == "gather":
        return _gathered(tree, compressor, own_key)
    faults.refuse_away(
        f"with {compressor!r} everybody averages a part for all",
        "leave the compressor out, or take one whose payloads everybody gets: jd.compress.top_k(0.01)",
    )
    return _exchanged(tree, compressor, own_key, residual)


def average_bytes(tree: PyTree, compressor: Compressor) -> int:
    """What `average` makes one worker hand to the network: the operands of its collectives."""
    if compressor.route == "sum":  # summed in at least float32; the seed is known to all
        key = jax.eval_shape(lambda: keys.key(0))
        payloads = jax.eval_shape(partial(encode_leaves, compressor), key, tree)
        return mean_bytes([x for x in jax.tree.leaves(payloads) if _floating(x)])
    if compressor.route == "gather":
        return compressor.bytes(tree)
    workers = worker.count()
    parts = [_part(x, x.dtype) for x in jax.tree.leaves(tree)]
    return workers * compressor.bytes(parts) + compressor.bytes([wide_shape(p) for p in parts])


def second_residual(tree: PyTree, compressor: Compressor) -> PyTree:
    """Zeros of the shape of what the second compression can leave out; () where there is none."""
    if compressor.route != "exchange":
        return ()
    return [jnp.zeros(p.shape, p.dtype) for p in map(wide_shape, map(_part, jax.tree.leaves(tree)))]


def _summed(tree: PyTree, compressor: Compressor, key: jax.Array) -> Average:
    payloads = encode_leaves(compressor, key, tree)
    leaves, structure = jax.tree.flatten(payloads)
    means = iter(mean([x for x in leaves if _floating(x)]))
    summed = jax.tree.unflatten(structure, [next(means) if _floating(x) else x for x in leaves])
    means, own = (decode_leaves(compressor, p, tree) for p in (summed, payloads))
    return Average(means, own, ())


def _gathered(tree: PyTree, compressor: Compressor, key: jax.Array) -> Average:
    payloads = encode_leaves(compressor, key, tree)
    buffers, restore = buckets.pack(payloads)

    def add(total: PyTree, sent: tuple[jax.Array, list[jax.Array]]) -> tuple[PyTree, None]:
        there, buffers = sent
        one = decode_leaves(compressor, restore(buffers), tree)
        return jax.tree.map(
            lambda t, x: t + jnp.where(there, x.astype(t.dtype), 0), total, one
        ), None

    # One worker after the other: all of them decoded at once would be W times the parameters.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_shape(x).dtype), tree)
    total, _ = lax.scan(add, zeros, (worker.there(), worker.gather(buffers)))
    n = jnp.maximum(worker.headcount(), 1)
    means = jax.tree.map(lambda t, x: (t / n.astype(t.dtype)).astype(x.dtype), total, tree)
    return Average(means, decode_leaves(compressor, payloads, tree), ())


def _exchanged(tree: PyTree, compressor: Compressor, key: jax.Array, residual: PyTree) -> Average:
    workers = worker.count()
    leaves, structure = jax.tree.flatten(tree)
    parts = [_part(x, x.dtype) for x in leaves]
    owned = [wide_shape(p) for p in parts]

    def decode(payloads: list[PyTree], likes: list[Any]) -> list[jax.Array]:
        """Of every leaf `[workers, part]`, as many payloads having been stacked."""
        return [
            jax.vmap(lambda p, like=like: compressor.decode(p, like))(p)
            for p, like in zip(payloads, likes, strict=True)
        ]

    def whole(rows: list[jax.Array]) -> PyTree:
        trimmed = [
            r.ravel()[: x.size].reshape(x.shape).astype(x.dtype)
            for r, x in zip(rows, leaves, strict=True)
        ]
        return jax.tree.unflatten(structure, trimmed)

    payloads = []
    for i, (x, part) in enumerate(zip(leaves, parts, strict=True)):
        rows = jnp.pad(x.ravel(), (0, workers * part.size - x.size)).reshape(workers, -1)
        keys = jax.random.split(jax.random.fold_in(key, i), workers)
        payloads.append(jax.vmap(compressor.encode)(keys, rows))
    buffers, restore = buckets.pack(payloads, leading=1)
    received = decode(restore(worker.exchange(buffers)), owned)
    means = [worker.ordered_sum(rows) / workers for rows in received]
    if residual:
        means = [m + r for m, r in zip(means, residual, strict=True)]

    again = encode_leaves(compressor, jax.random.fold_in(key, SECOND), means)
    if residual:
        sent = decode_leaves(compressor, again, means)
        residual = [m - s for m, s in zip(means, sent, strict=True)]
    buffers, restore = buckets.pack(again)
    everywhere = decode(restore(worker.gather(buffers)), owned)
    return Average(whole(everywhere), whole(decode(payloads, parts)), residual)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _part(x: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """The shape of what one worker averages of a leaf."""
    return jax.ShapeDtypeStruct((-(-x.size // worker.count()),), dtype or x.dtype)
