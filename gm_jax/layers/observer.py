"""A network without causal masks, which encodes conditions that are images."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.causal import LECUN
from gm_jax.layers.products import correlate

__all__ = ['Conv3x3', 'Observer']


class Conv3x3(nn.Module):
    """A 3 x 3 convolution with zeros around the image."""

    features: int
    dtype: jax.typing.DTypeLike = jnp.float32
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, H, W, G]; stride 2 halves the sides, rounded up."""
        kernel = self.param('kernel', LECUN, (3, 3, x.shape[-1], self.features))
        bias = self.param('bias', nn.initializers.zeros_init(), (self.features,))
        x, kernel = x.astype(self.dtype), kernel.astype(self.dtype)
        y = correlate(x, kernel, ((1, 1), (1, 1)), self.stride)
        return y + bias.astype(self.dtype)[None, None, None]


class Observer(nn.Module):
    """Residual blocks from a condition [B, H, W, E] to a map [B, H, W, F].

    A block is ReLU, 3 x 3, ReLU, 3 x 3, as in He et al. 2016, Identity Mappings in Deep
    Residual Networks, figure 1(b), without BatchNorm.
    """

    features: int
    num_blocks: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, E] to [B, H, W, F]."""
        x = Conv3x3(self.features, self.dtype)(x)
        for _ in range(self.num_blocks):
            y = Conv3x3(self.features, self.dtype)(jax.nn.relu(x))
            x = x + Conv3x3(self.features, self.dtype)(jax.nn.relu(y))
        return jax.nn.relu(x)
