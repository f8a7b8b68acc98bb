"""Small whole numbers packed into bytes, 8, 4 or 2 to a byte."""

import jax
import jax.numpy as jnp
import numpy as np


def pack(values: jax.Array, *, bits: int) -> jax.Array:
    """Packs numbers from 0 to 2**bits - 1 into bytes, the first one lowest.

    Args:
      values: uint8 [n].
      bits: 1, 2 or 4.

    Returns:
      uint8 [ceil(n * bits / 8)].

    Example:
      >>> pack(jnp.array([1, 0, 0, 0, 0, 0, 0, 0, 1], jnp.uint8), bits=1)
      Array([1, 1], dtype=uint8)
    """
    each = 8 // bits
    rows = jnp.pad(values, (0, -values.size % each)).reshape(-1, each)
    return jnp.bitwise_or.reduce(rows << _shifts(bits), axis=1)


def unpack(packed: jax.Array, *, bits: int, size: int) -> jax.Array:
    """The `size` numbers that `pack` packed, uint8.

    Example:
      >>> unpack(pack(jnp.array([3, 0, 2], jnp.uint8), bits=2), bits=2, size=3)
      Array([3, 0, 2], dtype=uint8)
    """
    return ((packed[:, None] >> _shifts(bits)) & np.uint8(2**bits - 1)).ravel()[:size]


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits, dtype=np.uint8)[None]
