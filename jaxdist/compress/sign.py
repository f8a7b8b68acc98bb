"""One bit a number: its sign, and one scale for the array.

Bernstein et al., signSGD: Compressed Optimisation for Non-Convex Problems, ICML 2018.
arXiv:1802.04434
Karimireddy et al., Error Feedback Fixes SignSGD and other Gradient Compression Schemes, ICML 2019.
arXiv:1901.09847 (the scale)
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxdist.compress import bits
from jaxdist.compress.base import Compressor, PyTree, normalized, wide


def sign() -> Compressor:
    """The sign of every number, times the mean magnitude of the array.

    Payload: `bits` uint8 [ceil(size / 8)], a bit set where the number is not negative, so that the
    sign of 0 is +1; `scale`, the mean magnitude |x|_1 / size. Contractive with delta at least
    1 / size, for an array with a single number that is not 0, and near 2/pi for normal ones. (The
    scale |x|_2 / sqrt(size), which is also in use, contracts nothing.) Forgets what is small beside
    the rest: use it with error feedback.

    Example:
      >>> x = jnp.array([3.0, -1.0, 0.0, -4.0])
      >>> sign().decode(sign().encode(jax.random.key(0), x), x).tolist()
      [2.0, -2.0, 2.0, -2.0]
    """

    def encode(key: jax.Array, x: jax.Array) -> PyTree:
        x = wide(x.ravel())
        # Normalized first: the sum of large numbers would be infinite.
        largest = jnp.abs(x).max(initial=0)
        relative = normalized(jnp.abs(x), largest)
        scale = largest * (relative.sum() / max(x.size, 1))
        return {"bits": bits.pack((x >= 0).astype(jnp.uint8), bits=1), "scale": scale}

    def decode(payload: PyTree, like: Any) -> jax.Array:
        scale = payload["scale"]
        positive = bits.unpack(payload["bits"], bits=1, size=like.size) > 0
        return jnp.where(positive, scale, -scale).reshape(like.shape).astype(like.dtype)

    return Compressor("sign()", encode, decode, False, lambda size: 1 - 1 / max(size, 1))
