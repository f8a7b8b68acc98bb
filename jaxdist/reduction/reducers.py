"""The way to the mean that a value of `jd.compress` names: exact, compressed, with a memory, of low rank."""

import jax
import jax.numpy as jnp

from jaxdist import faults, worker
from jaxdist.compress.base import Compressor
from jaxdist.compress.feedback import Feedback, PowerSGD
from jaxdist.errors import Refused
from jaxdist.reduction.base import Memory, PyTree, Reducer, mean, mean_bytes, wide_shape
from jaxdist.reduction.low_rank import low_rank, rescaled
from jaxdist.reduction.routes import average, average_bytes, second_residual


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
        return low_rank(how)
    raise Refused(
        f"{how!r} does not say how to reduce; write for example jd.compress.top_k(0.01), "
        "jd.compress.error_feedback(jd.compress.sign()) or reducer=jd.compress.power_sgd(4)"
    )


def _remembering(how: Feedback) -> Reducer:
    compressor = how.compressor

    def init(tree: PyTree) -> Memory:
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, wide_shape(x).dtype), tree)
        second = second_residual(tree, compressor)
        return zeros if how.rule == "ef21" else (), worker.vary((zeros, second))

    def reduced(
        tree: PyTree, memory: Memory, *, key: jax.Array, step: jax.Array
    ) -> tuple[PyTree, Memory]:
        known, (kept, second) = memory
        if how.rule == "ef21":
            faults.refuse_away(
                "everybody knows the mean of all estimates, also of those of who is away",
                "write jd.compress.error_feedback in place of jd.compress.ef21",
            )
            target = jax.tree.map(lambda x, h: x.astype(h.dtype) - h, tree, kept)
            new = average(target, compressor, key=key, residual=second)
            kept = jax.tree.map(jnp.add, kept, new.own)
            # What the second compression left out is owed to the shared estimate.
            known = jax.tree.map(jnp.add, known, new.mean)
            out = known
        else:
            kept, second = rescaled(how.learning_rate, step, (kept, second))
            target = jax.tree.map(lambda x, e: x.astype(e.dtype) + e, tree, kept)
            new = average(target, compressor, key=key, residual=second)
            kept = jax.tree.map(jnp.subtract, target, new.own)
            out = new.mean
        out = jax.tree.map(lambda m, x: m.astype(x.dtype), out, tree)
        return out, (known, worker.vary((kept, new.residual)))

    def sends(tree: PyTree, step: int) -> int:
        return average_bytes(jax.tree.map(wide_shape, tree), compressor)

    return Reducer(init, reduced, sends)
