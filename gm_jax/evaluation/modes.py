"""Which modes of a mixture, all of them known, the samples of a model reach.

    scores = modes.mode_coverage(samples, centres, std=0.05)
"""

import chex
import numpy as np

from gm_jax.evaluation import neighbours

__all__ = ['mode_coverage']


def mode_coverage(
    samples: np.ndarray, centres: np.ndarray, std: float, *, within: float = 3.0
) -> dict[str, float]:
    """Count the modes that samples fall on, and how evenly they do.

    A sample belongs to the nearest mode, and is of high quality if it is at most
    within * std away from its centre. With q the shares of the high-quality samples
    that belong to each of the K modes,

        kl_nats = KL(q || uniform) = sum_k q_k log(K q_k),  0 log 0 = 0

    In two dimensions 1.1 % of a perfect model's samples are more than 3 std away, in
    D dimensions nearly all are once D is well above 9: choose `within` by D.

    Args:
        samples: [N, D] of the model, N of 1 or more.
        centres: [K, D] of the modes, which have equal weights.
        std: of each mode in each dimension, above 0, in the units of the samples.
        within: how many of them a sample of high quality may be away, above 0.

    Returns:
        'modes_covered': int, modes with one high-quality sample at least.
        'high_quality_share': in [0, 1], of all samples.
        'kl_nats': from 0, all modes alike, to log K, one mode alone; inf where no
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
        'kl_nats': kl,
    }
