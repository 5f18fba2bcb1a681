"""PixelCNN++: two streams of gated residual layers at several scales.

Salimans et al. 2017, PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications, sec. 2, https://arxiv.org/abs/1701.05517.
Stream u knows the rows above, stream ul (up and left) also the pixels to the left. A
layer, with a what comes by a short-cut and h what the image is conditioned on:

    c = conv(concat_elu(x)) + nin(a)
    y_1, y_2 = conv(dropout(concat_elu(c))) + V h                   x + y_1 sigmoid(y_2)

The network is a U: on the way down in resolution each layer of ul takes u as its a, and
on the way up each layer takes what the layer opposite made. The last features give a
mixture of discretized logistics for every pixel, with all of its colours.

    model = PixelCNNpp(image_shape=(28, 28, 1), num_values=256)
    mixture = model.apply(variables, x)  # x integers [B, H, W, C]

Weight normalisation is applied to the parameters, from outside: `layers.weight_norm`.
`start`, `row` and `pixel` are the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers.dropout import Dropout
from gm_jax.layers.pixels import as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.shifted import (
    Nin,
    ShiftedConv,
    Upsample,
    concat_elu,
    shift_down,
    shift_right,
)
from gm_jax.losses.logistic_mixture import LogisticMixture


class GatedResnet(nn.Module):
    """One layer of one stream; `centred` is the stream u."""

    features: int  # F
    centred: bool
    num_shortcuts: int  # inputs a
    dropout: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the convolutions."""
        size = (2, 3 if self.centred else 2)
        self.conv_in = ShiftedConv(self.features, size, self.centred, dtype=self.dtype)
        self.conv_out = ShiftedConv(
            2 * self.features, size, self.centred, scale=0.1, dtype=self.dtype
        )
        if self.num_shortcuts:
            self.nin = Nin(self.features, self.num_shortcuts, dtype=self.dtype)
        self.drop = Dropout(self.dropout)
        self.condition = nn.Dense(2 * self.features, use_bias=False, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, *shortcuts: jax.Array, h: jax.Array | None,
        rngs: jax.Array | None,
    ) -> jax.Array:
        """Maps x and the short-cuts, all [B, H, W, F], to the next x."""
        c = self.conv_in(concat_elu(x))
        if shortcuts:
            c = c + self.nin(*shortcuts)
        y = self.conv_out(self.drop(concat_elu(c), rngs=rngs))
        return x + _gate(y + self._conditioned(h))

    def row(
        self, before: Any, x: jax.Array, *shortcuts: jax.Array, h: jax.Array | None
    ) -> tuple[jax.Array, Any]:
        """Computes a row of u, [B, W, F]; `before` is (x, c) of the row above."""
        c = self.conv_in.row(concat_elu(jnp.stack([before[0], x], axis=1)))
        if shortcuts:
            c = c + self.nin(*shortcuts)
        y = self.conv_out.row(concat_elu(jnp.stack([before[1], c], axis=1)))
        return x + _gate(y + self._conditioned(h)), (x, c)

    def above(self, before: Any, u: jax.Array, *, h: jax.Array | None) -> Any:
        """Computes what is known of a row of ul before its first pixel, [B, W, .]."""
        x, c = (concat_elu(a[:, None]) for a in before)
        above_out = self.conv_out.above(c) + self._conditioned(h)
        return self.conv_in.above(x) + self.nin.part(0, u), above_out

    def pixel(
        self, left: Any, above: Any, x: jax.Array, *shortcuts: jax.Array
    ) -> tuple[jax.Array, Any]:
        """Computes a pixel of ul, [B, F]; `left` is (x, c) of the pixel before."""
        c = self.conv_in.pixel(concat_elu(jnp.stack([left[0], x], axis=1)), above[0])
        for n, shortcut in enumerate(shortcuts, 1):
            c = c + self.nin.part(n, shortcut)
        y = self.conv_out.pixel(concat_elu(jnp.stack([left[1], c], axis=1)), above[1])
        return x + _gate(y), (x, c)

    def _conditioned(self, h: jax.Array | None) -> jax.Array:
        return jnp.zeros((), self.dtype) if h is None else self.condition(h)


