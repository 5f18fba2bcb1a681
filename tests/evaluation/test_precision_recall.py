"""Precision, recall, density and coverage where they are known."""

import numpy as np
import pytest

from gm_jax.evaluation import neighbours, precision_recall


def _brute_force(real, fake, k):
    """Compute the definitions, point by point."""
    def distance(x, y):
        return np.sqrt(np.sum(np.square(x - y)))

    def radius(points, i):
        others = [distance(points[i], y) for j, y in enumerate(points) if j != i]
        return sorted(others)[k - 1]

    real_radii = [radius(real, i) for i in range(len(real))]
    fake_radii = [radius(fake, i) for i in range(len(fake))]
    in_real = [[distance(x, y) <= r for x, r in zip(real, real_radii)] for y in fake]
    in_fake = [[distance(x, y) <= r for y, r in zip(fake, fake_radii)] for x in real]
    return {
        'precision': np.mean([any(balls) for balls in in_real]),
        'recall': np.mean([any(balls) for balls in in_fake]),
        'density': np.sum(in_real) / (k * len(fake)),
        'coverage': np.mean([any(points) for points in zip(*in_real)]),
    }


@pytest.mark.parametrize('k', [1, 3, 9])
@pytest.mark.parametrize('block', [1, 2**22])
def test_equal_their_definitions(k, block, monkeypatch):
    """Catch a k off by one, or one side's balls taken for the other's."""
    monkeypatch.setattr(neighbours, '_BLOCK', block)
    rng = np.random.default_rng(k)
    real, fake = rng.normal(size=(25, 3)), rng.normal(0.8, 0.7, size=(14, 3))
    expected = _brute_force(real, fake, k)
    actual = precision_recall.precision_recall(real, fake, k=k)
    assert actual == pytest.approx(expected, abs=1e-14)
    assert len(set(actual.values())) == 4


@pytest.mark.parametrize('k', [1, 3])
def test_a_copy_of_the_data_has_1_in_all(k):
    """Catch spheres decided by rounding, or counted in the density: (k + 1) / k."""
    real = np.random.default_rng(0).normal(100, 1, size=(40, 30))
    scores = precision_recall.precision_recall(real, real[::-1].copy(), k=k)
    ones = dict.fromkeys(('precision', 'recall', 'density', 'coverage'), 1.0)
    assert scores == ones


def test_a_copy_of_data_with_repeats():
    """Catch balls without their spheres: with k repeats they are points.

    Density has them so, as its docstring says.
    """
    real = np.repeat(np.random.default_rng(3).normal(size=(6, 2)), 4, axis=0)
    scores = precision_recall.precision_recall(real, real.copy(), k=3)
    assert scores == {'precision': 1, 'recall': 1, 'density': 0, 'coverage': 1}


def test_sets_far_apart_have_0_in_all():
    """Catch balls about the wrong set: each set lies in its own."""
    real, fake = np.random.default_rng(1).normal(size=(2, 20, 2))
    scores = precision_recall.precision_recall(real, fake + 1e3)
    assert set(scores.values()) == {0.0}


def test_half_of_the_modes():
    """Catch precision and recall exchanged: half of the data are missed.

    The data are 0 to 9 and 1000 to 1009, the samples 0.5 to 8.5.
    """
    real = np.concatenate([np.arange(10.0), 1000 + np.arange(10.0)])[:, None]
    fake = np.arange(9)[:, None] + 0.5
    scores = precision_recall.precision_recall(real, fake, k=2)
    assert scores['precision'] == 1
    assert scores['recall'] == scores['coverage'] == 0.5
    # Balls of radius 1 about 1 to 8 hold two samples each; of 2 about 0 and 9, two too.
    np.testing.assert_allclose(scores['density'], (8 * 2 + 2 * 2) / (2 * 9))


def test_an_outlier_flatters_precision_but_not_density():
    """Catch density by whether a sample is in any ball, which is precision again."""
    real = np.append(np.arange(20.0), 1000.0)[:, None]
    fake = 500 + np.arange(20.0)[:, None]
    scores = precision_recall.precision_recall(real, fake, k=3)
    assert scores['precision'] == 1
    np.testing.assert_allclose(scores['density'], 1 / 3)


def test_values_that_the_docstring_gives():
    """Catch density 1 and coverage 1 - 2^-k, for two sets of one distribution."""
    rng = np.random.default_rng(2)
    draws = [
        precision_recall.precision_recall(*rng.normal(size=(2, 200, 2)), k=2)
        for _ in range(20)
    ]
    for key, expected in (('density', 1), ('coverage', 0.75)):
        values = [draw[key] for draw in draws]
        error = np.std(values) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error < 0.06


def test_refusals():
    """Catch a radius that does not exist."""
    x = np.zeros((5, 2))
    for real, fake, k in ((x, x, 5), (x, x[:2], 2), (x[:2], x, 2), (x, x, 0)):
        with pytest.raises(ValueError, match='k must be'):
            precision_recall.precision_recall(real, fake, k=k)
    with pytest.raises(AssertionError):
        precision_recall.precision_recall(x, np.zeros((5, 3)))
