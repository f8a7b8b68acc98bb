"""Fewer bits for every number: casts, and random rounding to a few levels.

Alistarh et al., QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding, NeurIPS
2017. arXiv:1610.02132
Wen et al., TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning, NeurIPS
2017. arXiv:1705.07878
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.compress import bits
from jaxdist.compress.base import Compressor, PyTree, check_count, normalized, wide
from jaxdist.errors import Refused


def cast(dtype: Any) -> Compressor:
    """Every number in a smaller floating-point type, rounded to the nearest.

    Payload: `values` in that type. Where the type has a smaller range than the array's own (float16
    and float8 for float32), also `scale`, one number: the array is divided by its largest magnitude
    and fills the range. Otherwise what is too large becomes the largest there is.
    Contractive: the error is that of one rounding.

    Args:
      dtype: a floating-point type, for example `jnp.bfloat16` or `jnp.float8_e4m3fn`.

    Example:
      >>> compressor = cast(jnp.bfloat16)
      >>> x = jnp.array([1.0, 2.001])
      >>> compressor.decode(compressor.encode(jax.random.key(0), x), x).tolist(), compressor.bytes(x)
      ([1.0, 2.0], 4)
    """
    if not jnp.issubdtype(dtype, jnp.floating):
        raise Refused(
            f"jd.compress.cast needs a floating-point type and was given {dtype!r}; "
            "write jd.compress.cast(jnp.bfloat16), or jd.compress.int8() for whole numbers"
        )
    to = jnp.finfo(dtype)
    top = float(to.max) / 2

    def scaled(x: Any) -> bool:
        return to.maxexp < jnp.finfo(x.dtype).maxexp

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        if scaled(x):
            x = wide(x)
            scale = jnp.abs(x).max(initial=0)
            return {"values": (normalized(x, scale) * top).astype(dtype), "scale": scale}
        if jnp.finfo(x.dtype).bits <= to.bits:
            return {"values": x.astype(dtype)}
        # The largest number of the type, where rounding would make an infinity.
        largest = jnp.asarray(float(to.max), x.dtype)
        kept = jnp.where(jnp.isfinite(x), jnp.clip(x, -largest, largest), x)
        return {"values": kept.astype(dtype)}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        if "scale" not in payload:
            return payload["values"].astype(like.dtype)
        scale = payload["scale"]
        return (payload["values"].astype(scale.dtype) / top * scale).astype(like.dtype)

    # A little more than half a unit in the last place; and the smallest step beside the largest number.
    rounding, step = float(to.eps) ** 2 / 3.5, float(to.smallest_subnormal) / top
    return Compressor(
        f"cast({jnp.dtype(dtype).name})",
        encode,
        decode,
        False,
        lambda size: rounding + size * step**2,
    )


def int8(block: int = 256) -> Compressor:
    """One byte a number: 127 levels either side of zero, in blocks with a scale each.

    Payload: `values` int8 [size], `scales` [ceil(size / block)], the largest magnitude of each block.
    Rounded at random, up or down, so that it is unbiased. NaN spoils its block.

    Args:
      block: numbers that share a scale.

    Example:
      >>> x = jnp.array([1.0, -0.5, 0.0])
      >>> payload = int8().encode(jax.random.key(0), x)
      >>> payload["values"].dtype, int8().bytes(x), float(int8().decode(payload, x)[0])
      (dtype('int8'), 7, 1.0)
    """
    check_count("int8(256)", block)

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        levels, scales = _round_blocks(key, x, block=block, top=127)
        return {"values": levels.astype(jnp.int8), "scales": scales}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        return _scale_blocks(payload["values"], payload["scales"], like, block=block, top=127)

    return Compressor(f"int8({block})", encode, decode, True, lambda n: _block_error(n, block, 127))


def int4(block: int = 64) -> Compressor:
    """Half a byte a number: 7 levels either side of zero, in blocks with a scale each.

    Payload: `values` uint8 [ceil(size / 2)], two numbers a byte, each 8 above what it stands for;
    `scales` [ceil(size / block)]. Rounded at random, up or down, so that it is unbiased. NaN spoils
    its block.

    Args:
      block: numbers that share a scale.

    Example:
      >>> int4(64).bytes(jax.ShapeDtypeStruct((1000,), jnp.float32))
      564
    """
    check_count("int4(64)", block)

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        levels, scales = _round_blocks(key, x, block=block, top=7)
        return {"values": bits.pack((levels + 8).astype(jnp.uint8), bits=4), "scales": scales}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        levels = bits.unpack(payload["values"], bits=4, size=like.size).astype(jnp.int32) - 8
        return _scale_blocks(levels, payload["scales"], like, block=block, top=7)

    return Compressor(f"int4({block})", encode, decode, True, lambda n: _block_error(n, block, 7))


def qsgd(levels: int) -> Compressor:
    """QSGD: magnitudes rounded at random to so many levels of the array's Euclidean norm.

    Payload: `values` int8 [size] (int16 above 127 levels), sign and level; `scale`, the norm. Unbiased.
    A large array needs many levels: most numbers are a small part of the norm.

    Args:
      levels: how many above zero.

    Example:
      >>> qsgd(16).bytes(jax.ShapeDtypeStruct((1000,), jnp.float32))
      1004
    """
    check_count("qsgd(16)", levels, most=32767)
    dtype = jnp.int8 if levels <= 127 else jnp.int16

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        x = wide(x.ravel())
        largest = jnp.abs(x).max(initial=0)
        scale = largest * jnp.linalg.norm(normalized(x, largest))
        return {
            "values": _round(key, normalized(x, scale) * levels, levels).astype(dtype),
            "scale": scale,
        }

    def decode(payload: PyTree, like: Any) -> jax.Array:
        scale = payload["scale"]
        parts = payload["values"].astype(scale.dtype) / levels
        return (parts * scale).reshape(like.shape).astype(like.dtype)

    def error(size: int) -> float:
        return min(size / levels**2, math.sqrt(size) / levels)

    return Compressor(f"qsgd({levels})", encode, decode, True, error)


def ternary() -> Compressor:
    """TernGrad: every number becomes 0 or plus or minus the largest magnitude, at random.

    Payload: `values` uint8 [ceil(size / 4)], two bits a number; `scale`, the largest magnitude.
    Unbiased.

    Example:
      >>> ternary().bytes(jax.ShapeDtypeStruct((1000,), jnp.float32))
      254
    """

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        x = wide(x.ravel())
        scale = jnp.abs(x).max(initial=0)
        signs = _round(key, normalized(x, scale), 1)
        return {"values": bits.pack((signs + 1).astype(jnp.uint8), bits=2), "scale": scale}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        scale = payload["scale"]
        signs = bits.unpack(payload["values"], bits=2, size=like.size).astype(scale.dtype) - 1
        return (signs * scale).reshape(like.shape).astype(like.dtype)

    # The worst array has one number of 1 and all others alike.
    return Compressor("ternary()", encode, decode, True, lambda size: (math.sqrt(size) - 1) / 2)


def _round(key: jax.Array, x: jax.Array, most: int) -> jax.Array:
    """Rounds to the next whole number below or above, in proportion; int32."""
    below = jnp.floor(x)
    up = jax.random.uniform(key, x.shape, x.dtype) < x - below
    return jnp.clip(below + up.astype(x.dtype), -most, most).astype(jnp.int32)


def _blocks(flat: jax.Array, block: int) -> jax.Array:
    return jnp.pad(flat, (0, -flat.size % block)).reshape(-1, block)


def _round_blocks(
    key: jax.Array, x: jax.Array, *, block: int, top: int
) -> tuple[jax.Array, jax.Array]:
    rows = _blocks(wide(x.ravel()), block)
    scales = jnp.abs(rows).max(axis=1, initial=0)
    levels = _round(key, normalized(rows, scales[:, None]) * top, top)
    return levels.ravel()[: x.size], scales


def _scale_blocks(
    levels: jax.Array, scales: jax.Array, like: Any, *, block: int, top: int
) -> jax.Array:
    # A level is divided first: the product with the largest number there is would be infinite.
    rows = _blocks(levels.astype(scales.dtype) / top, block) * scales[:, None]
    return rows.ravel()[: like.size].reshape(like.shape).astype(like.dtype)


def _block_error(size: int, block: int, top: int) -> float:
    """The variance of a rounding is at most a quarter, and at most the distance to the next level."""
    size = min(size, block)
    return min(size / (4 * top**2), math.sqrt(size) / top)
