"""Frechet distance against closed forms."""

import numpy as np
import pytest
from scipy import linalg, stats

from gm_jax.evaluation import frechet


def _features(mean, root, seed=0):
    """Return vectors with exactly this mean and the covariance root root^T."""
    mean, root = np.asarray(mean, float), np.asarray(root, float)
    white = np.random.default_rng(seed).normal(size=(3 * len(mean) + 4, len(mean)))
    white = np.linalg.qr(white - white.mean(axis=0))[0] * np.sqrt(len(white) - 1)
    return mean + white @ root.T


def test_one_dimension():
    """Catch a root, a variance or a 2 too few: it is (m1 - m2)^2 + (s1 - s2)^2."""
    distance = frechet.frechet_distance(
        _features([1.0], [[2.0]]), _features([-2.0], [[0.5]], seed=1)
    )
    np.testing.assert_allclose(distance, 3**2 + 1.5**2, rtol=1e-12)


def test_diagonal_covariances_add_up():
    """Catch a determinant for the trace, or a mean over dimensions."""
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, 6))
    std_a, std_b = rng.uniform(0.1, 2, size=(2, 6))
    distance = frechet.frechet_distance(
        _features(mean_a, np.diag(std_a)), _features(mean_b, np.diag(std_b), seed=1)
    )
    expected = np.sum((mean_a - mean_b) ** 2 + (std_a - std_b) ** 2)
    np.testing.assert_allclose(distance, expected, rtol=1e-12)


def test_covariances_that_do_not_commute():
    """Catch roots multiplied, tr(S_a^(1/2) S_b^(1/2)): right where they commute."""
    rng = np.random.default_rng(1)
    a, b = (rng.normal(size=(20, 4)) @ rng.normal(size=(4, 4)) for _ in range(2))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(cov_a @ cov_b).real
    means = a.mean(axis=0) - b.mean(axis=0)
    expected = np.sum(means**2) + np.trace(cov_a + cov_b - 2 * root)
    distance = frechet.frechet_distance(a, b)
    np.testing.assert_allclose(distance, expected, rtol=1e-10)
    np.testing.assert_allclose(frechet.frechet_distance(b, a), distance, rtol=1e-12)


@pytest.mark.parametrize('num_a, num_b', [(5, 7), (5, 90), (90, 60), (40, 40)])
def test_any_numbers_of_samples_and_features(num_a, num_b):
    """Catch a formula that holds only with more, or only with fewer, than features."""
    rng = np.random.default_rng(7)
    mix = rng.normal(size=(40, 40))
    a, b = rng.normal(size=(num_a, 40)) @ mix, 1 + rng.normal(size=(num_b, 40))
    cov_a, cov_b = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    values, vectors = linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    cross = np.sqrt(np.maximum(linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    means = a.mean(axis=0) - b.mean(axis=0)
    expected = np.sum(means**2) + np.trace(cov_a + cov_b) - 2 * cross
    np.testing.assert_allclose(frechet.frechet_distance(a, b), expected, rtol=1e-6)


def test_few_samples_of_many_features_are_fast():
    """Catch a matrix of D x D, which would need 80 GB here."""
    x, y = np.random.default_rng(8).normal(size=(2, 4, 100_000))
    assert frechet.frechet_distance(x, y) > 0


def test_rotating_both_changes_nothing():
    """Catch something taken by coordinate."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 30, 5)) * np.arange(1, 6)
    rotation = stats.ortho_group.rvs(5, random_state=3)
    plain = frechet.frechet_distance(x, y + 1)
    rotated = frechet.frechet_distance(x @ rotation, (y + 1) @ rotation)
    np.testing.assert_allclose(rotated, plain, rtol=1e-12)


@pytest.mark.parametrize('num', [3, 8, 100])
def test_zero_from_itself(num):
    """Catch a distance below 0, complex or NaN, also with few samples."""
    features = np.random.default_rng(4).normal(size=(num, 40))
    distance = frechet.frechet_distance(features, features[::-1])
    assert 0 <= distance < 1e-11


def test_singular_covariances():
    """Catch roots of eigenvalues that rounding made: 1e-8 per missing dimension."""
    rotation = stats.ortho_group.rvs(150, random_state=5)
    std_a, std_b = np.zeros((2, 150))
    std_a[:4], std_b[2:7] = [1, 2, 3, 4], [5, 6, 7, 8, 9]
    a, b = (
        _features(np.zeros(150), rotation * std, seed)
        for seed, std in enumerate((std_a, std_b))
    )
    expected = np.sum((std_a - std_b) ** 2)
    distance = frechet.frechet_distance(a, b)
    np.testing.assert_allclose(distance, expected, rtol=0, atol=1e-6)


def test_fewer_samples_are_biased_upwards():
    """Catch the reason for the number of samples in a report, should it not hold."""
    rng = np.random.default_rng(6)
    few, many = (
        frechet.frechet_distance(*rng.normal(size=(2, num, 10)))
        for num in (20, 2000)
    )
    assert few > 10 * many > 0


@pytest.mark.parametrize('dtype, offset', [(np.float32, 1e6), (np.float16, 100)])
def test_features_of_less_precision_and_a_large_mean(dtype, offset):
    """Catch sums of squares or float32, which lose all digits."""
    rng = np.random.default_rng(0)
    x, y = (
        (offset + 3 * rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5))).astype(dtype)
        for _ in range(2)
    )
    exact = [a.astype(np.float64) - offset for a in (x, y)]
    np.testing.assert_allclose(
        frechet.frechet_distance(x, y), frechet.frechet_distance(*exact), rtol=1e-9
    )


def test_refusals():
    """Catch two networks' features, one sample, and a network that gives NaN."""
    two = np.eye(2)
    with pytest.raises(AssertionError):
        frechet.frechet_distance(two, np.eye(3))
    with pytest.raises(ValueError, match='two vectors'):
        frechet.frechet_distance(two, np.ones((1, 2)))
    with pytest.raises(ValueError):
        frechet.frechet_distance(two, np.full((4, 2), np.nan))
