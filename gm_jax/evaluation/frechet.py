"""Frechet distance between two sets of features, each taken to be Gaussian.

    a, b = (moments.update(moments.empty(dim), features) for features in (real, fake))
    distance = frechet.frechet_distance(a, b)
"""

import chex
import numpy as np
from scipy import linalg

from gm_jax.evaluation.moments import Moments, covariance


def frechet_distance(a: Moments, b: Moments) -> float:
    """Compute |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)).

    The square of Frechet's (Wasserstein's second) distance between N(m_a, S_a) and
    N(m_b, S_b). 0 says that means and covariances agree, not that the sets do.

    Report the number of samples on both sides with it: the estimate is biased upwards,
    by an amount that grows with D and falls like 1 / N, so only values of equally many
    samples compare. Only with the features of the Inception network that the paper used
    may it be called FID; with others it is a Frechet distance in those features.

    Args:
      a: moments of [N, D] features; gm_jax.evaluation.moments makes them.
      b: moments of [M, D] features.

    Returns:
      The distance in the squared units of the features, never below 0. The covariances
      may be singular, as they are with fewer samples than features.

    Raises:
      AssertionError: the features have different lengths.
      ValueError: a side has fewer than two samples, or moments that are not finite.

    References:
      Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a
      Local Nash Equilibrium, eq. 6. https://arxiv.org/abs/1706.08500
      Dowson and Landau 1982, The Frechet distance between multivariate normal
      distributions. https://doi.org/10.1016/0047-259X(82)90077-X
    """
    chex.assert_equal_shape([a.mean, b.mean])
    cov_a, cov_b = covariance(a), covariance(b)
    # tr (S_a S_b)^(1/2) sums the square roots of the eigenvalues of the symmetric
    # S_a^(1/2) S_b S_a^(1/2) = C C^T, C = S_a^(1/2) S_b^(1/2): the singular values of
    # C. Taken from C itself, as the root of an eigenvalue that should be 0 but is
    # 1e-16 by rounding would add 1e-8, for each dimension that is missing.
    cross = linalg.svdvals(_square_root(cov_a) @ _square_root(cov_b))
    means = np.sum(np.square(a.mean - b.mean))
    distance = means + np.trace(cov_a) + np.trace(cov_b) - 2 * np.sum(cross)
    return max(float(distance), 0.0)  # Two equal sets may be 1e-15 apart, or -1e-15.


def _square_root(cov: np.ndarray) -> np.ndarray:
    """Return the symmetric root of cov [D, D], which has no eigenvalues below 0."""
    values, vectors = linalg.eigh(cov)
    return vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
