"""A compressor: one array to a payload that travels, and back to an array; a frozen value."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxdist import keys, worker
from jaxdist.errors import Refused

PyTree = Any
# How a mean over workers is made of their payloads: `sum` adds up payloads that were drawn with one
# shared key; `gather` hands all payloads to everybody; `exchange` hands everybody a part of each,
# whose mean is compressed once more.
Route = Literal["sum", "gather", "exchange"]


class Compressor(NamedTuple):
    """How an array travels, and how wrong it then is.

    A payload is a pytree of arrays whose shapes follow from the array's shape alone; it is all that
    is sent. What is not finite never comes back finite: one NaN spoils at least its own number, and
    at most the array.

    Attributes:
      name: how it was made, for example `top_k(0.01)`.
      encode: `encode(key, x)` -> payload. One array of floating-point numbers; the key is used by
        random compressors only.
      decode: `decode(payload, like)` -> an array of like's shape and dtype; of `like` no more than
        these two is used.
      unbiased: whether the mean of what comes back, over keys, is what was sent.
      error: `error(size)` -> a bound, for arrays of that many numbers, of the mean of
        |decoded - x|^2 / |x|^2 over keys.
      route: how a mean over workers is made of payloads.
    """

    name: str
    encode: Callable[[jax.Array, jax.Array], PyTree]
    decode: Callable[[PyTree, Any], jax.Array]
    unbiased: bool
    error: Callable[[int], float]
    route: Route = "exchange"

    def __repr__(self) -> str:
        return self.name

    def delta(self, size: int) -> float:
        """By how much it contracts: the mean of |decoded - x|^2 is at most (1 - delta) |x|^2.

        For an unbiased compressor this is said of the decoded array divided by 1 + error(size), as
        `contractive` does: as it is, it may well expand.
        """
        error = self.error(size)
        return 1 / (1 + error) if self.unbiased else 1 - error

    def bytes(self, like: PyTree) -> int:
        """How many bytes the payload has, for an array or a pytree of arrays, from shapes alone.

        >>> from jaxdist import compress
        >>> compress.sign().bytes(jax.ShapeDtypeStruct((100,), jnp.float32))  # 100 bits and a scale
        17
        """
        key = jax.eval_shape(lambda: keys.key(0))
        return sum(size_bytes(jax.eval_shape(self.encode, key, x)) for x in jax.tree.leaves(like))


def size_bytes(tree: PyTree) -> int:
    """How many bytes the arrays of a pytree hold."""
    return sum(x.size * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def contractive(compressor: Compressor) -> Compressor:
    """The compressor where errors are remembered: an unbiased one is shrunk until it contracts.

    With E|C(x) - x|^2 <= w |x|^2 and E C(x) = x, C / (1 + w) has the error w / (1 + w) |x|^2 < |x|^2,
    where C itself, for w >= 1, lets a residual grow without bound.
    """
    if not compressor.unbiased:
        return compressor

    def decode(payload: PyTree, like: Any) -> jax.Array:
        return compressor.decode(payload, like) / (1 + compressor.error(like.size))

    def error(size: int) -> float:
        return compressor.error(size) / (1 + compressor.error(size))

    return compressor._replace(decode=decode, unbiased=False, error=error)


def encode_leaves(compressor: Compressor, key: jax.Array, tree: PyTree) -> list[PyTree]:
    """The payload of every leaf, each with a key of its own."""
    leaves = jax.tree.leaves(tree)
    return [compressor.encode(jax.random.fold_in(key, i), x) for i, x in enumerate(leaves)]


def decode_leaves(compressor: Compressor, payloads: list[PyTree], like: PyTree) -> PyTree:
    """The arrays that the payloads stand for, as a pytree like `like`."""
    leaves, structure = jax.tree.flatten(like)
    decoded = [compressor.decode(p, x) for p, x in zip(payloads, leaves, strict=True)]
    return jax.tree.unflatten(structure, decoded)


def check_count(example: str, value: Any, *, least: int = 1, most: int | None = None) -> None:
    """Refuses an argument that is no whole number within its bounds."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise Refused(
            f"jd.compress.{example.split('(')[0]} needs a whole number {bounds} and was given {value!r}; "
            f"write for example jd.compress.{example}"
        )


def check_ratio(example: str, value: Any) -> None:
    """Refuses what is not a share of the numbers of an array."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise Refused(
            f"jd.compress.{example.split('(')[0]} needs the share of the numbers to keep, above 0 and at "
            f"most 1, and was given {value!r}; write for example jd.compress.{example}"
        )


def check_compressor(method: str, compressor: Any) -> None:
    """Refuses what is not a plain compressor, one with a memory above all."""
    if isinstance(compressor, Compressor):
        return
    inside = getattr(compressor, "compressor", None)
    if isinstance(inside, Compressor):
        raise Refused(
            f"{method} has no memory of what it sent and was given {compressor!r}; give it "
            f"jd.compress.{inside!r} itself, or use jd.choco, which remembers by its own rule"
        )
    raise Refused(
        f"{method} was given compressor={compressor!r}, which is no compressor; "
        "write for example jd.compress.top_k(0.01)"
    )


def wide(x: jax.Array) -> jax.Array:
    """The array in the precision in which compressors compute: at least float32."""
    return x.astype(worker.accumulation_dtype(x.dtype))


def normalized(x: jax.Array, scale: jax.Array) -> jax.Array:
    """x / scale, and x itself where the scale is 0 or NaN (and so will be what is decoded)."""
    # XLA multiplies by the reciprocal, and flushes that of the largest numbers to 0. The factor is a
    # value and not a constant: with a constant XLA would undo it.
    factor = jnp.where(scale > 1e30, jnp.full_like(scale, 2.0**-20), jnp.ones_like(scale))
    return x * factor / jnp.where(scale > 0, scale * factor, jnp.ones_like(scale))
