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
from jaxdist.reduction.parts import Parts, cut, decode_each, decode_own, encode_each, encode_own

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
    parts = [cut(x, workers).like for x in jax.tree.leaves(tree)]
    return workers * compressor.bytes(parts) + compressor.bytes([wide_shape(p) for p in parts])


def second_residual(tree: PyTree, compressor: Compressor) -> PyTree:
    """Zeros of the shape of what the second compression can leave out; () where there is none."""
    if compressor.route != "exchange":
        return ()
    parts = [wide_shape(cut(x, worker.count()).like) for x in jax.tree.leaves(tree)]
    return [jnp.zeros(p.shape, p.dtype) for p in parts]


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
    workers, me = worker.count(), worker.index()
    leaves, structure = jax.tree.flatten(tree)
    cuts = [cut(x, workers) for x in leaves]
    owned = [c.astype(wide_shape(x).dtype) for c, x in zip(cuts, leaves, strict=True)]

    def whole(payloads: list[PyTree], cuts: list[Parts]) -> PyTree:
        """What the payloads of all parts stand for."""
        found = [decode_each(compressor, p, c) for p, c in zip(payloads, cuts, strict=True)]
        shaped = [f.reshape(x.shape).astype(x.dtype) for f, x in zip(found, leaves, strict=True)]
        return jax.tree.unflatten(structure, shaped)

    def own(payload: PyTree, parts: Parts) -> jax.Array:
        return decode_own(compressor, payload, parts, me)

    payloads = [
        encode_each(compressor, jax.random.split(jax.random.fold_in(key, i), workers), x, parts)
        for i, (x, parts) in enumerate(zip(leaves, cuts, strict=True))
    ]
    buffers, restore = buckets.pack(payloads, leading=1)
    received = restore(worker.exchange(buffers))
    means = [
        worker.ordered_sum(jax.vmap(partial(own, parts=parts))(p)) / workers
        for p, parts in zip(received, owned, strict=True)
    ]
    if residual:
        means = [m + r for m, r in zip(means, residual, strict=True)]

    second = jax.random.fold_in(key, SECOND)
    again = [
        encode_own(compressor, jax.random.fold_in(second, i), m, parts, me)
        for i, (m, parts) in enumerate(zip(means, owned, strict=True))
    ]
    if residual:
        residual = [m - own(p, parts) for m, p, parts in zip(means, again, owned, strict=True)]
    buffers, restore = buckets.pack(again)
    everywhere = restore(worker.gather(buffers))
    return Average(whole(everywhere, owned), whole(payloads, cuts), residual)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
