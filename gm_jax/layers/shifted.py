"""Shifted convolutions and related layers, with incremental entry points for sampling.

Salimans et al. 2017, PixelCNN++, sec. 2.3 and 2.4, https://arxiv.org/abs/1701.05517.
Causality comes from shifts alone: a kernel of I rows covers the rows r - I + 1 ... r of
features that are causal themselves. A down-shifted kernel (`centred`) covers equally
many columns on both sides, for features that depend on the rows above only. A
down-right-shifted kernel covers the columns up to its own.

As in `layers.causal`, `__call__` is the parallel entry point; the other methods compute
the same function by rows and pixels.
"""

import functools
import operator

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.activations import concat_elu
from gm_jax.layers.products import correlate, product

__all__ = [
    'DIRECTION', 'Nin', 'shift_down', 'shift_right', 'ShiftedConv', 'Upsample', 'ZEROS',
]

# Only the direction matters where a first batch sets the scale, see weight_norm.
DIRECTION = nn.initializers.normal(0.05)
ZEROS = nn.initializers.zeros_init()


def shift_down(x: jax.Array) -> jax.Array:
    """Shift [B, H, W, F] down by one row: zeros enter, the last row is dropped."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]


def shift_right(x: jax.Array) -> jax.Array:
    """Shift [..., W, F] right by one column: zeros enter, the last one is dropped."""
    return jnp.pad(x, (*[(0, 0)] * (x.ndim - 2), (1, 0), (0, 0)))[..., :-1, :]


class ShiftedConv(nn.Module):
    """A convolution over the rows up to and including the pixel's own.

    With a stride s it is evaluated at every s-th row and column.
    """

    features: int  # G
    kernel_size: tuple[int, int]  # I rows, J columns
    centred: bool
    stride: int = 1
    # The standard deviation of the outputs after data-dependent initialisation.
    scale: float = 1.0
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, H / s, W / s, G], rounded up."""
        return self._convolve(x, top=self.kernel_size[0] - 1)

    def row(self, rows: jax.Array) -> jax.Array:
        """Map the I rows up to row r, [B, I, W, F], to row r / s, [B, W / s, G]."""
        return self._convolve(rows, top=0)[:, 0]

    def above(self, rows: jax.Array) -> jax.Array:
        """Map the I - 1 rows above row r to their contribution, [B, W / s, G]."""
        return self._convolve(rows, top=0, num_rows=self.kernel_size[0] - 1)[:, 0]

    def pixel(self, last: jax.Array, above: jax.Array) -> jax.Array:
        """Map the J pixels up to a pixel, [B, J, F], and `above` there to [B, G]."""
        kernel, _ = self._weights(last.shape[-1])
        return above + last.astype(self.dtype).reshape(len(last), -1) @ (
            kernel[-1].reshape(-1, self.features)
        )

    @nn.compact
    def _weights(self, num: int) -> tuple[jax.Array, jax.Array]:
        shape = (*self.kernel_size, num, self.features)
        kernel = self.param('kernel', DIRECTION, shape)
        bias = self.param('bias', ZEROS, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)

    def _convolve(
        self, x: jax.Array, *, top: int, num_rows: int | None = None
    ) -> jax.Array:
        kernel, bias = self._weights(x.shape[-1])
        columns = self.kernel_size[1]
        right = columns // 2 if self.centred else 0
        pad = ((top, 0), (columns - 1 - right, right))
        y = correlate(x.astype(self.dtype), kernel[:num_rows], pad, self.stride)
        return y + bias[None, None, None]


class Upsample(nn.Module):
    """A transposed convolution of stride 2: rows 2 R and 2 R + 1 come from row R.

    Columns 2 C and 2 C + 1 come from column C. With `centred` the kernel has three
    columns: columns 2 C - 1 ... 2 C + 1 come from column C, so that odd columns have
    two sources.
    """

    features: int  # G
    centred: bool
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, 2 H, 2 W, G]."""
        rows = [self.row(x, i) for i in range(2)]
        return jnp.stack(rows, axis=2).reshape(
            len(x), 2 * x.shape[1], 2 * x.shape[2], self.features
        )

    def row(self, x: jax.Array, i: int | jax.Array) -> jax.Array:
        """Map row R of x, [..., W, F], to row 2 R + i, [..., 2 W, G]."""
        kernel, bias = self._weights(x.shape[-1])
        x, k = x.astype(self.dtype), kernel[i]
        own = int(self.centred)  # the tap of column 2 C
        even, odd = product(x, k[own]), product(x, k[own + 1])
        if self.centred:
            next_x = jnp.roll(x, -1, axis=-2).at[..., -1, :].set(0)
            odd = odd + product(next_x, k[0])
        y = jnp.stack([even, odd], axis=-2)
        y = y.reshape(*x.shape[:-2], -1, self.features)
        return y + bias.reshape((1,) * (y.ndim - 1) + (-1,))

    def pixel(self, x: jax.Array, i: jax.Array, j: jax.Array) -> jax.Array:
        """Map pixel (R, C), [B, F], to pixel (2 R + i, 2 C + j); not if `centred`."""
        kernel, bias = self._weights(x.shape[-1])
        return x.astype(self.dtype) @ kernel[i, j] + bias[None]

    @nn.compact
    def _weights(self, num: int) -> tuple[jax.Array, jax.Array]:
        shape = (2, 3 if self.centred else 2, num, self.features)
        kernel = self.param('kernel', DIRECTION, shape)
        bias = self.param('bias', ZEROS, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


class Nin(nn.Module):
    """A 1 x 1 convolution of several inputs: b + sum_n W_n concat_elu(x_n)."""

    features: int  # G
    num_inputs: int
    dtype: jax.typing.DTypeLike = jnp.float32

    def __call__(self, *inputs: jax.Array) -> jax.Array:
        """Map inputs [..., F] to [..., G]."""
        return functools.reduce(
            operator.add, (self.part(n, x) for n, x in enumerate(inputs))
        )

    @nn.compact
    def part(self, n: int, x: jax.Array) -> jax.Array:
        """Map input n [..., F] to its term of the sum; the first includes the bias."""
        shape = (self.num_inputs, 2 * x.shape[-1], self.features)
        kernel = self.param('kernel', DIRECTION, shape)
        bias = self.param('bias', ZEROS, shape[-1:])
        y = product(concat_elu(x.astype(self.dtype)), kernel[n].astype(self.dtype))
        if n:
            return y
        return y + bias.astype(self.dtype).reshape((1,) * (y.ndim - 1) + (-1,))
