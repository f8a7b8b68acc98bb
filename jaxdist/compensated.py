"""Running sums that keep what rounding would drop: two numbers for each, of which the second is the rest.

In one number a sum of T terms that should cancel over all workers is off by about sqrt(T) roundings, and
whoever adds it to the parameters at every step adds that up once more: a mean that nobody moves walks
away. Two numbers hold twice the digits (Knuth, The Art of Computer Programming 2, 4.2.2, theorem B).
"""

import math
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import worker

PyTree = Any


class Sum(NamedTuple):
    """What was added up: high + low.

    Attributes:
      high: the sum as one number would hold it, in at least float32.
      low: the rest.
    """

    high: PyTree
    low: PyTree


def nothing(like: PyTree) -> Sum:
    """Before anything was added.

    >>> value(nothing({"w": jnp.ones(2, jnp.bfloat16)}))
    {'w': Array([0., 0.], dtype=float32)}
    """
    zeros = jax.tree.map(lambda x: jnp.zeros_like(x, worker.accumulation_dtype(x.dtype)), like)
    return Sum(zeros, jax.tree.map(jnp.zeros_like, zeros))


def plus(one: Sum, other: Sum) -> Sum:
    """The sum of both.

    >>> small = Sum(jnp.float32(1e-9), jnp.float32(0))
    >>> total = plus(plus(Sum(jnp.float32(1), jnp.float32(0)), small), Sum(jnp.float32(-1), jnp.float32(0)))
    >>> print(value(total))
    1e-09
    """

    def both(a: jax.Array, rest: jax.Array, b: jax.Array, more: jax.Array) -> tuple[Any, Any]:
        high, low = _two(a, b)
        return _two(high, low + (rest + more))

    return split(both, one.high, one.low, other.high, other.low)


def of_terms(terms: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """High and low of the sum of some arrays, at least one.

    >>> high, low = of_terms([jnp.float32(1), jnp.float32(1e-9), jnp.float32(-1)])
    >>> print(high + low)
    1e-09
    """

    def then(so_far: tuple[jax.Array, jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
        high, low = _two(so_far[0], x)
        return high, so_far[1] + low

    return _two(*reduce(then, terms[1:], (terms[0], jnp.zeros_like(terms[0]))))


def split(made: Callable[..., tuple[Any, Any]], *trees: PyTree) -> Sum:
    """The sum whose high and low `made` returns of the leaves of these trees.

    >>> print(split(lambda x: (x, 0 * x), {"w": 2.0}))
    Sum(high={'w': 2.0}, low={'w': 0.0})
    """
    pairs = [made(*leaves) for leaves in zip(*map(jax.tree.leaves, trees), strict=True)]
    structure = jax.tree.structure(trees[0])
    return Sum(*(jax.tree.unflatten(structure, [pair[i] for pair in pairs]) for i in range(2)))


def times(factor: Any, x: jax.Array) -> jax.Array:
    """A product that is one number wherever it is used.

    >>> print(times(0.5, jnp.float32(3)))
    1.5
    """
    return steady(jnp.asarray(factor).astype(x.dtype) * x)


def steady(product: jax.Array) -> jax.Array:
    """A product, or what is made of one, rounded to a bit less than it has.

    A compiler may join a product and the sum that it goes into without rounding in between, here and not
    there: then what one worker gives away is not what the other gets.

    >>> print(steady(jnp.float32(1) / 3 * 3))
    1.0
    """
    kept = jnp.finfo(product.dtype)
    return jax.lax.reduce_precision(product, kept.nexp, kept.nmant - 1)


def scaled(one: Sum, factor: float) -> Sum:
    """A multiple; exact for a power of two."""
    if math.frexp(factor)[0] == 0.5:
        return jax.tree.map(lambda x: factor * x, one)
    return jax.tree.map(lambda x: times(factor, x), one)


def moved(x: PyTree, rest: PyTree, change: Sum) -> tuple[PyTree, PyTree]:
    """Parameters after a change, in their own types, and what rounding drops, to be given back.

    Args:
      x: parameters.
      rest: what the last such call returned beside them, in at least float32; zeros at first.
      change: what is added.

    >>> x, rest = jnp.bfloat16(1), jnp.float32(0)
    >>> for _ in range(100):
    ...     x, rest = moved(x, rest, Sum(jnp.float32(1e-3), jnp.float32(0)))
    >>> print(x, (x + rest).round(4))
    1.10156 1.1
    """

    def one(x: jax.Array, rest: jax.Array, high: jax.Array, low: jax.Array) -> tuple[Any, Any]:
        whole, more = _two(x.astype(high.dtype), high)
        whole, more = _two(whole, more + (rest + low))
        new = whole.astype(x.dtype)
        return new, (whole - new.astype(whole.dtype)) + more

    new, dropped = split(one, x, rest, *change)
    return new, dropped


def value(one: Sum) -> PyTree:
    """The sum in one number."""
    return jax.tree.map(jnp.add, one.high, one.low)


def _two(a: jax.Array, b: jax.Array) -> tuple[jax.Array, jax.Array]:
    """a + b as it is rounded, and what was rounded off, exactly."""
    s = a + b
    away = s - a
    return s, (a - (s - away)) + (b - away)
