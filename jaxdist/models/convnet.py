"""A small convolutional network for greyscale images of 8x8 or 28x28 pixels, with GroupNorm.

LeCun et al., Gradient-based learning applied to document recognition, Proc. IEEE, 1998.
Wu and He, Group Normalization, ECCV 2018. arXiv:1803.08494
Hsieh et al., The Non-IID Data Quagmire of Decentralized Machine Learning, ICML 2020.
arXiv:1910.00189
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import Dtype

from jaxdist.errors import Refused


class ConvNet(nn.Module):
    """Blocks of 3x3 convolution, GroupNorm, ReLU and pooling; a mean over pixels; a dense layer.

    GroupNorm and not BatchNorm: the statistics of a batch are state of which every worker would
    hold its own version and would have to communicate it, and they make one example's gradient
    depend on which others share its worker, so that the answer changes with how the data are split
    (badly so with skewed labels: Hsieh et al.). GroupNorm looks at one example at a time and keeps
    no state.

    Input: floating point, [batch, height, width, 1], each side divisible by 2 ** len(features).
    Output: logits, [batch, classes], in float32 or wider.

    Attributes:
      features: the channels of each block; each must be divisible by `groups`.
      classes: how many logits.
      groups: how many groups of channels GroupNorm normalises on their own.
      dtype: what the layers compute in, for instance `jnp.bfloat16`. The parameters stay float32.
        None computes in the type that parameters and input have.

    Example:
      5,178 parameters whatever the size of the image, thanks to the mean over pixels:
      9 * 1 * 16 + 2 * 16 in the first block, 9 * 16 * 32 + 2 * 32 in the second, 32 * 10 + 10 in
      the last layer.

      >>> import jax, jax.numpy as jnp
      >>> images = jnp.zeros((32, 28, 28, 1))
      >>> init = ConvNet().init_with_output
      >>> logits, params = jax.eval_shape(init, jax.random.key(0), images)
      >>> logits.shape
      (32, 10)
      >>> sum(leaf.size for leaf in jax.tree.leaves(params))
      5178
    """

    features: tuple[int, ...] = (16, 32)
    classes: int = 10
    groups: int = 8
    dtype: Dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """The logits of a batch of images."""
        self._check(x)
        for channels in self.features:
            # The offset of the norm that follows does the work of a bias.
            x = nn.Conv(channels, (3, 3), use_bias=False, dtype=self.dtype)(x)
            x = nn.relu(nn.GroupNorm(num_groups=self.groups, dtype=self.dtype)(x))
            x = nn.max_pool(x, (2, 2), strides=(2, 2))
        x = nn.Dense(self.classes, dtype=self.dtype)(x.mean(axis=(1, 2)))
        # The softmax of the loss is where few bits hurt most.
        return x.astype(np.promote_types(x.dtype, jnp.float32))

    def _check(self, x: jax.Array) -> None:
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise Refused(
                f"ConvNet got an input of type {x.dtype}: expected floating point near [0, 1]; "
                "write images.astype(jnp.float32) / 255"
            )
        factor = 2 ** len(self.features)
        if x.ndim != 4 or x.shape[3] != 1 or x.shape[1] % factor or x.shape[2] % factor:
            raise Refused(
                f"ConvNet got an input of shape {x.shape}: expected [batch, height, width, 1] with "
                f"sides divisible by {factor}; write images[..., None] to add the channel, or pad"
            )
        uneven = [channels for channels in self.features if channels % self.groups]
        if uneven:
            raise Refused(
                f"ConvNet has features={self.features} and groups={self.groups}: expected every "
                f"count of channels divisible by groups, {uneven} is not; write groups=1"
            )
