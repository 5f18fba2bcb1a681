"""Invertible maps with their log-determinants: the parts of flows, as pure functions.

With z = f(y), log p(y) = log p(z) + log |det dz / dy|. Every map here returns its
result and log |det| [B] in nats, summed over all axes but the first, and so does its
inverse. What a network computes from the part of x that a coupling leaves as it is,
shift and log-scale, is an argument; it is 0 where x stays as it is:

    mask = transforms.checkerboard_mask(28, 28)  # 1 where x stays
    shift, log_scale = ((1 - mask) * a for a in network(mask * x))
    y, log_det = transforms.affine_coupling(x, shift, log_scale)
    x, minus_log_det = transforms.affine_coupling_inverse(y, shift, log_scale)

References:
    Dinh et al. 2015, NICE: Non-linear Independent Components Estimation.
    https://arxiv.org/abs/1410.8516
    Dinh et al. 2017, Density estimation using Real NVP.
    https://arxiv.org/abs/1605.08803
"""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'actnorm', 'actnorm_inverse', 'additive_coupling', 'additive_coupling_inverse',
    'affine_coupling', 'affine_coupling_inverse', 'ALTERNATIVE',
    'checkerboard_mask', 'diagonal_scale', 'diagonal_scale_inverse', 'logit',
    'logit_inverse', 'RASTER', 'shuffle', 'shuffle_inverse', 'sigmoid', 'squeeze',
    'unsqueeze',
]

# The order in which `squeeze` stacks the pixels of a 2 x 2 block, numbered row by row.
RASTER = (0, 1, 2, 3)
# Half of the channels are then two pixels on a diagonal, not two neighbours in a row.
ALTERNATIVE = (0, 3, 1, 2)

# A map's result and log |det| [B].
_Mapped = tuple[jax.Array, jax.Array]


def additive_coupling(x: jax.Array, shift: jax.Array) -> _Mapped:
    """Compute y = x + t; the shift t depends on values of x that stay as they are.

    Args:
        x: [B, ...] float.
        shift: [B, ...] t, 0 for the values that it depends on.

    Returns:
        y [B, ...], and zeros [B]: the map keeps volumes.

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    References:
        Dinh et al. 2015, sec. 3.2.
    """
    _check(x, shift)
    return x + shift, _zeros(x)


def additive_coupling_inverse(y: jax.Array, shift: jax.Array) -> _Mapped:
    """Undo `additive_coupling`: x = y - t, with the t of the values that stay."""
    _check(y, shift)
    return y - shift, _zeros(y)


def affine_coupling(
    x: jax.Array, shift: jax.Array, log_scale: jax.Array
) -> _Mapped:
    """Compute y = x e^s + t; s and t depend on values of x that stay as they are.

    Args:
        x: [B, ...] float.
        shift: [B, ...] t, 0 for the values that it depends on.
        log_scale: [B, ...] s, 0 for these too.

    Returns:
        y [B, ...], and sum_i s_i [B].

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    References:
        Dinh et al. 2017, sec. 3.2 and 3.3.
    """
    _check(x, shift, log_scale)
    return x * jnp.exp(log_scale) + shift, _sum(log_scale)


def affine_coupling_inverse(
    y: jax.Array, shift: jax.Array, log_scale: jax.Array
) -> _Mapped:
    """Undo `affine_coupling`: x = (y - t) e^-s, with s and t of the values that stay.

    Returns:
        x [B, ...], and -sum_i s_i [B].
    """
    _check(y, shift, log_scale)
    return (y - shift) * jnp.exp(-log_scale), -_sum(log_scale)


def diagonal_scale(x: jax.Array, log_scale: jax.Array) -> _Mapped:
    """Compute y = x e^s, with a scale of its own for each value.

    Args:
        x: [B, ...] float.
        log_scale: [...] s, of the shape of one example.

    Returns:
        y [B, ...], and sum_i s_i, the same for each example, [B].

    Raises:
        AssertionError: log_scale does not have the shape of an example.

    References:
        Dinh et al. 2015, sec. 3.3.
    """
    chex.assert_shape(log_scale, x.shape[1:])
    return x * jnp.exp(log_scale)[None], _zeros(x) + jnp.sum(log_scale)


