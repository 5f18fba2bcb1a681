"""The encoders and decoders that autoencoders and VAEs have in common.

Every stack takes the same keywords: `train` (BatchNorm uses the batch's moments, and
there is dropout), `dropout_rng` (one key, or [B] keys, one per example; None: no
dropout) and `axis_name` (the pmap axis over which BatchNorm's moments are averaged;
None: one device). Without them a stack computes what evaluation needs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import transforms
from gm_jax.layers.dropout import Dropout

__all__ = ['Activation', 'ConvStack', 'DenseStack', 'UpConvStack']

Activation = Callable[[jax.Array], jax.Array]


class _AfterLayer(nn.Module):
    """BatchNorm, activation, dropout, in that order."""

    activation: Activation
    batch_norm: bool
    dropout: float

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        *,
        train: bool = False,
        dropout_rng: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> jax.Array:
        if self.batch_norm:
            norm = nn.BatchNorm(
                use_running_average=not train, axis_name=axis_name, momentum=0.9
            )
            x = norm(x).astype(x.dtype)
        x = self.activation(x)
        return Dropout(self.dropout)(x, rng=dropout_rng if train else None)


class DenseStack(nn.Module):
    """Fully connected layers: [N, F] to [N, features[-1]]."""

    features: Sequence[int]
    activation: Activation
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, **mode: Any) -> jax.Array:
        """Apply the layers."""
        chex.assert_rank(x, 2)
        dense = functools.partial(
            nn.Dense, kernel_init=nn.initializers.glorot_uniform()
        )
        return _apply(self, dense, x, mode)


class ConvStack(nn.Module):
    """Convolutions of stride 2: [N, H, W, C] to [N, H', W', features[-1]].

    Each layer halves height and width, rounding up.
    """

    features: Sequence[int]
    activation: Activation
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, **mode: Any) -> jax.Array:
        """Apply the layers."""
        chex.assert_rank(x, 4)
        conv = functools.partial(nn.Conv, kernel_size=(4, 4), strides=(2, 2))
        return _apply(self, conv, x, mode)


def _apply(
    stack: DenseStack | ConvStack, layer: Callable[..., nn.Module], x: jax.Array,
    mode: dict[str, Any],
) -> jax.Array:
    for size in stack.features:
        x = layer(size, use_bias=not stack.batch_norm, dtype=stack.dtype)(x)
        x = _AfterLayer(stack.activation, stack.batch_norm, stack.dropout)(x, **mode)
    return x


class UpConvStack(nn.Module):
    """The mirror image of ConvStack: [N, F] to [N, H, W, channels].

    Each layer is a 3x3 convolution to four times the maps, rearranged to twice the
    height and width.

    References:
        Shi et al. 2016, Real-Time Single Image and Video Super-Resolution Using an
        Efficient Sub-Pixel Convolutional Neural Network, sec. 3.2.
        https://arxiv.org/abs/1609.05158
    """

    features: Sequence[int]  # as in ConvStack, so used from the last to the first
    image_shape: tuple[int, int]  # H, W
    channels: int
    activation: Activation
    batch_norm: bool = False
    dropout: float = 0.0
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, **mode: Any) -> jax.Array:
        """Apply the layers."""
        chex.assert_rank(x, 2)
        sizes = [self.image_shape]
        for _ in self.features:
            height, width = sizes[-1]
            sizes.append((-(-height // 2), -(-width // 2)))
        height, width = sizes.pop()
        x = nn.Dense(height * width * self.features[-1], dtype=self.dtype)(x)
        x = x.reshape(-1, height, width, self.features[-1])
        maps = [*self.features[-2::-1], self.channels]
        for size, (height, width) in zip(maps, reversed(sizes)):
            x = _AfterLayer(self.activation, self.batch_norm, self.dropout)(x, **mode)
            x = nn.Conv(4 * size, (3, 3), dtype=self.dtype)(x)
            x = transforms.unsqueeze(x)[0][:, :height, :width]
        return x
