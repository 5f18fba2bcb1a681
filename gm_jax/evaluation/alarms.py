"""Alarms of adversarial training: a sentence for each thing that goes wrong.

    for sentence in alarms.of_training(metrics, saturated_below=0.1): ...
    for sentence in alarms.of_samples(scores): ...

The thresholds are rules of thumb, chosen so that healthy runs of the experiments here
are silent; the numbers they look at are in the metrics.
"""

from collections.abc import Mapping

import numpy as np

from gm_jax.evaluation import neighbours

__all__ = ['COLLAPSED', 'diversity', 'of_samples', 'of_training', 'VANISHING']

# Mean slope of the generator's loss by a score; at D = 1/2 it is 1/2 for both losses.
VANISHING = 0.02
# Variance, or distance of a sample to the nearest other one, as shares of the data's.
COLLAPSED = 0.25


def of_training(metrics: Mapping[str, float], *, saturated_below: float) -> list[str]:
    """Say what is wrong with the game.

    Args:
        metrics: `discriminator_loss` and `generator_slope`, the mean over samples of
            |d loss / d score|, averaged over some steps.
        saturated_below: the least healthy loss of the discriminator; minus infinity for
            a critic, which has none.

    Returns:
        Sentences.
    """
    found = []
    loss, slope = metrics['discriminator_loss'], metrics['generator_slope']
    if loss < saturated_below:
        found.append(
            f'the discriminator saturates: its loss is {loss:.3g}, it is hardly ever '
            f'wrong'
        )
    if slope < VANISHING:
        found.append(
            f"the generator's gradient vanishes: its loss has slope {slope:.3g} by the "
            f'score of a sample'
        )
    return found


def diversity(real: np.ndarray, fake: np.ndarray, *, most: int = 2000) -> dict:
    """Compare how far the samples, and the data, are from each other.

    Args:
        real: [N, D] features of data.
        fake: [M, D] features of samples, M and N of 3 or more.
        most: of which at most so many are compared with each other.

    Returns:
        'variance_share': tr cov(fake) / tr cov(real); 'neighbour_share': the median
        distance of a sample to the nearest other one over that of the data. Both are
        about 1 for samples of the data's own distribution, where N = M, and 0 where all
        samples are one.
    """
    def spread(x: np.ndarray) -> tuple[float, float]:
        x = np.asarray(x, np.float64)
        part = x[:min(most, len(real), len(fake))]
        distance = neighbours.nearest(part, part, 2)[1][:, 1]
        return x.var(axis=0, ddof=1).sum(), np.median(distance)

    (of_fake, gap), (of_real, real_gap) = spread(fake), spread(real)
    return {
        'variance_share': float(of_fake / of_real) if of_real else 1.0,
        # Data that repeat themselves, as points of a grid do, say nothing.
        'neighbour_share': float(gap / real_gap) if real_gap else 1.0,
    }


def of_samples(scores: Mapping[str, float], *, num_modes: int = 0) -> list[str]:
    """Say whether the samples have collapsed.

    Args:
        scores: of `diversity`; and, with num_modes, of `modes.mode_coverage`.
        num_modes: how many there are, 0 where that is not known.

    Returns:
        Sentences.
    """
    found = []
    if scores['variance_share'] < COLLAPSED:
        found.append(
            f'the samples collapse: their variance is '
            f"{scores['variance_share']:.3g} of the data's"
        )
    if scores['neighbour_share'] < COLLAPSED:
        found.append(
            f'the samples repeat each other: from one to the next it is '
            f"{scores['neighbour_share']:.3g} of the data's distance"
        )
    if num_modes and scores['modes_covered'] < num_modes:
        found.append(
            f'modes are lost: {scores["modes_covered"]:.0f} of {num_modes} are left'
        )
    return found
