"""Random logistic mixtures, and their float64 likelihood."""

import itertools

import jax
import numpy as np
import scipy.special
import scipy.stats

from gm_jax.losses import likelihoods
from gm_jax.losses.likelihoods import LogisticMixture

log_prob = jax.jit(
    likelihoods.logistic_mixture_log_prob, static_argnames='num_values'
)


def mixture(shape=(2, 2, 2), channels=3, num_components=3, seed=0):
    """Return random parameters whose scales span less than and more than a bin."""
    rng = np.random.default_rng(seed)

    def normal(*more):
        return rng.normal(size=(*shape, *more)).astype(np.float32)

    k = num_components
    coeffs = normal(3, k) if channels == 3 else None
    return LogisticMixture(
        normal(k), normal(channels, k), 2 * normal(channels, k) - 2, coeffs
    )


def data(mixture, num_values, seed=0):
    """Return random pixels that fit a mixture."""
    rng = np.random.default_rng(seed)
    return rng.integers(num_values, size=mixture.means.shape[:-1], dtype=np.int32)


def repeat(mixture, *shape):
    """Return the parameters of the first pixel at every pixel of the shape."""
    def repeat(a):
        return np.broadcast_to(a[0, 0, 0], (*shape, *a[0, 0, 0].shape))

    return jax.tree.map(repeat, mixture)


def means_and_scales(mixture, x, num_values):
    """Return float64 [..., C, K] means given the channels before, and scales."""
    x = 2 * np.asarray(x, np.float64)[..., None] / (num_values - 1) - 1
    means = np.array(mixture.means, np.float64)
    if mixture.coeffs is not None:
        c = np.moveaxis(np.tanh(np.asarray(mixture.coeffs, np.float64)), -2, 0)
        means[..., 1, :] += c[0] * x[..., 0, :]
        means[..., 2, :] += c[1] * x[..., 0, :] + c[2] * x[..., 1, :]
    return means, np.exp(np.maximum(np.asarray(mixture.log_scales, np.float64), -7))


def reference(mixture, x, num_values):
    """Return log p(x) [B, H, W] from logistic cdfs, in the tail that is the shorter."""
    means, scales = means_and_scales(mixture, x, num_values)
    x = np.asarray(x, np.float64)[..., None]
    low = np.where(x == 0, -np.inf, (2 * x - num_values) / (num_values - 1))
    high = np.where(
        x == num_values - 1, np.inf, (2 * x + 2 - num_values) / (num_values - 1)
    )
    low, high = (low - means) / scales, (high - means) / scales
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    below, above = scipy.stats.logistic.logcdf(low), scipy.stats.logistic.logcdf(high)
    bins = above + np.log(-np.expm1(below - above))
    logits = scipy.special.log_softmax(np.asarray(mixture.logits, np.float64), axis=-1)
    return scipy.special.logsumexp(logits + bins.sum(axis=-2), axis=-1)


def joint(mixture, num_values):
    """Return [V, V, V], the probabilities of all colours of the first pixel."""
    colours = list(itertools.product(range(num_values), repeat=3))
    x = np.array(colours, np.int32)[:, None, None]
    repeated = repeat(mixture, len(x), 1, 1)
    out = np.float64(log_prob(repeated, x, num_values=num_values))
    return np.exp(out).reshape([num_values] * 3)
