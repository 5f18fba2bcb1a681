"""DCGAN: an all-convolutional generator and discriminator.

Radford, Metz and Chintala 2016, Unsupervised Representation Learning with Deep
Convolutional GANs, https://arxiv.org/abs/1511.06434. Its guidelines, sec. 3:

    strided convolutions in D, fractionally-strided ones in G, no pooling
    BatchNorm in both, except at G's output and D's input
    no fully connected hidden layers
    ReLU in G, tanh at its output
    LeakyReLU in D, of slope 0.2

    x = Generator(image_shape=(32, 32, 3)).apply(variables, z)  # in [-1, 1]
    logits = Discriminator().apply(variables, x)

An image grows from side / 2^L to its full side in L layers; `features` lists the maps
of each layer. With `num_classes` both networks are conditioned on the label, as in
Mirza and Osindero 2014, Conditional Generative Adversarial Nets,
https://arxiv.org/abs/1411.1784.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import downsample
from gm_jax.layers.spectral import maybe_spectral
from gm_jax.layers.upsample import ConvTranspose

__all__ = ['BatchNorm', 'Discriminator', 'Generator']

_normal = nn.initializers.normal(0.02)


class BatchNorm(nn.Module):
    """BatchNorm with DCGAN's initial gains, drawn from N(1, 0.02^2)."""

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool, axis_name: str | None
    ) -> jax.Array:
        """Normalise the maps of x [B, H, W, F], averaging moments over `axis_name`."""
        return nn.BatchNorm(
            use_running_average=not train, momentum=0.9, axis_name=axis_name,
            scale_init=lambda *args: 1 + _normal(*args),
        )(x).astype(x.dtype)


class Generator(nn.Module):
    """The network from z, and maybe a label, to an image."""

    image_shape: tuple[int, int, int]  # H, W, C; 2^L divides H and W
    features: Sequence[int] = (256, 128, 64)  # maps that enter the L upsampling layers
    kernel_size: int = 4
    num_classes: int = 0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        z: jax.Array,
        label: jax.Array | None = None,
        *,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Draw images.

        Args:
            z: [B, Z].
            label: [B] integer, required with `num_classes`.
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [B, H, W, C] float32 in (-1, 1).
        """
        chex.assert_rank(z, 2)
        mode = dict(train=train, axis_name=axis_name)
        height, width, channels = self.image_shape
        scale = 2 ** len(self.features)
        chex.assert_is_divisible(height, scale)
        chex.assert_is_divisible(width, scale)
        if self.num_classes:
            chex.assert_shape(label, z.shape[:1])
            z = jnp.concatenate([z, jax.nn.one_hot(label, self.num_classes)], axis=-1)
        # A fractionally-strided convolution of one pixel is a matrix product.
        shape = height // scale, width // scale, self.features[0]
        h = nn.DenseGeneral(
            shape, use_bias=False, kernel_init=_normal, dtype=self.dtype
        )(z)
        for size in self.features[1:]:
            h = nn.relu(BatchNorm()(h, **mode))
            h = ConvTranspose(
                size, self.kernel_size, use_bias=False, kernel_init=_normal,
                dtype=self.dtype,
            )(h)
        h = nn.relu(BatchNorm()(h, **mode))
        x = ConvTranspose(
            channels, self.kernel_size, kernel_init=_normal, dtype=self.dtype
        )(h)
        return jnp.tanh(x.astype(jnp.float32))


class Discriminator(nn.Module):
    """The network from an image, and maybe its label, to the logit of being real."""

    features: Sequence[int] = (64, 128, 256)  # maps of the L strided convolutions
    kernel_size: int = 4
    norm: str = 'batch'  # or 'none', 'spectral' (Miyato et al. 2018)
    num_classes: int = 0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        label: jax.Array | None = None,
        *,
        dropout_rng: jax.Array | None = None,
        train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Compute logits [B] of images [B, H, W, C]; see `players.Discriminator`.

        `label` [B] integer, required with `num_classes`, is appended to the image as
        one-hot maps. There is no dropout.
        """
        del dropout_rng
        chex.assert_rank(x, 4)
        h = x
        if self.num_classes:
            chex.assert_shape(label, x.shape[:1])
            maps = jax.nn.one_hot(label, self.num_classes)[:, None, None]
            maps = jnp.broadcast_to(maps, (*x.shape[:3], self.num_classes))
            h = jnp.concatenate([x, maps], axis=-1)
        size = (self.kernel_size, self.kernel_size)
        spectral = maybe_spectral(self.norm == 'spectral', train)
        for layer, features in enumerate(self.features):
            normalised = self.norm == 'batch' and layer > 0
            conv = nn.Conv(
                features, size, (2, 2), use_bias=not normalised, kernel_init=_normal,
                dtype=self.dtype, conv_general_dilated=downsample.conv,
            )
            h = spectral(conv)(h)
            if normalised:
                h = BatchNorm()(h, train=train, axis_name=axis_name)
            h = nn.leaky_relu(h, 0.2)
        # Equals a convolution whose kernel covers the whole of the last maps.
        output = nn.Dense(1, kernel_init=_normal, dtype=self.dtype)
        h = spectral(output)(h.reshape(h.shape[0], -1))
        return h.astype(jnp.float32)[:, 0]