def diagonal_scale_inverse(y: jax.Array, log_scale: jax.Array) -> _Mapped:
    """Undo `diagonal_scale`: x = y e^-s, with -sum_i s_i [B]."""
    return diagonal_scale(y, -log_scale)


def actnorm(x: jax.Array, mean: jax.Array, log_scale: jax.Array) -> _Mapped:
    """Compute y = (x - m) e^s, with one m and one s for each channel.

    With m the mean and e^-s the deviation of each channel in a first batch it is a
    normalisation which, unlike that of BatchNorm, is the same for every batch.

    Args:
        x: [B, ..., C] float.
        mean: [C] m.
        log_scale: [C] s.

    Returns:
        y [B, ..., C], and N sum_c s_c [B] for the N positions of an example.

    Raises:
        AssertionError: mean or log_scale is not of shape [C].

    References:
        Kingma and Dhariwal 2018, Glow: Generative Flow with Invertible 1x1
        Convolutions, sec. 3.1. https://arxiv.org/abs/1807.03039
    """
    mean, scale = _by_channel(x, mean), jnp.exp(_by_channel(x, log_scale))
    return (x - mean) * scale, _positions(x) * jnp.sum(log_scale) + _zeros(x)


def actnorm_inverse(y: jax.Array, mean: jax.Array, log_scale: jax.Array) -> _Mapped:
    """Undo `actnorm`: x = y e^-s + m, with -N sum_c s_c [B]."""
    mean, scale = _by_channel(y, mean), jnp.exp(-_by_channel(y, log_scale))
    return y * scale + mean, _zeros(y) - _positions(y) * jnp.sum(log_scale)


def logit(x: jax.Array, alpha: float) -> _Mapped:
    """Compute y = log(p / (1 - p)) with p = a + (1 - 2 a) x, from [0, 1] to the line.

    Args:
        x: [B, ...] in [0, 1].
        alpha: a in (0, 1/2), which keeps y finite at 0 and 1.

    Returns:
        y [B, ...], and sum_i log(1 - 2 a) - log p_i - log(1 - p_i) [B].

    Raises:
        AssertionError: there is no batch axis.
        ValueError: alpha is not between 0 and 1/2.

    References:
        Dinh et al. 2017, sec. 4.1, where p = a + (1 - a) x / 256.
    """
    chex.assert_rank(x, set(range(1, 9)))
    if not 0 < alpha < 0.5:
        raise ValueError(f'alpha must be between 0 and 1/2, got {alpha}')
    log_p = jnp.log(alpha + (1 - 2 * alpha) * x)
    # Not log(1 - p), which has lost what x had near 1.
    log_q = jnp.log(alpha + (1 - 2 * alpha) * (1 - x))
    return log_p - log_q, _sum(math.log(1 - 2 * alpha) - log_p - log_q)


def logit_inverse(y: jax.Array, alpha: float) -> _Mapped:
    """Undo `logit`: x = (sigmoid(y) - a) / (1 - 2 a).

    Its values are in [0, 1] if y is between -log(1 / a - 1) and log(1 / a - 1).
    """
    p, log_det = sigmoid(y)
    return (p - alpha) / (1 - 2 * alpha), log_det - (
        math.log(1 - 2 * alpha) * _size(y)
    )


def sigmoid(x: jax.Array) -> _Mapped:
    """Compute y = 1 / (1 + e^-x), with sum_i log y_i + log(1 - y_i) [B]."""
    chex.assert_rank(x, set(range(1, 9)))
    return jax.nn.sigmoid(x), -_sum(jax.nn.softplus(x) + jax.nn.softplus(-x))


