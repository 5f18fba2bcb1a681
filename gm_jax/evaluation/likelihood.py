"""The numbers that are reported for a model with a likelihood.

Usage:
    log_px = likelihood.combine(log_w)      # log-mean-weights [N, chunks] -> [N]
    metrics = likelihood.report(log_px, num_dims=784, estimator='iwae-5000')
"""

import chex
import numpy as np
from scipy import special

from gm_jax.losses import likelihoods

__all__ = ['combine', 'report']


def combine(log_w: np.ndarray) -> np.ndarray:
    """Compute log mean_c w_c in float64, from chunks with equal numbers of samples.

    Args:
        log_w: [N, chunks] log of the mean importance weight of each chunk.

    Returns:
        [N] float64, the log of the mean weight of all samples.

    Raises:
        AssertionError: log_w is not of rank 2.
    """
    log_w = np.asarray(log_w, np.float64)
    chex.assert_rank(log_w, 2)
    return special.logsumexp(log_w, axis=1) - np.log(log_w.shape[1])


def report(log_px: np.ndarray, num_dims: int, estimator: str) -> dict[str, float | str]:
    """Return the entries of results.json for a likelihood.

    Args:
        log_px: [N] log-likelihood, or a bound on it, of each test image, in nats.
        num_dims: D, values in an image: H * W * C.
        estimator: such as 'exact', 'elbo', 'iwae-5000', 'ais', 'ais-elbo' or
            'csl-10000'.

    Returns:
        nats_per_image and its standard error over the images (NaN for one image),
        bits_per_dim, estimator.

    Raises:
        AssertionError: log_px is not of rank 1.
    """
    log_px = np.asarray(log_px, np.float64)
    chex.assert_rank(log_px, 1)
    mean = np.mean(log_px)
    deviation = np.std(log_px, ddof=1) if log_px.size > 1 else np.nan
    return {
        'nats_per_image': -float(mean),
        'nats_standard_error': float(deviation / np.sqrt(log_px.size)),
        'bits_per_dim': float(likelihoods.bits_per_dim(mean[None], num_dims)[0]),
        'estimator': estimator,
    }
