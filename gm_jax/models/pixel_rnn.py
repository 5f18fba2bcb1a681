"""PixelRNN: residual blocks of Row LSTM or Diagonal BiLSTM layers.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3,
https://arxiv.org/abs/1601.06759:

    7 x 7 masked convolution (mask A) to 2h maps
    blocks: y = LSTM layer(x), h maps;   x <- x + R y,   skip <- skip + S y
    ReLU, 1 x 1, ReLU, 1 x 1 to the logits, of x + skip

With the input-to-state convolution K_is under mask B and the state-to-state convolution
K_ss, a cell is (eq. 3)

    [o, f, i] = sigmoid(K_ss * h' + K_is * x)_1..3   g = tanh(K_ss * h' + K_is * x)_4
    c = f o c' + i o g                                 h = o o tanh(c)

where h', c' are the states before:

    Row LSTM          of the row above, K_ss and K_is reaching k columns
    Diagonal BiLSTM   of the pixels to the left and above (h') and to the left (c'),
                      plus a mirrored copy that runs leftward. The copy sees what is to
                      the right, so its rows are shifted down by one.

The states outside the image are learned. What crosses the whole image, K_is and the
1 x 1 convolutions, is computed at once; only K_ss is in a loop, over rows or diagonals.

    model = PixelRNN(image_shape=(28, 28, 1), num_values=2, cell='diagonal_bilstm')
    logits = model.apply(variables, x)  # x integers [B, H, W, C]

`start`, `row` and `pixel` are the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.causal import LECUN, Here, Left, window
from gm_jax.layers.pixels import Head, as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.shifted import shift_down
from gm_jax.models.pixel_cnn import MaskedConv

States = tuple[jax.Array, jax.Array]  # h and c, [..., h]


def cell(gates: Sequence[jax.Array], c: jax.Array) -> States:
    """Computes h and c from the four K_ss * h' + K_is * x and c', all of one shape.

    The forget gate is open at first: Jozefowicz et al. 2015, An Empirical Exploration
    of Recurrent Network Architectures.
    """
    o, f, i, g = (gate.astype(c.dtype) for gate in gates)
    c = jax.nn.sigmoid(f + 1) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(c), c


def run(
    around: Callable, gates: jax.Array, kernel: jax.Array, outside: States,
    inputs: Any = None,
) -> jax.Array:
    """Runs a loop of T steps, each of which computes P cells of every image.

    For the sake of speed features come before positions in the loop and each gate is
    an array of its own, so that the innermost rows are long and whole (2.3 times as
    fast on a CPU), and the gradient computes a step again from its states: it keeps
    less, of which the caches hold more.

    Args:
      around: (the states [h, P B] of the step before, `inputs` of this step) -> h' at
        the taps of K_ss, each [h, P B], and c'.
      gates: K_is * x [B, T, P, 4h].
      kernel: K_ss [taps, h, 4h].
      outside: h and c [h] before the first step.
      inputs: arrays [T, ...].

    Returns:
      h, [B, T, P, h].
    """
    batch, steps, positions, _ = gates.shape
    gates = gates.transpose(1, 3, 2, 0).reshape(steps, -1, positions * batch)
    kernel = kernel.reshape(-1, kernel.shape[-1]).T

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def step(before: States, given: tuple) -> tuple[States, jax.Array]:
        gates, inputs = given
        taps, c = around(before, inputs)
        state = kernel @ jnp.concatenate(taps).astype(kernel.dtype)
        after = cell(jax.tree.map(jnp.add, gates, jnp.split(state, 4)), c)
        return after, after[0]

    start = tuple(_columns(a, positions * batch) for a in outside)
    _, h = jax.lax.scan(step, start, (jnp.split(gates, 4, axis=1), inputs))
    return h.reshape(steps, -1, positions, batch).transpose(3, 0, 2, 1)


def _columns(x: jax.Array, number: int) -> jax.Array:
    return jnp.broadcast_to(x[:, None], (len(x), number))


def shift(h: jax.Array, outside: jax.Array, by: int) -> jax.Array:
    """Moves [h, N] right by `by` columns, or left; those that come in are `outside`."""
    if by == 0:
        return h
    new = _columns(outside, abs(by))
    parts = [new, h[:, :-by]] if by > 0 else [h[:, -by:], new]
    return jnp.concatenate(parts, axis=1)


def beside(x: jax.Array, images: int) -> jax.Array:
    """Puts images side by side: [B, H, W, F] to [B / images, H, images * W, F]."""
    batch, height, width, features = x.shape
    x = x.reshape(-1, images, height, width, features).swapaxes(1, 2)
    return x.reshape(batch // images, height, images * width, features)


def apart(x: jax.Array, images: int) -> jax.Array:
    """Undoes `beside`."""
    batch, height, width, features = x.shape
    x = x.reshape(batch, height, images, -1, features).swapaxes(1, 2)
    return x.reshape(batch * images, height, width // images, features)


def skew(x: jax.Array) -> jax.Array:
    """Shifts row r to the right by r: [B, H, W, F] to [B, H, H + W - 1, F]."""
    batch, height, width, features = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, height), (0, 0)))
    # Rows that are one element too long for their shape start one later each.
    x = x.reshape(batch, -1, features)[:, :-height]
    return x.reshape(batch, height, -1, features)


def unskew(x: jax.Array, width: int) -> jax.Array:
    """Undoes `skew`: [B, H, H + W - 1, F] to [B, H, W, F]."""
    batch, height, _, features = x.shape
    x = jnp.pad(x.reshape(batch, -1, features), ((0, 0), (0, height), (0, 0)))
    return x.reshape(batch, height, -1, features)[:, :, :width]


def convolve_states(kernel: jax.Array, *h: jax.Array) -> jax.Array:
    """Computes K_ss * h', [..., 4h], from the taps [K, h, 4h] and h' at each."""
    h = jnp.concatenate(h, axis=-1).astype(kernel.dtype)
    return h @ kernel.reshape(-1, kernel.shape[-1])


def _recurrence(module: nn.Module, taps: int) -> tuple[jax.Array, States]:
    """Makes K_ss, [taps, h, 4h], and the states outside the image, [h]."""
    h, zeros = module.features, nn.initializers.zeros_init()
    kernel = module.param('state', LECUN, (taps, h, 4 * h)).astype(module.dtype)
    return kernel, tuple(module.param(name, zeros, (h,)) for name in ('h', 'c'))


def _repeat(states: States, *shape: int) -> States:
    return tuple(jnp.broadcast_to(a, (*shape, a.shape[-1])) for a in states)


class RowLSTM(nn.Module):
    """A layer that runs down the rows."""

    features: int  # h
    channels: int  # C
    kernel_size: int = 3  # columns that K_is (before its mask) and K_ss reach, odd
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the convolutions and the states outside the image."""
        gates = 4 * self.features
        self.left = Left(gates, self.kernel_size // 2, dtype=self.dtype)
        self.here = Here(gates, self.channels, copies=4, dtype=self.dtype)
        self.kernel, self.outside = _recurrence(self, self.kernel_size)

    def __call__(self, x: jax.Array, pixels: jax.Array) -> jax.Array:
        """Maps x [B, H, W, F] to h [B, H, W, h]; of the image it needs nothing else."""
        del pixels
        half, batch = self.kernel_size // 2, len(x)

        def around(above: States, inputs: None) -> tuple[list[jax.Array], jax.Array]:
            del inputs
            h, c = above
            columns = range(-half, half + 1)
            return [shift(h, self.outside[0], -j * batch) for j in columns], c

        return run(around, self.left(x) + self.here(x), self.kernel, self.outside)

    def start(self, batch_size: int, width: int) -> tuple[Any, Any, Any]:
        """Returns the (state, left, features) that `row` and `pixel` begin with."""
        left = (batch_size, self.kernel_size // 2, 2 * self.features)
        return (), jnp.zeros(left, self.dtype), _repeat(self.outside, batch_size, width)

    def row(
        self, state: tuple, above: States, pixels: jax.Array, r: jax.Array
    ) -> tuple[Any, Any]:
        """Maps the states of the row above to what they add, and to c'."""
        del pixels, r
        return state, (self._from_above(above[0]), above[1])

    def pixel(
        self, left: jax.Array, context: States, x: jax.Array
    ) -> tuple[jax.Array, jax.Array, States]:
        """Maps the pixels to the left [B, K, F], `row` here and x [B, F] to h."""
        gates = self.left.pixel(left) + self.here(x) + context[0]
        h, c = cell(jnp.split(gates, 4, axis=-1), context[1])
        return window(left, x), h, (h, c)

    def _from_above(self, h: jax.Array) -> jax.Array:
        half, width = self.kernel_size // 2, h.shape[1]
        side = _repeat(self.outside, len(h), half)[0]
        h = jnp.concatenate([side, h, side], axis=1)
        return convolve_states(
            self.kernel, *(h[:, j:j + width] for j in range(self.kernel_size))
        )


class Diagonals(nn.Module):
    """One direction of a Diagonal BiLSTM, after K_is: from the left and from above."""

    features: int  # h
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes K_ss and the states outside the image."""
        self.kernel, self.outside = _recurrence(self, 2)

    def __call__(self, gates: jax.Array) -> jax.Array:
        """Maps K_is * x [B, H, W, 4h] to h [B, H, W, h]."""
        batch, height, width, _ = gates.shape
        # A diagonal that runs through images side by side is cut off less often at its
        # two ends, which a CPU is glad of; a GPU or a TPU rather takes fewer steps.
        images = math.gcd(batch, 2) if jax.default_backend() == 'cpu' else 1
        gates = beside(gates, images)
        strips, length = len(gates), images * width
        # Skewed, column j has the pixels (r, j - r), and j - 1 those to the left and
        # above of them. What is computed before and after a row reaches no pixel.
        column = np.arange(height + length - 1)[:, None] - np.arange(height)
        first = np.repeat(column % width == 0, strips, axis=1)  # [T, P B]

        def around(
            before: States, first: jax.Array
        ) -> tuple[list[jax.Array], jax.Array]:
            above = shift(before[0], self.outside[0], strips)
            h, c = (
                jnp.where(first, there[:, None], left)
                for there, left in zip(self.outside, before)
            )
            return [above, h], c

        columns = skew(gates).swapaxes(1, 2)
        h = run(around, columns, self.kernel, self.outside, first)
        return apart(unskew(h.swapaxes(1, 2), length), images)

    def start(self, *shape: int) -> States:
        """Returns the states outside the image, [..., h]."""
        return _repeat(self.outside, *shape)

    def from_above(self, h: jax.Array) -> jax.Array:
        """Maps the h of the row above, [..., h], to what they add, [..., 4h]."""
        return convolve_states(self.kernel[:1], h)

    def row(self, gates: jax.Array) -> jax.Array:
        """Maps K_is * x of a row plus `from_above`, [B, W, 4h], to h, [B, W, h]."""

        def one_pixel(left: States, gates: jax.Array) -> tuple[States, jax.Array]:
            left = self.pixel(left, gates)
            return left, left[0]

        start = self.start(len(gates))
        _, h = jax.lax.scan(one_pixel, start, jnp.swapaxes(gates, 0, 1))
        return jnp.swapaxes(h, 0, 1)

    def pixel(self, left: States, gates: jax.Array) -> States:
        """Maps the states to the left and the same of a pixel [B, 4h] to its states."""
        gates = gates + convolve_states(self.kernel[1:], left[0])
        return cell(jnp.split(gates, 4, axis=-1), left[1])


class DiagonalBiLSTM(nn.Module):
    """A layer that runs along the diagonals in both directions."""

    features: int  # h
    channels: int  # C
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes both directions."""
        gates, dtype = 4 * self.features, self.dtype
        self.here = Here(gates, self.channels, copies=4, dtype=dtype)
        self.rightward = Diagonals(self.features, dtype=dtype)
        # The mirrored copy runs through rows that are finished: all of a pixel may be
        # seen, and must be. Under mask A no features of a row know its last pixel.
        self.mirrored = Here(gates, dtype=dtype)
        self.mirrored_pixels = Here(gates, use_bias=False, dtype=dtype)
        self.leftward = Diagonals(self.features, dtype=dtype)

    def __call__(self, x: jax.Array, pixels: jax.Array) -> jax.Array:
        """Maps x [B, H, W, F] of the image [B, H, W, C] to both h, [B, H, W, h]."""
        gates = self.mirrored(x) + self.mirrored_pixels(pixels)
        mirrored = jnp.flip(self.leftward(jnp.flip(gates, 2)), 2)
        return self.rightward(self.here(x)) + shift_down(mirrored)

    def start(self, batch_size: int, width: int) -> tuple[Any, Any, Any]:
        """Returns the (state, left, features) that `row` and `pixel` begin with."""
        x = jnp.zeros((batch_size, width, 2 * self.features), self.dtype)
        above = self.rightward.start(batch_size, width)[0]
        mirrored = self.leftward.start(batch_size, width)[0]
        return mirrored, self.rightward.start(batch_size), (x, above)

    def row(
        self, mirrored: jax.Array, features: States, pixels: jax.Array, r: jax.Array
    ) -> tuple[jax.Array, States]:
        """Runs leftward through row r - 1, now that it is known.

        Args:
          mirrored: [B, W, h] the leftward h of row r - 2.
          features: x [B, W, F] and the rightward h [B, W, h] of row r - 1.
          pixels: [B, W, C] row r - 1 of the image.
          r: the row.

        Returns:
          The leftward h of row r - 1, and what `pixel` needs.
        """
        x, h = features
        gates = self.mirrored(x) + self.mirrored_pixels(pixels)
        gates = jnp.flip(gates + self.leftward.from_above(mirrored), 1)
        new = jnp.flip(self.leftward.row(gates), 1)
        # Above the first row there is nothing to run through.
        context = self.rightward.from_above(h), jnp.where(r > 0, new, 0)
        return jnp.where(r > 0, new, mirrored), context

    def pixel(
        self, left: States, context: States, x: jax.Array
    ) -> tuple[States, jax.Array, States]:
        """Maps the states to the left, `row` here and x [B, F] to the sum of both h."""
        left = self.rightward.pixel(left, self.here(x) + context[0])
        return left, left[0] + context[1], (x, left[0])


CELLS = {'row_lstm': RowLSTM, 'diagonal_bilstm': DiagonalBiLSTM}


class PixelRNN(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    cell: str = 'diagonal_bilstm'  # or row_lstm
    features: int = 16  # h
    num_layers: int = 7
    first_kernel: int = 7
    head: int = 32  # features of the layer before the logits
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        channels, maps = self.image_shape[2], 2 * self.features
        self.first = MaskedConv(
            maps, self.first_kernel, channels, strict=True, dtype=self.dtype
        )
        self.layers = [
            CELLS[self.cell](self.features, channels, dtype=self.dtype)
            for _ in range(self.num_layers)
        ]
        # R and S in one product.
        self.out = [
            Here(2 * maps, channels, copies=2, dtype=self.dtype) for _ in self.layers
        ]
        self.condition = nn.Dense(maps, use_bias=False, dtype=self.dtype)
        self.to_logits = Head(self.head, channels, self.num_values, dtype=self.dtype)

    def __call__(self, x: jax.Array, h: jax.Array | None = None) -> jax.Array:
        """Computes the logits of every pixel given those before it.

        Args:
          x: [B, H, W, C] integers in [0, V).
          h: what the image is conditioned on: [B, E] such as a class as one-hot, or a
            map [B, H, W, E] such as a small image scaled up.

        Returns:
          Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        pixels, skips = encode(x, self.num_values), 0.0
        y = self.first(pixels)
        if h is not None:
            y = y + self.condition(as_map(h))
        for layer, out in zip(self.layers, self.out):
            residual, skip = jnp.split(out(layer(y, pixels)), 2, axis=-1)
            y, skips = y + residual, skips + skip
        return self.to_logits(y + skips)

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Returns the (state, left, features) of every layer before the first pixel."""
        width = self.image_shape[1]
        starts = [layer.start(batch_size, width) for layer in self.layers]
        return tuple(zip(*starts))

    def row(
        self, state: Any, features: Any, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Computes what the rows above mean to row r of x [B, H, W, C].

        Returns:
          The next state, and what `pixel` needs, leaves [B, W, ...].
        """
        rows = rows_above(encode(x, self.num_values), r, self.first_kernel // 2)
        first = self.first.row(rows)
        if h is not None:
            first = first + self.condition(row_of_map(h, r))
        made = [
            layer.row(*before, rows[:, -1], r)
            for layer, *before in zip(self.layers, state, features)
        ]
        state, context = zip(*made)
        return state, (first, *context)

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """Computes the network at pixel w of the row x_row [B, W, C].

        Returns:
          The next left, the logits [B, C] or [B, C, V], and the features of the row
          that the next one needs.
        """
        del r
        before, here = left_of(
            encode(x_row, self.num_values), w, self.first_kernel // 2
        )
        y, skips, made = self.first.pixel(before, here, context[0]), 0.0, []
        for layer, out, *past in zip(self.layers, self.out, left, context[1:]):
            after, h, features = layer.pixel(*past, y)
            residual, skip = jnp.split(out(h), 2, axis=-1)
            y, skips = y + residual, skips + skip
            made.append((after, features))
        left, features = zip(*made)
        return left, self.to_logits(y + skips), features
