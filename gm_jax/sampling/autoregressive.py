"""Three samplers of autoregressive models that generate the same integers.

A model is a product of conditionals p(x_i | x_1 ... x_{i-1}) over the D values of an
image, in raster order with the colours of a pixel innermost. To sample is to solve

    x_i = quantile_i(u_i; x_1 ... x_{i-1}),   u_i uniform in [0, 1),

where u_i is fixed for each image and position (`noise`). Three ways to solve it are:

    ancestral      in the order of i: D network evaluations, the definition
    incremental    in the same order, caching what each layer needs of the past: about
                   one network evaluation
    fixed_point    all i at once, repeated until nothing changes: D + 1 evaluations at
                   most, usually far fewer (Song et al. 2021, Accelerating Feedforward
                   Computation via Parallel Nonlinear Equation Solving,
                   https://arxiv.org/abs/2002.03629)

All three take a partial image: the values that `known` marks are kept, the others are
generated given the values before them. These are samples of p(unknown | known) if all
known values come first, and in general only then. `ancestral` and `fixed_point` call
one compiled function, so they agree to the last bit. `incremental` sums in another
order: its logits differ by rounding, and in float32 a draw within rounding of a tie can
come out the other way. The measured rates (results/bench_samplers_agree.json) for bits
are none in 10 million for each of a trained NADE, MADE, PixelCNN, Gated PixelCNN, Row
LSTM and Diagonal BiLSTM.
For 256 values, whose edges lie closer, they are none for a Gated PixelCNN, 4 in a
million for a PixelCNN++ and 7 in a million for a Gated PixelCNN of colour images, each
within 1e-5 of a tie. In float64 there were none.

What is guaranteed is that each value is the one its noise draws from probabilities that
are right up to rounding.
"""

import functools
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.keys import per_example
from gm_jax.sampling.distributions import Quantile

__all__ = [
    'ancestral', 'fixed_point', 'incremental', 'Network', 'no_context', 'noise',
    'Pixel', 'Row', 'Start', 'Sweep',
]

# x [..., B, H, W, C] -> for every position the value that its noise draws, given x.
Sweep = Callable[[Any], Any]

# What a network keeps and passes on; see `Network`.
State = TypeVar('State')
Left = TypeVar('Left')
Features = TypeVar('Features')
Context = TypeVar('Context')
Params = TypeVar('Params')
# The same types for functions that only take them, or only return them.
_StateOut = TypeVar('_StateOut', covariant=True)
_LeftOut = TypeVar('_LeftOut', covariant=True)
_FeaturesIn = TypeVar('_FeaturesIn', contravariant=True)
_FeaturesOut = TypeVar('_FeaturesOut', covariant=True)
_ContextIn = TypeVar('_ContextIn', contravariant=True)
_ContextOut = TypeVar('_ContextOut', covariant=True)
_ParamsOut = TypeVar('_ParamsOut', covariant=True)


class Start(Protocol[_StateOut, _LeftOut, _FeaturesOut]):
    """The part of a network that runs before the first row."""

    def __call__(
        self, batch_size: int, /
    ) -> tuple[_StateOut, _LeftOut, _FeaturesOut]:
        """Return the state, the left and the features, as outside the image."""


class Row(Protocol[State, _FeaturesIn, _ContextOut]):
    """The part of a network that runs once per row."""

    def __call__(
        self, state: State, features: _FeaturesIn, x: jax.Array, r: jax.Array, /
    ) -> tuple[State, _ContextOut]:
        """Compute the contribution of the rows above to row r.

        Args:
            state: what is kept of the rows before row r - 1.
            features: the features of the pixels of row r - 1, leaves [B, W, ...].
            x: [B, H, W, C] integers, of which the rows above matter.
            r: the row.

        Returns:
            The state including row r - 1, and the context of row r, leaves [B, W, ...].
        """


class Pixel(Protocol[Left, _ContextIn, _ParamsOut, _FeaturesOut]):
    """The part of a network that runs once per pixel, or once per colour of it."""

    def __call__(
        self, left: Left, context: _ContextIn, x_row: jax.Array, r: jax.Array,
        w: jax.Array, /,
    ) -> tuple[Left, _ParamsOut, _FeaturesOut]:
        """Compute the network at one pixel.

        Args:
            left: what is kept of the pixels to the left.
            context: the context of the row, at this pixel, leaves [B, ...].
            x_row: [B, W, C] row r, of which the pixels to the left matter, and the
                colours before the one that is to be drawn.
            r: the row.
            w: the column.

        Returns:
            What is kept including this pixel, the parameters of its distribution, and
            its features, leaves [B, ...].
        """


def no_context(
    state: State, features: Any, x: jax.Array, r: jax.Array, /
) -> tuple[State, tuple[()]]:
    """Return the state as it is, for a network whose `pixel` needs the values alone."""
    del features, x, r
    return state, ()


class Network(NamedTuple, Generic[State, Left, Features, Context, Params]):
    """An autoregressive network by rows and pixels, as `incremental` runs it.

    Attributes:
        start: returns what the network keeps before the first row.
        pixel: runs once per pixel.
        row: runs once per row.
        by_colour: whether the parameters of a colour depend on the colours before it
            in the same pixel; then `pixel` runs once per colour.
    """

    start: Start[State, Left, Features]
    pixel: Pixel[Left, Context, Params, Features]
    # The default fits only Context = (), which cannot be declared.
    row: Row[State, Features, Context] = no_context  # type: ignore[assignment]
    by_colour: bool = True


