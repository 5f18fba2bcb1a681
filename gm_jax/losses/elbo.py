"""Variational bounds on log p(x), from terms in nats.

CS231n's lecture 13 splits the log-likelihood of a latent-variable model in three terms:

    log p(x) = E_q[log p(x|z)] - KL(q(z|x) || p(z)) + KL(q(z|x) || p(z|x))

The last term cannot be computed but is never negative, so the first two bound log p(x)
from below. To train, maximise the bound:

    kl = elbo.gaussian_kl(mean, logvar)
    loss = -jnp.mean(elbo.elbo(log_px, kl))
"""

import chex
import jax
import jax.numpy as jnp

from gm_jax.losses import numerics

__all__ = [
    'elbo', 'free_bits', 'gaussian_kl', 'gaussian_kl_between',
    'gaussian_kl_per_unit', 'iwae_bound',
]


def gaussian_kl_per_unit(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Compute KL(N(m_j, e^s_j) || N(0, 1)) = (e^s_j - 1 - s_j + m_j^2) / 2 per unit.

    The exponential grows linearly once it nears overflow (s > 62 in float32), so that
    value and gradient stay finite.

    Args:
        mean: [B, Z] m.
        logvar: [B, Z] s, the log of the variance.

    Returns:
        [B, Z] divergences in nats, at least float32.

    Raises:
        AssertionError: the shapes differ or are not of rank 2.

    Examples:
        >>> print(gaussian_kl_per_unit(jnp.array([[0.0, 1.0]]), jnp.zeros((1, 2))))
        [[0.  0.5]]
    """
    chex.assert_rank(mean, 2)
    chex.assert_equal_shape([mean, logvar])
    mean, logvar = numerics.upcast(mean, logvar)
    # expm1, because an unused unit has e^s - 1 - s near 1e-6, lost in exp's rounding.
    spread = numerics.bounded_expm1(logvar) - logvar
    return 0.5 * (spread + jnp.square(mean))


def gaussian_kl(mean: jax.Array, logvar: jax.Array) -> jax.Array:
    """Compute KL(N(m, e^s) || N(0, I)) = sum_j (e^s_j - 1 - s_j + m_j^2) / 2.

    Args:
        mean: [B, Z] m.
        logvar: [B, Z] s, the log of the variance.

    Returns:
        [B] divergence in nats, at least float32.

    Raises:
        AssertionError: the shapes differ or are not of rank 2.

    Examples:
        >>> print(gaussian_kl(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2))))
        [2.5]

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, appendix B.
        https://arxiv.org/abs/1312.6114
    """
    return jnp.sum(gaussian_kl_per_unit(mean, logvar), axis=1)


def gaussian_kl_between(
    mean_q: jax.Array, logvar_q: jax.Array, mean_p: jax.Array, logvar_p: jax.Array
) -> jax.Array:
    """Compute KL(N(m_q, e^s_q) || N(m_p, e^s_p)), both diagonal.

    It is sum_j (e^(s_q - s_p) - 1 - (s_q - s_p) + (m_q - m_p)^2 e^-s_p) / 2, the term
    of a stochastic layer whose prior is computed by the layer above it.

    Args:
        mean_q: [B, Z] m_q.
        logvar_q: [B, Z] s_q.
        mean_p: [B, Z] m_p.
        logvar_p: [B, Z] s_p.

    Returns:
        [B] divergence in nats, at least float32.

    Raises:
        AssertionError: the shapes differ or are not of rank 2.

    Examples:
        >>> zero, one = jnp.zeros((1, 1)), jnp.ones((1, 1))
        >>> print(gaussian_kl_between(one, zero, zero, zero))
        [0.5]
    """
    chex.assert_rank(mean_q, 2)
    chex.assert_equal_shape([mean_q, logvar_q, mean_p, logvar_p])
    mean_q, logvar_q, mean_p, logvar_p = numerics.upcast(
        mean_q, logvar_q, mean_p, logvar_p
    )
    ratio = logvar_q - logvar_p
    distance = jnp.square(mean_q - mean_p) * numerics.bounded_exp(-logvar_p)
    terms = numerics.bounded_expm1(ratio) - ratio + distance
    return 0.5 * jnp.sum(terms, axis=1)


def elbo(
    log_px: jax.Array, kl: jax.Array, *, beta: jax.typing.ArrayLike = 1.0
) -> jax.Array:
    """Compute the evidence lower bound E_q[log p(x|z)] - beta KL(q(z|x) || p(z)).

    It is a bound on log p(x) for beta >= 1; other values serve KL warm-up.

    Args:
        log_px: [B] log p(x|z) in nats, for z drawn from q(z|x).
        kl: [B] KL(q(z|x) || p(z)) in nats.
        beta: scalar weight of the KL term; may be traced.

    Returns:
        [B] bound in nats, to be maximised.

    Raises:
        AssertionError: log_px and kl are not both [B], or beta is not a scalar.

    Examples:
        >>> print(elbo(jnp.array([-90.0]), jnp.array([25.0])))
        [-115.]

    References:
        Kingma and Welling 2014, Auto-Encoding Variational Bayes, eq. 3.
        https://arxiv.org/abs/1312.6114
        Higgins et al. 2017, beta-VAE, eq. 4.
    """
    chex.assert_rank(log_px, 1)
    chex.assert_equal_shape([log_px, kl])
    chex.assert_rank(beta, 0)
    log_px, kl = numerics.upcast(log_px, kl)
    return log_px - beta * kl


def iwae_bound(log_w: jax.Array) -> jax.Array:
    """Compute log (1/S) sum_s w_s, the importance-weighted bound on log p(x).

    With w = p(x, z) / q(z|x) and z drawn from q(z|x) it lies between the ELBO (S = 1)
    and log p(x), in expectation, and rises with S.

    Args:
        log_w: [S, B] log p(x|z) + log p(z) - log q(z|x) in nats.

    Returns:
        [B] bound in nats, to be maximised; at least float32.

    Raises:
        AssertionError: log_w is not of rank 2.

    Examples:
        Two weights, whose mean of log w is -99:

        >>> print(iwae_bound(jnp.array([[-100.0], [-98.0]])).round(2))
        [-98.57]

    References:
        Burda et al. 2016, Importance Weighted Autoencoders, eq. 8.
        https://arxiv.org/abs/1509.00519
    """
    chex.assert_rank(log_w, 2)
    log_w, = numerics.upcast(log_w)
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(log_w.shape[0])


def free_bits(
    kl_per_unit: jax.Array, minimum: float, *, axis_name: str | None = None
) -> jax.Array:
    """Compute sum_j max(minimum, mean_b KL_bj): a KL term that keeps units in use.

    A unit whose KL, averaged over the batch, is below the minimum gets no gradient.
    It replaces the mean of `gaussian_kl` in a loss:
    `loss = -jnp.mean(log_px) + free_bits(kl_per_unit, 0.1)`.

    Args:
        kl_per_unit: [B, Z] KL of each latent unit in nats.
        minimum: nats granted to each unit; 0 leaves the KL as it is.
        axis_name: the pmap axis over which the batch is spread, if any. Average the
            gradients over it too.

    Returns:
        Scalar in nats per example, to be minimised.

    Raises:
        AssertionError: kl_per_unit is not of rank 2.

    Examples:
        >>> print(free_bits(jnp.array([[0.05, 2.0]]), 0.1))
        2.1

    References:
        Kingma et al. 2016, Improving Variational Inference with Inverse Autoregressive
        Flow, appendix C.8. https://arxiv.org/abs/1606.04934
    """
    chex.assert_rank(kl_per_unit, 2)
    kl_per_unit, = numerics.upcast(kl_per_unit)
    mean_kl = jnp.mean(kl_per_unit, axis=0)
    if axis_name is not None:
        mean_kl = jax.lax.pmean(mean_kl, axis_name)
    return jnp.sum(jnp.maximum(mean_kl, minimum))
