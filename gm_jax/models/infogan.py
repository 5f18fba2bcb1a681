"""The small GAN with which Lucic et al. compare all losses.

Lucic et al. 2018, Are GANs Created Equal?, appendix, https://arxiv.org/abs/1711.10337:
the networks of InfoGAN's MNIST experiments (Chen et al. 2016,
https://arxiv.org/abs/1606.03657) without the latent code, for every data set.

    G: z -> dense 1024 -> dense H/4 W/4 128 -> fractionally-strided 4x4, 64 -> 4x4, C
    D: x -> strided 4x4, 64 -> strided 4x4, 128 -> dense 1024 -> 1

with BatchNorm and LeakyReLU of slope 0.2 after each hidden layer, except that there is
no BatchNorm after D's first layer. D's BatchNorm is optional.

NOTE: pixels are in [-1, 1] here, from a tanh; theirs are in [0, 1].
"""

import functools

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import downsample
from gm_jax.layers.spectral import maybe_spectral
from gm_jax.layers.upsample import ConvTranspose
from gm_jax.models.dcgan import BatchNorm

__all__ = ['Discriminator', 'Generator']

_SLOPE = 0.2


class Generator(nn.Module):
    """The network from z to an image."""

    image_shape: tuple[int, int, int]  # H, W, C; 4 divides H and W
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """Draw images.

        Args:
            z: [B, Z].
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [B, H, W, C] float32 in (-1, 1).
        """
        chex.assert_rank(z, 2)
        height, width, channels = self.image_shape
        chex.assert_is_divisible(height, 4)
        chex.assert_is_divisible(width, 4)

        def after(h: jax.Array) -> jax.Array:
            h = BatchNorm()(h, train=train, axis_name=axis_name)
            return nn.leaky_relu(h, _SLOPE)

        parts = dict(use_bias=False, dtype=self.dtype)
        h = after(nn.Dense(1024, **parts)(z))
        h = after(nn.Dense(height // 4 * (width // 4) * 128, **parts)(h))
        h = h.reshape(-1, height // 4, width // 4, 128)
        h = after(ConvTranspose(64, 4, **parts)(h))
        x = ConvTranspose(channels, 4, dtype=self.dtype)(h)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """The network from an image to the logit of its being real."""

    norm: str = 'batch'  # or 'none', 'spectral' (Miyato et al. 2018)
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Compute logits [B] of images [B, H, W, C]; see `players.Discriminator`.

        There is no dropout.
        """
        del dropout_rng
        chex.assert_rank(x, 4)
        batch_norm = self.norm == 'batch'
        spectral = maybe_spectral(self.norm == 'spectral', train)

        def after(h: jax.Array, normalise: bool = True) -> jax.Array:
            if batch_norm and normalise:
                h = BatchNorm()(h, train=train, axis_name=axis_name)
            return nn.leaky_relu(h, _SLOPE)

        parts = dict(use_bias=not batch_norm, dtype=self.dtype)
        conv = functools.partial(
            nn.Conv, kernel_size=(4, 4), strides=(2, 2), dtype=self.dtype,
            conv_general_dilated=downsample.conv,
        )
        h = after(spectral(conv(64))(x), normalise=False)
        h = after(spectral(conv(128, use_bias=not batch_norm))(h))
        h = after(spectral(nn.Dense(1024, **parts))(h.reshape(h.shape[0], -1)))
        h = spectral(nn.Dense(1, dtype=self.dtype))(h)
        return h.astype(jnp.float32)[:, 0]
