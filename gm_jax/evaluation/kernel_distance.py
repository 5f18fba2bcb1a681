"""An unbiased kernel distance between two sets of features.

    mean, standard_error = kernel_distance.kernel_distance(real, fake)
"""

import chex
import numpy as np

__all__ = ['kernel_distance', 'squared_mmd']


def squared_mmd(real: np.ndarray, fake: np.ndarray) -> float:
    """Estimate the squared maximum mean discrepancy by the kernel (x.y / D + 1)^3.

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

    The pairs of a sample with itself are left out, so the estimate is unbiased and may
    be below 0.

    Args:
        real: [N, D] features x, N of 2 or more.
        fake: [M, D] features y, M of 2 or more.

    Returns:
        The estimate, computed in float64.

    Raises:
        AssertionError: the features are not of rank 2, or of different lengths.
        ValueError: a side has fewer than two samples, or a value is not finite.

    References:
        Gretton et al. 2012, A Kernel Two-Sample Test, eq. 3.
        https://jmlr.org/papers/v13/gretton12a.html
    """
    real, fake = _features(real, fake)
    if min(len(real), len(fake)) < 2:
        raise ValueError(f'too few samples: {len(real)} real, {len(fake)} fake')
    within = sum(_mean_of_pairs(x) for x in (real, fake))
    return float(within - 2 * np.mean(_kernel(real, fake)))


def kernel_distance(
    real: np.ndarray,
    fake: np.ndarray,
    *,
    subset_size: int = 1000,
    num_subsets: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """Average squared_mmd over disjoint random subsets, with its standard error.

    Subsets that overlapped would give a standard error that is too small.

    Unlike the Frechet distance it has no bias that depends on the number of samples. It
    may be called KID only with the features of the Inception network.

    Args:
        real: [N, D] features.
        fake: [M, D] features.
        subset_size: the largest number of samples of each side in a subset, 2 or more;
            subsets are smaller where a side has fewer than num_subsets * subset_size.
        num_subsets: the number of subsets, 2 or more.
        seed: the seed of the subsets.

    Returns:
        The mean over the subsets and its standard error. The mean may be below 0.

    Raises:
        AssertionError: the features are not of rank 2, or of different lengths.
        ValueError: a side has too few samples for subsets of 2, or an argument is below
            2.

    References:
        Binkowski et al. 2018, Demystifying MMD GANs, sec. 4. The kernel is that of the
        paper's KID. https://arxiv.org/abs/1801.01401
    """
    real, fake = _features(real, fake)
    if min(subset_size, num_subsets) < 2:
        raise ValueError(
            'subset_size and num_subsets must be 2 or more, '
            f'got {subset_size} and {num_subsets}'
        )
    size = min(subset_size, min(len(real), len(fake)) // num_subsets)
    if size < 2:
        raise ValueError(
            f'{num_subsets} subsets from {len(real)} real and {len(fake)} fake samples'
        )
    rng = np.random.default_rng(seed)
    real_rows, fake_rows = (
        rng.permutation(len(x))[:size * num_subsets].reshape(num_subsets, size)
        for x in (real, fake)
    )
    values = [squared_mmd(real[i], fake[j]) for i, j in zip(real_rows, fake_rows)]
    standard_error = np.std(values, ddof=1) / np.sqrt(num_subsets)
    return float(np.mean(values)), float(standard_error)


def _features(real: np.ndarray, fake: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    real, fake = (np.asarray(x, np.float64) for x in (real, fake))
    chex.assert_rank([real, fake], 2)
    chex.assert_equal_shape_suffix([real, fake], 1)
    if not (np.all(np.isfinite(real)) and np.all(np.isfinite(fake))):
        raise ValueError('not all features are finite')
    return real, fake


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return [N, M] values of the kernel, for x [N, D] and y [M, D]."""
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(x: np.ndarray) -> float:
    """Return the mean of k(x_i, x_j) over i != j, for x [N, D]."""
    kernel = _kernel(x, x)
    np.fill_diagonal(kernel, 0)
    return np.sum(kernel) / (len(x) * (len(x) - 1))
