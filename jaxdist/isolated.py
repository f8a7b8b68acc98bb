"""A function of one worker that runs inside the step of all workers and never sees their axis.

Inside `shard_map` JAX types each value by whether it differs between workers, and a scan that starts from a
constant and goes on with a worker's own values is refused: its carry changes its type. So would be most
recurrent models, `jax.random.poisson`, or a `custom_vjp` with a constant cotangent. A loss does not
communicate, so it needs no such types: it is traced from plain shapes, and the program that comes out is run
inside the worker.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jaxdist import worker

PyTree = Any


def isolated(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    """The same function of arrays, traced by itself; what it returns is this worker's own.

    It can be differentiated in reverse mode, any number of times: its derivatives are isolated as well.
    JAX refuses forward mode through it by name.

    Args:
      function: of pytrees of arrays or keys; it may not communicate.

    Example:
      >>> jax.grad(isolated(lambda x: jnp.sum(x**3)))(jnp.arange(3.0)).tolist()
      [0.0, 3.0, 12.0]
    """

    def call(*args: PyTree) -> PyTree:
        leaves, structure = jax.tree.flatten(worker.vary(jax.tree.map(jnp.asarray, args)))
        inexact = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]

        def merged(moving: list[Any], fixed: list[Any]) -> PyTree:
            parts = iter(moving), iter(fixed)
            args = jax.tree.unflatten(structure, [next(parts[not x]) for x in inexact])
            return function(*args)

        merged.__name__ = getattr(function, "__name__", "isolated")
        moving = [x for x, of in zip(leaves, inexact, strict=True) if of]
        fixed = [x for x, of in zip(leaves, inexact, strict=True) if not of]
        return _differentiable(merged)(moving, fixed)

    return call


def _differentiable(function: Callable[[PyTree, PyTree], PyTree]) -> Callable[..., PyTree]:
    """`function(moving, fixed)` by its isolated program, with derivatives for what moves.

    JAX can not differentiate the program itself where it is run: its types are not those of its operands, and
    a cotangent can silently be summed over workers.
    """

    @jax.custom_vjp
    def run(moving: PyTree, fixed: PyTree) -> PyTree:
        return _evaluate(function, moving, fixed)

    def forward(moving: PyTree, fixed: PyTree) -> tuple[PyTree, tuple[PyTree, PyTree]]:
        return run(moving, fixed), (moving, fixed)

    def backward(kept: tuple[PyTree, PyTree], cotangents: PyTree) -> tuple[PyTree, None]:
        moving, fixed = kept
        slopes = [x for x in jax.tree.leaves(cotangents) if x.dtype != jax.dtypes.float0]
        return _pulled(function)((moving, slopes), fixed), None

    run.defvjp(forward, backward)
    return run


def _pulled(function: Callable[[PyTree, PyTree], PyTree]) -> Callable[..., PyTree]:
    """Cotangents of what moves from those of the inexact results, isolated."""

    def pull(given: tuple[PyTree, list[Any]], fixed: PyTree) -> PyTree:
        def results(moving: PyTree) -> list[Any]:
            leaves = jax.tree.leaves(function(moving, fixed))
            return [x for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]

        return jax.vjp(results, given[0])[1](given[1])[0]

    return _differentiable(pull)


def _evaluate(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args)
    # One call of a compiled function: only so does JAX not compare the types inside with those outside.
    closed, result = jax.make_jaxpr(jax.jit(function), return_shape=True)(*shapes)
    leaves = jaxpr_as_fun(closed)(*jax.tree.leaves(args))
    return worker.vary(jax.tree.unflatten(jax.tree.structure(result), leaves))
