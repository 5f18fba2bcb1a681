"""Coverage of the known modes of a mixture by the samples of a model.

    scores = modes.mode_coverage(samples, centres, std=0.05)
"""

import chex
import numpy as np

from gm_jax.evaluation import neighbours

__all__ = ['mode_coverage']


def mode_coverage(
    samples: np.ndarray, centres: np.ndarray, std: float, *, within: float = 3.0
) -> dict[str, float]:
    """Count the modes that the samples reach, and measure how evenly they do so.

    A sample belongs to the nearest mode, and is of high quality if it is at most
    within * std away from its centre. With q the shares of the high-quality samples
    that belong to each of the K modes,

        modes_kl_nats = KL(q || uniform) = sum_k q_k log(K q_k),  0 log 0 = 0

    In two dimensions 1.1 % of a perfect model's samples are more than 3 std away. In
    D dimensions nearly all are once D is well above 9: choose `within` by D.

    Args:
        samples: [N, D] samples of the model, N of 1 or more.
        centres: [K, D] centres of the modes, which have equal weights.
        std: the standard deviation of each mode in each dimension, above 0, in the
            units of the samples.
        within: the greatest distance of a high-quality sample from its centre, in units
            of std, above 0.

    Returns:
        'modes_covered': int, the number of modes with at least one high-quality sample.
        'high_quality_share': the share of all samples that are of high quality.
        'modes_kl_nats': from 0 (all modes equally) to log K (only one mode); inf if no
            sample is of high quality. With few samples per mode it is above 0 for a
            perfect model too, by about (K - 1) / (2 N).

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: std or within is not above 0, there are no samples or centres, or a
            value is not finite.

    References:
        Srivastava et al. 2017, VEEGAN: Reducing Mode Collapse in GANs using Implicit
        Variational Learning, sec. 4.1. https://arxiv.org/abs/1705.07761
        Lin et al. 2018, PacGAN: The power of two samples in generative adversarial
        networks, sec. 4.1, which adds the divergence. https://arxiv.org/abs/1712.04086
    """
    chex.assert_rank([samples, centres], 2)
    if not (std > 0 and within > 0 and len(samples)):
        raise ValueError(
            f'{len(samples)} samples, std {std}, within {within}: all must be above 0'
        )
    index, distance = neighbours.nearest(samples, centres)
    high_quality = distance[:, 0] <= within * std
    counts = np.bincount(index[high_quality, 0], minlength=len(centres))
    total = int(np.sum(counts))
    shares = counts[counts > 0] / max(total, 1)
    kl = float(np.sum(shares * np.log(len(centres) * shares))) if total else np.inf
    return {
        'modes_covered': int(np.count_nonzero(counts)),
        'high_quality_share': total / len(samples),
        'modes_kl_nats': kl,
    }
