"""Fidelity and diversity of samples, scored separately.

    scores = precision_recall.precision_recall(real_features, fake_features)
"""

import numpy as np

from gm_jax.evaluation import neighbours

__all__ = ['precision_recall']


def precision_recall(
    real: np.ndarray, fake: np.ndarray, *, k: int = 3
) -> dict[str, float]:
    """Compute precision, recall, density and coverage by k nearest neighbours.

    With r(x) the distance of x to its k-th neighbour in its own set, not counting x:

        precision  share of y in fake with |x - y| <= r(x) for some x in real
        recall     share of x in real with |x - y| <= r(y) for some y in fake
        density    (1 / k) mean over y of the number of x with |x - y| < r(x)
        coverage   share of x in real with |x - y| <= r(x) for some y in fake

    One outlier in the data has a large ball, which flatters precision; density counts
    it as one ball of many. In the same way outliers among the samples flatter recall,
    but not coverage. All four depend on N, M and k, which belong in the report.

    Args:
        real: [N, D] features of data.
        fake: [M, D] features of samples.
        k: the number of neighbours, below N and M. Naeem et al. take 5 for density and
            coverage.

    Returns:
        'precision', 'recall' and 'coverage', in [0, 1], and 'density', which is 0 or
        more and may exceed 1. For two equal sets all four are 1. For two sets from one
        distribution density is 1 on average, but coverage is 1 - 2^-k on average if
        N = M is large and the sets are independent. Both statements about density need
        features of which no two pairs are equally far apart. Bits have many such pairs,
        on the spheres of the balls, and then density is lower: 0.4 to 0.9 for random
        images of 16 to 784 bits. It leaves out data that have k repeats or more, whose
        balls are points.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: k is not in [1, N) and [1, M), or a value is not finite.

    References:
        Kynkaanniemi et al. 2019, Improved Precision and Recall Metric for Assessing
        Generative Models, eq. 1 and 2. https://arxiv.org/abs/1904.06991
        Naeem et al. 2020, Reliable Fidelity and Diversity Metrics for Generative
        Models, sec. 3. https://arxiv.org/abs/2002.09797
    """
    real, fake = neighbours.checked(real, fake)
    if not 1 <= k < min(len(real), len(fake)):
        raise ValueError(
            f'k must be from 1 to below {len(real)} real and {len(fake)} fake, got {k}'
        )
    # The first of the k + 1 nearest is the point itself, or one equal to it.
    real_radii, fake_radii = (
        neighbours.nearest(x, x, k + 1)[1][:, k] for x in (real, fake)
    )
    # Density does not count points on the spheres: a copy of the data has k others on
    # or in each ball besides its centre, and would score (k + 1) / k instead of 1.
    by_real, inside_real = neighbours.count_balls(fake, real, real_radii)
    by_fake, _ = neighbours.count_balls(real, fake, fake_radii)
    to_fake = neighbours.nearest(real, fake)[1][:, 0]
    return {
        'precision': float(np.mean(by_real > 0)),
        'recall': float(np.mean(by_fake > 0)),
        'density': float(np.mean(inside_real) / k),
        'coverage': float(np.mean(to_fake <= real_radii)),
    }