def noise(
    rng: jax.Array, image_shape: tuple[int, int, int], num: int, *,
    batch: int | None = None,
) -> jax.Array:
    """Draw the uniform numbers that determine an image.

    Args:
        rng: [B] keys, one per image; or one key, with `batch`.
        image_shape: H, W, C.
        num: N, numbers per pixel: one per colour, and one more for a mixture component.
        batch: B.

    Returns:
        [B, H, W, N] float32 in [0, 1).

    Raises:
        AssertionError: `rng` is neither [B] keys nor one key with `batch`.
    """
    shape = (*image_shape[:2], num)
    return jax.vmap(lambda rng: jax.random.uniform(rng, shape, jnp.float32))(
        per_example(rng, batch)
    )


def ancestral(
    sweep: Sweep,
    x: np.ndarray,
    known: np.ndarray,
    *,
    order: np.ndarray | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Generate one value after another, with one network evaluation per value.

    Args:
        sweep: a compiled function that returns the value that the noise draws at every
            position, given x.
        x: [..., H, W, C] integers, of which the known ones matter.
        known: bool, of the shape of x: the values to keep.
        order: [D] the flat positions in the order of the model; None: raster.
        report: called with the number of values done.

    Returns:
        [..., H, W, C] integers.
    """
    chex.assert_equal_shape([x, known])
    shape = x.shape
    flat = np.where(known, x, 0).reshape(*shape[:-3], -1)
    keep = known.reshape(flat.shape)
    positions = range(flat.shape[-1]) if order is None else order
    for done, i in enumerate(positions, 1):
        if not keep[..., i].all():
            drawn = np.asarray(sweep(flat.reshape(shape))).reshape(flat.shape)
            flat[..., i] = np.where(keep[..., i], flat[..., i], drawn[..., i])
        report(done)
    return flat.reshape(shape)


def fixed_point(
    sweep: Sweep, x: np.ndarray, known: np.ndarray,
    *, all_agree: Callable[[bool], bool] = bool,
) -> tuple[np.ndarray, int]:
    """Redraw all values at once until none changes.

    After n sweeps the first n values are those of `ancestral`, so it ends after at most
    D + 1 sweeps; no other image is a fixed point.

    Args:
        sweep: a compiled function that returns the value that the noise draws at every
            position, given x.
        x: [..., H, W, C] integers: the known ones, and a guess at the others.
        known: bool, of the shape of x: the values to keep.
        all_agree: a logical AND over the processes, where several sweep together.

    Returns:
        ([..., H, W, C] integers, the number of sweeps).
    """
    chex.assert_equal_shape([x, known])
    for sweeps in range(1, int(np.prod(x.shape[-3:])) + 2):
        new = np.where(known, x, np.asarray(sweep(x)))
        if all_agree(np.array_equal(new, x)):
            return x, sweeps
        x = new
    raise ValueError('no fixed point after as many sweeps as values: not causal')


def incremental(
    network: Network[State, Left, Features, Context, Params],
    quantile: Quantile,
    uniform: jax.Array,
    x: jax.Array,
    known: jax.Array,
    *,
    order: np.ndarray | None = None,
) -> jax.Array:
    """Generate pixel by pixel, computing for each only what is new.

    It is one program of static shapes: a loop over the rows, and in it one over the
    columns.

    Args:
        network: the network by rows and pixels.
        quantile: returns the values that noise draws.
        uniform: [B, H, W, N] from `noise`.
        x: [B, H, W, C] integers, of which the known ones matter.
        known: [B, H, W, C] bool, the values to keep.
        order: [D] the flat positions in the order of the model, for a network that
            sees the values in its order as the columns of one row, [B, 1, D, 1].

    Returns:
        [B, H, W, C] int32.
    """
    chex.assert_equal_shape([x, known])
    chex.assert_rank([x, uniform], 4)
    if order is not None:
        ordered = incremental(network, quantile, *(
            a.reshape(len(a), 1, -1, 1)[:, :, order] for a in (uniform, x, known)
        ))
        return ordered[:, :, np.argsort(order)].reshape(x.shape)
    batch, height, width, _ = x.shape
    start, left, features = network.start(batch)

    def one_row(
        carry: tuple[jax.Array, State, Features], row: tuple[Any, ...]
    ) -> tuple[tuple[jax.Array, State, Features], None]:
        x, state, features = carry
        r, keep, u = row  # keep [B, W, C], u [B, W, N]
        state, context = network.row(state, features, x, r)
        one_pixel = functools.partial(_one_pixel, network, quantile, r)
        inputs = (jnp.arange(width), *_by_column((context, keep, u)))
        (x_row, _), features = jax.lax.scan(one_pixel, (x[:, r], left), inputs)
        return (x.at[:, r].set(x_row), state, _by_column(features)), None

    x = jnp.where(known, x, 0).astype(jnp.int32)
    rows = (jnp.arange(height), *_by_column((known, uniform)))
    (x, _, _), _ = jax.lax.scan(one_row, (x, start, features), rows)
    return x


def _one_pixel(
    network: Network[State, Left, Features, Context, Params], quantile: Quantile,
    r: jax.Array, carry: tuple[jax.Array, Left], pixel: tuple[Any, ...],
) -> tuple[tuple[jax.Array, Left], Features]:
    """Generate the colours of one pixel of row r, one after another."""
    x_row, past = carry  # x_row [B, W, C]
    w, context, keep, u = pixel  # keep [B, C], u [B, N]
    for c in range(x_row.shape[-1]):
        if c == 0 or network.by_colour:
            left, params, features = network.pixel(past, context, x_row, r, w)
        old = jax.lax.dynamic_index_in_dim(x_row, w, axis=1, keepdims=False)
        drawn = quantile(params, old, u)[:, c]
        value = jnp.where(keep[:, c], old[:, c], drawn)
        x_row = x_row.at[:, w, c].set(value)
    return (x_row, left), features


def _by_column(tree: Any) -> Any:
    """Swap the first two axes of every leaf: [B, W, ...] to [W, B, ...] and back."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)
