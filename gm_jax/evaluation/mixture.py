r"""The mixture of several models, which is a model too: p(x) = sum_k w_k p_k(x).

Its nats are at most those of each model plus -log w_k, and lower than the best of them
where the models err on different images. With bounds in place of log p_k(x) it is a
bound on log p(x).

Usage:
    weights = mixture.fit(log_px_of_validation)          # [K, N] -> [K]
    log_px = mixture.log_prob(log_px_of_test, weights)   # [K, M] -> [M]
"""

import chex
import numpy as np
from scipy import special

__all__ = ['fit', 'log_prob']


def log_prob(log_px: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Compute log sum_k w_k p_k(x) in float64.

    Args:
        log_px: [K, N] log p_k(x) of each model and image, in nats.
        weights: [K] shares of the models, which sum to one.

    Returns:
        [N] in nats.

    Raises:
        ValueError: the weights are no distribution.
    """
    log_px, weights = np.asarray(log_px), np.asarray(weights, np.float64)
    chex.assert_rank([log_px, weights], [2, 1])
    chex.assert_equal_shape_prefix([log_px, weights], 1)
    if np.any(weights < 0) or not np.isclose(weights.sum(), 1):
        raise ValueError(f'weights must be shares that sum to 1, got {weights}')
    return special.logsumexp(log_px.astype(np.float64), axis=0, b=weights[:, None])


def fit(log_px: np.ndarray, num_steps: int = 1000) -> np.ndarray:
    """Find the weights under which images are most likely, by expectation maximisation.

        w_k <- (1/N) sum_n w_k p_k(x_n) / sum_j w_j p_j(x_n)      from w_k = 1/K

    The log-likelihood is concave in the weights, so there is no other maximum.

    Args:
        log_px: [K, N] log p_k(x) of images that are not those of the test, in nats.
        num_steps: updates of the weights.

    Returns:
        [K] float64, which sum to one.

    Raises:
        ValueError: there are no images, or one is impossible under all models.

    References:
        Dempster, Laird and Rubin 1977, Maximum Likelihood from Incomplete Data via the
        EM Algorithm.
    """
    log_px = np.asarray(log_px, np.float64)
    chex.assert_rank(log_px, 2)
    if not log_px.size or not np.isfinite(log_px.max(axis=0)).all():
        raise ValueError(
            f'each of {log_px.shape[1]} images needs one of the {len(log_px)} models '
            f'under which it is possible'
        )
    log_w = np.full(len(log_px), -np.log(len(log_px)))
    for _ in range(num_steps):
        shares = special.log_softmax(log_px + log_w[:, None], axis=0)
        log_w = special.logsumexp(shares, axis=1) - np.log(log_px.shape[1])
    return np.exp(log_w)
