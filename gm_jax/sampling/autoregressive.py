"""Three samplers of autoregressive models that generate the same integers.

A model is a product of conditionals p(x_i | x_1 ... x_{i-1}) over the D values of an
image, in raster order with the colours of a pixel innermost. To sample is to solve

    x_i = quantile_i(u_i; x_1 ... x_{i-1}),   u_i uniform in [0, 1),

where u_i belongs to the image and the position (`noise`), whichever way it is solved:

    ancestral      in the order of i: D network evaluations, the definition
    incremental    the same, keeping what each layer needs of the past: about one
    fixed_point    all i at once, again and again until nothing changes: D at most,
                   usually far fewer (Song et al. 2021, Accelerating Feedforward
                   Computation via Parallel Nonlinear Equation Solving,
                   https://arxiv.org/abs/2002.03629)

All three take a partial image: what `known` marks is kept, the rest is generated given
it and what comes before. `ancestral` and `fixed_point` call one compiled function, so
they agree to the last bit. `incremental` adds up in another order: its logits differ by
rounding, and in float32 a draw within rounding of a tie can come out the other way.
Measured (results/bench_samplers_agree.json): of bits, none in 10 million each of a
trained NADE, MADE, PixelCNN and Gated PixelCNN; of 256 values, whose edges lie closer,
none of a Gated PixelCNN, 4 in a million of a PixelCNN++ and 7 of a Gated PixelCNN of
colour images, each within 1e-5 of a tie; none ever in float64.
What is guaranteed is that each value is the one that some rounding of its probability
draws.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

# x [..., B, H, W, C] -> for every position the value that its noise picks, given x.
Sweep = Callable[[Any], Any]
# (params of any positions, x there [..., C], noise there [..., N]) -> integers
# [..., C]; the value of colour c depends on x[..., :c] at most.
Quantile = Callable[[Any, jax.Array, jax.Array], jax.Array]


class Network(NamedTuple):
    """An autoregressive network by rows and pixels, as `incremental` runs it."""

    # batch size -> (state, left, features): zeros, the past of the first row
    start: Callable[[int], tuple[Any, Any, Any]]
    # (state, features of row r - 1, x [B, H, W, C], r) -> (state, context): all that
    # the rows above say about row r; leaves [B, ...] and [B, W, ...]
    row: Callable[[Any, Any, jax.Array, jax.Array], tuple[Any, Any]]
    # (left, context at w, row r of x [B, W, C], r, w) -> (left, params, features at w)
    pixel: Callable[..., tuple[Any, Any, Any]]
    # whether the params of a colour depend on the colours before it in the same pixel
    by_colour: bool = True


def noise(rngs: jax.Array, image_shape: tuple[int, int, int], num: int) -> jax.Array:
    """Draws the uniform numbers that decide an image.

    Args:
        rngs: [B] one key an image.
        image_shape: H, W, C.
        num: N, numbers a pixel: one a colour, and one more for a mixture component.

    Returns:
        [B, H, W, N] float32 in [0, 1).
    """
    chex.assert_rank(rngs, 1)
    return jax.vmap(lambda rng: jax.random.uniform(rng, (*image_shape[:2], num)))(rngs)


def ancestral(
    sweep: Sweep,
    x: np.ndarray,
    known: np.ndarray,
    *,
    order: np.ndarray | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Generates one value after another, a network evaluation each.

    Args:
        sweep: compiled; gives every position's value under its noise, given x.
        x: [..., H, W, C] integers, of which the known ones matter.
        known: bool, of the shape of x: what to keep.
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
    """Redraws all values at once until none changes.

    After n sweeps the first n values are those of `ancestral`, so it ends after D + 1
    at most; no other image is a fixed point.

    Args:
        sweep: compiled; gives every position's value under its noise, given x.
        x: [..., H, W, C] integers: the known ones, and a guess at the others.
        known: bool, of the shape of x: what to keep.
        all_agree: whether all processes say so, where several sweep together.

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
    network: Network,
    quantile: Quantile,
    uniform: jax.Array,
    x: jax.Array,
    known: jax.Array,
    *,
    order: np.ndarray | None = None,
) -> jax.Array:
    """Generates pixel by pixel, computing for each only what is new.

    One program of static shapes: a loop over the rows, in it one over the columns.

    Args:
        network: the network by rows and pixels.
        quantile: picks the values.
        uniform: [B, H, W, N] from `noise`.
        x: [B, H, W, C] integers, of which the known ones matter.
        known: [B, H, W, C] bool, what to keep.
        order: [D] the flat positions in the order of the model, for a network that
            sees the values in its order as the columns of one row, [B, 1, D, 1].

    Returns:
        [B, H, W, C] int32.
    """
    chex.assert_equal_shape([x, known])
    chex.assert_rank([x, uniform], 4)
    shape = x.shape
    if order is not None:
        x, known, uniform = (
            a.reshape(len(a), 1, -1, 1)[:, :, order] for a in (x, known, uniform)
        )
        ordered = incremental(network, quantile, uniform, x, known)
        return ordered[:, :, np.argsort(order)].reshape(shape)
    batch, height, width, channels = shape
    start, left, features = network.start(batch)
    columns = jnp.arange(width)

    def by_column(tree: Any) -> Any:  # [B, W, ...] <-> [W, B, ...]
        return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), tree)

    def one_row(carry: tuple, row: tuple) -> tuple[tuple, None]:
        x, state, features = carry
        r, keep, u = row  # keep [B, W, C], u [B, W, N]
        state, context = network.row(state, features, x, r)

        def one_pixel(carry: tuple, pixel: tuple) -> tuple[tuple, Any]:
            x_row, past = carry
            w, here, keep, u = pixel
            for c in range(channels):
                if c == 0 or network.by_colour:
                    left, params, new = network.pixel(past, here, x_row, r, w)
                old = jax.lax.dynamic_index_in_dim(x_row, w, axis=1, keepdims=False)
                drawn = quantile(params, old, u)[:, c]
                value = jnp.where(keep[:, c], old[:, c], drawn)
                x_row = x_row.at[:, w, c].set(value)
            return (x_row, left), new

        inputs = (columns, *by_column((context, keep, u)))
        (x_row, _), features = jax.lax.scan(one_pixel, (x[:, r], left), inputs)
        return (x.at[:, r].set(x_row), state, by_column(features)), None

    x = jnp.where(known, x, 0).astype(jnp.int32)
    rows = (jnp.arange(height), *by_column((known, uniform)))
    (x, _, _), _ = jax.lax.scan(one_row, (x, start, features), rows)
    return x