def _gate(y: jax.Array) -> jax.Array:
    first, second = jnp.split(y, 2, axis=-1)
    return first * jax.nn.sigmoid(second)


class Level(nn.Module):
    """All layers at one resolution, and around the lower ones (`depth` of them).

    Its streams come in as `u` and `ul` and leave the same way, [B, H, W, F]. In the
    faces by rows and pixels, lower levels are computed at every second row and column,
    and what they made is kept for the positions between.
    """

    features: int
    num_resnets: int  # layers on the way down, and up
    depth: int
    dropout: float
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        common = dict(features=self.features, dtype=self.dtype)
        drop, n = dict(dropout=self.dropout), self.num_resnets
        ups = n + (1 if self.depth else 0)
        self.down_u = [GatedResnet(**common, **drop, centred=True, num_shortcuts=0)
                       for _ in range(n)]
        self.down_ul = [GatedResnet(**common, **drop, centred=False, num_shortcuts=1)
                        for _ in range(n)]
        self.up_u = [GatedResnet(**common, **drop, centred=True, num_shortcuts=1)
                     for _ in range(ups)]
        self.up_ul = [GatedResnet(**common, **drop, centred=False, num_shortcuts=2)
                      for _ in range(ups)]
        if self.depth:
            self.halve_u = ShiftedConv(
                kernel_size=(2, 3), centred=True, stride=2, **common
            )
            self.halve_ul = ShiftedConv(
                kernel_size=(2, 2), centred=False, stride=2, **common
            )
            self.double_u = Upsample(centred=True, **common)
            self.double_ul = Upsample(centred=False, **common)
            self.lower = Level(
                num_resnets=n, depth=self.depth - 1, **drop, **common
            )

    def __call__(
        self, u: jax.Array, ul: jax.Array, h: jax.Array | None,
        rngs: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Computes both streams."""
        height, width = u.shape[1:3]
        shortcuts, mode = [(u, ul)], dict(h=h, rngs=rngs)
        for layer_u, layer_ul in zip(self.down_u, self.down_ul):
            u = layer_u(u, **mode)
            ul = layer_ul(ul, u, **mode)
            shortcuts.append((u, ul))
        if self.depth:
            half = jax.tree.map(lambda a: a[:, ::2, ::2], h)
            u, ul = self.lower(self.halve_u(u), self.halve_ul(ul), half, rngs)
            u = self.double_u(u)[:, :height, :width]
            ul = self.double_ul(ul)[:, :height, :width]
        else:
            shortcuts.pop()  # u and ul themselves
        for layer_u, layer_ul in zip(self.up_u, self.up_ul):
            u_down, ul_down = shortcuts.pop()
            u = layer_u(u, u_down, **mode)
            ul = layer_ul(ul, u, ul_down, **mode)
        return u, ul

    def start(self, batch_size: int, width: int) -> tuple[Any, Any]:
        """Returns (state, left): the zeros above the first row, left of any pixel.

        left: of each layer of ul its (x, c) at the pixel before, 'halve' the ul before,
        'out' the last pixel made, 'lower' the left of the lower level.
        state: of each layer of u its (x, c) in the row before, 'halve' the u before;
        'lower' the state of the lower level, 'u' and 'left' the last row that it made.
        """
        def zeros(*shape: int) -> jax.Array:
            return jnp.zeros((batch_size, *shape, self.features), self.dtype)

        def layers(*shape: int) -> list:
            return [
                (zeros(*shape), zeros(*shape))
                for _ in range(len(self.down_u) + len(self.up_u))
            ]

        state, left = {'layers': layers(width)}, {'layers': layers(), 'out': zeros()}
        if self.depth:
            half = (width + 1) // 2
            lower_state, lower_left = self.lower.start(batch_size, half)
            state |= {
                'halve': zeros(width), 'lower': lower_state, 'u': zeros(half),
                'left': by_column(lower_left, half),
            }
            left |= {'halve': zeros(), 'lower': lower_left}
        return state, left

    def row(
        self, state: Any, left: Any, u: jax.Array, r: jax.Array, h: jax.Array | None
    ) -> tuple[Any, jax.Array, Any]:
        """Computes a row of u, and what is known of ul before the row's first pixel.

        Args:
          state: see `start`.
          left: what each pixel of the row before left, [B, W, ...].
          u: [B, W, F] row r of the stream.
          r: the row, of this level.
          h: row r of the map that the image is conditioned on.

        Returns:
          The next state, the row of u, and for `pixel` what is above, [B, W, ...].
        """
        width, layers, above = u.shape[1], [], {'layers': []}
        streams = iter(zip(state['layers'], left['layers']))

        def advance(layer_u, layer_ul, u, *shortcuts):
            before_u, before_ul = next(streams)
            u, new = layer_u.row(before_u, u, *shortcuts, h=h)
            layers.append(new)
            above['layers'].append(layer_ul.above(before_ul, u, h=h))
            return u

        shortcuts = [u]
        for pair in zip(self.down_u, self.down_ul):
            u = advance(*pair, u)
            shortcuts.append(u)
        new_state = {'layers': layers}
        if self.depth:
            new_state['halve'] = u
            # Row r - 1 made a row of the lower level if it was an even one.
            lower_left = _where(r % 2 == 1, _every_second(left['lower']), state['left'])
            lower_state, lower_u, lower_above = self._lower_row(
                state, lower_left, jnp.stack([state['halve'], u], axis=1), r, h
            )
            new_state |= {'lower': lower_state, 'u': lower_u, 'left': lower_left}
            above |= _twice({'lower': lower_above, 'out': lower_left['out']}, width)
            above['halve'] = _twice(
                self.halve_ul.above(left['halve'][:, None]), width
            )
            u = self.double_u.row(lower_u, r % 2)[:, :width]
        else:
            shortcuts.pop()
        for pair in zip(self.up_u, self.up_ul):
            u = advance(*pair, u, shortcuts.pop())
        return new_state, u, above

    def _lower_row(
        self, state: Any, left: Any, rows: jax.Array, r: jax.Array,
        h: jax.Array | None,
    ) -> tuple[Any, jax.Array, Any]:
        """Computes a row of the lower level if r is even; else the last one stays."""
        def compute() -> tuple:
            return self.lower.row(
                state['lower'], left, self.halve_u.row(rows), r // 2,
                _every_second(h),
            )

        nothing = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute)[2]
        )
        return jax.lax.cond(
            r % 2 == 0, compute, lambda: (state['lower'], state['u'], nothing)
        )

    def pixel(
        self, left: Any, above: Any, ul: jax.Array, r: jax.Array, w: jax.Array
    ) -> Any:
        """Computes a pixel of ul.

        Args:
          left: what the pixel before left, see `start`.
          above: from `row`, at this pixel, [B, ...].
          ul: [B, F] the stream at the pixel.
          r: its row, of this level.
          w: its column, of this level.

        Returns:
          The next left, with the pixel made as 'out'.
        """
        new, layers = {'layers': []}, iter(zip(left['layers'], above['layers']))

        def advance(layer, ul, *shortcuts):
            ul, made = layer.pixel(*next(layers), ul, *shortcuts)
            new['layers'].append(made)
            return ul

        shortcuts = [ul]
        for layer in self.down_ul:
            ul = advance(layer, ul)
            shortcuts.append(ul)
        if self.depth:
            new['halve'] = ul
            last = jnp.stack([left['halve'], ul], axis=1)
            new['lower'] = jax.lax.cond(
                (r % 2 == 0) & (w % 2 == 0),
                lambda: self.lower.pixel(
                    left['lower'], above['lower'],
                    self.halve_ul.pixel(last, above['halve']), r // 2, w // 2,
                ),
                lambda: left['lower'],
            )
            made = jnp.where(r % 2 == 0, new['lower']['out'], above['out'])
            ul = self.double_ul.pixel(made, r % 2, w % 2)
        else:
            shortcuts.pop()
        for layer in self.up_ul:
            ul = advance(layer, ul, shortcuts.pop())
        return new | {'out': ul}


def by_column(tree: Any, width: int) -> Any:
    """Repeats leaves [B, ...] to [B, W, ...]."""
    return jax.tree.map(lambda a: jnp.repeat(a[:, None], width, axis=1), tree)


def _every_second(tree: Any) -> Any:
    return jax.tree.map(lambda a: a[:, ::2], tree)


def _twice(tree: Any, width: int) -> Any:
    return jax.tree.map(lambda a: jnp.repeat(a, 2, axis=1)[:, :width], tree)


def _where(condition: jax.Array, tree: Any, other: Any) -> Any:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


class PixelCNNpp(nn.Module):
    """The network, from integers to a mixture of discretized logistics."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int = 256  # V
    features: int = 160  # F
    num_resnets: int = 5  # layers of each level on the way down, and up
    num_levels: int = 3  # resolutions
    num_mixtures: int = 10  # K
    dropout: float = 0.5
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Makes the layers."""
        common = dict(features=self.features, dtype=self.dtype)
        self.first_u = ShiftedConv(kernel_size=(2, 3), centred=True, **common)
        self.first_above = ShiftedConv(kernel_size=(1, 3), centred=True, **common)
        self.first_left = ShiftedConv(kernel_size=(2, 1), centred=False, **common)
        self.level = Level(
            num_resnets=self.num_resnets, depth=self.num_levels - 1,
            dropout=self.dropout, **common,
        )
        channels = self.image_shape[2]
        of_pixel = 1 + 2 * channels + (3 if channels == 3 else 0)
        self.to_mixture = nn.Dense(of_pixel * self.num_mixtures, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, h: jax.Array | None = None, rngs: jax.Array | None = None
    ) -> LogisticMixture:
        """Computes the mixture of every pixel given those before it.

        Args:
          x: [B, H, W, C] integers in [0, V).
          h: what the image is conditioned on: [B, E] such as a class as one-hot, or a
            map [B, H, W, E] such as a small image scaled up.
          rngs: [B] keys of the dropout; None for none.

        Returns:
          The mixture, [B, H, W, ...].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        x = self._input(x)
        u = self.first_u(shift_down(x))
        ul = self.first_above(shift_down(x)) + self.first_left(shift_right(x))
        _, ul = self.level(u, ul, as_map(h), rngs)
        return self._mixture(ul)

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Returns (state, left, features): the zeros outside the image."""
        state, left = self.level.start(batch_size, self.image_shape[1])
        return state, left, by_column(left, self.image_shape[1])

    def row(
        self, state: Any, features: Any, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[Any, Any]:
        """Computes stream u at row r of x [B, H, W, C], and what is above its pixels.

        Returns:
          The next state, and what `pixel` needs, [B, W, ...].
        """
        rows = rows_above(self._input(x), r, 2)
        ul = self.first_above.row(rows[:, 1:]) + self.first_left.above(
            shift_right(rows[:, 1:])
        )
        state, _, above = self.level.row(
            state, features, self.first_u.row(rows), r, row_of_map(h, r)
        )
        return state, (ul, above)

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, LogisticMixture, Any]:
        """Computes stream ul at pixel w of row r, x_row [B, W, C].

        Returns:
          The next left, the mixture [B, ...], and the same left for the row below.
        """
        ul, above = context
        before, _ = left_of(self._input(x_row), w, 1)
        left = self.level.pixel(left, above, self.first_left.pixel(before, ul), r, w)
        return left, self._mixture(left['out']), left

    def _input(self, x: jax.Array) -> jax.Array:
        """Adds a channel of ones, which tells an image from what is around it."""
        x = encode(x, self.num_values)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def _mixture(self, ul: jax.Array) -> LogisticMixture:
        out = self.to_mixture(jax.nn.elu(ul))
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        channels, k = self.image_shape[2], self.num_mixtures
        logits, rest = out[..., :k], out[..., k:].reshape(*out.shape[:-1], -1, k)
        means, log_scales = rest[..., :channels, :], rest[..., channels:2 * channels, :]
        coeffs = rest[..., 2 * channels:, :] if channels == 3 else None
        return LogisticMixture(logits, means, log_scales, coeffs)
