"""An array cut into one part for each worker, of which a compressor sees the numbers and no filling.

The parts have ceil(size / W) numbers; the last ones have fewer, or none. A program needs equal shapes: it
is the payload of a short part that is filled up, never the numbers that it is made of. A mean
magnitude, for one, would be too small with zeros among them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist.compress.base import Compressor, PyTree


class Parts(NamedTuple):
    """How an array is cut.

    Attributes:
      like: shape [part] and dtype of a whole part.
      whole: how many parts have all their numbers; they come first.
      rest: how many numbers the part after these has, 0 if it has none; all later ones are empty.
      workers: how many parts there are.
    """

    like: jax.ShapeDtypeStruct
    whole: int
    rest: int
    workers: int

    def astype(self, dtype: Any) -> "Parts":
        """The same cut of an array of another type."""
        return self._replace(like=jax.ShapeDtypeStruct(self.like.shape, dtype))


def cut(x: Any, workers: int) -> Parts:
    """The parts of an array for so many workers.

    >>> parts = cut(jnp.zeros(11), 4)
    >>> parts.like.shape, parts.whole, parts.rest
    ((3,), 3, 2)
    """
    part = -(-x.size // workers)
    whole, rest = divmod(x.size, part) if part else (workers, 0)
    return Parts(jax.ShapeDtypeStruct((part,), x.dtype), whole, rest, workers)


def encode_each(compressor: Compressor, keys: jax.Array, x: jax.Array, parts: Parts) -> PyTree:
    """The payload of every part of an array: leaves `[workers, ...]`.

    Args:
      compressor: what makes them.
      keys: `[workers]`, one for each part.
      x: the array.
      parts: how it is cut.
    """
    (size,), flat = parts.like.shape, x.ravel()
    end = parts.whole * size
    rows = [jax.vmap(compressor.encode)(keys[: parts.whole], flat[:end].reshape(parts.whole, size))]
    if parts.rest:
        short = compressor.encode(keys[parts.whole], flat[end:])
        rows.append(jax.tree.map(lambda p: p[None], _filled(compressor, short, parts)))

    def stacked(*payloads: jax.Array) -> jax.Array:
        there = jnp.concatenate(payloads)
        return jnp.pad(there, [(0, parts.workers - len(there)), *[(0, 0)] * (there.ndim - 1)])

    return jax.tree.map(stacked, *rows)


def decode_each(compressor: Compressor, payloads: PyTree, parts: Parts) -> jax.Array:
    """The array, flat, that the payloads of all its parts stand for."""
    whole = jax.tree.map(lambda p: p[: parts.whole], payloads)
    found = jax.vmap(lambda p: compressor.decode(p, parts.like))(whole).ravel()
    if not parts.rest:
        return found
    short = jax.tree.map(lambda p: p[parts.whole], payloads)
    return jnp.concatenate([found, _decode_short(compressor, short, parts)])


def encode_own(compressor: Compressor, key: jax.Array, x: jax.Array, parts: Parts, me: Any) -> Any:
    """The payload of part `me`, a traced number, of which `x` holds the numbers, `[part]`."""
    payload = compressor.encode(key, x)
    if not parts.rest:
        return payload
    short = _filled(compressor, compressor.encode(key, x[: parts.rest]), parts)
    return jax.tree.map(lambda a, b: jnp.where(me == parts.whole, b, a), payload, short)


def decode_own(compressor: Compressor, payload: PyTree, parts: Parts, me: Any) -> jax.Array:
    """What a payload of part `me`, a traced number, stands for: `[part]`, zeros beyond its numbers."""
    (size,) = parts.like.shape
    found = compressor.decode(payload, parts.like)
    if parts.rest:
        short = jnp.pad(_decode_short(compressor, payload, parts), (0, size - parts.rest))
        found = jnp.where(me == parts.whole, short, found)
    return jnp.where(me < parts.whole + (parts.rest > 0), found, jnp.zeros_like(found))


def _short(parts: Parts) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((parts.rest,), parts.like.dtype)


def _payload(compressor: Compressor, like: jax.ShapeDtypeStruct) -> PyTree:
    return jax.eval_shape(compressor.encode, jax.eval_shape(lambda: jax.random.key(0)), like)


def _filled(compressor: Compressor, payload: PyTree, parts: Parts) -> PyTree:
    """The payload of the short part in the shapes of that of a whole one."""

    def filled(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if x.shape == like.shape:
            return x
        return jnp.pad(x, [(0, b - a) for a, b in zip(x.shape, like.shape, strict=True)])

    return jax.tree.map(filled, payload, _payload(compressor, parts.like))


def _decode_short(compressor: Compressor, payload: PyTree, parts: Parts) -> jax.Array:
    """What a payload that was filled up stands for, `[rest]`."""

    def own(x: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        return x[tuple(slice(n) for n in like.shape)]

    like = _short(parts)
    return compressor.decode(jax.tree.map(own, payload, _payload(compressor, like)), like)
