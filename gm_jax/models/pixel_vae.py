"""PixelVAE: a variational autoencoder whose decoder is a Gated PixelCNN.

Gulrajani et al. 2017, PixelVAE: A Latent Variable Model for Natural Images, sec. 3.1,
https://arxiv.org/abs/1611.05013:

    p(x, z) = N(z; 0, I) prod_i p(x_i | x_1 ... x_{i-1}, z)
    q(z|x)  = N(mean(x), diag(variance(x)))

Neighbouring pixels determine the texture almost completely, so z encodes the global
structure, which they do not. It is the condition h of the decoder: a linear map of z is
added to every gate, of both stacks and of the output.

    model = PixelVAE(image_shape=(28, 28, 1), num_values=2, latent_dim=16)
    q = model.apply(variables, x, method='encode')  # x integers [B, H, W, C]
    logits = model.apply(variables, x, z, method='decode')
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.observer import Conv3x3
from gm_jax.layers.pixels import encode
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.models.vae import Gaussian, GaussianLayer

__all__ = ['Encoder', 'PixelVAE']

# Factor of the initial weights of z. At first z says nothing about x, and with a factor
# of 1 its noise slows the training of the decoder.
_Z_SCALE = 0.1


class Encoder(nn.Module):
    """3 x 3 convolutions that halve the sides once for each number of feature maps.

    With (32, 64, 64) maps and 28 x 28 images it is that of the paper's code.
    """

    maps: Sequence[int]
    latent_dim: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> Gaussian:
        """Map [B, H, W, C] to the mean and log variance of z, [B, Z]."""
        before = self.maps[0]
        for after in self.maps:
            x = jax.nn.relu(Conv3x3(before, self.dtype)(x))
            x = jax.nn.relu(Conv3x3(after, self.dtype, stride=2)(x))
            before = after
        for _ in range(2):
            x = jax.nn.relu(Conv3x3(before, self.dtype)(x))
        return GaussianLayer(self.latent_dim)(x.reshape(len(x), -1))


class PixelVAE(nn.Module):
    """The encoder q(z|x) and the decoder p(x|z)."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    latent_dim: int = 16  # Z
    encoder_maps: Sequence[int] = (32, 64, 64)
    features: int = 16  # of the decoder; for this and the rest see GatedPixelCNN
    num_layers: int = 12
    first_kernel: int = 7
    kernel_sizes: tuple[int, ...] = (5,)
    head: int = 16
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the networks."""
        self.encoder = Encoder(self.encoder_maps, self.latent_dim, dtype=self.dtype)
        self.decoder = GatedPixelCNN(
            self.image_shape, self.num_values, features=self.features,
            num_layers=self.num_layers, first_kernel=self.first_kernel,
            kernel_sizes=self.kernel_sizes, head=self.head, gated_head=True,
            h_scale=_Z_SCALE, dtype=self.dtype,
        )

    def encode(self, x: jax.Array) -> Gaussian:
        """Return q(z|x), a Gaussian of [B, Z], for x [B, H, W, C] integers."""
        chex.assert_shape(x, (None, *self.image_shape))
        return self.encoder(encode(x, self.num_values))

    def decode(self, x: jax.Array, z: jax.Array) -> jax.Array:
        """Compute the logits of every pixel given those before it and z.

        Args:
            x: [B, H, W, C] integers in [0, V).
            z: [B, Z].

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(z, (len(x), self.latent_dim))
        return self.decoder(x, z)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Pass the means of q(z|x) through the decoder, to make all parameters."""
        return self.decode(x, self.encode(x).mean)
