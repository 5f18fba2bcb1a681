"""Adversarial autoencoder: adversarial training matches the codes to a prior.

Makhzani et al. 2015, Adversarial Autoencoders, https://arxiv.org/abs/1511.05644: two
hidden layers of ReLU units in each network. With categories (sec. 5 and 6) the encoder
also returns q(y|x) of a category y, and the decoder is given y and z.

With `batch_norm` the hidden layers of encoder and decoder are normalised over the
batch, and so are the logits of q(y|x): then every category is in use at the start.

    code = Encoder(latent_dim=10, num_categories=10).apply(variables, x)
    x_hat = Decoder((28, 28, 1)).apply(variables, code.z, code.y)
"""

from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import stacks

__all__ = ['Code', 'Decoder', 'Discriminator', 'Encoder']


class Code(NamedTuple):
    """The output of the encoder.

    Attributes:
        z: [B, Z] the continuous part of the code: a point, not a distribution.
        logits: [B, K] the logits of q(y|x); K = 0 without categories.
    """

    z: jax.Array
    logits: jax.Array

    @property
    def y(self) -> jax.Array:
        """The probabilities q(y|x), [B, K]."""
        return jax.nn.softmax(self.logits)


class Encoder(nn.Module):
    """The network from an image to its code."""

    latent_dim: int  # Z
    num_categories: int = 0  # K
    hidden: Sequence[int] = (1000, 1000)
    batch_norm: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, *, train: bool = False, axis_name: str | None = None
    ) -> Code:
        """Encode images.

        Args:
            x: [B, H, W, C] in [0, 1].
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            z [B, Z] and the logits [B, K], float32.
        """
        chex.assert_rank(x, 4)
        h = stacks.DenseStack(self.hidden, nn.relu, self.batch_norm, dtype=self.dtype)(
            x.reshape(x.shape[0], -1), train=train, axis_name=axis_name
        )
        # One product for both; they are split by columns.
        out = nn.Dense(self.latent_dim + self.num_categories, dtype=self.dtype)(h)
        out = out.astype(jnp.float32)
        z, logits = out[:, :self.latent_dim], out[:, self.latent_dim:]
        if self.batch_norm and self.num_categories:
            logits = nn.BatchNorm(
                use_running_average=not train, axis_name=axis_name, momentum=0.9
            )(logits)
        return Code(z, logits)


class Decoder(nn.Module):
    """The network from a code to an image."""

    image_shape: tuple[int, int, int]  # H, W, C
    hidden: Sequence[int] = (1000, 1000)
    batch_norm: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, z: jax.Array, y: jax.Array, *, train: bool = False,
        axis_name: str | None = None,
    ) -> jax.Array:
        """Decode codes.

        Args:
            z: [B, Z] the continuous part of the code.
            y: [B, K] the categories, one-hot or as probabilities.
            train: BatchNorm uses the moments of the batch, not their running averages.
            axis_name: the pmap axis over which these moments are averaged.

        Returns:
            [B, H, W, C] float32 in [0, 1].
        """
        chex.assert_rank([z, y], 2)
        h = stacks.DenseStack(self.hidden, nn.relu, self.batch_norm, dtype=self.dtype)(
            jnp.concatenate([z, y], axis=1), train=train, axis_name=axis_name
        )
        height, width, channels = self.image_shape
        h = nn.Dense(height * width * channels, dtype=self.dtype)(h)
        return nn.sigmoid(h.astype(jnp.float32)).reshape(-1, *self.image_shape)


class Discriminator(nn.Module):
    """The network from a code, z or y, to the logit of a draw from the prior."""

    hidden: Sequence[int] = (1000, 1000)
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, code: jax.Array) -> jax.Array:
        """Compute the logits [B], float32, of codes [B, Z]."""
        chex.assert_rank(code, 2)
        h = stacks.DenseStack(self.hidden, nn.relu, dtype=self.dtype)(code)
        return nn.Dense(1, dtype=self.dtype)(h).astype(jnp.float32)[:, 0]
