"""Scores of forecasts against values worked by hand."""

import numpy as np
import pytest

from gm_jax.evaluation import forecasts


def test_scores_of_two_draws():
    """Catch a score that is not proper: E|y - x| - E|y - y'| / 2, worked by hand."""
    x = np.array([[4, 4, 6]])
    draws = np.array([[[5], [9]]])
    # (1 + 3) / 2 - 4 / 2, of draws on both sides of the truth.
    numbers = forecasts.scores(x, draws)
    assert numbers['crps_levels'] == 0
    assert numbers['error_if_nothing_changes_levels'] == 2
    assert numbers['error_of_the_mean_levels'] == 2
    # The 5 % quantile is 5.2, the 25 % quantile 6.
    assert numbers['share_inside_90_percent'] == numbers['share_inside_50_percent'] == 1


def test_what_can_be_scored():
    """Catch NaN for a single draw, and a forecast of which nothing is known."""
    x = np.array([[4, 4, 6]])
    assert forecasts.scores(x, np.array([[[9]]]))['crps_levels'] == 3
    for draws in (np.zeros((1, 2, 3)), np.zeros((1, 2, 0)), np.zeros((1, 0, 1))):
        with pytest.raises(AssertionError):
            forecasts.scores(x, draws)


def test_scores_of_the_true_distribution_are_best():
    """Catch a score that prefers forecasts too narrow or too wide."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((4000, 1)), rng.normal(size=(4000, 2))], axis=1)
    draws = rng.normal(size=(4000, 20, 2))
    crps, inside = (
        [forecasts.scores(x, scale * draws)[name] for scale in (0.7, 1.0, 1.4)]
        for name in ('crps_levels', 'share_inside_90_percent')
    )
    assert crps[1] == min(crps)
    # 1 / sqrt(pi) is the score of a standard normal distribution.
    np.testing.assert_allclose(crps[1], np.pi**-0.5, rtol=0.02)
    assert inside[0] < inside[1] < inside[2]
