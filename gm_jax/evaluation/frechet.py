"""Frechet distance between two sets of features, each taken to be Gaussian.

    distance = frechet.frechet_distance(real, fake)
"""

import chex
import numpy as np
from scipy import linalg

__all__ = ['frechet_distance']


def frechet_distance(real: np.ndarray, fake: np.ndarray) -> float:
    """Compute |m_r - m_f|^2 + tr(S_r + S_f - 2 (S_r S_f)^(1/2)).

    It is the square of Frechet's (Wasserstein's second) distance between N(m_r, S_r)
    and N(m_f, S_f), the means and covariances of the features. A distance of 0 means
    that these agree, not that the sets do.

    Report the number of samples on both sides with it: the estimate is biased upwards,
    by an amount that grows with D and falls like 1 / N, so only values from equal
    numbers of samples are comparable. It may be called FID only with the features of
    the Inception network that the paper used; with others it is a Frechet distance in
    those features.

    Args:
        real: [N, D] features of images, real numbers of any type.
        fake: [M, D] features of samples.

    Returns:
        The distance in the squared units of the features, never below 0. The
        covariances may be singular, as they are with fewer samples than features.

    Raises:
        AssertionError: the features have different lengths, or are not of rank 2.
        ValueError: a side has fewer than two rows, or a feature is not finite.

    References:
        Heusel et al. 2017, GANs Trained by a Two Time-Scale Update Rule Converge to a
        Local Nash Equilibrium, eq. 6. https://arxiv.org/abs/1706.08500
        Dowson and Landau 1982, The Frechet distance between multivariate normal
        distributions. https://doi.org/10.1016/0047-259X(82)90077-X
    """
    chex.assert_rank([real, fake], 2)
    chex.assert_equal_shape_suffix([real, fake], 1)
    (mean_r, root_r), (mean_f, root_f) = _moments(real), _moments(fake)
    # With S = R^T R for both sides, S_r S_f has the eigenvalues of C C^T, where
    # C = R_r R_f^T, besides zeros: tr (S_r S_f)^(1/2) sums the singular values of C.
    # They are taken from C itself: the root of an eigenvalue that should be 0 but is
    # 1e-16 by rounding would add 1e-8, for each dimension that is missing.
    cross = linalg.svdvals(root_r @ root_f.T)
    squares = sum(np.sum(np.square(x)) for x in (mean_r - mean_f, root_r, root_f))
    # Two equal sets may be 1e-15 apart, or -1e-15.
    return max(float(squares - 2 * np.sum(cross)), 0.0)


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean [D], and R [min(N, D), D] with covariance R^T R, in float64."""
    if len(features) < 2:
        raise ValueError(f'a covariance needs two vectors, got {len(features)}')
    features = np.asarray(features, np.float64)
    if not np.isfinite(features).all():
        raise ValueError('a feature is not finite')
    # Relative to a point near the vectors, so that a large mean costs no digits.
    origin = features[0]
    centred = features - origin
    mean = np.mean(centred, axis=0)
    centred -= mean
    root = centred / np.sqrt(len(features) - 1)
    if len(root) > root.shape[1]:
        root = np.linalg.qr(root, mode='r')
    return origin + mean, root
