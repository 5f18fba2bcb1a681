"""Mean and covariance of features that come in batches, in float64.

    total = moments.empty(features.shape[1])
    for features in batches:
        total = moments.update(total, features)
    covariance = moments.covariance(total)
"""

from typing import NamedTuple

import chex
import numpy as np


class Moments(NamedTuple):
    """What is kept of N vectors x, all of it float64.

    Attributes:
      count: N.
      mean: [D] (1 / N) sum_n x_n, in the units of x.
      scatter: [D, D] sum_n (x_n - mean) (x_n - mean)^T.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray


def empty(dim: int) -> Moments:
    """Return the moments of no vectors at all.

    Args:
      dim: D, the length of a vector.

    Returns:
      Moments with count 0 and zeros.

    Raises:
      ValueError: dim is below 1.
    """
    if dim < 1:
        raise ValueError(f'dim must be 1 or more, got {dim}')
    return Moments(0, np.zeros(dim), np.zeros((dim, dim)))


def update(moments: Moments, features: np.ndarray) -> Moments:
    """Add a batch to the moments: the result is that of all vectors at once.

    With n vectors so far, N new ones and d = mean of the new - mean so far,

        mean' = mean + d N / (n + N)
        scatter' = scatter + scatter of the new + d d^T n N / (n + N)

    Sums of squares would lose all digits where the mean is large.

    Args:
      moments: of the n vectors so far; they are not changed.
      features: [N, D] real numbers of any type; N may be 0.

    Returns:
      Moments of the n + N vectors.

    Raises:
      AssertionError: features is not [N, D].

    References:
      Chan, Golub and LeVeque 1983, Algorithms for Computing the Sample Variance:
      Analysis and Recommendations.
      https://doi.org/10.1080/00031305.1983.10483115
    """
    features = np.asarray(features, np.float64)
    chex.assert_shape(features, (None, len(moments.mean)))
    if not len(features):
        return moments
    # From a point near the new vectors, so that d is no difference of large numbers.
    origin = moments.mean if moments.count else features[0]
    features = features - origin
    delta = np.mean(features, axis=0)
    features -= delta
    count = moments.count + len(features)
    between = moments.count * len(features) / count * np.outer(delta, delta)
    return Moments(
        count,
        origin + delta * (len(features) / count),
        moments.scatter + features.T @ features + between,
    )


def covariance(moments: Moments) -> np.ndarray:
    """Compute scatter / (N - 1), the unbiased estimate of the covariance.

    Args:
      moments: of N vectors.

    Returns:
      [D, D] float64; singular where N <= D.

    Raises:
      ValueError: there are fewer than two vectors.
    """
    if moments.count < 2:
        raise ValueError(f'a covariance needs two vectors, there are {moments.count}')
    return moments.scatter / (moments.count - 1)
