"""How fast a Markov chain mixes: exactly, from its transitions, and along its steps.

    gap = mixing.spectral_gap(T)                        # T [S, S] of a tiny chain
    scores = mixing.label_scores(labels)                # classes of images [N, steps]
    rho = mixing.autocorrelation(x, lags=(1, 10, 100))  # x [N, steps, D]
"""

from collections.abc import Sequence

import chex
import numpy as np

__all__ = ['autocorrelation', 'label_scores', 'spectral_gap', 'stationary']


def stationary(transitions: np.ndarray) -> np.ndarray:
    """Solve pi T = pi, sum(pi) = 1.

    Args:
        transitions: [S, S], T[a, b] the probability of b after a. The chain must have
            one stationary distribution only.

    Returns:
        [S] float64.

    Raises:
        AssertionError: T is not square.
        ValueError: a row of T does not sum to 1.
    """
    T = _checked(transitions)
    # One equation of S is redundant, and the sum takes its place.
    equations = T.T - np.eye(len(T))
    equations[-1] = 1
    return np.linalg.solve(equations, np.eye(len(T))[-1])


def spectral_gap(transitions: np.ndarray) -> float:
    """Return the absolute spectral gap 1 - |lambda_2|.

    The distance to the stationary distribution falls by a factor of e in about 1/gap
    steps.

    Args:
        transitions: [S, S] as for `stationary`, S of 2 or more.

    Returns:
        From 0 (it never mixes) to 1, which it is if every step is independent of the
        one before.

    Raises:
        AssertionError: T is not square, or has one state only.
        ValueError: a row of T does not sum to 1.
    """
    T = _checked(transitions)
    chex.assert_axis_dimension_gt(T, 0, 1)
    return float(1 - np.sort(np.abs(np.linalg.eigvals(T)))[-2])


def _checked(transitions: np.ndarray) -> np.ndarray:
    T = np.asarray(transitions, np.float64)
    chex.assert_shape(T, (len(T), len(T)))
    if not np.allclose(T.sum(axis=1), 1, atol=1e-6):
        raise ValueError('each row of the transitions must sum to 1')
    return T


def label_scores(labels: np.ndarray) -> dict[str, float]:
    """Count how often the class changes along chains, and the classes they visit.

    Args:
        labels: [N, T] the class of the image of each step of N chains, T of 2 or more.

    Returns:
        'label_changes_per_100_steps': 0 for a chain that stays in its class; with K
            equally likely classes 100 (1 - 1/K) if all steps are independent.
        'distinct_labels': the mean number of classes that a chain visits.

    Raises:
        AssertionError: labels is not of rank 2, or has one step only.
    """
    chex.assert_rank(labels, 2)
    chex.assert_axis_dimension_gt(labels, 1, 1)
    changes = labels[:, 1:] != labels[:, :-1]
    return {
        'label_changes_per_100_steps': 100 * float(np.mean(changes)),
        'distinct_labels': float(np.mean([len(np.unique(row)) for row in labels])),
    }


def autocorrelation(x: np.ndarray, lags: Sequence[int]) -> np.ndarray:
    """Compute sum_d cov(x_{t,d}, x_{t+k,d}) / sum_d var(x_d) over all chains and steps.

    Means and variances are those of all chains together, so that a chain which stays
    where it started is correlated with itself at every lag.

    Args:
        x: [N, T, D] the images of T steps of N chains.
        lags: K numbers of steps k, from 0 to T - 1.

    Returns:
        [K] float64; 1 for chains that do not move, about 0 for independent steps. If
        no value ever differs, it is 1.

    Raises:
        AssertionError: x is not of rank 3.
        ValueError: a lag is not from 0 to T - 1.
    """
    chex.assert_rank(x, 3)
    if not all(0 <= lag < x.shape[1] for lag in lags):
        raise ValueError(f'lags must be from 0 to {x.shape[1] - 1}, got {list(lags)}')
    x = np.asarray(x, np.float64)
    x = x - x.mean(axis=(0, 1))
    variance = np.mean(np.sum(x * x, axis=2))
    if variance == 0:
        return np.ones(len(lags))
    return np.array([
        np.mean(np.sum(x[:, :x.shape[1] - lag] * x[:, lag:], axis=2)) / variance
        for lag in lags
    ])
