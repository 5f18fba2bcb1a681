"""PixelCNN++: two streams of gated residual layers at several scales.

Salimans et al. 2017, PixelCNN++: Improving the PixelCNN with Discretized Logistic
Mixture Likelihood and Other Modifications, sec. 2, https://arxiv.org/abs/1701.05517.
Stream u depends on the rows above, stream ul (up and left) also on the pixels to the
left. With a the input from short-cut connections and h the condition, a layer is

    c = conv(concat_elu(x)) + nin(a)
    y_1, y_2 = conv(dropout(concat_elu(c))) + V h                   x + y_1 sigmoid(y_2)

The network is U-shaped: on the way down in resolution each layer of ul takes u as a; on
the way up each layer also takes the output of the opposite layer on the way down. The
last features give one mixture of discretized logistics per pixel, over all its colours.

    model = PixelCNNpp(image_shape=(28, 28, 1), num_values=256)
    mixture = model.apply(variables, x)  # x integers [B, H, W, C]

Weight normalisation is applied to the parameters outside the model, by
`layers.weight_norm`.
`start`, `row` and `pixel` compute the same network by rows and pixels, for
`sampling.autoregressive.incremental`.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import levels
from gm_jax.layers.activations import concat_elu, elu
from gm_jax.layers.dropout import Dropout
from gm_jax.layers.levels import Above, Before, LevelAbove, LevelLeft, LevelState
from gm_jax.layers.pixels import as_map, encode, left_of, row_of_map, rows_above
from gm_jax.layers.shifted import (
    Nin,
    ShiftedConv,
    Upsample,
    shift_down,
    shift_right,
)
from gm_jax.losses.logistic_mixture import LogisticMixture

__all__ = ['GatedResnet', 'Level', 'PixelCNNpp']


class GatedResnet(nn.Module):
    """One layer of one stream: of u if `centred`, else of ul."""

    features: int  # F
    centred: bool
    num_shortcuts: int  # number of inputs a
    dropout: float
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the convolutions."""
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
        rng: jax.Array | None,
    ) -> jax.Array:
        """Map x and the short-cuts, all [B, H, W, F], to the next x."""
        c = self.conv_in(concat_elu(x))
        if shortcuts:
            c = c + self.nin(*shortcuts)
        y = self.conv_out(self.drop(concat_elu(c), rng=rng))
        return x + _gate(y + self._conditioned(h))

    def row(
        self, before: Before, x: jax.Array, *shortcuts: jax.Array, h: jax.Array | None
    ) -> tuple[jax.Array, Before]:
        """Compute a row of u, [B, W, F]; see `levels.Layer`."""
        c = self.conv_in.row(concat_elu(jnp.stack([before.x, x], axis=1)))
        if shortcuts:
            c = c + self.nin(*shortcuts)
        y = self.conv_out.row(concat_elu(jnp.stack([before.c, c], axis=1)))
        return x + _gate(y + self._conditioned(h)), Before(x, c)

    def above(self, before: Before, u: jax.Array, *, h: jax.Array | None) -> Above:
        """Compute the part of a row of ul that the rows above determine."""
        x, c = (concat_elu(a[:, None]) for a in before)
        return Above(
            self.conv_in.above(x) + self.nin.part(0, u),
            self.conv_out.above(c) + self._conditioned(h),
        )

    def pixel(
        self, before: Before, above: Above, x: jax.Array, *shortcuts: jax.Array
    ) -> tuple[jax.Array, Before]:
        """Compute a pixel of ul, [B, F]."""
        last = concat_elu(jnp.stack([before.x, x], axis=1))
        c = self.conv_in.pixel(last, above.conv_in)
        for n, shortcut in enumerate(shortcuts, 1):
            c = c + self.nin.part(n, shortcut)
        last = concat_elu(jnp.stack([before.c, c], axis=1))
        return x + _gate(self.conv_out.pixel(last, above.conv_out)), Before(x, c)

    def _conditioned(self, h: jax.Array | None) -> jax.Array:
        return jnp.zeros((), self.dtype) if h is None else self.condition(h)


def _gate(y: jax.Array) -> jax.Array:
    first, second = jnp.split(y, 2, axis=-1)
    return first * jax.nn.sigmoid(second)


