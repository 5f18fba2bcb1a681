"""Frechet distance against closed forms."""

import numpy as np
import pytest
from scipy import linalg, stats

from gm_jax.evaluation import frechet, moments


def _moments(mean, cov):
    """The moments of 101 vectors with exactly this mean and covariance."""
    return moments.Moments(101, np.asarray(mean, float), 100 * np.asarray(cov, float))


def _of(features):
    return moments.update(moments.empty(features.shape[1]), features)


def test_one_dimension():
    """A root, a variance or a factor 2 too few: it is (m1 - m2)^2 + (s1 - s2)^2."""
    distance = frechet.frechet_distance(
        _moments([1.0], [[4.0]]), _moments([-2.0], [[0.25]])
    )
    np.testing.assert_allclose(distance, 3**2 + 1.5**2, rtol=1e-13)


def test_diagonal_covariances_add_up():
    """A determinant for the trace, or a mean over dimensions."""
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 6))
    std_a, std_b = rng.uniform(0.1, 2, size=(2, 6))
    distance = frechet.frechet_distance(
        _moments(mean_a, np.diag(std_a**2)), _moments(mean_b, np.diag(std_b**2))
    )
    expected = np.sum((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_covariances_that_do_not_commute():
    """Roots multiplied, tr(S_a^(1/2) S_b^(1/2)): right only where they commute."""
    rng = np.random.default_rng(1)
    a, b = (_of(rng.normal(size=(20, 4)) @ rng.normal(size=(4, 4))) for _ in range(2))
    cov_a, cov_b = moments.covariance(a), moments.covariance(b)
    root = linalg.sqrtm(cov_a @ cov_b).real
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(cov_a + cov_b - 2 * root)
    distance = frechet.frechet_distance(a, b)
    np.testing.assert_allclose(distance, expected, rtol=1e-10)
    np.testing.assert_allclose(frechet.frechet_distance(b, a), distance, rtol=1e-12)


def test_rotating_both_changes_nothing():
    """Something taken by coordinate."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 30, 5)) * np.arange(1, 6)
    rotation = stats.ortho_group.rvs(5, random_state=3)
    plain = frechet.frechet_distance(_of(x), _of(y + 1))
    rotated = frechet.frechet_distance(_of(x @ rotation), _of((y + 1) @ rotation))
    np.testing.assert_allclose(rotated, plain, rtol=1e-12)


@pytest.mark.parametrize('num', [3, 8, 100])
def test_zero_from_itself(num):
    """A distance below 0, complex or NaN, with fewer samples than dimensions too."""
    features = np.random.default_rng(4).normal(size=(num, 40))
    distance = frechet.frechet_distance(_of(features), _of(features[::-1]))
    assert 0 <= distance < 1e-11


def test_singular_covariances():
    """Roots of eigenvalues that rounding made: 1e-8 for each missing dimension."""
    rotation = stats.ortho_group.rvs(150, random_state=5)
    std_a, std_b = np.zeros((2, 150))
    std_a[:4], std_b[2:7] = [1, 2, 3, 4], [5, 6, 7, 8, 9]
    a, b = (
        _moments(np.zeros(150), rotation * std**2 @ rotation.T)
        for std in (std_a, std_b)
    )
    expected = np.sum((std_a - std_b) ** 2)
    distance = frechet.frechet_distance(a, b)
    np.testing.assert_allclose(distance, expected, rtol=0, atol=1e-6)


def test_fewer_samples_are_biased_upwards():
    """The reason for the number of samples in a report, should it not hold."""
    rng = np.random.default_rng(6)
    few, many = (
        frechet.frechet_distance(*(_of(rng.normal(size=(num, 10))) for _ in range(2)))
        for num in (20, 2000)
    )
    assert few > 10 * many > 0


def test_refusals():
    """Two networks' features, one sample, and NaN from a network that diverged."""
    two = _of(np.eye(2))
    with pytest.raises(AssertionError):
        frechet.frechet_distance(two, _of(np.eye(3)))
    with pytest.raises(ValueError, match='two vectors'):
        frechet.frechet_distance(two, _of(np.ones((1, 2))))
    with pytest.raises(ValueError):
        frechet.frechet_distance(two, _of(np.full((4, 2), np.nan)))
