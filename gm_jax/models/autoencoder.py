"""Autoencoders, which map an image to a short code and the code back to the image.

Three generations, which differ in the layers between image and code:

    linear  z = s(W x + b),  x_hat = s(W' z + b')    with s the sigmoid
    deep    fully connected ReLU layers both ways    (Hinton and Salakhutdinov 2006)
    conv    ReLU convolutions both ways              (Masci et al. 2011)

NOTE: Hinton and Salakhutdinov use sigmoid layers, which they pre-train one by one; ReLU
layers need no pre-training. All three end in a sigmoid, so x_hat is in [0, 1] as pixels
are; the codes of `deep` and `conv` are linear, not squashed.

    model = Autoencoder(image_shape=(28, 28, 1), hidden=(1000, 500, 250), latent_dim=30)
    z = model.apply(variables, x, method=Autoencoder.encode)
    x_hat = model.apply(variables, z, method=Autoencoder.decode)
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import stacks

__all__ = ['Autoencoder', 'Classifier']


class Autoencoder(nn.Module):
    """An encoder and a decoder; the loss is in `losses.reconstruction`."""

    image_shape: tuple[int, int, int]  # H, W, C
    network: str = 'deep'  # or 'linear', 'conv'
    hidden: Sequence[int] = (256, 256)  # widths from x to z, or maps of 'conv'
    latent_dim: int = 16  # Z
    squash: stacks.Activation = nn.sigmoid  # for x_hat, and for the code of 'linear'
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the networks."""
        parts = dict(activation=nn.relu, dtype=self.dtype)
        height, width, channels = self.image_shape
        if self.network == 'conv':
            self.encoder = stacks.ConvStack(self.hidden, **parts)
            self.decoder = stacks.UpConvStack(
                self.hidden, (height, width), channels, **parts
            )
        else:
            hidden = () if self.network == 'linear' else self.hidden
            self.encoder = stacks.DenseStack(hidden, **parts)
            self.decoder = stacks.DenseStack(hidden[::-1], **parts)
            self.output = nn.Dense(height * width * channels, dtype=self.dtype)
        self.code = nn.Dense(self.latent_dim, dtype=self.dtype)

    def encode(self, x: jax.Array) -> jax.Array:
        """Return the codes.

        Args:
            x: [N, H, W, C] in [0, 1].

        Returns:
            z [N, Z] float32.
        """
        chex.assert_shape(x, (None, *self.image_shape))
        h = x if self.network == 'conv' else x.reshape(x.shape[0], -1)
        h = self.encoder(h)
        z = self.code(h.reshape(h.shape[0], -1)).astype(jnp.float32)
        return self.squash(z) if self.network == 'linear' else z

    def decode(self, z: jax.Array) -> jax.Array:
        """Return the reconstructions.

        Args:
            z: [N, Z].

        Returns:
            x_hat [N, H, W, C] float32, in [0, 1] if `squash` is the sigmoid.
        """
        chex.assert_shape(z, (None, self.latent_dim))
        h = self.decoder(z)
        h = h if self.network == 'conv' else self.output(h)
        h = h.astype(jnp.float32).reshape(z.shape[0], *self.image_shape)
        return self.squash(h)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return decode(encode(x)), [N, H, W, C]."""
        return self.decode(self.encode(x))


class Classifier(nn.Module):
    """A softmax layer on the codes: W encode(x) + b.

    Its parameters are those of `head` and of the autoencoder's encoder.
    """

    autoencoder: Autoencoder
    num_classes: int  # L

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Return logits [N, L] for x [N, H, W, C] in [0, 1]."""
        return nn.Dense(self.num_classes, name='head')(self.autoencoder.encode(x))
