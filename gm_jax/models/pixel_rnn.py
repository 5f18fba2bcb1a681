"""PixelRNN: residual blocks of Row LSTM or Diagonal BiLSTM layers.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3,
https://arxiv.org/abs/1601.06759:

    7 x 7 masked convolution (mask A) to 2h maps
    blocks: y = LSTM layer(x), h maps;   x <- x + R y,   skip <- skip + S y
    ReLU, 1 x 1, ReLU, 1 x 1 to the logits, of x + skip

With the input-to-state convolution K_is under mask B and the state-to-state convolution
K_ss, a cell is (eq. 3)

    [o, f, i] = sigmoid(K_ss * h' + K_is * x)_1..3   g = tanh(K_ss * h' + K_is * x)_4
    c = f c' + i g                                     h = o tanh(c)

with products of entries, where h', c' are the previous states. (1 is added to the input
of f, so that it is open at first.)

    Row LSTM          the states of the row above; K_ss and K_is reach k columns
    Diagonal BiLSTM   h' of the pixels to the left and above and c' of the pixel to the
                      left, plus a mirrored copy that runs leftward. The copy depends on
                      pixels to the right, so its rows are shifted down by one.

The states outside the image are learned. K_is and the 1 x 1 convolutions are computed
for the whole image at once; only K_ss is in a loop, over rows or diagonals.

    model = PixelRNN(image_shape=(28, 28, 1), num_values=2, cell='diagonal_bilstm')
    logits = model.apply(variables, x)  # x integers [B, H, W, C]

`start`, `row` and `pixel` compute the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import lstm
from gm_jax.layers.causal import LECUN, Head, Here, Left, window
from gm_jax.layers.dropout import Dropout
from gm_jax.layers.lstm import States
from gm_jax.layers.pixels import as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.shifted import shift_down
from gm_jax.models.pixel_cnn import MaskedConv

__all__ = ['CELLS', 'DiagonalBiLSTM', 'Diagonals', 'PixelRNN', 'RowLSTM']


def _recurrence(module: nn.Module, taps: int) -> tuple[jax.Array, States]:
    """Make K_ss, [taps, h, 4h], and the states outside the image, [h]."""
    h, zeros = module.features, nn.initializers.zeros_init()
    k_ss = module.param('state', LECUN, (taps, h, 4 * h)).astype(module.dtype)
    return k_ss, States(*(module.param(name, zeros, (h,)) for name in ('h', 'c')))


def _repeat(states: States, *shape: int) -> States:
    """Repeat states [h] to [..., h]."""
    return States(*(jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in states))


class RowLSTM(nn.Module):
    """A layer that runs down the rows."""

    features: int  # h
    channels: int  # C
    kernel_size: int = 3  # columns that K_is (before its mask) and K_ss reach, odd
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the convolutions and the states outside the image."""
        if self.kernel_size < 3 or self.kernel_size % 2 == 0:
            raise ValueError(
                'the kernels of a Row LSTM reach an odd number of columns, 3 or more, '
                f'not {self.kernel_size}'
            )
        gates = 4 * self.features
        self.left = Left(gates, self.kernel_size // 2, dtype=self.dtype)
        self.here = Here(gates, self.channels, copies=4, dtype=self.dtype)
        self.k_ss, self.outside = _recurrence(self, self.kernel_size)

    def __call__(self, x: jax.Array, pixels: jax.Array) -> jax.Array:
        """Map x [B, H, W, F] to h [B, H, W, h]; the pixels themselves are not used."""
        del pixels
        k_is_x = self.left(x) + self.here(x)
        return lstm.over_rows(k_is_x, self.k_ss, self.outside)

    def start(self, batch_size: int, width: int) -> tuple[Any, Any, Any]:
        """Return the (state, left, features) that `row` and `pixel` begin with."""
        left = (batch_size, self.kernel_size // 2, 2 * self.features)
        return (), jnp.zeros(left, self.dtype), _repeat(self.outside, batch_size, width)

    def row(
        self, state: tuple, above: States, pixels: jax.Array, r: jax.Array
    ) -> tuple[Any, Any]:
        """Map the states of the row above to K_ss * h' and c' of each pixel."""
        del pixels, r
        half, width = self.kernel_size // 2, above.h.shape[1]
        side = _repeat(self.outside, len(above.h), half).h
        h = jnp.concatenate([side, above.h, side], axis=1)
        k_ss_h = lstm.convolve_states(
            self.k_ss, *(h[:, j:j + width] for j in range(self.kernel_size))
        )
        return state, (k_ss_h, above.c)

    def pixel(
        self, left: jax.Array, context: tuple[jax.Array, jax.Array], x: jax.Array
    ) -> tuple[jax.Array, jax.Array, States]:
        """Map the pixels to the left [B, K, F], `row` here and x [B, F] to h."""
        k_ss_h, c = context
        gates = self.left.pixel(left) + self.here(x) + k_ss_h
        states = lstm.cell(jnp.split(gates, 4, axis=-1), c)
        return window(left, x), states.h, states


class Diagonals(nn.Module):
    """One direction of a Diagonal BiLSTM, after K_is: from the left and from above."""

    features: int  # h
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make K_ss and the states outside the image."""
        self.k_ss, self.outside = _recurrence(self, 2)

    def __call__(self, k_is_x: jax.Array) -> jax.Array:
        """Map K_is * x [B, H, W, 4h] to h [B, H, W, h]."""
        return lstm.over_diagonals(k_is_x, self.k_ss, self.outside)

    def start(self, *shape: int) -> States:
        """Return the states outside the image, [..., h]."""
        return _repeat(self.outside, *shape)

    def from_above(self, h: jax.Array) -> jax.Array:
        """Map the h of the row above, [..., h], to its part of K_ss * h', [..., 4h]."""
        return lstm.convolve_states(self.k_ss[:1], h)

    def row(self, gates: jax.Array) -> jax.Array:
        """Map K_is * x of a row plus `from_above`, [B, W, 4h], to h, [B, W, h]."""

        def one_pixel(left: States, gates: jax.Array) -> tuple[States, jax.Array]:
            left = self.pixel(left, gates)
            return left, left.h

        start = self.start(len(gates))
        _, h = jax.lax.scan(one_pixel, start, jnp.swapaxes(gates, 0, 1))
        return jnp.swapaxes(h, 0, 1)

    def pixel(self, left: States, gates: jax.Array) -> States:
        """Map the states to the left and the gates [B, 4h] of a pixel to its states."""
        gates = gates + lstm.convolve_states(self.k_ss[1:], left.h)
        return lstm.cell(jnp.split(gates, 4, axis=-1), left.c)


class DiagonalBiLSTM(nn.Module):
    """A layer that runs along the diagonals in both directions."""

    features: int  # h
    channels: int  # C
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make both directions."""
        gates, dtype = 4 * self.features, self.dtype
        self.here = Here(gates, self.channels, copies=4, dtype=dtype)
        self.rightward = Diagonals(self.features, dtype=dtype)
        # The mirrored copy reads only finished rows, so it may use all colours of a
        # pixel. It must also read the pixels themselves: under mask A no feature of a
        # row depends on the row's last pixel.
        self.mirrored = Here(gates, dtype=dtype)
        self.mirrored_pixels = Here(gates, use_bias=False, dtype=dtype)
        self.leftward = Diagonals(self.features, dtype=dtype)

    def __call__(self, x: jax.Array, pixels: jax.Array) -> jax.Array:
        """Map x [B, H, W, F], pixels [B, H, W, C] to the sum of both h [B, H, W, h]."""
        k_is_x = self.mirrored(x) + self.mirrored_pixels(pixels)
        mirrored = jnp.flip(self.leftward(jnp.flip(k_is_x, 2)), 2)
        return self.rightward(self.here(x)) + shift_down(mirrored)

    def start(self, batch_size: int, width: int) -> tuple[Any, Any, Any]:
        """Return the (state, left, features) that `row` and `pixel` begin with."""
        x = jnp.zeros((batch_size, width, 2 * self.features), self.dtype)
        above = self.rightward.start(batch_size, width).h
        mirrored = self.leftward.start(batch_size, width).h
        return mirrored, self.rightward.start(batch_size), (x, above)

    def row(
        self, mirrored: jax.Array, features: tuple[jax.Array, jax.Array],
        pixels: jax.Array, r: jax.Array,
    ) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        """Run leftward through row r - 1, now that it is known.

        Args:
            mirrored: [B, W, h] the leftward h of row r - 2.
            features: x [B, W, F] and the rightward h [B, W, h] of row r - 1.
            pixels: [B, W, C] row r - 1 of the image.
            r: the row.

        Returns:
            The leftward h of row r - 1, and the context for `pixel`.
        """
        x, h = features
        gates = self.mirrored(x) + self.mirrored_pixels(pixels)
        gates = jnp.flip(gates + self.leftward.from_above(mirrored), 1)
        new = jnp.flip(self.leftward.row(gates), 1)
        # Above the first row there is nothing to run through.
        context = self.rightward.from_above(h), jnp.where(r > 0, new, 0)
        return jnp.where(r > 0, new, mirrored), context

    def pixel(
        self, left: States, context: tuple[jax.Array, jax.Array], x: jax.Array
    ) -> tuple[States, jax.Array, tuple[jax.Array, jax.Array]]:
        """Map the states to the left, `row` here and x [B, F] to the sum of both h."""
        from_above, mirrored = context
        left = self.rightward.pixel(left, self.here(x) + from_above)
        return left, left.h + mirrored, (x, left.h)


CELLS: dict[str, type[RowLSTM] | type[DiagonalBiLSTM]] = {
    'row_lstm': RowLSTM, 'diagonal_bilstm': DiagonalBiLSTM,
}


class PixelRNN(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    cell: str = 'diagonal_bilstm'  # or row_lstm
    features: int = 16  # h
    num_layers: int = 7
    first_kernel: int = 7
    # k of Row LSTM layers, odd and at least 3; a larger one sees more of the context.
    kernel_size: int = 3
    head: int = 32  # features of the layer before the logits
    dropout: float = 0.0  # share of y that is dropped in every layer, in training
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        channels, maps = self.image_shape[2], 2 * self.features
        self.first = MaskedConv(
            maps, self.first_kernel, channels, strict=True, dtype=self.dtype
        )
        kernel = {'kernel_size': self.kernel_size} if self.cell == 'row_lstm' else {}
        self.layers = [
            CELLS[self.cell](self.features, channels, dtype=self.dtype, **kernel)
            for _ in range(self.num_layers)
        ]
        # R and S in one product.
        self.out = [
            Here(2 * maps, channels, copies=2, dtype=self.dtype) for _ in self.layers
        ]
        self.drops = [Dropout(self.dropout) for _ in self.layers]
        self.condition = nn.Dense(maps, use_bias=False, dtype=self.dtype)
        self.to_logits = Head(self.head, channels, self.num_values, dtype=self.dtype)

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
        pixels = encode(x, self.num_values)
        y = self.first(pixels)
        skips: jax.Array | float = 0.0
        if h is not None:
            y = y + self.condition(as_map(h))
        for layer, drop, out in zip(self.layers, self.drops, self.out):
            hidden = drop(layer(y, pixels), rng=dropout_rng)
            residual, skip = jnp.split(out(hidden), 2, axis=-1)
            y, skips = y + residual, skips + skip
        return self.to_logits(y + skips)

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Return the (state, left, features) of every layer before the first pixel."""
        width = self.image_shape[1]
        starts = [layer.start(batch_size, width) for layer in self.layers]
        state, left, features = zip(*starts)
        return state, left, features

    def row(
        self, state: Any, features: Any, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Compute the contribution of the rows above to row r of x [B, H, W, C].

        Returns:
            The next state, and the context for `pixel`, leaves [B, W, ...].
        """
        rows = rows_above(encode(x, self.num_values), r, self.first_kernel // 2)
        first = self.first.row(rows)
        if h is not None:
            first = first + self.condition(row_of_map(h, r))
        made = [
            layer.row(before, seen, rows[:, -1], r)
            for layer, before, seen in zip(self.layers, state, features)
        ]
        state, context = zip(*made)
        return state, (first, *context)

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """Compute the network at pixel w of the row x_row [B, W, C].

        Returns:
            The next left, the logits [B, C] or [B, C, V], and the features here that
            the next row needs.
        """
        del r
        before, here = left_of(
            encode(x_row, self.num_values), w, self.first_kernel // 2
        )
        y = self.first.pixel(before, here, context[0])
        skips: jax.Array | float = 0.0
        made = []
        for layer, out, past, above in zip(self.layers, self.out, left, context[1:]):
            after, h, features = layer.pixel(past, above, y)
            residual, skip = jnp.split(out(h), 2, axis=-1)
            y, skips = y + residual, skips + skip
            made.append((after, features))
        left, features = zip(*made)
        return left, self.to_logits(y + skips), features
