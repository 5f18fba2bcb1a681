"""Log-likelihoods of the distributions that models output, and samples from them.

Every log-probability is in nats per example, summed over all axes but the first; only
`bits_per_dim` converts it. A sampled example never depends on how many others are
sampled with it:

    log_px = likelihoods.bernoulli_log_prob(logits, x)  # [B]
"""

import math

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import per_example
from gm_jax.losses import numerics
from gm_jax.losses.logistic_mixture import (
    LogisticMixture,
    logistic_mixture_log_prob,
    logistic_mixture_quantile,
    logistic_mixture_sample,
    logistic_mixture_temper,
)

__all__ = [
    'bernoulli_log_prob', 'bernoulli_quantile', 'bernoulli_sample', 'bits_per_dim',
    'categorical_log_prob', 'categorical_quantile', 'categorical_sample',
    'gaussian_log_prob', 'gaussian_log_prob_per_unit', 'gaussian_sample',
    'logistic_log_prob', 'logistic_mixture_log_prob', 'logistic_mixture_quantile',
    'logistic_mixture_sample', 'logistic_mixture_temper', 'LogisticMixture',
    'logistic_sample',
]


def bernoulli_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Compute log p(x) = sum_i x_i log s(l_i) + (1 - x_i) log(1 - s(l_i)), s sigmoid.

    For x strictly between 0 and 1 this is minus the cross-entropy, not a density.

    Args:
        logits: [B, ...] finite log-odds l of a one; an infinite one gives NaN.
        x: [B, ...] in {0, 1}; integer, boolean or float. A value outside [0, 1] gives
            NaN.

    Returns:
        [B] log-likelihood in nats, at least float32.

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    Examples:
        One bit for each of 8 values:

        >>> print(bernoulli_log_prob(jnp.zeros((1, 8)), jnp.ones((1, 8))) / jnp.log(2))
        [-8.]

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, appendix C.1.
        https://arxiv.org/abs/1312.6114
    """
    chex.assert_rank(logits, set(range(1, 9)))
    chex.assert_equal_shape([logits, x])
    logits, x = numerics.flatten_events(*numerics.upcast(logits, x))
    positive, tail = numerics.softplus_parts(logits)
    # x l - max(l, 0) is exact for x in {0, 1}.
    terms = x * logits - positive - tail
    return jnp.sum(jnp.where((x >= 0) & (x <= 1), terms, jnp.nan), axis=1)


def bernoulli_sample(rng: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw x_i = 1 with probability sigmoid(l_i).

    Args:
        rng: one key, or [B] keys, one per example.
        logits: [B, ...] log-odds of a one.

    Returns:
        [B, ...] int32 in {0, 1}.

    Raises:
        AssertionError: `rng` is neither one key nor [B] keys, or there is no batch
            axis.

    Examples:
        >>> print(bernoulli_sample(jax.random.key(0), jnp.array([[-50.0, 50.0]])))
        [[0 1]]
    """
    chex.assert_rank(logits, set(range(1, 9)))
    probs = jax.nn.sigmoid(*numerics.upcast(logits))
    rngs = per_example(rng, len(logits))
    return jax.vmap(jax.random.bernoulli)(rngs, probs).astype(jnp.int32)


def bernoulli_quantile(logits: jax.Array, u: jax.Array) -> jax.Array:
    """Compute x_i = 1 if u_i >= 1 - sigmoid(l_i), else 0.

    Args:
        logits: [...] log-odds l of a one.
        u: [...] in [0, 1); if it is uniform, the result is a sample.

    Returns:
        [...] int32 in {0, 1}.

    Raises:
        AssertionError: the shapes differ.

    Examples:
        >>> print(bernoulli_quantile(jnp.zeros(2), jnp.array([0.4, 0.6])))
        [0 1]
    """
    chex.assert_equal_shape([logits, u])
    logits, u = numerics.upcast(logits, u)
    return (u >= jax.nn.sigmoid(-logits)).astype(jnp.int32)


