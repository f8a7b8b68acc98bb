"""PowerSGD: the mean of many matrices as a product of two thin ones.

Vogels, Karimireddy, Jaggi, PowerSGD: Practical Low-Rank Gradient Compression, NeurIPS 2019.
arXiv:1905.13727
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import keys, worker
from jaxdist.compress.feedback import PowerSGD
from jaxdist.reduction.base import Memory, PyTree, Reducer, mean, mean_bytes, wide_shape


def low_rank(how: PowerSGD) -> Reducer:
    """The reducer of `jd.compress.power_sgd`: two reductions, the second of which depends on the first."""

    def shape(x: Any) -> tuple[int, int] | None:
        """The matrix a leaf is; None where it would not get smaller."""
        n, m = (x.shape[0], x.size // max(x.shape[0], 1)) if x.ndim > 1 else (0, 0)
        return (n, m) if how.rank * (n + m) < n * m else None

    def split(tree: PyTree) -> tuple[list[Any], list[Any]]:
        leaves = jax.tree.leaves(tree)
        return [x for x in leaves if shape(x)], [x for x in leaves if not shape(x)]

    def init(tree: PyTree) -> Memory:
        matrices = [(*(shape(x) or ()), wide_shape(x).dtype) for x in split(tree)[0]]
        key = keys.key(0)
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
            kept = rescaled(how.learning_rate, step, kept)
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
        numbers = [(how.rank * sum(shape(x) or ()), wide_shape(x).dtype) for x in large]
        factors = sum(n * jnp.dtype(dtype).itemsize for n, dtype in numbers)
        return factors + mean_bytes(small)

    return Reducer(init, reduced, sends)


def rescaled(learning_rate: Callable[[Any], Any] | None, step: jax.Array, kept: PyTree) -> PyTree:
    """Residuals in units of the learning rate of this step, having been in those of the last one."""
    if learning_rate is None:
        return kept
    before = jnp.asarray(learning_rate(jnp.maximum(step - 1, 0)))
    now = jnp.asarray(learning_rate(step))
    defined = (before > 0) & (now > 0)
    ratio = jnp.where(defined, before / jnp.where(defined, now, 1), 1)
    return jax.tree.map(lambda e: e * ratio.astype(e.dtype), kept)
