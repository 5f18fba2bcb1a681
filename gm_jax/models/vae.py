"""Variational autoencoder with one or two stochastic layers.

Kingma and Welling 2014, Auto-Encoding Variational Bayes,
https://arxiv.org/abs/1312.6114; the second layer as in Burda et al. 2016, Importance
Weighted Autoencoders, sec. 5, https://arxiv.org/abs/1509.00519:

    q(z1, z2 | x) = q(z1 | x) q(z2 | z1)
    p(x, z1, z2) = p(z2) p(z1 | z2) p(x | z1)

with diagonal Gaussians whose mean and log variance are computed by networks. The top
latent has the prior N(0, I). `decode` returns the parameters of p(x | z1): logits of a
Bernoulli [N, H, W, C], logits of a categorical [N, H, W, C, V], or a `Gaussian` of
[N, H, W, C].

    model = VAE(image_shape=(28, 28, 1), hidden=(200, 200), latent_dims=(50,))
    q = model.apply(variables, x, method=VAE.encode)
    logits = model.apply(variables, z, method=VAE.decode)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import stacks

__all__ = ['Gaussian', 'GaussianLayer', 'VAE']


class Gaussian(NamedTuple):
    """A diagonal Gaussian.

    Attributes:
        mean: [N, ...] the means.
        logvar: [N, ...] the logarithms of the variances.
    """

    mean: jax.Array
    logvar: jax.Array


class GaussianLayer(nn.Module):
    """Linear maps from [N, F] to a latent's mean and log variance, [N, Z] float32."""

    latent_dim: int

    @nn.compact
    def __call__(self, h: jax.Array) -> Gaussian:
        """Apply two linear maps."""
        # One product for both; they are split by columns.
        out = nn.Dense(
            2 * self.latent_dim, kernel_init=nn.initializers.glorot_uniform()
        )(h.astype(jnp.float32))
        return Gaussian(*jnp.split(out, 2, axis=-1))


class VAE(nn.Module):
    """Encoders q and decoders p of one or two stochastic layers."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int = 2  # V
    likelihood: str = 'bernoulli'  # or 'categorical', 'gaussian'
    network: str = 'mlp'  # or 'conv', for the layers between x and z1
    hidden: Sequence[int] = (400,)  # widths between x and z1, or maps of 'conv'
    hidden2: Sequence[int] = (100, 100)  # widths between z1 and z2
    latent_dims: Sequence[int] = (20,)  # size of z1, and of z2 if there is one
    activation: stacks.Activation = nn.relu
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the networks."""
        parts = dict(
            activation=self.activation, batch_norm=self.batch_norm,
            dropout=self.dropout, dtype=self.dtype,
        )
        height, width, channels = self.image_shape
        outputs = channels * {
            'bernoulli': 1, 'categorical': self.num_values, 'gaussian': 2
        }[self.likelihood]
        if self.network == 'conv':
            self.encoder = stacks.ConvStack(self.hidden, **parts)
            self.decoder = stacks.UpConvStack(
                self.hidden, (height, width), outputs, **parts
            )
        else:
            self.encoder = stacks.DenseStack(self.hidden, **parts)
            self.decoder = stacks.DenseStack(self.hidden[::-1], **parts)
            self.output = nn.Dense(
                height * width * outputs, dtype=self.dtype,
                kernel_init=nn.initializers.glorot_uniform(),
            )
        self.posterior = GaussianLayer(self.latent_dims[0])
        if len(self.latent_dims) == 2:
            self.encoder2 = stacks.DenseStack(self.hidden2, **parts)
            self.posterior2 = GaussianLayer(self.latent_dims[1])
            self.decoder2 = stacks.DenseStack(self.hidden2[::-1], **parts)
            self.prior = GaussianLayer(self.latent_dims[0])

    def encode(self, x: jax.Array, **mode: Any) -> Gaussian:
        """Return q(z1 | x).

        Args:
            x: [N, H, W, C] in [0, 1].
            **mode: train, dropout_rng, axis_name; see `layers.stacks`.

        Returns:
            Gaussian of [N, Z1].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        x = x if self.network == 'conv' else x.reshape(x.shape[0], -1)
        h = self.encoder(x, **mode)
        return self.posterior(h.reshape(h.shape[0], -1))

    def decode(self, z: jax.Array, **mode: Any) -> jax.Array | Gaussian:
        """Return the parameters of p(x | z1).

        Args:
            z: [N, Z1].
            **mode: train, dropout_rng, axis_name.

        Returns:
            Logits [N, H, W, C] or [N, H, W, C, V], or a Gaussian of [N, H, W, C].
        """
        chex.assert_shape(z, (None, self.latent_dims[0]))
        h = self.decoder(z, **mode)
        h = h if self.network == 'conv' else self.output(h)
        h = h.astype(jnp.float32).reshape(z.shape[0], *self.image_shape, -1)
        if self.likelihood == 'categorical':
            return h
        if self.likelihood == 'gaussian':
            return Gaussian(h[..., 0], h[..., 1])
        return h[..., 0]

    def encode2(self, z1: jax.Array, **mode: Any) -> Gaussian:
        """Return q(z2 | z1), a Gaussian of [N, Z2], for z1 [N, Z1]."""
        return self.posterior2(self.encoder2(z1, **mode))

    def decode2(self, z2: jax.Array, **mode: Any) -> Gaussian:
        """Return p(z1 | z2), a Gaussian of [N, Z1], for z2 [N, Z2]."""
        return self.prior(self.decoder2(z2, **mode))

    def __call__(self, x: jax.Array, **mode: Any) -> Any:
        """Pass means through every network once, to make their parameters."""
        z1 = self.encode(x, **mode).mean
        if len(self.latent_dims) == 2:
            self.decode2(self.encode2(z1, **mode).mean, **mode)
        return self.decode(z1, **mode)