def categorical_log_prob(logits: jax.Array, x: jax.Array) -> jax.Array:
    """Compute log p(x) = sum_i l_i[x_i] - log sum_v exp l_i[v].

    Args:
        logits: [B, ..., V] unnormalised log-probabilities.
        x: [B, ...] integer in [0, V); another value gives NaN.

    Returns:
        [B] log-likelihood in nats, at least float32.

    Raises:
        AssertionError: x is not integer, its shape is not that of logits without V, or
            there is no batch axis.

    Examples:
        Two bits for one of four values:

        >>> nats = categorical_log_prob(jnp.zeros((1, 1, 4)), jnp.array([[3]]))
        >>> print(nats / jnp.log(2))
        [-2.]

    References:
        van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 2.2.
        https://arxiv.org/abs/1601.06759
    """
    chex.assert_rank(logits, set(range(2, 10)))
    chex.assert_shape(x, logits.shape[:-1])
    chex.assert_type(x, int)
    logits, = numerics.upcast(logits)
    x = jnp.asarray(x)
    # A gather, not a one-hot product: a third of the time on a CPU at V = 256.
    chosen = jnp.take_along_axis(logits, x[..., None], axis=-1)[..., 0]
    # Negative indices would count from the end.
    chosen = jnp.where(x >= 0, chosen, jnp.nan)
    terms, = numerics.flatten_events(chosen - jax.nn.logsumexp(logits, axis=-1))
    return jnp.sum(terms, axis=1)


def categorical_sample(rng: jax.Array, logits: jax.Array) -> jax.Array:
    """Draw x_i = v with probability softmax(l_i)[v].

    Args:
        rng: one key, or [B] keys, one per example.
        logits: [B, ..., V] unnormalised log-probabilities.

    Returns:
        [B, ...] int32 in [0, V).

    Raises:
        AssertionError: `rng` is neither one key nor [B] keys, or there is no batch
            axis.

    Examples:
        >>> print(categorical_sample(jax.random.key(0), jnp.array([[[0.0, 50.0]]])))
        [[1]]
    """
    chex.assert_rank(logits, set(range(2, 10)))
    logits, = numerics.upcast(logits)
    x = jax.vmap(jax.random.categorical)(per_example(rng, len(logits)), logits)
    return x.astype(jnp.int32)


def categorical_quantile(logits: jax.Array, u: jax.Array) -> jax.Array:
    """Compute x_i = |{v < V - 1: sum_(w <= v) softmax(l_i)[w] <= u_i}|.

    Args:
        logits: [..., V] unnormalised log-probabilities l.
        u: [...] in [0, 1); if it is uniform, the result is a sample.

    Returns:
        [...] int32 in [0, V).

    Raises:
        AssertionError: the shape of u is not that of logits without V.

    Examples:
        >>> logits = jnp.log(jnp.array([[0.1, 0.2, 0.7]] * 3))
        >>> print(categorical_quantile(logits, jnp.array([0.05, 0.2, 0.9])))
        [0 1 2]
    """
    chex.assert_rank(logits, set(range(1, 10)))
    chex.assert_shape(u, logits.shape[:-1])
    return numerics.categorical_quantile(*numerics.upcast(logits, u))


def gaussian_log_prob(mean: jax.Array, logvar: jax.Array, x: jax.Array) -> jax.Array:
    """Compute log N(x; m, e^s) = -sum_i (log 2 pi + s_i + (x_i - m_i)^2 e^-s_i) / 2.

    The exponential grows linearly once it nears overflow (s < -62 in float32), so that
    value and gradient stay finite.

    Args:
        mean: [B, ...] m.
        logvar: [B, ...] s, the log of the variance.
        x: [B, ...] integer or float.

    Returns:
        [B] log-density in nats, at least float32.

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    Examples:
        >>> zero = jnp.zeros((1, 1))
        >>> print(gaussian_log_prob(zero, zero, zero).round(3))
        [-0.919]

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, appendix C.2.
        https://arxiv.org/abs/1312.6114
    """
    chex.assert_rank(mean, set(range(1, 9)))
    chex.assert_equal_shape([mean, logvar, x])
    parts = numerics.flatten_events(mean, logvar, x)
    return jnp.sum(gaussian_log_prob_per_unit(*parts), axis=1)


def gaussian_log_prob_per_unit(
    mean: jax.Array, logvar: jax.Array, x: jax.Array
) -> jax.Array:
    """Compute log N(x_i; m_i, e^s_i) of each value: `gaussian_log_prob` unsummed.

    Args:
        mean: [...] m.
        logvar: [...] s, the log of the variance.
        x: [...] integer or float.

    Returns:
        [...] log-densities in nats, at least float32.

    Raises:
        AssertionError: the shapes differ.

    Examples:
        >>> zero = jnp.zeros((1, 2))
        >>> print(gaussian_log_prob_per_unit(zero, zero, zero).round(3))
        [[-0.919 -0.919]]
    """
    chex.assert_equal_shape([mean, logvar, x])
    mean, logvar, x = numerics.upcast(mean, logvar, x)
    scaled = jnp.square(x - mean) * numerics.bounded_exp(-logvar)
    return -0.5 * (math.log(2 * math.pi) + logvar + scaled)


