"""Parzen windows: a likelihood for models without one, the first score of GANs.

    sigma = parzen.choose_sigma(validation, samples)
    log_px = parzen.log_prob(test, samples, sigma)

It is historical and misleading: in many dimensions no practical number of samples
brings it near the model's own likelihood, and samples from k-means score better than
the data themselves (Theis et al. 2016, A note on the evaluation of generative models,
sec. 3, https://arxiv.org/abs/1511.01844). Use it only to compare with old tables.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy import special

from gm_jax.evaluation import neighbours

__all__ = ['choose_sigma', 'compare', 'log_prob']

_VALIDATION = 1000  # training images that choose sigma, at most


def log_prob(test: np.ndarray, samples: np.ndarray, sigma: float) -> np.ndarray:
    """Compute log (1/M) sum_m N(x; s_m, sigma^2 I) for each test example x.

    It is misleading as a measure of a model: see the docstring of this module.

    Args:
        test: [N, D] x, real numbers in the units of the samples. In the papers' tables
            pixels are in [0, 1]: other units shift the result by D times a log.
        samples: [M, D] s, drawn from the model.
        sigma: the width of a window, above 0, in the same units.

    Returns:
        [N] float64, in nats.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: sigma is not above 0, there are no samples, or a value is not
            finite.

    References:
        Breuleux, Bengio and Vincent 2011, Quickly Generating Representative Samples
        from an RBM-Derived Process. https://doi.org/10.1162/NECO_a_00158
        Goodfellow et al. 2014, Generative Adversarial Networks, table 1.
        https://arxiv.org/abs/1406.2661
        Theis et al. 2016, sec. 3, which argues against it.
        https://arxiv.org/abs/1511.01844
    """
    return _log_probs(test, samples, [sigma])[0]


def choose_sigma(
    validation: np.ndarray,
    samples: np.ndarray,
    sigmas: Sequence[float] | np.ndarray = tuple(np.logspace(-1, 0, 10)),
) -> float:
    """Choose the sigma with the highest mean log_prob of the validation set.

    Args:
        validation: [N, D] examples that are not in the test set, N of 1 or more.
        samples: [M, D] drawn from the model.
        sigmas: [S] the widths to choose from, each above 0; the default spans 0.1 to 1,
            for pixels in [0, 1].

    Returns:
        The best of sigmas, the first one in ties. If it is the first or the last of
        sigmas, widen the range.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: a sigma is not above 0, there are no sigmas, samples or examples, or
            a value is not finite.

    References:
        Goodfellow et al. 2014, sec. 5. https://arxiv.org/abs/1406.2661
    """
    if not len(validation) or not len(sigmas):
        raise ValueError(
            f'{len(sigmas)} sigmas cannot be compared on {len(validation)} examples'
        )
    means = np.mean(_log_probs(validation, samples, sigmas), axis=1)
    return float(sigmas[int(np.argmax(means))])


def compare(
    test: np.ndarray, samples: np.ndarray, train: np.ndarray
) -> dict[str, float]:
    """Score samples beside what should be worst and best: the score judges itself.

    As many training images, and centroids of k-means on the training images, are scored
    in the place of the samples, each with its own best sigma. That centroids score
    above the data shows what the score prefers.

    Args:
        test: [N, D] in [0, 1].
        samples: [M, D] drawn from the model, with values in [0, 1].
        train: [K, D] in random order: the first choose sigma, the others are scored.

    Returns:
        The mean log density of the test examples in nats (higher is better), of
        'samples', 'training_images' and 'k_means', and how many there were of each:
        'num_samples', 'num_training_images' and 'num_k_means'.

    Raises:
        AssertionError: the arrays are not of rank 2, or of different D.
        ValueError: there is one training image only, no sample or no test example, or
            a value is not finite.

    References:
        Theis et al. 2016, table 1. https://arxiv.org/abs/1511.01844
    """
    from sklearn.cluster import MiniBatchKMeans  # takes a second

    if len(train) < 2:
        raise ValueError(f'there must be 2 training images or more, got {len(train)}')
    if not len(test):
        raise ValueError('there are no test examples')
    num = min(_VALIDATION, max(len(train) // 5, 1))
    validation, rest = train[:num], train[num:]
    clusters = min(len(samples), max(len(rest) // 2, 1))
    # The usual start, which spreads the centroids, would take longer than the rest.
    k_means = MiniBatchKMeans(
        clusters, init='random', n_init=1, batch_size=4096, max_iter=5, random_state=0
    ).fit(rest.astype(np.float32))
    windows = {
        'samples': samples, 'training_images': rest[:len(samples)],
        'k_means': k_means.cluster_centers_,
    }
    scores: dict[str, float] = {}
    for name, centres in windows.items():
        sigma = choose_sigma(validation, centres)
        scores[name] = float(np.mean(log_prob(test, centres, sigma)))
        scores[f'num_{name}'] = len(centres)
    return scores


def _log_probs(
    x: np.ndarray, samples: np.ndarray, sigmas: Sequence[float] | np.ndarray
) -> np.ndarray:
    """Return [S, N] log densities; the distances are computed once for all sigmas."""
    for sigma in sigmas:
        if not 0 < sigma < math.inf:
            raise ValueError(f'sigma must be above 0 and finite, got {sigma}')
    x, samples = neighbours.checked(x, samples)
    out = np.empty((len(sigmas), len(x)))
    for rows, squares, _ in neighbours.square_distance_blocks(x, samples):
        np.maximum(squares, 0, out=squares)
        for row, sigma in zip(out, sigmas):
            log_norm = math.log(len(samples)) + x.shape[1] * (
                math.log(2 * math.pi) / 2 + math.log(sigma)
            )
            exponents = squares / (-2 * sigma**2)
            row[rows] = special.logsumexp(exponents, axis=1) - log_norm
    return out
