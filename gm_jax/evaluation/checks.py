"""Checks, on small shapes, that a density model is causal, normalised or invertible.

They take functions of arrays, so any model can be tested with them. Each returns
nothing, or raises AssertionError with the position or value that is wrong:

    checks.assert_causal(log_prob_terms_fn, (2, 5, 5, 3))
    checks.assert_normalized(log_prob_fn, (2, 2, 1), num_values=4)
    checks.assert_invertible(forward_fn, inverse_fn, x)
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = ['assert_causal', 'assert_invertible', 'assert_normalized']

_POINTS = 4  # A ReLU may hide a path at one point, but hardly at 4 points of B images.
_ROWS = 256  # Rows of the Jacobian at a time: all of them may not fit in memory.
_MAX_IMAGES = 2**20
_IMAGES = 4096  # Images at a time.
_MAX_DIMS = 256  # A dense Jacobian takes one forward pass per dimension.


def _jacobian_fn(
    fn: Callable[[jax.Array], jax.Array], shape: tuple[int, ...]
) -> Callable[[jax.Array], np.ndarray]:
    """Return x -> d fn(x) / d x as [B, D, B, D], for x and fn(x) of one shape."""
    num_images, size = shape[0], math.prod(shape)
    num = min(_ROWS, size)

    @jax.jit
    def rows_fn(x: jax.Array, index: jax.Array) -> jax.Array:
        out, vjp_fn = jax.vjp(fn, x)
        # All zeros past the end, so that the last rows have the shape of the others.
        cotangents = jax.nn.one_hot(index, size, dtype=out.dtype)
        return jax.vmap(vjp_fn)(cotangents.reshape(num, *shape))[0]

    def jacobian_fn(x: jax.Array) -> np.ndarray:
        # Not lax.map: XLA on the CPU runs convolutions in loops 40 times slower.
        starts = range(0, size, num)
        rows = [np.asarray(rows_fn(x, start + jnp.arange(num))) for start in starts]
        by_image = 2 * (num_images, size // num_images)
        return np.concatenate(rows)[:size].reshape(by_image)

    return jacobian_fn


def _earlier(order: Sequence[int] | np.ndarray | None, num: int) -> np.ndarray:
    """Return [D, D] booleans: whether j is generated before i."""
    order = np.arange(num) if order is None else np.asarray(order)
    if not np.array_equal(np.sort(order), np.arange(num)):
        raise ValueError(f'order must be a permutation of 0 to {num - 1}, got {order}')
    rank = np.argsort(order)
    return rank[None, :] < rank[:, None]


def _fail_at_largest(found: np.ndarray, shape: tuple[int, ...], message: str) -> None:
    """Raise `message` about the largest value of found [B, D, B, D], unless it is 0."""
    at = np.unravel_index(np.argmax(found), found.shape)
    if not found[at]:
        return
    pixels = [np.unravel_index(flat, shape[1:]) for flat in (at[1], at[3])]
    term, value = (
        f'(row {row}, column {column}, channel {channel})'
        for row, column, channel in pixels
    )
    raise AssertionError(message.format(
        term=term, value=value, image=at[0], other=at[2], size=float(found[at])
    ))


def assert_causal(
    log_prob_terms_fn: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int, int, int],
    *,
    order: Sequence[int] | np.ndarray | None = None,
    rng: jax.Array | None = None,
    visible: np.ndarray | None = None,
) -> None:
    """Check that log p(x_i | earlier) depends on all earlier values and no others.

    The check uses the exact Jacobian d log p(x_i | earlier) / d x_j at random x,
    uniform in [0, 1). It must be exactly 0 for every j that comes after i and for every
    other image. For every j that comes before i it must not be 0 at all points.

    A value that leaks into its own conditional is not detected here, because its
    density depends on it anyway; assert_normalized detects it. A dependence without a
    derivative (rounding, an embedding) counts as none.

    Args:
        log_prob_terms_fn: [B, H, W, C] float -> [B, H, W, C], the terms of log p(x),
            differentiable in x. x stands for pixel values in any range.
        shape: (B, H, W, C), B at least 2.
        order: [D] the flat indices of the D = H * W * C values in the order in which
            they are generated; None for raster order, with the channels of a pixel one
            after the other.
        rng: the key of the random points; None for a fixed key.
        visible: [D, D] boolean, whether term i must depend on value j, by flat indices;
            None for all. False lifts only this demand, for a bounded receptive field.

    Raises:
        AssertionError: a term depends on what it must not, does not depend on what it
            must, or has a derivative that is not finite; or the terms or visible have
            the wrong shape.
        ValueError: there are fewer than two images, or order is not a permutation.

    References:
        Germain et al. 2015, MADE: Masked Autoencoder for Distribution Estimation.
        https://arxiv.org/abs/1502.03509
        van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders,
        sec. 2.2, on blind spots. https://arxiv.org/abs/1606.05328
    """
    if len(shape) != 4 or shape[0] < 2:
        raise ValueError(f'shape must be (B, H, W, C) with B of 2 or more, got {shape}')
    num = math.prod(shape[1:])
    earlier = _earlier(order, num)
    visible = np.ones((num, num), bool) if visible is None else np.asarray(visible)
    chex.assert_shape(visible, (num, num))
    chex.assert_type(visible, bool)
    rng = jax.random.key(0) if rng is None else rng
    points = [jax.random.uniform(key, shape) for key in jax.random.split(rng, _POINTS)]
    chex.assert_shape(jax.eval_shape(log_prob_terms_fn, points[0]), shape)

    jacobian_fn = _jacobian_fn(log_prob_terms_fn, shape)
    seen = np.zeros((num, num), bool)
    for x in points:
        jacobian = jacobian_fn(x)
        _assert_no_leak(jacobian, shape, earlier)
        seen |= np.any(jacobian != 0, axis=(0, 2))
    blind = (earlier & visible & ~seen)[None, :, None, :]
    _fail_at_largest(
        blind, shape,
        'log p of {term} does not depend on {value}, which comes earlier (blind spot)',
    )


def _assert_no_leak(
    jacobian: np.ndarray, shape: tuple[int, ...], earlier: np.ndarray
) -> None:
    """Check that jacobian [B, D, B, D] is finite, and 0 where terms must not see."""
    same_image = np.eye(shape[0], dtype=bool)[:, None, :, None]
    same_value = np.eye(len(earlier), dtype=bool)[None, :, None, :]
    later = ~(earlier[None, :, None, :] | same_value)
    size = np.abs(jacobian)
    # Checked first, and no term is named: in the backward pass, 0 * inf makes the
    # derivatives of other terms NaN too.
    _fail_at_largest(
        ~np.isfinite(size), shape, 'a derivative of log p by {value} is not finite'
    )
    _fail_at_largest(
        np.where(same_image, 0, size), shape,
        'log p of {term} of image {image} depends on {value} of image {other}: '
        'derivative {size:.3g}',
    )
    _fail_at_largest(
        np.where(same_image & later, size, 0), shape,
        'log p of {term} depends on {value}, which comes later: '
        'derivative {size:.3g}',
    )


def assert_normalized(
    log_prob_fn: Callable[[jax.Array], jax.Array],
    shape: tuple[int, int, int],
    num_values: int,
    *,
    atol: float = 1e-5,
) -> None:
    """Check that sum_x p(x) = 1 over all V^D images, summed in float64.

    Args:
        log_prob_fn: [N, H, W, C] int32 in [0, V) -> [N] log p(x) in nats; it is jitted.
        shape: (H, W, C), D = H * W * C.
        num_values: V, the values that a pixel can take.
        atol: how far from 1 the sum may be.

    Raises:
        AssertionError: the sum is not 1, or log_prob_fn does not return [N].
        ValueError: there are no images, or more than 2^20.
    """
    num_dims = math.prod(shape)
    total = num_values**num_dims
    if num_values < 1 or total > _MAX_IMAGES:
        raise ValueError(
            f'{num_values}^{num_dims} images: from 1 to {_MAX_IMAGES} can be enumerated'
        )
    num = min(_IMAGES, total)
    log_prob_fn = jax.jit(log_prob_fn)
    mass = 0.0
    for start in range(0, total, num):
        # Past the end the images repeat: all chunks have one shape, compiled once.
        index = np.arange(start, start + num) % total
        x = index[:, None] // num_values**np.arange(num_dims) % num_values
        log_prob = log_prob_fn(x.reshape(num, *shape).astype(np.int32))
        chex.assert_shape(log_prob, (num,))
        with np.errstate(over='ignore'):
            probs = np.exp(np.asarray(log_prob, np.float64))
        mass += np.sum(probs[:total - start])
    # Written so that NaN fails.
    if not abs(mass - 1) <= atol:
        raise AssertionError(
            f'the probabilities of all {total} images sum to {mass:.9g}, '
            f'not to 1 within {atol:g}'
        )


def assert_invertible(
    forward_fn: Callable[[jax.Array], jax.Array | tuple[jax.Array, jax.Array]],
    inverse_fn: Callable[[jax.Array], jax.Array],
    x: jax.Array,
    *,
    atol: float = 1e-5,
) -> None:
    """Check that inverse(forward(x)) = x, and that log_det = log |det d z / d x|.

    If forward_fn returns a log-determinant and D is 256 or less, it is compared with
    that of the dense Jacobian of each single example.

    Args:
        forward_fn: x -> z, or (z, log_det [B]); z holds as many values as x.
        inverse_fn: z -> x.
        x: [B, ...] float.
        atol: the largest allowed error of a value and of a log-determinant.

    Raises:
        AssertionError: x is not recovered, or a log-determinant or a shape is wrong.

    References:
        Dinh et al. 2017, Density estimation using Real NVP, sec. 3.1.
        https://arxiv.org/abs/1605.08803
    """
    chex.assert_rank(x, set(range(1, 9)))
    chex.assert_type(x, float)
    x = jnp.asarray(x)
    out = forward_fn(x)
    z, log_det = out if isinstance(out, tuple) else (out, None)
    back = inverse_fn(z)
    chex.assert_equal_shape([back, x])
    error = np.abs(np.asarray(back, np.float64) - np.asarray(x, np.float64))
    at = np.unravel_index(np.argmax(error), error.shape)
    if not error[at] <= atol:
        place = ', '.join(str(i) for i in at)
        raise AssertionError(
            f'inverse_fn(forward_fn(x)) is {error[at]:.3g} away from x at [{place}]'
        )
    if log_det is not None:
        chex.assert_shape(log_det, x.shape[:1])
        if math.prod(x.shape[1:]) <= _MAX_DIMS:
            _assert_log_det(forward_fn, x, np.asarray(log_det, np.float64), atol)


def _assert_log_det(
    forward_fn: Callable[[jax.Array], Any],
    x: jax.Array,
    log_det: np.ndarray,
    atol: float,
) -> None:
    """Check log_det [B] against the dense Jacobians at x [B, ...]."""
    num_dims = math.prod(x.shape[1:])
    jacobian_fn = jax.jit(jax.jacfwd(lambda one: forward_fn(one[None])[0].reshape(-1)))
    for i, (one, given) in enumerate(zip(x, log_det)):
        jacobian = np.asarray(jacobian_fn(one), np.float64).reshape(-1, num_dims)
        chex.assert_shape(jacobian, (num_dims, num_dims))
        exact = np.linalg.slogdet(jacobian)[1]
        # Two infinities are not close: a map with determinant 0 has no inverse.
        if not (np.isfinite(exact) and abs(given - exact) <= atol):
            raise AssertionError(
                f'log_det of example {i} is {given:.9g}, '
                f'that of the Jacobian {exact:.9g}'
            )