def gaussian_sample(rng: jax.Array, mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Draw x = m + e^(s/2) eps, eps ~ N(0, I): the reparameterization trick.

    Gradients flow to mean and logvar.

    Args:
        rng: one key, or [B] keys, one per example.
        mean: [B, ...] m.
        logvar: [B, ...] s, the log of the variance.

    Returns:
        [B, ...] at least float32.

    Raises:
        AssertionError: the shapes differ, or `rng` is neither one key nor [B] keys.

    Examples:
        >>> zero = jnp.zeros((10_000, 1))
        >>> x = gaussian_sample(jax.random.key(0), zero + 3, zero)
        >>> print(f'{x.mean():.1f} {x.std():.1f}')
        3.0 1.0

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, sec. 2.4.
        https://arxiv.org/abs/1312.6114
    """
    chex.assert_rank(mean, set(range(1, 9)))
    chex.assert_equal_shape([mean, logvar])
    mean, logvar = numerics.upcast(mean, logvar)
    noise = jax.vmap(lambda rng: jax.random.normal(rng, mean.shape[1:], mean.dtype))(
        per_example(rng, len(mean))
    )
    return mean + numerics.bounded_exp(logvar / 2) * noise


def logistic_log_prob(
    mean: jax.Array, log_scale: jax.Array, x: jax.Array
) -> jax.Array:
    """Compute log p(x) = sum_i -s_i - softplus(d_i) - softplus(-d_i).

    Here d = (x - m) e^-s; the density is that of a logistic distribution.

    Args:
        mean: [B, ...] m.
        log_scale: [B, ...] s; the standard deviation is pi e^s / sqrt(3).
        x: [B, ...] float.

    Returns:
        [B] log-density in nats, at least float32.

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    Examples:
        The density at the mean is 1 / 4:

        >>> zero = jnp.zeros((1, 1))
        >>> print(jnp.exp(logistic_log_prob(zero, zero, zero)))
        [0.25]

    References:
        Dinh et al. 2015, NICE: Non-linear Independent Components Estimation, sec. 3.4.
        https://arxiv.org/abs/1410.8516
    """
    chex.assert_rank(mean, set(range(1, 9)))
    chex.assert_equal_shape([mean, log_scale, x])
    mean, log_scale, x = numerics.flatten_events(*numerics.upcast(mean, log_scale, x))
    distance = (x - mean) * numerics.bounded_exp(-log_scale)
    positive, tail = numerics.softplus_parts(distance)
    # softplus(d) + softplus(-d) = 2 softplus(d) - d.
    return jnp.sum(distance - 2 * (positive + tail) - log_scale, axis=1)


def logistic_sample(
    rng: jax.Array, mean: jax.Array, log_scale: jax.Array
) -> jax.Array:
    """Draw x = m + e^s (log u - log(1 - u)), u uniform in (0, 1).

    Args:
        rng: one key, or [B] keys, one per example.
        mean: [B, ...] m.
        log_scale: [B, ...] s.

    Returns:
        [B, ...] at least float32.

    Raises:
        AssertionError: the shapes differ, or `rng` is neither one key nor [B] keys.

    Examples:
        >>> zero = jnp.zeros((10_000, 1))
        >>> x = logistic_sample(jax.random.key(0), zero + 3, zero)
        >>> print(f'{x.mean():.1f} {x.std():.1f}')
        3.0 1.8
    """
    chex.assert_rank(mean, set(range(1, 9)))
    chex.assert_equal_shape([mean, log_scale])
    mean, log_scale = numerics.upcast(mean, log_scale)
    noise = jax.vmap(lambda rng: jax.random.logistic(rng, mean.shape[1:], mean.dtype))(
        per_example(rng, len(mean))
    )
    return mean + numerics.bounded_exp(log_scale) * noise


def bits_per_dim(log_prob: jax.Array, num_dims: int) -> jax.Array:
    """Convert nats per image to bits per dimension: -log p(x) / (D log 2).

    Args:
        log_prob: [B] log-likelihood in nats.
        num_dims: D, the number of values in an image: H * W * C.

    Returns:
        [B] bits per dimension; lower is better.

    Raises:
        AssertionError: log_prob is not of rank 1.
        ValueError: num_dims is not positive.

    Examples:
        >>> print(bits_per_dim(-784 * jnp.log(jnp.array([2.0])), 784))
        [1.]

    References:
        Theis et al. 2016, A note on the evaluation of generative models, sec. 3.1.
        https://arxiv.org/abs/1511.01844
    """
    chex.assert_rank(log_prob, 1)
    if num_dims <= 0:
        raise ValueError(f'num_dims must be positive, got {num_dims}')
    log_prob, = numerics.upcast(log_prob)
    return -log_prob / (num_dims * jnp.log(2.0))
