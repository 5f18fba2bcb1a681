"""Mixtures of models."""

import numpy as np
import pytest
from scipy import special

from gm_jax.evaluation import mixture


def test_a_mixture_sums_to_one():
    """Catch weights that are taken for logarithms, and a sum over images."""
    log_px = special.log_softmax(np.random.default_rng(0).normal(size=(3, 16)), axis=1)
    found = mixture.log_prob(log_px, np.array([0.2, 0.0, 0.8]))
    assert found.shape == (16,)
    np.testing.assert_allclose(np.exp(found).sum(), 1, rtol=1e-14)
    np.testing.assert_allclose(
        np.exp(found), 0.2 * np.exp(log_px[0]) + 0.8 * np.exp(log_px[2]), rtol=1e-13
    )
    far = mixture.log_prob(log_px - 5000, np.array([0.2, 0.0, 0.8]))
    np.testing.assert_allclose(far, found - 5000, rtol=1e-14)


@pytest.mark.parametrize('weights', [(0.5, 0.6), (1.5, -0.5)])
def test_weights_are_shares(weights):
    """Catch a density that does not integrate to one."""
    with pytest.raises(ValueError, match='must be shares that sum to 1'):
        mixture.log_prob(np.zeros((2, 3)), np.array(weights))


@pytest.mark.parametrize('log_px', [
    np.zeros((2, 0)), np.array([[0, -np.inf], [0, -np.inf]]), np.array([[0, np.nan]]),
])
def test_impossible_images_have_no_weights(log_px):
    """Catch weights that are not numbers."""
    with pytest.raises(ValueError, match='under which it is possible'):
        mixture.fit(log_px)


def test_fitted_weights_are_the_best():
    """Catch an update that is not that of expectation maximisation."""
    # Where each image is possible under one model only, its share is the weight.
    log_px = np.full((3, 10), -np.inf)
    log_px[0, :6] = log_px[1, 6:9] = log_px[2, 9:] = -100
    np.testing.assert_allclose(mixture.fit(log_px), [0.6, 0.3, 0.1], rtol=1e-12)
    log_px = np.random.default_rng(0).normal(-90, 2, size=(2, 500)) + [[0.5], [0.0]]
    weights = mixture.fit(log_px)
    best = mixture.log_prob(log_px, weights).mean()
    for share in np.linspace(0, 1, 101):
        other = mixture.log_prob(log_px, np.array([share, 1 - share])).mean()
        assert other <= best + 1e-9
    assert 0.5 < weights[0] < 0.8