class Level(nn.Module):
    """All layers at one resolution, with the `depth` lower levels nested inside.

    Its inputs and outputs are the streams u and ul, [B, H, W, F]. `layers.levels`
    computes the same function by rows and pixels.
    """

    features: int
    num_resnets: int  # layers on the way down, and on the way up
    depth: int
    dropout: float
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        common: dict[str, Any] = dict(features=self.features, dtype=self.dtype)
        layer = dict(dropout=self.dropout, **common)
        n = self.num_resnets
        ups = n + (1 if self.depth else 0)
        self.down_u = [
            GatedResnet(centred=True, num_shortcuts=0, **layer) for _ in range(n)
        ]
        self.down_ul = [
            GatedResnet(centred=False, num_shortcuts=1, **layer) for _ in range(n)
        ]
        self.up_u = [
            GatedResnet(centred=True, num_shortcuts=1, **layer) for _ in range(ups)
        ]
        self.up_ul = [
            GatedResnet(centred=False, num_shortcuts=2, **layer) for _ in range(ups)
        ]
        if self.depth:
            half = dict(stride=2, **common)
            self.halve_u = ShiftedConv(kernel_size=(2, 3), centred=True, **half)
            self.halve_ul = ShiftedConv(kernel_size=(2, 2), centred=False, **half)
            self.double_u = Upsample(centred=True, **common)
            self.double_ul = Upsample(centred=False, **common)
            self.lower = Level(num_resnets=n, depth=self.depth - 1, **layer)

    def __call__(
        self, u: jax.Array, ul: jax.Array, h: jax.Array | None,
        rng: jax.Array | None,
    ) -> tuple[jax.Array, jax.Array]:
        """Compute both streams."""
        height, width = u.shape[1:3]
        shortcuts, mode = [(u, ul)], dict(h=h, rng=rng)
        for layer_u, layer_ul in zip(self.down_u, self.down_ul):
            u = layer_u(u, **mode)
            ul = layer_ul(ul, u, **mode)
            shortcuts.append((u, ul))
        if self.depth:
            half = jax.tree.map(lambda a: a[:, ::2, ::2], h)
            u, ul = self.lower(self.halve_u(u), self.halve_ul(ul), half, rng)
            u = self.double_u(u)[:, :height, :width]
            ul = self.double_ul(ul)[:, :height, :width]
        else:
            shortcuts.pop()  # the last short-cut is u and ul themselves
        for layer_u, layer_ul in zip(self.up_u, self.up_ul):
            u_down, ul_down = shortcuts.pop()
            u = layer_u(u, u_down, **mode)
            ul = layer_ul(ul, u, ul_down, **mode)
        return u, ul


class PixelCNNpp(nn.Module):
    """The network, from integers to a mixture of discretized logistics."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int = 256  # V
    features: int = 160  # F
    num_resnets: int = 5  # layers of each level on the way down, and up
    num_levels: int = 3  # number of resolutions
    num_mixtures: int = 10  # K
    dropout: float = 0.5
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        common = dict(features=self.features, dtype=self.dtype)
        self.first_u = ShiftedConv(kernel_size=(2, 3), centred=True, **common)
        self.first_above = ShiftedConv(kernel_size=(1, 3), centred=True, **common)
        self.first_left = ShiftedConv(kernel_size=(2, 1), centred=False, **common)
        self.level = Level(
            num_resnets=self.num_resnets, depth=self.num_levels - 1,
            dropout=self.dropout, **common,
        )
        channels = self.image_shape[2]
        per_pixel = 1 + 2 * channels + (3 if channels == 3 else 0)
        self.to_mixture = nn.Dense(per_pixel * self.num_mixtures, dtype=self.dtype)

    def __call__(
        self, x: jax.Array, h: jax.Array | None = None, rng: jax.Array | None = None
    ) -> LogisticMixture:
        """Compute the mixture of every pixel given those before it.

        Args:
            x: [B, H, W, C] integers in [0, V).
            h: the condition: [B, E] such as a one-hot class, or a map [B, H, W, E] such
                as an upscaled small image.
            rng: one key, or [B] keys, one per example; None: no dropout.

        Returns:
            The mixture, [B, H, W, ...].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        x = self._input(x)
        u = self.first_u(shift_down(x))
        ul = self.first_above(shift_down(x)) + self.first_left(shift_right(x))
        _, ul = self.level(u, ul, as_map(h), rng)
        return self._mixture(ul)

    def start(self, batch_size: int) -> tuple[LevelState, LevelLeft, LevelLeft]:
        """Return (state, left, features): the zeros outside the image."""
        width = self.image_shape[1]
        state, left = levels.start(self.level, batch_size, width)
        return state, left, levels.by_column(left, width)

    def row(
        self, state: LevelState, features: LevelLeft, x: jax.Array, r: jax.Array,
        h: jax.Array | None = None,
    ) -> tuple[LevelState, tuple[jax.Array, LevelAbove]]:
        """Compute stream u at row r of x [B, H, W, C], and the context of its pixels.

        Returns:
            The next state, and the context for `pixel`, [B, W, ...].
        """
        rows = rows_above(self._input(x), r, 2)
        ul = self.first_above.row(rows[:, 1:]) + self.first_left.above(
            shift_right(rows[:, 1:])
        )
        state, _, above = levels.row(
            self.level, state, features, self.first_u.row(rows), r, row_of_map(h, r)
        )
        return state, (ul, above)

    def pixel(
        self, left: LevelLeft, context: tuple[jax.Array, LevelAbove],
        x_row: jax.Array, r: jax.Array, w: jax.Array,
    ) -> tuple[LevelLeft, LogisticMixture, LevelLeft]:
        """Compute stream ul at pixel w of row r, x_row [B, W, C].

        Returns:
            The next left, the mixture [B, ...], and the next left again, as the
            features that the row below needs.
        """
        ul, above = context
        before, _ = left_of(self._input(x_row), w, 1)
        ul = self.first_left.pixel(before, ul)
        left = levels.pixel(self.level, left, above, ul, r, w)
        return left, self._mixture(left.made), left

    def _input(self, x: jax.Array) -> jax.Array:
        """Add a channel of ones, which distinguishes the image from the padding."""
        x = encode(x, self.num_values)
        return jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)

    def _mixture(self, ul: jax.Array) -> LogisticMixture:
        out = self.to_mixture(elu(ul))
        out = out.astype(jnp.promote_types(out.dtype, jnp.float32))
        channels, k = self.image_shape[2], self.num_mixtures
        logits, rest = out[..., :k], out[..., k:].reshape(*out.shape[:-1], -1, k)
        means, log_scales = rest[..., :channels, :], rest[..., channels:2 * channels, :]
        coeffs = rest[..., 2 * channels:, :] if channels == 3 else None
        return LogisticMixture(logits, means, log_scales, coeffs)
