"""Everybody gets the same mean: exact, of compressed payloads, with a memory, or of low rank.

A mean of payloads takes one of three routes. `sum`: payloads drawn with one key are added up by an
all-reduce. `gather`: everybody gets all payloads, and adds them up. `exchange`: every worker gets a part
of everybody's array (all-to-all), averages in at least float32, compresses the mean once more, and hands it
to all (all-gather). Whole numbers are never added on the wire, where they would overflow.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist import buckets, faults, worker
from jaxdist.compress import bits
from jaxdist.compress.base import Compressor, decode_leaves, encode_leaves, size_bytes
from jaxdist.compress.feedback import Feedback, PowerSGD

PyTree = Any
# What a reducer remembers: what is the same for all workers, and what is a worker's own.
Memory = tuple[PyTree, PyTree]
# No step and no leaf has this number: keys folded with it are for the second of two compressions.
SECOND = np.uint32(2**32 - 1)


def mean(tree: PyTree) -> PyTree:
    """The mean over all workers of every leaf, the same for every worker.

        x <- 1/W sum_j x_j

    Values below float32 are accumulated in float32 and cast back. Small leaves of one dtype are
    reduced together, which is what makes a difference between processes: there every reduction
    costs a round trip. Under `jd.faulty` it is the mean over the workers that are there.

    Args:
      tree: this worker's arrays, floating point.

    Returns:
      A pytree like `tree`, the same for every worker: fit for the shared room.

    Communication:
      Every leaf once, as the operand of an all-reduce, see `mean_bytes`; a ring moves 2 (W - 1) / W of
      that in and out of every worker.
    """
    buffers, restore = buckets.pack(tree)
    alive = faults.current().alive
    if alive is None:
        return restore(worker.mean(buffers))
    here = alive[worker.index()]
    part = jnp.mean(alive, dtype=jnp.float32)
    present = [jnp.where(here, x, jnp.zeros_like(x)) for x in buffers]
    return restore([x / part.astype(x.dtype) for x in worker.mean(present)])


def scattered_mean(rows: PyTree) -> PyTree:
    """The mean over all workers, of which each keeps one row.

    Args:
      rows: leaves `[workers, n]`, floating point; row i is to be worker i's.

    Returns:
      Leaves `[n]`, this worker's own. Values below float32 are averaged in float32 and cast back.

    Raises:
      ValueError: workers may be away (`jd.faulty`), and nobody else would have their rows.

    Communication:
      Every leaf once, in at least float32, as the operand of a reduce-scatter, small ones together; a
      ring moves (W - 1) / W of that in and out of every worker.
    """
    if faults.current().alive is not None:
        raise ValueError(
            "a share of the parameters is at one worker only, which jd.faulty may take away; write "
            "jd.all_reduce(rule), or faults that lose messages only: jd.faults.link_loss(0.01, seed=0)"
        )
    wide = jax.tree.map(lambda x: x.astype(worker.accumulation_dtype(x.dtype)), rows)
    buffers, restore = buckets.pack(wide, leading=1)
    summed = restore(worker.scatter(buffers))
    return jax.tree.map(lambda s, x: (s[0] / worker.count()).astype(x.dtype), summed, rows)


def gathered(tree: PyTree) -> PyTree:
    """Everybody's row of every leaf: leaves `[n]` to `[workers, n]`, the same for every worker.

    Args:
      tree: this worker's rows.

    Returns:
      The rows of all workers, in their order.

    Communication:
      Every leaf once, in its own dtype, as the operand of an all-gather, small ones together; a ring
      moves W - 1 times that in and out of every worker.
    """
    buffers, restore = buckets.pack(jax.tree.map(lambda x: x[None], tree), leading=1)
    return restore([x[:, 0] for x in worker.gather(buffers)])


def mean_bytes(tree: PyTree) -> int:
    """What `mean` makes one worker hand to the network: 4 bytes for a number below float32, too."""
    return size_bytes([_wide(x) for x in jax.tree.leaves(tree)])


class Reducer(NamedTuple):
    """A way to a mean over workers, perhaps with a memory.

    Attributes:
      init: `init(tree)` -> (shared, local), the memory, to be kept in the two rooms of a state.
      mean: `mean(tree, memory, *, key, step)` -> (mean, memory). `key` is the same for every worker;
        `step` counts the means.
      bytes: `bytes(tree, step)` -> what one worker hands to the network.
    """

    init: Callable[[PyTree], Memory]
    mean: Callable[..., tuple[PyTree, Memory]]
    bytes: Callable[[PyTree, int], int]


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


def reducer(how: Compressor | Feedback | PowerSGD | None) -> Reducer:
    """The reducer of a value of `jd.compress`; None: the exact mean."""
    if how is None:
        return Reducer(
            lambda tree: ((), ()),
            lambda tree, memory, *, key, step: (mean(tree), memory),
            lambda tree, step: mean_bytes(tree),
        )
    if isinstance(how, Compressor):
        return Reducer(
            lambda tree: ((), ()),
            lambda tree, memory, *, key, step: (average(tree, how, key=key).mean, memory),
            lambda tree, step: average_bytes(tree, how),
        )
    if isinstance(how, Feedback):
        return _remembering(how)
    if isinstance(how, PowerSGD):
        return _low_rank(how)
    raise ValueError(
        f"{how!r} does not say how to reduce; write for example jd.compress.top_k(0.01), "
        "jd.compress.error_feedback(jd.compress.sign()) or reducer=jd.compress.power_sgd(4)"
    )


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
    if faults.current().alive is not None:
        raise ValueError(
            "a mean of compressed payloads waits for every worker, and can not run under jd.faulty with "
            "workers that are away; leave the compressor out"
        )
    if compressor.route == "sum":
        return _summed(tree, compressor, key)
    own_key = jax.random.fold_in(key, worker.index())
    if compressor.route == "gather":
        return _gathered(tree, compressor, own_key)
    return _exchanged(tree, compressor, own_key, residual)


def average_bytes(tree: PyTree, compressor: Compressor) -> int:
    """What `average` makes one worker hand to the network: the operands of its collectives."""
    if compressor.route == "sum":  # summed in at least float32; the seed is known to all
        key = jax.eval_shape(lambda: jax.random.key(0))
        payloads = jax.eval_shape(partial(encode_leaves, compressor), key, tree)
        return mean_bytes([x for x in jax.tree.leaves(payloads) if _floating(x)])
    if compressor.route == "gather":
        return compressor.bytes(tree)
    workers = worker.count()
    parts = [_part(x, x.dtype) for x in jax.tree.leaves(tree)]
    return workers * compressor.bytes(parts) + compressor.bytes([_wide(p) for p in parts])


def second_residual(tree: PyTree, compressor: Compressor) -> PyTree:
    """Zeros of the shape of what the second compression can leave out; () where there is none."""
    if compressor.route != "exchange":
        return ()
    return [jnp.zeros(p.shape, p.dtype) for p in map(_wide, map(_part, jax.tree.leaves(tree)))]


def majority(tree: PyTree) -> PyTree:
    """The sign that most workers' numbers have, +1 or -1; 0 counts as +1, and so does a tie.

    Args:
      tree: this worker's arrays.

    Returns:
      A pytree like `tree`, the same for every worker.

    Communication:
      See `majority_bytes`: every worker counts the votes on its part.
    """
    workers = worker.count()
    leaves, structure = jax.tree.flatten(tree)
    votes = []
    for x in leaves:
        ballots = (x.ravel() >= 0).astype(jnp.uint8)
        rest = 8 * workers * _ballot_bytes(x) - x.size
        votes.append(bits.pack(jnp.pad(ballots, (0, rest)), bits=1).reshape(workers, -1))
    buffers, restore = buckets.pack(votes, leading=1)
    won = []
    for packed in restore(worker.exchange(buffers)):
        ballots = bits.unpack(packed.ravel(), bits=1, size=8 * packed.size).reshape(workers, -1)
        won.append(
            bits.pack((2 * ballots.sum(0, dtype=jnp.int32) >= workers).astype(jnp.uint8), bits=1)
        )
    buffers, restore = buckets.pack(won)
    results = []
    for packed, x in zip(restore(worker.gather(buffers)), leaves, strict=True):
        positive = bits.unpack(packed.ravel(), bits=1, size=x.size).reshape(x.shape) > 0
        results.append(jnp.where(positive, jnp.ones((), x.dtype), -jnp.ones((), x.dtype)))
    return jax.tree.unflatten(structure, results)


def majority_bytes(tree: PyTree) -> int:
    """What `majority` makes one worker hand to the network: a bit a number, and its part once more."""
    return (worker.count() + 1) * sum(_ballot_bytes(x) for x in jax.tree.leaves(tree))


def _ballot_bytes(x: Any) -> int:
    return -(-x.size // (8 * worker.count()))


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

    def add(total: PyTree, buffers: list[jax.Array]) -> tuple[PyTree, None]:
        one = decode_leaves(compressor, restore(buffers), tree)
        return jax.tree.map(lambda t, x: t + x.astype(t.dtype), total, one), None

    # One worker after the other: all of them decoded at once would be W times the parameters.
    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x).dtype), tree)
    total, _ = lax.scan(add, zeros, worker.gather(buffers))
    means = jax.tree.map(lambda t, x: (t / worker.count()).astype(x.dtype), total, tree)
    return Average(means, decode_leaves(compressor, payloads, tree), ())


def _exchanged(tree: PyTree, compressor: Compressor, key: jax.Array, residual: PyTree) -> Average:
    workers = worker.count()
    leaves, structure = jax.tree.flatten(tree)
    parts = [_part(x, x.dtype) for x in leaves]
    wide = [_wide(p) for p in parts]

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
    received = decode(restore(worker.exchange(buffers)), wide)
    means = [worker.ordered_sum(rows) / workers for rows in received]
    if residual:
        means = [m + r for m, r in zip(means, residual, strict=True)]

    again = encode_leaves(compressor, jax.random.fold_in(key, SECOND), means)
    if residual:
        sent = decode_leaves(compressor, again, means)
        residual = [m - s for m, s in zip(means, sent, strict=True)]
    buffers, restore = buckets.pack(again)
    everywhere = decode(restore(worker.gather(buffers)), wide)
    return Average(whole(everywhere), whole(decode(payloads, parts)), residual)


def _remembering(how: Feedback) -> Reducer:
    compressor = how.compressor

    def init(tree: PyTree) -> Memory:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _wide(x).dtype), tree)
        second = second_residual(tree, compressor)
        return zeros if how.rule == "ef21" else (), worker.vary((zeros, second))

    def reduced(
        tree: PyTree, memory: Memory, *, key: jax.Array, step: jax.Array
    ) -> tuple[PyTree, Memory]:
        known, (kept, second) = memory
        if how.rule == "ef21":
            target = jax.tree.map(lambda x, h: x.astype(h.dtype) - h, tree, kept)
            new = average(target, compressor, key=key, residual=second)
            kept = jax.tree.map(jnp.add, kept, new.own)
            # What the second compression left out is owed to the shared estimate.
            known = jax.tree.map(jnp.add, known, new.mean)
            out = known
        else:
            kept, second = _rescaled(how.learning_rate, step, (kept, second))
            target = jax.tree.map(lambda x, e: x.astype(e.dtype) + e, tree, kept)
            new = average(target, compressor, key=key, residual=second)
            kept = jax.tree.map(jnp.subtract, target, new.own)
            out = new.mean
        out = jax.tree.map(lambda m, x: m.astype(x.dtype), out, tree)
        return out, (known, worker.vary((kept, new.residual)))

    def sends(tree: PyTree, step: int) -> int:
        return average_bytes(jax.tree.map(_wide, tree), compressor)

    return Reducer(init, reduced, sends)


def _low_rank(how: PowerSGD) -> Reducer:
    def shape(x: Any) -> tuple[int, int] | None:
        """The matrix a leaf is; None where it would not get smaller."""
        n, m = (x.shape[0], x.size // max(x.shape[0], 1)) if x.ndim > 1 else (0, 0)
        return (n, m) if how.rank * (n + m) < n * m else None

    def split(tree: PyTree) -> tuple[list[Any], list[Any]]:
        leaves = jax.tree.leaves(tree)
        return [x for x in leaves if shape(x)], [x for x in leaves if not shape(x)]

    def init(tree: PyTree) -> Memory:
        matrices = [(*(shape(x) or ()), _wide(x).dtype) for x in split(tree)[0]]
        key = jax.random.key(0)
        warm = [
            jax.random.normal(jax.random.fold_in(key, i), (m, how.rank), dtype)
            for i, (_, m, dtype) in enumerate(matrices)
        ]
        return warm, worker.vary([jnp.zeros((n, m), dtype) for n, m, dtype in matrices])

    def reduced(
        tree: PyTree, memory: Memory, *, key: jax.Array, step: jax.Array
    ) -> tuple[PyTree, Memory]:
        leaves, structure = jax.tree.flatten(tree)
        warm, kept = memory
        dot = partial(jnp.dot, precision="highest")

        def exactly(args: Any) -> Any:
            tree, warm, kept = args
            return mean(tree), warm, kept

        def compressed(args: Any) -> Any:
            tree, warm, kept = args
            large, small = split(tree)
            kept = _rescaled(how.learning_rate, step, kept)
            matrices = [
                x.reshape(e.shape).astype(e.dtype) + e for x, e in zip(large, kept, strict=True)
            ]
            p, small = mean(([dot(m, q) for m, q in zip(matrices, warm, strict=True)], small))
            p = [jnp.linalg.qr(x)[0] for x in p]
            own = [dot(m.T, x) for m, x in zip(matrices, p, strict=True)]
            warm = mean(own)
            approximate = iter([dot(x, q.T) for x, q in zip(p, warm, strict=True)])
            # Against this worker's own Q, not the mean one: else what distinguishes its gradients from
            # the mean would pile up in its residual for ever.
            kept = [m - dot(x, q.T) for m, x, q in zip(matrices, p, own, strict=True)]
            exact = iter(small)
            out = [
                next(approximate).reshape(x.shape).astype(x.dtype) if shape(x) else next(exact)
                for x in leaves
            ]
            return jax.tree.unflatten(structure, out), warm, worker.vary(kept)

        args = worker.vary(tree), warm, worker.vary(kept)
        if how.start:
            out, warm, kept = lax.cond(step < how.start, exactly, compressed, args)
        else:
            out, warm, kept = compressed(args)
        return out, (warm, kept)

    def sends(tree: PyTree, step: int) -> int:
        if step < how.start:
            return mean_bytes(tree)
        large, small = split(tree)
        numbers = [(how.rank * sum(shape(x) or ()), _wide(x).dtype) for x in large]
        factors = sum(n * jnp.dtype(dtype).itemsize for n, dtype in numbers)
        return factors + mean_bytes(small)

    return Reducer(init, reduced, sends)


def _rescaled(learning_rate: Callable[[Any], Any] | None, step: jax.Array, kept: PyTree) -> PyTree:
    """Residuals in units of the learning rate of this step, having been in those of the last one."""
    if learning_rate is None:
        return kept
    before = jnp.asarray(learning_rate(jnp.maximum(step - 1, 0)))
    now = jnp.asarray(learning_rate(step))
    defined = (before > 0) & (now > 0)
    ratio = jnp.where(defined, before / jnp.where(defined, now, 1), 1)
    return jax.tree.map(lambda e: e * ratio.astype(e.dtype), kept)


def _floating(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


def _wide(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, worker.accumulation_dtype(x.dtype))


def _part(x: Any, dtype: Any = None) -> jax.ShapeDtypeStruct:
    """The shape of what one worker averages of a leaf."""
    return jax.ShapeDtypeStruct((-(-x.size // worker.count()),), dtype or x.dtype)
