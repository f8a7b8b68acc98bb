"""One worker's loss and gradient: in parts, in another precision, or left out where it is idle."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxdist import worker
from jaxdist.isolated import isolated

PyTree = Any
Params = Any
Loss = Callable[[Params, PyTree, jax.Array], tuple[jax.Array, dict[str, Any]]]


class LocalLoss(NamedTuple):
    """What one worker computes of its own batch; neither function sees the other workers.

    Attributes:
      value: `value(params, batch, key)` -> the loss.
      gradient: `gradient(params, batch, key)` -> `((loss, aux), grads)`.
    """

    value: Callable[[Params, PyTree, jax.Array], jax.Array]
    gradient: Callable[[Params, PyTree, jax.Array], tuple[tuple[jax.Array, dict[str, Any]], Params]]


def local_loss(
    loss_fn: Loss, *, parts: int, dtype: Any, examples: Callable[[PyTree], list[bool]]
) -> LocalLoss:
    """A worker's loss and its gradient, of the whole batch or of its parts one after the other.

    Args:
      loss_fn: `(params, batch, key) -> (loss, aux)`.
      parts: into how many equal parts the examples are split; loss, aux and gradient are the means over
        them, summed in float32 at least.
      dtype: floating parameters and examples are cast to it; None: left as they are.
      examples: `examples(batch)` -> for each leaf whether it holds examples. Of one that holds none each
        part sees all, as it is.
    """

    def whole(params: Params, batch: PyTree, key: jax.Array):
        cast = partial(_cast, dtype=dtype)
        batch = _where(examples(batch), cast, batch)
        with worker.silence():
            loss, aux = loss_fn(jax.tree.map(cast, params), batch, key)
        return loss.astype(worker.accumulation_dtype(loss.dtype)), aux

    def each(batch: PyTree, key: jax.Array) -> tuple[PyTree, Callable[..., Any]]:
        """What to scan over, and what makes a part's batch and key of an element of it."""
        scanned = examples(batch)
        split = _where(scanned, lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)
        leaves, structure = jax.tree.flatten(split)
        moving = [x for x, of in zip(leaves, scanned, strict=True) if of]

        def part(rows: list[Any], number: jax.Array) -> tuple[PyTree, jax.Array]:
            own = iter(rows)
            mine = [next(own) if of else x for x, of in zip(leaves, scanned, strict=True)]
            return jax.tree.unflatten(structure, mine), jax.random.fold_in(key, number)

        return (moving, jnp.arange(parts)), part

    def value(params: Params, batch: PyTree, key: jax.Array) -> jax.Array:
        if parts == 1:
            return whole(params, batch, key)[0]
        over, part = each(batch, key)
        # Cast here, so that the cotangents of all parts are summed in the wide type on the way back.
        wide, types = jax.tree.map(_wide, params), jax.tree.map(lambda x: x.dtype, params)

        @jax.checkpoint  # otherwise the activations of all parts are in memory at once
        def one(element: Any) -> jax.Array:
            return whole(jax.tree.map(lambda x, t: x.astype(t), wide, types), *part(*element))[0]

        return lax.map(one, over).mean(0)

    def gradient(params: Params, batch: PyTree, key: jax.Array):
        of_one = jax.value_and_grad(whole, has_aux=True)
        if parts == 1:
            return of_one(params, batch, key)
        over, part = each(batch, key)
        shapes = jax.eval_shape(lambda element: of_one(params, *part(*element)), _first(over))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, _summed_in(x.dtype)), shapes)

        def add(sums: PyTree, element: Any) -> tuple[PyTree, None]:
            new = of_one(params, *part(*element))
            return jax.tree.map(lambda s, x: s + x.astype(s.dtype), sums, new), None

        sums, _ = lax.scan(add, zeros, over)
        return jax.tree.map(lambda s, x: (s / parts).astype(_mean_in(x.dtype)), sums, shapes)

    return LocalLoss(isolated(value), isolated(gradient))


def delivered(
    compute: Callable[[Params], Any], point: Params, *, active: jax.Array | None, alone: bool
) -> Any:
    """What a worker computes at a point; zeros where it is not active.

    With a device to itself an idle worker computes nothing: the gradient sits in a real conditional.
    With lanes it is computed and masked, since the lanes of a device run in lockstep.
    """
    if active is None:
        return compute(point)

    def idle(point: Params) -> Any:
        shapes = jax.eval_shape(compute, point)
        return worker.vary(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes))

    if alone:
        return lax.cond(active, compute, idle, point)
    return jax.tree.map(lambda x: jnp.where(active, x, jnp.zeros_like(x)), compute(point))


def _where(chosen: list[bool], of: Callable[[Any], Any], tree: PyTree) -> PyTree:
    """`of` each leaf that is chosen; the others as they are."""
    leaves, structure = jax.tree.flatten(tree)
    made = [of(x) if this else x for this, x in zip(chosen, leaves, strict=True)]
    return jax.tree.unflatten(structure, made)


def _first(elements: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), elements)


def _cast(x: Any, *, dtype: Any) -> Any:
    return x if dtype is None or not jnp.issubdtype(x.dtype, jnp.floating) else x.astype(dtype)


def _wide(x: jax.Array) -> jax.Array:
    return x.astype(worker.accumulation_dtype(x.dtype))


def _mean_in(dtype: Any) -> Any:
    """The dtype of a mean of such values."""
    return dtype if jnp.issubdtype(dtype, jnp.inexact) else jnp.float32


def _summed_in(dtype: Any) -> Any:
    return worker.accumulation_dtype(_mean_in(dtype))
