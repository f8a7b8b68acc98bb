"""A multilayer perceptron for small images, 784-64-10 unless told otherwise.

Rumelhart et al., Learning representations by back-propagating errors, Nature 323, 1986.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from jaxdist.errors import Refused


class MLP(nn.Module):
    """Dense layers with ReLU between them, over the flattened input.

    Input: floating point, [batch, ...]; everything after the batch axis is one example.
    Output: logits, [batch, features[-1]], in float32 or wider.

    Attributes:
      features: the width of each layer; the last is the number of classes.
      dtype: what the layers compute in, for instance `jnp.bfloat16`. The parameters stay float32.
        None computes in the type that parameters and input have.

    Example:
      50,890 parameters on 28x28 images: 784 * 64 + 64 + 64 * 10 + 10.

      >>> import jax, jax.numpy as jnp
      >>> images = jnp.zeros((32, 28, 28, 1))
      >>> logits, params = jax.eval_shape(MLP().init_with_output, jax.random.key(0), images)
      >>> logits.shape
      (32, 10)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      50890
    """

    features: tuple[int, ...] = (64, 10)
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of a batch of images."""
        if not self.features:
            raise Refused(
                "MLP has features=(): expected at least the number of classes; "
                "write MLP(features=(64, 10))"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise Refused(
                f"MLP got an input of type {x.dtype}: expected floating point near [0, 1]; "
                "write images.astype(jnp.float32) / 255"
            )
        x = x.reshape(x.shape[0], -1)
        for width in self.features[:-1]:
            x = nn.relu(nn.Dense(width, dtype=self.dtype)(x))
        x = nn.Dense(self.features[-1], dtype=self.dtype)(x)
        # The softmax of the loss is where few bits hurt most.
        return x.astype(np.promote_types(x.dtype, jnp.float32))
