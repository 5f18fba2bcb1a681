"""Fractionally-strided convolutions, by which a generator grows an image.

Radford, Metz and Chintala 2016, Unsupervised Representation Learning with Deep
Convolutional GANs, sec. 3, https://arxiv.org/abs/1511.06434: stride 1/2 in place of a
fixed upsampling.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.causal import add_bias, correlate


def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Compute what `jax.lax.conv_transpose` does with padding SAME.

    With x set s apart and zeros between, y[n] = sum_j x_s[n + j - p] K[j] along rows,
    and the same along columns. Only n + j - p = s m meets an x: of the outputs
    n = s q + a of one phase a,

        y[s q + a] = sum_t x[q + t] K[s t + p - a],

    an ordinary convolution of x. The phases look at windows of one size that start at
    different t, so all are one convolution of s^2 G maps, a little larger than x, of
    which each phase takes its part. On the CPU the gradient takes 44 ms in place of
    175, the value alone 9 in place of 8 or 9 (64 images of 8 x 8 x 128, 4 x 4 kernels
    to 64 maps, s = 2).

    Args:
        x: [B, H, W, F].
        kernel: [I, J, F, G].
        stride: s, in rows and in columns.

    Returns:
        [B, s H, s W, G].

    Raises:
        AssertionError: an array is not of rank 4.
    """
    chex.assert_rank([x, kernel], 4)
    batch, height, width, _ = x.shape
    if jax.default_backend() != 'cpu':
        return jax.lax.conv_transpose(
            x, kernel, (stride, stride), 'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )
    rows, row_starts = _phases(kernel.shape[0], stride)
    columns, column_starts = _phases(kernel.shape[1], stride)
    # Index -1 is the zero that comes in behind the kernel.
    padded = jnp.pad(kernel, ((0, 1), (0, 1), (0, 0), (0, 0)))
    phases = padded[rows[:, None, :, None], columns[None, :, None, :]]
    phases = jnp.moveaxis(phases, 4, 2)  # [T, U, F, s, s, G]
    phases = phases.reshape(*phases.shape[:3], -1)
    windows = correlate(
        x, phases, (_reach(rows, row_starts), _reach(columns, column_starts))
    )
    windows = windows.reshape(*windows.shape[:3], stride, stride, -1)
    y = jnp.stack([
        jnp.stack([
            windows[:, top:top + height, left:left + width, a, b]
            for b, left in enumerate(column_starts - column_starts.min())
        ], axis=3)
        for a, top in enumerate(row_starts - row_starts.min())
    ], axis=2)
    return y.reshape(batch, stride * height, stride * width, -1)


def _phases(size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the place s t + p - a of each tap [T, s], -1 for none, and the first t.

    The T taps of phase a are t = start[a] ... start[a] + T - 1.
    """
    before = size - 1 if stride > size - 1 else -((2 - size - stride) // 2)
    a = np.arange(stride)
    start = -((before - a) // stride)
    taps = -(-size // stride)
    place = stride * (start + np.arange(taps)[:, None]) + before - a
    return np.where(place < size, place, -1), start


def _reach(taps: np.ndarray, start: np.ndarray) -> tuple[int, int]:
    """Returns how far the windows of all phases reach over either end of x."""
    return -start.min(), start.max() + len(taps) - 1


class ConvTranspose(nn.Module):
    """A fractionally-strided convolution with a bias."""

    features: int  # G
    kernel_size: int
    stride: int = 2
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps [B, H, W, F] to [B, s H, s W, G]."""
        shape = (self.kernel_size, self.kernel_size, x.shape[-1], self.features)
        kernel = self.param('kernel', self.kernel_init, shape).astype(self.dtype)
        y = conv_transpose(x.astype(self.dtype), kernel, self.stride)
        if self.use_bias:
            bias = self.param('bias', nn.initializers.zeros_init(), shape[-1:])
            y = add_bias(y, bias)
        return y
