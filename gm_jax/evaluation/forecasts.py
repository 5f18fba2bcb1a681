"""Scores of sampled forecasts against the true continuations.

    numbers = forecasts.scores(series, draws)
"""

import chex
import numpy as np

__all__ = ['scores']


def scores(x: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Score forecasts by their continuous ranked probability score and coverage.

    The continuous ranked probability score of K draws y of a value x is

        mean_k |y_k - x| - sum_{j != k} |y_j - y_k| / (2 K (K - 1)),

    which is the absolute error where all draws are one value, or K = 1.

    Args:
        x: [N, T] series.
        draws: [N, K, horizon] continuations drawn given the first T - horizon values.

    Returns:
        'crps_levels' is the score of the draws in units of x, which are levels;
        'error_if_nothing_changes_levels' and 'error_of_the_mean_levels' are those of
        two point forecasts, the last known value and the mean of the known values.
        'share_inside_50_percent' and 'share_inside_90_percent' are the shares of the
        true values between the quantiles that should hold 50 % and 90 % of them.

    Raises:
        AssertionError: the shapes do not fit each other; no value is given, or none
            is drawn.

    References:
        Gneiting and Raftery 2007, Strictly Proper Scoring Rules, Prediction, and
        Estimation, eq. 21. https://doi.org/10.1198/016214506000001437
    """
    x, draws = np.asarray(x), np.asarray(draws)
    chex.assert_rank([x, draws], [2, 3])
    chex.assert_equal_shape_prefix([x, draws], 1)
    num, horizon = draws.shape[1:]
    chex.assert_scalar_positive(len(x) * num)
    chex.assert_scalar_in(horizon, 1, x.shape[1] - 1)
    past, truth = x[:, :-horizon].astype(float), x[:, None, -horizon:].astype(float)
    order = np.sort(draws.astype(float), axis=1)
    # The sum of differences of sorted values counts the k-th value 2 k - K + 1 times.
    weights = (2 * np.arange(num) - num + 1)[:, None] / (num * max(num - 1, 1))
    numbers = {
        'crps_levels': (
            np.mean(np.abs(draws - truth)) - np.mean(np.sum(weights * order, 1))
        ),
        'error_if_nothing_changes_levels': np.mean(np.abs(past[:, None, -1:] - truth)),
        'error_of_the_mean_levels': np.mean(
            np.abs(past.mean(axis=1)[:, None, None] - truth)
        ),
    }
    for share in (0.5, 0.9):
        low, high = np.quantile(draws, [(1 - share) / 2, (1 + share) / 2], axis=1)
        inside = (low <= truth[:, 0]) & (truth[:, 0] <= high)
        numbers[f'share_inside_{100 * share:.0f}_percent'] = inside.mean()
    return {name: float(value) for name, value in numbers.items()}
