"""Gated PixelCNN: two stacks of gated causal convolutions, without a blind spot.

van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders, sec. 2,
https://arxiv.org/abs/1606.05328. With v the vertical and u the horizontal stack, * a
causal convolution, N, R and S 1 x 1 convolutions and h the condition of the image:

    a = W_v * v + V_v h               v <- tanh(a_1) o sigmoid(a_2)
    b = W_u * u + N a + V_u h         z = tanh(b_1) o sigmoid(b_2)        (eq. 2, 4)
                                      u <- u + R z,  skip <- skip + S z

In the first layer W_v reaches rows above only and W_u pixels to the left only; in later
ones they reach the row and the pixel too, whose features do not depend on x_i. So only
the colours within one pixel need a mask.

    model = GatedPixelCNN(image_shape=(28, 28, 1), num_values=2)
    logits = model.apply(variables, x)  # x integers [B, H, W, C]

`start`, `row` and `pixel` compute the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.causal import (
    LECUN,
    Above,
    Head,
    Here,
    Left,
    as_logits,
    logits_per_value,
    window,
)
from gm_jax.layers.dropout import Dropout
from gm_jax.layers.pixels import as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.products import correlate_sum

__all__ = ['from_h', 'gate', 'GatedHead', 'GatedLayer', 'GatedPixelCNN']


def gate(x: jax.Array) -> jax.Array:
    """Compute tanh(x_1) o sigmoid(x_2) for the two halves of the last axis."""
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.tanh(first) * jax.nn.sigmoid(second)


def from_h(features: int, scale: float, dtype: jax.typing.DTypeLike) -> nn.Dense:
    """Return the linear map V of h to what it adds to a gate."""
    return nn.Dense(
        features, use_bias=False, dtype=dtype,
        kernel_init=lambda *args: scale * LECUN(*args),
    )


class GatedLayer(nn.Module):
    """One layer of both stacks (figure 2 of the paper)."""

    features: int  # p
    kernel_size: int  # k, odd
    channels: int  # C
    first: bool = False  # whether the input is the image: mask A, and no residual
    h_scale: float = 1.0  # factor of the initial V_v and V_u
    dropout: float = 0.0  # share of z that is dropped in training
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the convolutions."""
        half, double, dtype = self.kernel_size // 2, 2 * self.features, self.dtype
        # From the second layer on, the vertical features of a row depend only on the
        # rows above it, so the kernel may include the row itself.
        size = (half + int(not self.first), self.kernel_size)
        self.above = Above(double, size, inclusive=not self.first, dtype=dtype)
        self.link = Here(double, dtype=dtype)  # N
        self.left = Left(double, half, dtype=dtype)
        self.sees_itself = self.channels > 1 or not self.first
        if self.sees_itself:
            self.here = Here(
                double, self.channels, self.first, 2, use_bias=False, dtype=dtype
            )
        # R and S in one product.
        self.out = Here(double, self.channels, copies=2, dtype=dtype)
        self.drop = Dropout(self.dropout)
        self.above_h = from_h(double, self.h_scale, dtype)  # V_v
        self.left_h = from_h(double, self.h_scale, dtype)  # V_u

    def __call__(
        self, v: jax.Array, u: jax.Array, h: jax.Array | None,
        dropout_rng: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Map v, u [B, H, W, F] and the map h to the next v, next u and the skip."""
        a = self._plus(self.above(v), self.above_h, h)
        parts = [self.left.part(u.shape[-1])]
        if self.sees_itself:
            parts.append(self.here.part(u.shape[-1]))
        b = correlate_sum(u.astype(self.dtype), parts)
        b = b + self._plus(self.link(a), self.left_h, h)
        return gate(a), *self._finish(u, b, dropout_rng)

    def row(
        self, rows: jax.Array, h: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Map the rows of v that row r sees to v [B, W, p] and N a [B, W, 2p].

        `h` is row r of the condition.
        """
        a = self._plus(self.above.row(rows), self.above_h, h)
        return gate(a), self._plus(self.link(a), self.left_h, h)

    def pixel(
        self, left: jax.Array, u: jax.Array, context: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Map u to the left [B, K, F] and u here [B, F] to the next u and the skip."""
        b = self.left.pixel(left) + context
        return self._finish(u, b + self.here(u) if self.sees_itself else b)

    def _plus(self, x: jax.Array, dense: nn.Dense, h: jax.Array | None) -> jax.Array:
        return x if h is None else x + dense(h)

    def _finish(
        self, u: jax.Array, b: jax.Array, dropout_rng: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        z = self.drop(gate(b), rng=dropout_rng)
        r, skip = jnp.split(self.out(z), 2, axis=-1)
        return (r if self.first else u + r), skip


class GatedHead(nn.Module):
    """Two gated 1 x 1 layers, both conditioned on h too, and 1 x 1 to the logits.

    It is the output of the decoder of Gulrajani et al. 2017, PixelVAE, sec. 3.1.
    """

    features: int
    channels: int  # C
    num_values: int  # V
    h_scale: float = 1.0  # factor of the initial weights of h
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        num, dtype = self.channels, self.dtype
        double = 2 * (self.features + -self.features % num)  # whole groups
        self.gates = [Here(double, num, copies=2, dtype=dtype) for _ in range(2)]
        self.gates_h = [from_h(double, self.h_scale, dtype) for _ in range(2)]
        outputs = num * logits_per_value(self.num_values)
        # Small, so that all values are about equally likely at first.
        self.out = Here(outputs, num, dtype=dtype, scale=0.1)

    def __call__(self, x: jax.Array, context: tuple[jax.Array, ...]) -> jax.Array:
        """Map [..., F] and what `context` returns to logits, as `Head` does."""
        for n, layer in enumerate(self.gates):
            x = gate(layer(x) + context[n] if context else layer(x))
        return as_logits(self.out(x), self.channels, self.num_values)

    def context(self, h: jax.Array | None) -> tuple[jax.Array, ...]:
        """Return what h [..., E] adds to each gate, [..., 2 F]; nothing without h."""
        return () if h is None else tuple(layer(h) for layer in self.gates_h)


class GatedPixelCNN(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    features: int = 32  # p
    num_layers: int = 8  # after the first
    first_kernel: int = 7
    kernel_sizes: tuple[int, ...] = (5, 3)  # for the other layers, repeated in turn
    head: int = 128  # features of the layer, or of two gates, before the logits
    gated_head: bool = False  # whether h enters the output too
    h_scale: float = 1.0  # factor of the initial weights of h
    dropout: float = 0.0  # share of z that is dropped in every layer, in training
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        sizes = [self.first_kernel] + [
            self.kernel_sizes[i % len(self.kernel_sizes)]
            for i in range(self.num_layers)
        ]
        self.layers = [
            GatedLayer(
                self.features, size, self.image_shape[2], first=i == 0,
                h_scale=self.h_scale, dropout=self.dropout, dtype=self.dtype,
            )
            for i, size in enumerate(sizes)
        ]
        args = self.head, self.image_shape[2], self.num_values
        if self.gated_head:
            self.to_logits = GatedHead(*args, h_scale=self.h_scale, dtype=self.dtype)
        else:
            self.to_logits = Head(*args, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, h: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        """Compute the logits of every pixel given those before it.

        Args:
            x: [B, H, W, C] integers in [0, V).
            h: the condition: [B, E] such as a one-hot class, or a map [B, H, W, E] such
                as an upscaled small image.
            dropout_rng: one key, or [B] keys, one per example; None: no dropout.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        v = u = encode(x, self.num_values)
        h = as_map(h)
        skips: Any = 0.0
        for layer in self.layers:
            v, u, skip = layer(v, u, h, dropout_rng)
            skips += skip
        return self.to_logits(skips, *self._head_context(h))

    def _head_context(self, h: jax.Array | None) -> tuple[Any, ...]:
        """Return what the head takes besides the skips."""
        return (self.to_logits.context(h),) if self.gated_head else ()

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Return the zeros that the convolutions see outside the image.

        Returns:
            (state, left, features): for every layer except the last, the last rows of v
            and the last pixels of u; there are no features.
        """
        width, p = self.image_shape[1], self.features
        halves = [layer.kernel_size // 2 for layer in self.layers[1:]]
        state = tuple(jnp.zeros((batch_size, n, width, p), self.dtype) for n in halves)
        left = tuple(jnp.zeros((batch_size, n, p), self.dtype) for n in halves)
        return state, left, ()

    def row(
        self, state: Any, features: Any, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Compute the vertical stack at row r of x [B, H, W, C].

        Returns:
            The next state, and the context for `pixel`: that of each layer [B, W, 2p],
            and that of the head.
        """
        del features
        rows = rows_above(encode(x, self.num_values), r, self.first_kernel // 2)
        h, kept, context = row_of_map(h, r), [], []
        for layer, cache in zip(self.layers, (*state, None)):
            v, link = layer.row(rows, h)
            context.append(link)
            if cache is not None:
                rows = jnp.concatenate([cache, v[:, None]], axis=1)
                kept.append(rows[:, 1:])
        head = jax.tree.map(
            lambda a: jnp.broadcast_to(a, (*x.shape[:1], x.shape[2], a.shape[-1])),
            self._head_context(h),
        )
        return tuple(kept), (tuple(context), head)

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """Compute the horizontal stack at pixel w of the row x_row [B, W, C].

        Returns:
            The next left, the logits [B, C] or [B, C, V], and no features to keep.
        """
        del r
        lefts, u = left_of(
            encode(x_row, self.num_values), w, self.first_kernel // 2
        )
        links, head = context
        kept: list[jax.Array] = []
        skips: Any = 0.0
        for layer, link, cache in zip(self.layers, links, (*left, None)):
            u, skip = layer.pixel(lefts, u, link)
            skips += skip
            if cache is not None:
                lefts = cache
                kept.append(window(cache, u))
        return tuple(kept), self.to_logits(skips, *head), ()
