"""Alarms of training: one sentence for each failure that is detected.

    for sentence in alarms.of_training(metrics, saturated_below=0.1): ...
    for sentence in alarms.of_samples(scores): ...
    for sentence in alarms.of_latents(metrics): ...

The thresholds are rules of thumb, chosen so that healthy runs of the experiments here
raise no alarm. The numbers that are compared with them are in the metrics.
"""

from collections.abc import Mapping

import numpy as np

from gm_jax.evaluation import neighbours

__all__ = [
    'COLLAPSED', 'diversity', 'IGNORED', 'of_latents', 'of_samples', 'of_training',
    'VANISHING',
]

# Threshold of the mean |d generator loss / d score|, which at D = 1/2 is 1/2 for both
# losses.
VANISHING = 0.02
# Threshold of the variance, and of the distance from a sample to the nearest other one,
# each over that of the data.
COLLAPSED = 0.25
# Threshold of the KL divergence of a latent, in nats per image.
IGNORED = 0.5


def of_training(metrics: Mapping[str, float], *, saturated_below: float) -> list[str]:
    """Return the alarms of adversarial training.

    Args:
        metrics: averages over some steps of `discriminator_loss`, of `game_loss`, the
            same without penalties, if there are some, and of `generator_slope`, the
            mean over samples of |d loss / d score|.
        saturated_below: the lowest loss that is healthy for the discriminator; minus
            infinity for a critic, for which there is none.

    Returns:
        One sentence per alarm.
    """
    found = []
    loss = metrics.get('game_loss', metrics['discriminator_loss'])
    slope = metrics['generator_slope']
    if loss < saturated_below:
        found.append(
            f'the discriminator saturates: its loss is {loss:.3g}, it is hardly ever '
            f'wrong'
        )
    if slope < VANISHING:
        found.append(
            f"the generator's gradient vanishes: the slope of its loss with respect to "
            f"a sample's score is {slope:.3g}"
        )
    return found


def diversity(real: np.ndarray, fake: np.ndarray, *, most: int = 2000) -> dict:
    """Compare the spread of the samples with that of the data.

    Args:
        real: [N, D] features of data, N at least 3.
        fake: [M, D] features of samples, M at least 3.
        most: the greatest number of rows of each that are compared in pairs.

    Returns:
        'variance_share': tr cov(fake) / tr cov(real); 'neighbour_share': the median
        distance from a sample to the nearest other one, over the same median of the
        data. Both are about 1 for samples from the data's own distribution if N = M,
        and 0 if all samples are equal.
    """
    def spread(x: np.ndarray) -> tuple[float, float]:
        x = np.asarray(x, np.float64)
        part = x[:min(most, len(real), len(fake))]
        distance = neighbours.nearest(part, part, 2)[1][:, 1]
        return x.var(axis=0, ddof=1).sum(), np.median(distance)

    (of_fake, gap), (of_real, real_gap) = spread(fake), spread(real)
    return {
        'variance_share': float(of_fake / of_real) if of_real else 1.0,
        # Repeated data, such as points on a grid, have distance 0 and give no scale.
        'neighbour_share': float(gap / real_gap) if real_gap else 1.0,
    }


def of_samples(scores: Mapping[str, float], *, num_modes: int = 0) -> list[str]:
    """Return the alarms of samples that have collapsed.

    Args:
        scores: the result of `diversity` and, with num_modes, also that of
            `modes.mode_coverage`.
        num_modes: the number of modes of the data, 0 if it is not known.

    Returns:
        One sentence per alarm.
    """
    found = []
    if scores['variance_share'] < COLLAPSED:
        found.append(
            f'the samples collapse: their variance is '
            f"{scores['variance_share']:.3g} of the data's"
        )
    if scores['neighbour_share'] < COLLAPSED:
        found.append(
            f'the samples repeat each other: the distance to the nearest other one is '
            f"{scores['neighbour_share']:.3g} of the data's"
        )
    if num_modes and scores['modes_covered'] < num_modes:
        found.append(
            f'modes are lost: {scores["modes_covered"]:.0f} of {num_modes} are left'
        )
    return found


def of_latents(metrics: Mapping[str, float]) -> list[str]:
    """Return the alarms of a latent that a strong decoder may learn to ignore.

    Args:
        metrics: averages over some steps of `kl_nats`, and of `kl_weight`, which is
            below 1 during the warm-up of the KL term.

    Returns:
        One sentence per alarm.
    """
    if metrics['kl_weight'] < 1 or metrics['kl_nats'] >= IGNORED:
        return []
    return [
        f'the decoder ignores z, which carries {metrics["kl_nats"]:.2g} nats of an '
        f'image: train with a longer --kl_warmup, --free_bits or fewer --decoder_layers'
    ]
