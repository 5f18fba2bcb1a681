"""Alarms: they ring for what is planted, and are silent otherwise."""

import numpy as np
import pytest

from gm_jax.evaluation import alarms, modes

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(500, 3))


@pytest.mark.parametrize('loss, slope, words', [
    (1.38, 0.5, []), (0.5, 0.1, []), (0.05, 0.5, ['saturates']),
    (0.01, 0.001, ['saturates', 'vanishes']), (0.9, 0.01, ['vanishes']),
])
def test_of_training(loss, slope, words):
    """Catch an alarm that is silent, or rings for a healthy game."""
    metrics = {'discriminator_loss': loss, 'generator_slope': slope}
    found = alarms.of_training(metrics, saturated_below=0.1)
    assert [word for word in words] == [
        word for sentence in found for word in ('saturates', 'vanishes')
        if word in sentence
    ]
    # A penalty on its gradient does not hide that the discriminator is sure.
    penalised = {**metrics, 'discriminator_loss': loss + 5, 'game_loss': loss}
    assert len(alarms.of_training(penalised, saturated_below=0.1)) == len(words)
    critic = alarms.of_training(metrics, saturated_below=-np.inf)
    assert len(critic) == ('vanishes' in words)


@pytest.mark.parametrize('fake, words', [
    (RNG.normal(size=(500, 3)), []),
    (0.3 * RNG.normal(size=(500, 3)), ['collapse']),
    # Copies of ten points are as far apart as the data, and have twins.
    (REAL[RNG.integers(0, 10, 500)], ['repeat']),
    (np.ones((500, 3)), ['collapse', 'repeat']),
])
def test_of_samples(fake, words):
    """Catch a collapse in variance, or onto a few samples, that goes unnoticed."""
    scores = alarms.diversity(REAL, fake)
    found = alarms.of_samples(scores)
    assert len(found) == len(words)
    assert all(word in sentence for word, sentence in zip(words, found))
    if not words:
        assert all(0.8 < share < 1.25 for share in scores.values())


def test_lost_modes():
    """Catch a mode that is lost without a word."""
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    for kept in (2, 3):
        x = np.repeat(centres[:kept], 50, axis=0)
        x = x + 0.1 * RNG.normal(size=x.shape)
        scores = {
            'variance_share': 1.0, 'neighbour_share': 1.0,
            **modes.mode_coverage(x, centres, 0.1),
        }
        found = alarms.of_samples(scores, num_modes=3)
        assert found == ([] if kept == 3 else ['modes are lost: 2 of 3 are left'])


@pytest.mark.parametrize('kl, weight, rings', [
    (0.4, 1.0, True), (0.0, 1.0, True), (0.6, 1.0, False), (0.4, 0.99, False),
])
def test_a_latent_that_carries_nothing_is_told(kl, weight, rings):
    """Catch an alarm during the warm-up, or none after it."""
    found = alarms.of_latents({'kl_nats': kl, 'kl_weight': weight})
    assert len(found) == rings and all('ignores z' in sentence for sentence in found)
