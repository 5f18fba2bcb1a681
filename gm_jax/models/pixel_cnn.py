"""PixelCNN: a stack of masked convolutions in residual blocks.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3.3 to 3.5 and table 1,
https://arxiv.org/abs/1601.06759:

    7 x 7 masked convolution (mask A) to 2h maps
    blocks: x <- x + 1x1(relu(3x3 mask B(relu(1x1(relu(x))))))     2h -> h -> h -> 2h
    ReLU, 1 x 1, ReLU, 1 x 1 to the logits

A masked convolution is the sum of three parts, see `layers.causal`. The paper's
network has a blind spot: the pixels above and to the right that no path of k x k masks
reaches.

    model = PixelCNN(image_shape=(28, 28, 1), num_values=2)
    logits = model.apply(variables, x)  # x integers [B, H, W, C]

`start`, `row` and `pixel` compute the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.causal import Above, Head, Here, Left, add_bias, window
from gm_jax.layers.pixels import as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.products import correlate_sum

__all__ = ['MaskedConv', 'PixelCNN', 'ResidualBlock']


class MaskedConv(nn.Module):
    """A k x k convolution under mask A (`strict`) or B."""

    features: int
    kernel_size: int  # k, odd
    channels: int  # C
    strict: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the three parts."""
        half = self.kernel_size // 2
        self.above = Above(self.features, (half, self.kernel_size), dtype=self.dtype)
        self.left = Left(self.features, half, dtype=self.dtype)
        self.sees_itself = self.channels > 1 or not self.strict
        if self.sees_itself:
            self.here = Here(
                self.features, self.channels, self.strict, use_bias=False,
                dtype=self.dtype,
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, F] to [B, H, W, G]."""
        num = x.shape[-1]
        above, bias = self.above.part(num)
        parts = [above, self.left.part(num)]
        if self.sees_itself:
            parts.append(self.here.part(num))
        return add_bias(correlate_sum(x.astype(self.dtype), parts), bias)

    def row(self, rows: jax.Array) -> jax.Array:
        """Map the k // 2 rows above, [B, K, W, F], to their contribution, [B, W, G]."""
        return self.above.row(rows)

    def pixel(self, left: jax.Array, x: jax.Array, context: jax.Array) -> jax.Array:
        """Map pixels to the left [B, K, F], x [B, F], `row` here [B, G] to [B, G]."""
        y = self.left.pixel(left) + context
        return y + self.here(x) if self.sees_itself else y


class ResidualBlock(nn.Module):
    """ReLU, 1 x 1 to h, ReLU, masked 3 x 3, ReLU, 1 x 1 to 2h, plus the input."""

    features: int  # h
    kernel_size: int
    channels: int
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the convolutions."""
        common = dict(channels=self.channels, dtype=self.dtype)
        self.reduce = Here(self.features, **common)
        self.conv = MaskedConv(self.features, self.kernel_size, **common)
        self.expand = Here(2 * self.features, **common)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, H, W, 2h] to the same shape."""
        return x + self.finish(self.conv(self.begin(x)))

    def begin(self, x: jax.Array) -> jax.Array:
        """Compute the input of the masked convolution, [..., h]."""
        return jax.nn.relu(self.reduce(jax.nn.relu(x)))

    def finish(self, y: jax.Array) -> jax.Array:
        """Map the output of the masked convolution to the residual, [..., 2h]."""
        return self.expand(jax.nn.relu(y))


class PixelCNN(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    features: int = 16  # h
    num_blocks: int = 15
    first_kernel: int = 7
    kernel_size: int = 3
    head: int = 32  # features of the layer before the logits
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        channels = self.image_shape[2]
        self.first = MaskedConv(
            2 * self.features, self.first_kernel, channels, strict=True,
            dtype=self.dtype,
        )
        self.blocks = [
            ResidualBlock(self.features, self.kernel_size, channels, dtype=self.dtype)
            for _ in range(self.num_blocks)
        ]
        self.condition = nn.Dense(2 * self.features, use_bias=False, dtype=self.dtype)
        self.to_logits = Head(self.head, channels, self.num_values, dtype=self.dtype)

    def __call__(self, x: jax.Array, h: jax.Array | None = None) -> jax.Array:
        """Compute the logits of every pixel given those before it.

        Args:
            x: [B, H, W, C] integers in [0, V).
            h: the condition: [B, E] such as a one-hot class, or a map [B, H, W, E] such
                as an upscaled small image.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        y = self.first(encode(x, self.num_values))
        if h is not None:
            y = y + self.condition(as_map(h))
        for block in self.blocks:
            y = block(y)
        return self.to_logits(y)

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Return the zeros that the convolutions see outside the image.

        Returns:
            (state, left, features), parts of the input of each block's masked
            convolution: the K rows before the last one, the last K pixels, and the last
            row.
        """
        width, half = self.image_shape[1], self.kernel_size // 2

        def zeros(*shape: int) -> tuple:
            shape = (batch_size, *shape, self.features)
            return tuple(jnp.zeros(shape, self.dtype) for _ in self.blocks)

        return zeros(half, width), zeros(half), zeros(width)

    def row(
        self, state: Any, features: Any, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Compute what the rows above add to row r of every masked convolution.

        Args:
            state: for each block, [B, K, W, h] the K rows before row r - 1.
            features: for each block, [B, W, h] row r - 1.
            x: [B, H, W, C] integers, of which the rows above matter.
            r: the row.
            h: the condition, as in `__call__`.

        Returns:
            The next state, and the contribution to each masked convolution, [B, W, G].
        """
        rows = rows_above(encode(x, self.num_values), r, self.first_kernel // 2)
        first = self.first.row(rows)
        if h is not None:
            first = first + self.condition(row_of_map(h, r))
        state = tuple(window(old, new) for old, new in zip(state, features))
        added = (block.conv.row(rows) for block, rows in zip(self.blocks, state))
        return state, (first, *added)

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """Compute the network at pixel w of the row x_row [B, W, C].

        Returns:
            The next left, the logits [B, C] or [B, C, V], and the input of each block's
            masked convolution here, [B, h].
        """
        del r
        before, here = left_of(
            encode(x_row, self.num_values), w, self.first_kernel // 2
        )
        y, seen = self.first.pixel(before, here, context[0]), []
        for block, before, added in zip(self.blocks, left, context[1:]):
            seen.append(block.begin(y))
            y = y + block.finish(block.conv.pixel(before, seen[-1], added))
        left = tuple(window(old, new) for old, new in zip(left, seen))
        return left, self.to_logits(y), tuple(seen)
