"""Kernel distance against its double sums, and its bias."""

import numpy as np
import pytest

from gm_jax.evaluation import kernel_distance


def _double_sums(real, fake):
    """Compute the definition, pair by pair."""
    def kernel(x, y):
        return (sum(a * b for a, b in zip(x, y)) / len(x) + 1) ** 3

    def pairs(x):
        num = len(x)
        terms = [kernel(x[i], x[j]) for i in range(num) for j in range(num) if i != j]
        return sum(terms) / (num * (num - 1))

    cross = sum(kernel(x, y) for x in real for y in fake) / (len(real) * len(fake))
    return pairs(real) + pairs(fake) - 2 * cross


@pytest.mark.parametrize('dtype', [np.float64, np.float32])
def test_squared_mmd_equals_its_double_sums(dtype):
    """Catch sums in float32, another kernel, or means of unequal sizes mixed up."""
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(5, 3)), rng.normal(1, 2, size=(4, 3))
    real, fake = real.astype(dtype), fake.astype(dtype)
    expected = _double_sums(real.astype(float).tolist(), fake.astype(float).tolist())
    actual = kernel_distance.squared_mmd(real, fake)
    np.testing.assert_allclose(actual, expected, rtol=1e-12)


@pytest.mark.parametrize('subset_size', [12, 1000])
def test_unbiased_with_an_honest_error(subset_size):
    """Catch k(x, x) in the sums, an error without sqrt(n), and subsets that overlap."""
    rng = np.random.default_rng(2)
    draws = np.array([
        kernel_distance.kernel_distance(
            *rng.normal(1, size=(2, 60, 3)), subset_size=subset_size, num_subsets=5
        )
        for _ in range(400)
    ])
    means, errors = draws.T
    assert abs(np.mean(means)) < 4 * np.std(means) / np.sqrt(400)
    np.testing.assert_allclose(
        np.sqrt(np.mean(np.square(errors))), np.std(means), rtol=0.2
    )


def test_different_distributions_are_apart():
    """Catch a sign, or a distance of the means alone."""
    rng = np.random.default_rng(3)
    real = rng.normal(size=(400, 4))
    for fake in (rng.normal(1, size=(400, 4)), rng.normal(0, 2, size=(400, 4))):
        mean, error = kernel_distance.kernel_distance(real, fake, subset_size=40)
        assert mean > 5 * error > 0


@pytest.mark.parametrize('num, size', [(23, 4), (12, 2)])
def test_subsets_are_disjoint(num, size, monkeypatch):
    """Catch subsets that overlap, or with a sample twice."""
    seen = []

    def record(real, fake):
        seen.append((real[:, 0].tolist(), fake[:, 0].tolist()))
        return 0.0

    monkeypatch.setattr(kernel_distance, 'squared_mmd', record)
    features = np.arange(num, dtype=float)[:, None]
    kernel_distance.kernel_distance(features, features, subset_size=4, num_subsets=5)
    for side in zip(*seen):
        assert [len(subset) for subset in side] == [size] * 5
        assert len(set(sum(side, []))) == 5 * size
    assert seen[0][0] != seen[0][1] and seen[0][0] != sorted(seen[0][0])


def test_the_seed_alone_chooses():
    """Catch numbers that no one can compute again."""
    real, fake = np.random.default_rng(4).normal(size=(2, 30, 2))
    first, again, other = (
        kernel_distance.kernel_distance(real, fake, num_subsets=5, seed=seed)
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_refusals():
    """Catch subsets of one sample, and a standard error of one number."""
    real, fake = np.ones((10, 2)), np.ones((8, 2))
    with pytest.raises(ValueError, match='5 subsets from 10 real and 8 fake'):
        kernel_distance.kernel_distance(real, fake, num_subsets=5)
    with pytest.raises(ValueError, match='2 or more'):
        kernel_distance.kernel_distance(real, fake, subset_size=4, num_subsets=1)
    with pytest.raises(ValueError, match='too few'):
        kernel_distance.squared_mmd(real, fake[:1])
    with pytest.raises(AssertionError):
        kernel_distance.squared_mmd(real, np.ones((8, 1)))
