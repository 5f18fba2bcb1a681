"""Mixtures of discretized logistics over the values of a pixel, and samples from them.

A pixel's values x in {0, ..., V-1} stand for 2x / (V-1) - 1 in [-1, 1]. Value x has the
mass of the logistic between the edges (2x - V) / (V-1) and (2x + 2 - V) / (V-1); the
lowest and the highest value include the whole tails:

    log_px = likelihoods.logistic_mixture_log_prob(mixture, x)  # [B]
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import per_example
from gm_jax.losses import numerics

__all__ = [
    'logistic_mixture_log_prob', 'logistic_mixture_quantile',
    'logistic_mixture_sample', 'logistic_mixture_temper', 'LogisticMixture',
    'MIN_LOG_SCALE',
]

# As in Salimans et al.: e^-7 is about a ninth of a bin at V = 256. A sharper logistic
# gains no likelihood unless an edge cuts it, and there gradients grow without bound.
MIN_LOG_SCALE = -7.0


class LogisticMixture(NamedTuple):
    """The output of a network for each pixel: K components over its C channels.

    Attributes:
        logits: [B, H, W, K] unnormalised log-probabilities of the components.
        means: [B, H, W, C, K] means on the scale of [-1, 1].
        log_scales: [B, H, W, C, K] logarithms of the scales; those below MIN_LOG_SCALE
            are raised to it.
        coeffs: [B, H, W, 3, K] if and only if C = 3; otherwise channels are independent
            given the component. Their tanh is the weight of R in the mean of G, of R in
            the mean of B, and of G in the mean of B, in this order.
    """

    logits: jax.Array
    means: jax.Array
    log_scales: jax.Array
    coeffs: jax.Array | None = None


def logistic_mixture_log_prob(
    mixture: LogisticMixture, x: jax.Array, *, num_values: int = 256
) -> jax.Array:
    """Compute log p(x) = sum_pixels log sum_k pi_k prod_c (s(x_c^+) - s(x_c^-)).

    s is the sigmoid; x_c^+ and x_c^- are the edges of the bin of x_c, minus the mean
    and divided by the scale. All channels of a pixel have the same component k.

    Args:
        mixture: the parameters.
        x: [B, H, W, C] integer in [0, V); any other value gives NaN.
        num_values: V.

    Returns:
        [B] log-likelihood in nats, at least float32.

    Raises:
        AssertionError: the shapes do not fit each other, or x is not integer.
        ValueError: coeffs are missing for C = 3 or given for another C, or V < 2.

    Examples:
        The probabilities of the four values of a pixel add to one:

        >>> one = jnp.zeros((4, 1, 1, 1))
        >>> mixture = LogisticMixture(one, one[..., None], one[..., None])
        >>> x = jnp.arange(4).reshape(4, 1, 1, 1)
        >>> p = jnp.exp(logistic_mixture_log_prob(mixture, x, num_values=4))
        >>> print(f'{p.sum():.3f}')
        1.000

    References:
        Salimans et al. 2017, PixelCNN++, sec. 2.1-2.2. https://arxiv.org/abs/1701.05517
    """
    chex.assert_rank(x, 4)
    mixture, x = _checked(mixture, x, num_values)
    means = _conditional_means(mixture, _scaled(x, num_values, mixture.means.dtype))
    # Flattened, the arithmetic of the bins takes a quarter of the time on a CPU.
    flat_means, log_scales, flat_x = numerics.flatten_events(
        means,
        jnp.maximum(mixture.log_scales, MIN_LOG_SCALE),
        jnp.broadcast_to(x[..., None], means.shape),
    )
    bins = _bin_log_prob(flat_means, log_scales, flat_x, num_values)
    bins = bins.reshape(means.shape)
    # Normalised before the sum over channels: otherwise a common offset of the logits
    # would round the terms before it is subtracted from them.
    joint = jax.nn.log_softmax(mixture.logits) + jnp.sum(bins, axis=-2)
    pixels = jax.nn.logsumexp(joint, axis=-1)
    valid = jnp.all((x >= 0) & (x < num_values), axis=-1)
    terms, = numerics.flatten_events(jnp.where(valid, pixels, jnp.nan))
    return jnp.sum(terms, axis=1)


def logistic_mixture_quantile(
    mixture: LogisticMixture,
    x: jax.Array,
    noise: jax.Array,
    *,
    num_values: int = 256,
) -> jax.Array:
    """Compute the value that the noise draws for a channel, given the channels before.

    x'_c = round((V-1) / 2 (1 + m_k + e^(s_k) log(u_c / (1 - u_c)))), clipped to the
    values, with k the quantile of softmax(logits). Channel c of the result depends only
    on the channels of x before c, and no pixel depends on another.

    Args:
        mixture: the parameters of pixels, with any leading shape.
        x: [..., C] integer; the true values of the earlier channels.
        noise: [..., 1+C] uniform in [0, 1): first one number for the component, which
            the channels share, then one for each channel.
        num_values: V.

    Returns:
        [..., C] int32 in [0, V).

    Raises:
        AssertionError: the shapes do not fit each other, or x is not integer.
        ValueError: coeffs are missing for C = 3 or given for another C, or V < 2.

    Examples:
        >>> zero = jnp.zeros((3, 1))
        >>> mixture = LogisticMixture(zero, zero[..., None], zero[..., None] - 2)
        >>> noise = jnp.array([[0.5, 0.01], [0.5, 0.5], [0.5, 0.99]])
        >>> x = jnp.zeros((3, 1), jnp.int32)
        >>> print(logistic_mixture_quantile(mixture, x, noise, num_values=256)[:, 0])
        [ 48 128 207]

    References:
        Salimans et al. 2017, PixelCNN++, sec. 2.1-2.2. https://arxiv.org/abs/1701.05517
    """
    mixture, x = _checked(mixture, x, num_values)
    chex.assert_shape(noise, (*x.shape[:-1], x.shape[-1] + 1))
    noise, _ = numerics.upcast(noise, mixture.means)
    mixture = _picked(mixture, noise[..., 0])
    means = _conditional_means(mixture, _scaled(x, num_values, mixture.means.dtype))
    log_scales = jnp.maximum(mixture.log_scales, MIN_LOG_SCALE)
    # log 0 = -inf would draw the lowest value however improbable it is.
    u = jnp.maximum(noise[..., 1:, None], jnp.finfo(noise.dtype).tiny)
    # The exponential is bounded because inf * log(0.5 / 0.5) is not a number.
    z = means + numerics.bounded_exp(log_scales) * (jnp.log(u) - jnp.log1p(-u))
    # Counts the edges at or below z, so that it inverts the bins of the likelihood.
    levels = jnp.floor((z[..., 0] * (num_values - 1) + num_values) / 2)
    return jnp.clip(levels, 0, num_values - 1).astype(jnp.int32)


def logistic_mixture_sample(
    rng: jax.Array, mixture: LogisticMixture, *, num_values: int = 256
) -> jax.Array:
    """Draw every pixel from its mixture, channel after channel.

    Args:
        rng: one key, or [B] keys, one per image.
        mixture: the parameters.
        num_values: V.

    Returns:
        [B, H, W, C] int32 in [0, V).

    Raises:
        AssertionError: the shapes do not fit each other, or `rng` is neither one key
            nor [B] keys.
        ValueError: coeffs are missing for C = 3 or given for another C, or V < 2.

    Examples:
        >>> zero = jnp.zeros((2, 1, 1, 1))
        >>> mixture = LogisticMixture(zero, zero[..., None] + 1, zero[..., None] - 7)
        >>> x = logistic_mixture_sample(jax.random.key(0), mixture, num_values=4)
        >>> print(x.ravel())
        [3 3]

    References:
        Salimans et al. 2017, PixelCNN++, sec. 2.1-2.2. https://arxiv.org/abs/1701.05517
    """
    chex.assert_rank(mixture.means, 5)
    batch, height, width, channels, _ = mixture.means.shape
    dtype = numerics.upcast(mixture.means)[0].dtype
    shape = height, width, channels + 1
    noise = jax.vmap(lambda rng: jax.random.uniform(rng, shape, dtype))(
        per_example(rng, batch)
    )
    x = jnp.zeros((batch, height, width, channels), jnp.int32)
    for _ in range(channels):  # After c + 1 calls channel c is final.
        x = logistic_mixture_quantile(mixture, x, noise, num_values=num_values)
    return x


def logistic_mixture_temper(
    mixture: LogisticMixture, temperature: jax.typing.ArrayLike
) -> LogisticMixture:
    """Divide the logits by T, multiply the scales by T: sharper samples for T < 1.

    Args:
        mixture: the parameters of pixels, with any leading shape.
        temperature: T > 0; 1 changes no probability.

    Returns:
        The mixture, at least float32. The effective scale is multiplied, and
        MIN_LOG_SCALE applies to the product too.

    Raises:
        AssertionError: the shapes do not fit each other.
        ValueError: T is not positive, or coeffs are missing for C = 3 or given for
            another C.

    Examples:
        >>> zero = jnp.zeros((1, 1, 1, 1))
        >>> mixture = LogisticMixture(zero, zero[..., None], zero[..., None])
        >>> print(jnp.exp(logistic_mixture_temper(mixture, 0.5).log_scales).ravel())
        [0.5]
    """
    numerics.check_temperature(temperature)
    mixture = _checked_mixture(mixture)
    log_scales = jnp.maximum(mixture.log_scales, MIN_LOG_SCALE)
    return mixture._replace(
        logits=mixture.logits / temperature,
        log_scales=log_scales + jnp.log(temperature),
    )


def _checked_mixture(mixture: LogisticMixture) -> LogisticMixture:
    """Return the mixture in one float type, at least float32, or raise."""
    *pixels, num_components = mixture.logits.shape
    chex.assert_rank(mixture.means, len(pixels) + 2)
    channels = mixture.means.shape[-2]
    chex.assert_shape(
        [mixture.means, mixture.log_scales], (*pixels, channels, num_components)
    )
    if (mixture.coeffs is not None) != (channels == 3):
        given = 'missing' if mixture.coeffs is None else 'given'
        raise ValueError(f'coeffs must be given for 3 channels only: they are {given} '
                         f'for {channels}')
    if mixture.coeffs is None:
        return LogisticMixture(*numerics.upcast(*mixture[:3]))
    chex.assert_shape(mixture.coeffs, (*pixels, 3, num_components))
    return LogisticMixture(*numerics.upcast(*mixture[:3], mixture.coeffs))


def _checked(
    mixture: LogisticMixture, x: jax.Array, num_values: int
) -> tuple[LogisticMixture, jax.Array]:
    """Return the mixture in one float type and x in int32, or raise."""
    mixture = _checked_mixture(mixture)
    chex.assert_shape(x, mixture.means.shape[:-1])
    chex.assert_type(x, int)
    if num_values < 2:
        raise ValueError(f'num_values must be 2 or more, got {num_values}')
    return mixture, jnp.asarray(x, jnp.int32)


def _scaled(x: jax.Array, num_values: int, dtype: jnp.dtype) -> jax.Array:
    """Return 2x / (V-1) - 1, rounded once."""
    return (2 * x - (num_values - 1)).astype(dtype) / (num_values - 1)


def _conditional_means(mixture: LogisticMixture, pixels: jax.Array) -> jax.Array:
    """Shift the means [..., C, K] by the earlier channels of pixels [..., C]."""
    if mixture.coeffs is None:
        return mixture.means
    red, green = pixels[..., 0, None], pixels[..., 1, None]
    g_r, b_r, b_g = jnp.moveaxis(jnp.tanh(mixture.coeffs), -2, 0)
    shifts = jnp.zeros_like(g_r), g_r * red, b_r * red + b_g * green
    return mixture.means + jnp.stack(shifts, axis=-2)


def _bin_log_prob(
    means: jax.Array, log_scales: jax.Array, x: jax.Array, num_values: int
) -> jax.Array:
    """Compute the log masses of the bins of x; the arrays are of one shape.

    A difference of sigmoids factors: s(a) - s(b) = s(a) s(-b) (1 - e^-(a - b)).
    Its log is a sum of terms that are exact in both tails and for any width a - b, so
    that no fallback to the density is needed. The tails at 0 and V-1 only leave out
    factors.
    """
    # An edge is the same float for the bins on both its sides, and the width is not
    # the difference of two edges: the masses then sum to one up to rounding.
    inverse = jnp.exp(-log_scales)
    low, high = (
        (_edge(n, num_values, means.dtype) - means) * inverse for n in (x, x + 1)
    )
    first, last = x == 0, x == num_values - 1
    log_width = math.log(2 / (num_values - 1)) - log_scales
    return (
        jnp.where(last, 0, numerics.log_sigmoid(high))
        + jnp.where(first, 0, numerics.log_sigmoid(-low))
        + jnp.where(first | last, 0, _log1mexp(log_width))
    )


def _edge(n: jax.Array, num_values: int, dtype: jnp.dtype) -> jax.Array:
    """Return the edge between the values n - 1 and n."""
    return (2 * n - num_values).astype(dtype) / (num_values - 1)


def _log1mexp(t: jax.Array) -> jax.Array:
    """Compute log(1 - exp(-e^t)), which is t once e^t is below rounding."""
    bounded = jnp.maximum(t, -40)
    return jnp.log(-jnp.expm1(-jnp.exp(bounded))) + jnp.minimum(t + 40, 0)


def _picked(mixture: LogisticMixture, u: jax.Array) -> LogisticMixture:
    """Return the component that u [...] draws per pixel, as a mixture with K = 1."""
    index = numerics.categorical_quantile(mixture.logits, u)[..., None, None]
    means, log_scales = (
        jnp.take_along_axis(a, index, axis=-1) for a in mixture[1:3]
    )
    coeffs = mixture.coeffs
    if coeffs is not None:
        coeffs = jnp.take_along_axis(coeffs, index, axis=-1)
    logits = jnp.zeros_like(mixture.logits[..., :1])
    return LogisticMixture(logits, means, log_scales, coeffs)
