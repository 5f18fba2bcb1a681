"""Causal convolutions with two equivalent entry points, parallel and incremental.

`__call__` is the parallel entry point: all positions of an image at once, for training.
`row` or `pixel` is the incremental one: one row, or one position, from the few rows or
columns before it that the kernel reaches, for sampling. Only the taps that a mask would
keep have parameters and are computed.

A masked k x k convolution (van den Oord et al. 2016, Pixel Recurrent Neural Networks,
sec. 3.4, https://arxiv.org/abs/1601.06759) is the sum of its three parts: the rows
above (`Above`), the pixels to the left (`Left`) and the pixel itself (`Here`), where
mask A and mask B differ.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.products import Part, correlate, product

__all__ = [
    'Above', 'add_bias', 'as_logits', 'Head', 'Here', 'LECUN', 'Left',
    'logits_per_value', 'window',
]

# Each part is initialised by its own fan-in; only one of the parts carries the bias.
LECUN = nn.initializers.lecun_normal()


class Above(nn.Module):
    """A convolution over the K rows up to r - 1, or up to r with `inclusive`.

    `inclusive` is for features that themselves depend only on the rows above.
    """

    features: int  # G
    kernel_size: tuple[int, int]  # K rows, J columns, J odd
    inclusive: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, H, W, G]."""
        part, bias = self.part(x.shape[-1])
        return add_bias(correlate(x.astype(self.dtype), *part), bias)

    def row(self, rows: jax.Array) -> jax.Array:
        """Map the K rows that row r sees, [B, K, W, F], to row r, [B, W, G]."""
        (kernel, (_, side)), bias = self.part(rows.shape[-1])
        y = correlate(rows.astype(self.dtype), kernel, ((0, 0), side))
        return add_bias(y[:, 0], bias)

    @nn.compact
    def part(self, num: int) -> tuple[Part, jax.Array]:
        """Return the convolution of F = `num` features, and its bias [G]."""
        rows, columns = self.kernel_size
        if columns % 2 == 0:
            raise ValueError(f'a kernel of {columns} columns has no centre')
        # Unless inclusive, the last row would belong to a row below the image.
        vertical = (rows - 1, 0) if self.inclusive else (rows, -1)
        side = (columns // 2, columns // 2)
        shape = (rows, columns, num, self.features)
        kernel = self.param('kernel', LECUN, shape).astype(self.dtype)
        bias = self.param('bias', nn.initializers.zeros_init(), shape[-1:])
        return Part(kernel, (vertical, side)), bias


class Left(nn.Module):
    """A convolution over the K pixels to the left, without the pixel itself."""

    features: int  # G
    kernel_size: int  # K
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, H, W, G]."""
        return correlate(x.astype(self.dtype), *self.part(x.shape[-1]))

    def pixel(self, left: jax.Array) -> jax.Array:
        """Map the K pixels before a pixel, [B, K, F], to that pixel, [B, G]."""
        kernel = self.part(left.shape[-1]).kernel.reshape(-1, self.features)
        return left.astype(self.dtype).reshape(len(left), -1) @ kernel

    @nn.compact
    def part(self, num: int) -> Part:
        """Return the convolution of F = `num` features."""
        shape = (1, self.kernel_size, num, self.features)
        kernel = self.param('kernel', LECUN, shape).astype(self.dtype)
        return Part(kernel, ((0, 0), (self.kernel_size, -1)))


class Here(nn.Module):
    """A 1 x 1 convolution that respects the order of colours; it has one entry point.

    Features form C groups, one per colour; group g sees the groups up to its own (mask
    B), or those before its own (`strict`, mask A). With one colour, mask B is an
    ordinary 1 x 1 convolution, and mask A would see nothing.
    """

    features: int  # G
    channels: int = 1  # C
    strict: bool = False
    copies: int = 1  # blocks of C groups in the output (two for a gate)
    use_bias: bool = True
    scale: float = 1.0  # factor of the initial kernel
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., F] to [..., G]."""
        kernel, bias = self._weights(x.shape[-1])
        y = product(x.astype(self.dtype), kernel.astype(self.dtype))
        return y if bias is None else add_bias(y, bias)

    def part(self, num: int) -> Part:
        """Return the convolution of F = `num` features, without its bias."""
        kernel = self._weights(num)[0].astype(self.dtype)
        return Part(kernel[None, None], ((0, 0), (0, 0)))

    @nn.compact
    def _weights(self, num: int) -> tuple[jax.Array, jax.Array | None]:
        shape = (num, self.features)
        kernel = self.param(
            'kernel', lambda *args: self.scale * LECUN(*args), shape
        )
        if self.channels > 1:
            seen = self._group(shape[0], 1)[:, None]
            mask = seen <= self._group(shape[1], self.copies) - int(self.strict)
            kernel = kernel * mask
        if not self.use_bias:
            return kernel, None
        return kernel, self.param('bias', nn.initializers.zeros_init(), shape[1:])

    def _group(self, features: int, copies: int) -> np.ndarray:
        if features % (copies * self.channels):
            raise ValueError(
                f'{features} features cannot be {copies} x {self.channels} groups'
            )
        size = features // copies // self.channels
        return np.arange(features) // size % self.channels


class Head(nn.Module):
    """ReLU, 1 x 1, ReLU, 1 x 1 to the logits of every colour."""

    features: int
    channels: int  # C
    num_values: int  # V
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., F] to float32 logits [..., C] (V = 2) or [..., C, V]."""
        x = jax.nn.relu(x)
        features = self.features + -self.features % self.channels  # whole groups
        x = jax.nn.relu(Here(features, self.channels, dtype=self.dtype)(x))
        outputs = self.channels * logits_per_value(self.num_values)
        # Small, so that all values are about equally likely at first.
        x = Here(outputs, self.channels, dtype=self.dtype, scale=0.1)(x)
        return as_logits(x, self.channels, self.num_values)


def logits_per_value(num_values: int) -> int:
    """Return how many logits a value of V has: 1 for a bit, otherwise V."""
    return 1 if num_values == 2 else num_values


def as_logits(x: jax.Array, channels: int, num_values: int) -> jax.Array:
    """Reshape features to float32 logits [..., C] (V = 2) or [..., C, V]."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return x if num_values == 2 else x.reshape(*x.shape[:-1], channels, -1)


def add_bias(x: jax.Array, bias: jax.Array) -> jax.Array:
    """Add a bias [G] to [..., G]."""
    return x + jnp.expand_dims(bias.astype(x.dtype), range(x.ndim - 1))


def window(rows: jax.Array, new: jax.Array) -> jax.Array:
    """Drop the oldest of [B, K, ...] on axis 1 and append `new` [B, ...]."""
    return jnp.concatenate([rows[:, 1:], new[:, None]], axis=1)