def squeeze(x: jax.Array, order: tuple[int, ...] = RASTER) -> _Mapped:
    """Stack the pixels of each 2 x 2 block as channels.

    Args:
        x: [B, H, W, C], H and W even.
        order: the pixels of a block, 0 to 3 row by row, in the order of their channels.

    Returns:
        [B, H/2, W/2, 4 C], the C channels of a pixel side by side; and zeros [B].

    Raises:
        AssertionError: x is not of rank 4, or H or W is odd.

    References:
        Dinh et al. 2017, sec. 3.6, figure 3.
    """
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    chex.assert_is_divisible(height, 2)
    chex.assert_is_divisible(width, 2)
    blocks = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5).reshape(
        batch, height // 2, width // 2, 4, channels
    )
    y = blocks if order == RASTER else blocks[..., np.array(order), :]
    return y.reshape(batch, height // 2, width // 2, 4 * channels), _zeros(x)


def unsqueeze(y: jax.Array, order: tuple[int, ...] = RASTER) -> _Mapped:
    """Undo `squeeze`: [B, H, W, 4 C] to [B, 2 H, 2 W, C], and zeros [B].

    In raster order x[n, 2 i + a, 2 j + b, c] = y[n, i, j, (2 a + b) C + c].
    """
    chex.assert_rank(y, 4)
    chex.assert_is_divisible(y.shape[-1], 4)
    batch, height, width, channels = *y.shape[:3], y.shape[-1] // 4
    blocks = y.reshape(batch, height, width, 4, channels)
    if order != RASTER:
        blocks = blocks[..., np.argsort(order), :]
    blocks = blocks.reshape(batch, height, width, 2, 2, channels)
    blocks = blocks.transpose(0, 1, 3, 2, 4, 5)
    return blocks.reshape(batch, 2 * height, 2 * width, channels), _zeros(y)


def shuffle(x: jax.Array) -> _Mapped:
    """Put the even channels of [..., C] before the odd ones; with zeros [B].

    Between couplings that split the channels in halves it changes the halves: after k
    shuffles the first half of 2^n channels are those whose bit k - 1 mod n is 0.
    """
    return jnp.concatenate([x[..., ::2], x[..., 1::2]], axis=-1), _zeros(x)


def shuffle_inverse(y: jax.Array) -> _Mapped:
    """Undo `shuffle`."""
    channels = y.shape[-1]
    even = -(-channels // 2)
    place = np.arange(channels) // 2 + even * (np.arange(channels) % 2)
    return y[..., place], _zeros(y)


def checkerboard_mask(height: int, width: int, *, flip: bool = False) -> np.ndarray:
    """Return ones where row + column is even, else zeros: [H, W, 1] float32.

    Args:
        height: H.
        width: W.
        flip: whether the ones are where row + column is odd.

    References:
        Dinh et al. 2017, sec. 3.4.
    """
    odd = (np.arange(height)[:, None] + np.arange(width)[None, :]) % 2 == 1
    return (odd == flip).astype(np.float32)[..., None]


def _check(x: jax.Array, *others: jax.Array) -> None:
    chex.assert_rank(x, set(range(1, 9)))
    chex.assert_equal_shape([x, *others])


def _zeros(x: jax.Array) -> jax.Array:
    """Return zeros [B]."""
    return jnp.zeros(len(x), jnp.promote_types(x.dtype, jnp.float32))


def _sum(terms: jax.Array) -> jax.Array:
    """Sum over all axes but the first, in at least float32.

    Flat, because XLA on the CPU is slow to sum over axes of 28, 28 and 1.
    """
    dtype = jnp.promote_types(terms.dtype, jnp.float32)
    return jnp.sum(terms.astype(dtype).reshape(len(terms), -1), axis=1)


def _size(x: jax.Array) -> int:
    """Return the number of values of an example."""
    return math.prod(x.shape[1:])


def _positions(x: jax.Array) -> int:
    """Return the number of values of each channel of an example."""
    return math.prod(x.shape[1:-1])


def _by_channel(x: jax.Array, a: jax.Array) -> jax.Array:
    """Give a [C] the rank of x [B, ..., C]."""
    chex.assert_shape(a, x.shape[-1:])
    return a.reshape((1,) * (x.ndim - 1) + (-1,))
