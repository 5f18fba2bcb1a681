"""The levels of a PixelCNN++ by rows and pixels, for sampling.

A level is all layers of both streams at one resolution, with the lower levels nested
inside (see `models.pixel_cnn_pp`). Here stream u is computed one row at a time, then
stream ul one pixel at a time. Lower levels are computed at every second row and column,
and their output is kept for the positions between.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp

from gm_jax.layers.shifted import ShiftedConv, Upsample

__all__ = [
    'Above', 'Before', 'by_column', 'Layer', 'Level', 'LevelAbove', 'LevelLeft',
    'LevelState', 'LowerAbove', 'LowerLeft', 'LowerState', 'pixel', 'row', 'start',
]

Tree = TypeVar('Tree')


class Before(NamedTuple):
    """What a layer keeps of the previous row or pixel.

    Attributes:
        x: the input of the layer there.
        c: the intermediate features of the layer there.
    """

    x: jax.Array
    c: jax.Array


class Above(NamedTuple):
    """The row above's contribution to a layer of ul, [B, W, .] or at a pixel [B, .].

    Attributes:
        conv_in: the contribution to the first convolution, with the short-cut from u.
        conv_out: the contribution to the second convolution, with the condition.
    """

    conv_in: jax.Array
    conv_out: jax.Array


class LevelLeft(NamedTuple):
    """What a level keeps of the pixel to the left in stream ul, leaves [B, ...].

    Attributes:
        layers: the x and c of each layer there.
        made: the output of the level there.
        lower: what is kept of the lower level; None at the lowest level.
    """

    layers: list[Before]
    made: jax.Array
    lower: 'LowerLeft | None'


class LowerLeft(NamedTuple):
    """What is kept of the lower level at the pixel to the left.

    Attributes:
        halved: ul there, the input of the halving convolution.
        level: what the lower level keeps of its own last pixel.
    """

    halved: jax.Array
    level: LevelLeft


class LevelState(NamedTuple):
    """What a level keeps of the row above in stream u, leaves [B, W, ...].

    Attributes:
        layers: the x and c of each layer there.
        lower: what is kept of the lower level; None at the lowest level.
    """

    layers: list[Before]
    lower: 'LowerState | None'


class LowerState(NamedTuple):
    """What is kept of the lower level in the row above.

    Attributes:
        halved: u there, the input of the halving convolution.
        level: what the lower level keeps of its own last row in u.
        left: what the lower level keeps of each pixel of that row in ul.
        u: the output of the lower level in u for that row.
    """

    halved: jax.Array
    level: LevelState
    left: LevelLeft
    u: jax.Array


class LevelAbove(NamedTuple):
    """The contribution of the rows above to a row of ul, leaves [B, W, ...].

    Attributes:
        layers: the contribution to the convolutions of each layer.
        lower: the contribution to the lower level; None at the lowest level.
    """

    layers: list[Above]
    lower: 'LowerAbove | None'


class LowerAbove(NamedTuple):
    """The contribution of the rows above to the lower level, repeated for two columns.

    Attributes:
        halved: the contribution to the halving convolution.
        level: the contribution to the lower level's own row.
        made: the last row of ul that the lower level computed.
    """

    halved: jax.Array
    level: LevelAbove
    made: jax.Array


class Layer(Protocol):
    """A layer of one stream, by rows (of u) or by pixels (of ul)."""

    def row(
        self, before: Before, x: jax.Array, /, *shortcuts: jax.Array,
        h: jax.Array | None,
    ) -> tuple[jax.Array, Before]:
        """Compute a row of u, [B, W, F], from the row above, `before`."""

    def above(self, before: Before, u: jax.Array, /, *, h: jax.Array | None) -> Above:
        """Compute the part of a row of ul that the rows above determine.

        `before` holds all pixels of the row above; u is this row of the stream u.
        """

    def pixel(
        self, before: Before, above: Above, x: jax.Array, /, *shortcuts: jax.Array
    ) -> tuple[jax.Array, Before]:
        """Compute a pixel of ul, [B, F], from the pixel to the left, `before`."""


class Level(Protocol):
    """A level: its layers and, unless `depth` is 0, the path to the lower level."""

    features: int
    depth: int
    dtype: jax.typing.DTypeLike
    down_u: Sequence[Layer]
    down_ul: Sequence[Layer]
    up_u: Sequence[Layer]
    up_ul: Sequence[Layer]
    halve_u: ShiftedConv
    halve_ul: ShiftedConv
    double_u: Upsample
    double_ul: Upsample
    lower: 'Level'


def start(
    level: Level, batch_size: int, width: int
) -> tuple[LevelState, LevelLeft]:
    """Return the zeros above the first row, and to the left of any pixel."""
    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros((batch_size, *shape, level.features), level.dtype)

    def layers(*shape: int) -> list[Before]:
        num = len(level.down_u) + len(level.up_u)
        return [Before(zeros(*shape), zeros(*shape)) for _ in range(num)]

    state = LevelState(layers(width), lower=None)
    left = LevelLeft(layers(), zeros(), lower=None)
    if not level.depth:
        return state, left
    half = (width + 1) // 2
    lower_state, lower_left = start(level.lower, batch_size, half)
    lower = LowerState(
        zeros(width), lower_state, by_column(lower_left, half), zeros(half)
    )
    return (
        state._replace(lower=lower),
        left._replace(lower=LowerLeft(zeros(), lower_left)),
    )


def row(
    level: Level, state: LevelState, left: LevelLeft, u: jax.Array, r: jax.Array,
    h: jax.Array | None,
) -> tuple[LevelState, jax.Array, LevelAbove]:
    """Compute a row of u, and the part of ul that it and the rows above determine.

    Args:
        level: the level.
        state: what is kept of the rows above in u.
        left: what is kept of each pixel of the row above in ul, leaves [B, W, ...].
        u: [B, W, F] row r of the stream u at the input of the level.
        r: the index of the row at this level.
        h: row r of the condition.

    Returns:
        The next state, the output row of u, and `above` for `pixel`.
    """
    layers: list[Before] = []
    parts: list[Above] = []
    befores = iter(zip(state.layers, left.layers))

    def advance(
        layer_u: Layer, layer_ul: Layer, u: jax.Array, *shortcuts: jax.Array
    ) -> jax.Array:
        before_u, before_ul = next(befores)
        u, new = layer_u.row(before_u, u, *shortcuts, h=h)
        layers.append(new)
        parts.append(layer_ul.above(before_ul, u, h=h))
        return u

    shortcuts, lower_state, lower_above = [u], None, None
    for pair in zip(level.down_u, level.down_ul):
        u = advance(*pair, u)
        shortcuts.append(u)
    if state.lower is not None and left.lower is not None:
        lower_state, u, lower_above = _lower_row(
            level, state.lower, left.lower, u, r, h
        )
    else:
        shortcuts.pop()
    for pair in zip(level.up_u, level.up_ul):
        u = advance(*pair, u, shortcuts.pop())
    return LevelState(layers, lower_state), u, LevelAbove(parts, lower_above)


def _lower_row(
    level: Level, state: LowerState, left: LowerLeft, u: jax.Array, r: jax.Array,
    h: jax.Array | None,
) -> tuple[LowerState, jax.Array, LowerAbove]:
    """Pass row r of u through the lower level, and back to the size of this one.

    The lower level computes a row if r is even; otherwise its last row is used again.
    """
    width, even = u.shape[1], r % 2 == 0
    # If the row above is even, the lower level computed a row with it: what was kept of
    # its pixels is then what the lower level keeps of its last row.
    lower_left = _where(even, state.left, _every_second(left.level))
    rows = jnp.stack([state.halved, u], axis=1)

    def compute() -> tuple[LevelState, jax.Array, LevelAbove]:
        return row(
            level.lower, state.level, lower_left, level.halve_u.row(rows), r // 2,
            _every_second(h),
        )

    nothing = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(compute)[2]
    )
    lower, lower_u, above = jax.lax.cond(
        even, compute, lambda: (state.level, state.u, nothing)
    )
    lower_above = LowerAbove(
        halved=_twice(level.halve_ul.above(left.halved[:, None]), width),
        level=_twice(above, width),
        made=_twice(lower_left.made, width),
    )
    state = LowerState(u, lower, lower_left, lower_u)
    return state, level.double_u.row(lower_u, r % 2)[:, :width], lower_above


def pixel(
    level: Level, left: LevelLeft, above: LevelAbove, ul: jax.Array, r: jax.Array,
    w: jax.Array,
) -> LevelLeft:
    """Compute a pixel of ul.

    Args:
        level: the level.
        left: what is kept of the pixel to the left.
        above: the result of `row` at this pixel, leaves [B, ...].
        ul: [B, F] the stream ul at the pixel, at the input of the level.
        r: the row of the pixel at this level.
        w: the column of the pixel at this level.

    Returns:
        What is to be kept of this pixel; its `made` is the output.
    """
    layers: list[Before] = []
    befores = iter(zip(left.layers, above.layers))

    def advance(layer: Layer, ul: jax.Array, *shortcuts: jax.Array) -> jax.Array:
        ul, new = layer.pixel(*next(befores), ul, *shortcuts)
        layers.append(new)
        return ul

    shortcuts = [ul]
    for layer in level.down_ul:
        ul = advance(layer, ul)
        shortcuts.append(ul)
    lower = None
    if left.lower is not None and above.lower is not None:
        lower, ul = _lower_pixel(level, left.lower, above.lower, ul, r, w)
    else:
        shortcuts.pop()
    for layer in level.up_ul:
        ul = advance(layer, ul, shortcuts.pop())
    return LevelLeft(layers, ul, lower)


def _lower_pixel(
    level: Level, left: LowerLeft, above: LowerAbove, ul: jax.Array, r: jax.Array,
    w: jax.Array,
) -> tuple[LowerLeft, jax.Array]:
    """Pass a pixel of ul through the lower level, which computes every second pixel."""
    last = jnp.stack([left.halved, ul], axis=1)
    lower = jax.lax.cond(
        (r % 2 == 0) & (w % 2 == 0),
        lambda: pixel(
            level.lower, left.level, above.level,
            level.halve_ul.pixel(last, above.halved), r // 2, w // 2,
        ),
        lambda: left.level,
    )
    # On odd rows the lower level has computed its pixels already, in the row above.
    made = jnp.where(r % 2 == 0, lower.made, above.made)
    return LowerLeft(ul, lower), level.double_ul.pixel(made, r % 2, w % 2)


def by_column(tree: Tree, width: int) -> Tree:
    """Repeat leaves [B, ...] to [B, W, ...]."""
    return jax.tree.map(lambda a: jnp.repeat(a[:, None], width, axis=1), tree)


def _every_second(tree: Tree) -> Tree:
    """Take every second column of leaves [B, W, ...]."""
    return jax.tree.map(lambda a: a[:, ::2], tree)


def _twice(tree: Tree, width: int) -> Tree:
    """Repeat every column of leaves [B, W / 2, ...]: [B, W, ...]."""
    return jax.tree.map(lambda a: jnp.repeat(a, 2, axis=1)[:, :width], tree)


def _where(condition: jax.Array, tree: Tree, other: Tree) -> Tree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)
