"""Few of the numbers, and where they stood: the largest, random ones, the largest frequencies.

Stich, Cordonnier, Jaggi, Sparsified SGD with Memory, NeurIPS 2018. arXiv:1809.07599
Peng et al., DeMo: Decoupled Momentum Optimization, 2024. arXiv:2411.19870 (the cosine transform)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxdist.compress.base import Compressor, PyTree, check_count, check_ratio, wide


def kept(ratio: float, size: int) -> int:
    """How many numbers of an array are kept: at least one.

    >>> kept(0.01, 1000), kept(0.01, 5)
    (10, 1)
    """
    return min(size, max(1, round(ratio * size)))


def top_k(ratio: float) -> Compressor:
    """The numbers of largest magnitude, max(1, round(ratio x size)) of them; all others become 0.

    Payload: `values` [k] in the array's own type and `indices` [k], uint8, uint16 or uint32 by the
    size of the array. Contractive with delta = k / size. The numbers left out are lost: use it with
    error feedback. A mean over workers gathers all payloads.

    Args:
      ratio: the share of the numbers that is kept.

    Example:
      >>> x = jnp.array([3.0, -1.0, 0.0, -4.0])
      >>> top_k(0.5).decode(top_k(0.5).encode(jax.random.key(0), x), x).tolist(), top_k(0.5).bytes(x)
      ([3.0, 0.0, 0.0, -4.0], 10)
    """
    check_ratio("top_k(0.01)", ratio)

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        flat = x.ravel()
        _, indices = lax.top_k(jnp.abs(flat), kept(ratio, flat.size))
        return {
            "values": _spoiled(flat[indices], flat),
            "indices": indices.astype(_index_dtype(flat.size)),
        }

    def decode(payload: PyTree, like: Any) -> jax.Array:
        return _placed(payload["values"], payload["indices"], like)

    def error(size: int) -> float:
        return 1 - kept(ratio, size) / max(size, 1)

    return Compressor(f"top_k({ratio:g})", encode, decode, False, error, route="gather")


def random_k(ratio: float) -> Compressor:
    """Random numbers of the array, max(1, round(ratio x size)) of them, scaled up; the others become 0.

    Payload: `values` [k] in the array's own type, each times size / k, and `seed`, uint32 [2], from
    which the receiver draws again where they stood. Unbiased. With one key for all workers the
    places agree, and a mean over workers is one all-reduce of `values` alone.

    Args:
      ratio: the share of the numbers that is kept.

    Example:
      >>> x = jnp.arange(1.0, 9.0)
      >>> y = random_k(0.25).decode(random_k(0.25).encode(jax.random.key(0), x), x)
      >>> int((y != 0).sum()), random_k(0.25).bytes(x)
      (2, 16)
    """
    check_ratio("random_k(0.01)", ratio)

    def places(seed: jax.Array, size: int) -> jax.Array:
        key = jax.random.wrap_key_data(seed, impl="threefry2x32")
        return jax.random.permutation(key, size)[: kept(ratio, size)]

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        flat = x.ravel()
        seed = jax.random.bits(key, (2,), jnp.uint32)
        values = flat[places(seed, flat.size)] * (flat.size / max(kept(ratio, flat.size), 1))
        return {"values": _spoiled(values, flat), "seed": seed}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        return _placed(payload["values"], places(payload["seed"], like.size), like)

    def error(size: int) -> float:
        return size / max(kept(ratio, size), 1) - 1

    return Compressor(f"random_k({ratio:g})", encode, decode, True, error, route="sum")


def dct_top_k(keep: int, *, chunk: int = 64) -> Compressor:
    """The largest frequencies of every chunk of the array, by a discrete cosine transform.

    The flat array is cut into chunks, each is transformed by the orthonormal DCT-II, and the `keep`
    components of largest magnitude travel. Payload: `values` [chunks, keep] in at least float32 and
    `indices` [chunks, keep], uint8, uint16 or uint32 by the chunk. Contractive with delta = keep / chunk
    or more.

    Args:
      keep: components of each chunk that travel.
      chunk: numbers that are transformed together.

    Example:
      >>> compressor = dct_top_k(1, chunk=4)
      >>> x = jnp.ones(4)  # a single frequency
      >>> y = compressor.decode(compressor.encode(jax.random.key(0), x), x)
      >>> bool(jnp.allclose(y, x)), compressor.bytes(x)
      (True, 5)
    """
    check_count("dct_top_k(8, chunk=64)", chunk)
    check_count("dct_top_k(8, chunk=64)", keep, most=chunk)
    k, n = np.meshgrid(np.arange(chunk), np.arange(chunk), indexing="ij")
    transform = np.sqrt(2 / chunk) * np.cos(np.pi * (2 * n + 1) * k / (2 * chunk))
    transform[0] /= np.sqrt(2)

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        flat = wide(x.ravel())
        rows = jnp.pad(flat, (0, -flat.size % chunk)).reshape(-1, chunk)
        rows = jnp.dot(rows, jnp.asarray(transform.T, flat.dtype), precision="highest")
        _, indices = lax.top_k(jnp.abs(rows), keep)
        values = jnp.take_along_axis(rows, indices, axis=1)
        return {"values": _spoiled(values, flat), "indices": indices.astype(_index_dtype(chunk))}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        values, indices = payload["values"], payload["indices"].astype(jnp.int32)
        rows = jnp.zeros((len(values), chunk), values.dtype)
        rows = rows.at[jnp.arange(len(values))[:, None], indices].set(values)
        flat = jnp.dot(rows, jnp.asarray(transform, values.dtype), precision="highest").ravel()
        return flat[: like.size].reshape(like.shape).astype(like.dtype)

    return Compressor(
        f"dct_top_k({keep}, chunk={chunk})",
        encode,
        decode,
        False,
        # Rounding of the transform itself, where everything is kept.
        lambda size: 1 - keep / chunk if keep < chunk else 1e-10,
        route="gather",
    )


def _index_dtype(size: int) -> Any:
    return jnp.uint8 if size <= 1 << 8 else jnp.uint16 if size <= 1 << 16 else jnp.uint32


def _spoiled(values: jax.Array, x: jax.Array) -> jax.Array:
    """The values, all NaN if any number of the array is not finite: it might be one that is left out."""
    return jnp.where(jnp.isfinite(x).all(), values, jnp.full_like(values, jnp.nan))


def _placed(values: jax.Array, indices: jax.Array, like: Any) -> jax.Array:
    """Values at their places, zeros elsewhere; NaN everywhere if the values are."""
    flat = jnp.zeros(like.size, like.dtype)
    flat = flat.at[indices.astype(jnp.int32)].set(values.astype(like.dtype))
    flat = jnp.where(jnp.isnan(values).any(), jnp.full_like(flat, jnp.nan), flat)
    return flat.reshape(like.shape)
