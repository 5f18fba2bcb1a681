"""Generative adversarial networks of fully connected layers.

Goodfellow et al. 2014, Generative Adversarial Networks, sec. 5,
https://arxiv.org/abs/1406.2661: a generator of ReLU layers and a discriminator of
maxout layers with dropout.

    x = Generator(image_shape=(28, 28, 1)).apply(variables, z)  # in [-1, 1]
    logits = Discriminator().apply(variables, x)

NOTE: the paper's generator ends in a sigmoid, for pixels in [0, 1]. Ours, like all our
generators, ends in a tanh, for [-1, 1].
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.dropout import Dropout
from gm_jax.layers.spectral import maybe_spectral

__all__ = ['Critic', 'Discriminator', 'Generator', 'Maxout']


class Generator(nn.Module):
    """The network from z to an image."""

    image_shape: tuple[int, int, int]  # H, W, C
    hidden: Sequence[int] = (1200, 1200)
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> jax.Array:
        """Draw images.

        Args:
            z: [B, Z].
            train: has no effect, because there is no BatchNorm.
            axis_name: has no effect either.

        Returns:
            [B, H, W, C] float32 in (-1, 1).
        """
        del train, axis_name
        chex.assert_rank(z, 2)
        h = z
        for size in self.hidden:
            h = nn.relu(nn.Dense(size, dtype=self.dtype)(h))
        height, width, channels = self.image_shape
        h = nn.Dense(height * width * channels, dtype=self.dtype)(h)
        return jnp.tanh(h.astype(jnp.float32)).reshape(-1, *self.image_shape)


class Maxout(nn.Module):
    """The largest of several linear maps for each unit: max_p (W_p x + b_p).

    References:
        Goodfellow et al. 2013, Maxout Networks, sec. 3. https://arxiv.org/abs/1302.4389
    """

    features: int
    pieces: int = 5
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, F] to [B, features]."""
        h = nn.Dense(self.features * self.pieces, dtype=self.dtype)(x)
        return h.reshape(-1, self.features, self.pieces).max(axis=-1)


class Discriminator(nn.Module):
    """The network from an image to the logit of its being real."""

    hidden: Sequence[int] = (240, 240)
    pieces: int = 5  # linear maps per maxout unit
    dropout: float = 0.5  # rate for the units; for the pixels it is 0.4 of this
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

        There is no BatchNorm.
        """
        del train, axis_name
        chex.assert_rank(x, 4)
        # The paper's code drops 0.2 of the pixels and 0.5 of the units.
        h = Dropout(0.4 * self.dropout)(x.reshape(x.shape[0], -1), rng=dropout_rng)
        for size in self.hidden:
            h = Maxout(size, self.pieces, dtype=self.dtype)(h)
            h = Dropout(self.dropout)(h, rng=dropout_rng)
        return nn.Dense(1, dtype=self.dtype)(h).astype(jnp.float32)[:, 0]


class Critic(nn.Module):
    """A LeakyReLU critic, from an image to a score; its gradient can be bounded."""

    hidden: Sequence[int] = (256, 256)
    spectral: bool = False  # whether to divide kernels by their spectral norms
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
        """Compute scores [B] of images [B, H, W, C]; see `players.Discriminator`.

        There is no dropout and no BatchNorm.
        """
        del dropout_rng, axis_name
        chex.assert_rank(x, 4)
        normalised = maybe_spectral(self.spectral, train)
        h = x.reshape(x.shape[0], -1)
        for size in self.hidden:
            layer = normalised(nn.Dense(size, dtype=self.dtype))
            h = nn.leaky_relu(layer(h), 0.2)
        score = normalised(nn.Dense(1, dtype=self.dtype))(h)
        return score.astype(jnp.float32)[:, 0]
