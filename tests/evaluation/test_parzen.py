"""Parzen windows against densities that are known."""

import numpy as np
import pytest
from scipy import stats

from gm_jax.evaluation import neighbours, parzen


def test_integrates_to_one():
    """Catch a norm without its root, or a sum for the mean over samples."""
    samples = np.array([[-1.0], [0.5], [0.6], [3.0]])
    x = np.linspace(-8, 10, 4001)[:, None]
    density = np.exp(parzen.log_prob(x, samples, 0.3))
    np.testing.assert_allclose(np.trapezoid(density, x[:, 0]), 1, rtol=1e-9)


def test_one_sample_gives_its_gaussian():
    """Catch a norm for one dimension where there are five."""
    rng = np.random.default_rng(0)
    x, sample = rng.normal(size=(7, 5)), rng.normal(size=(1, 5))
    gaussian = stats.multivariate_normal(sample[0], 0.4**2 * np.eye(5))
    actual = parzen.log_prob(x, sample, 0.4)
    np.testing.assert_allclose(actual, gaussian.logpdf(x), rtol=1e-13)
    assert actual.shape == (7,)


@pytest.mark.parametrize('block', [1, 50, 2**22])
def test_equals_the_mean_of_gaussians(block, monkeypatch):
    """Catch a block that is written to the wrong rows."""
    monkeypatch.setattr(neighbours, '_BLOCK', block)
    rng = np.random.default_rng(1)
    x, samples = rng.normal(size=(9, 2)), rng.normal(size=(20, 2))
    density = np.mean([
        stats.multivariate_normal(sample, 0.25).pdf(x) for sample in samples
    ], axis=0)
    actual = parzen.log_prob(x, samples, 0.5)
    np.testing.assert_allclose(actual, np.log(density), rtol=1e-12)


def test_far_examples_stay_finite():
    """Catch log(mean(exp)), which is -inf a few sigma away, and sums in float32."""
    x = np.full((1, 784), 1.0, np.float32)
    actual = parzen.log_prob(x, np.zeros((3, 784), np.float32), 0.1)
    expected = -784 * (0.5 / 0.1**2 + np.log(2 * np.pi) / 2 + np.log(0.1))
    np.testing.assert_allclose(actual, expected, rtol=1e-13)


def test_sigma_of_data_about_their_samples():
    """Catch the worst sigma, or the first: the data are N(s, 0.2^2) about samples s."""
    rng = np.random.default_rng(2)
    samples = rng.uniform(0, 10, size=(50, 4))
    validation = samples[rng.integers(50, size=400)] + rng.normal(0, 0.2, (400, 4))
    sigmas = np.linspace(0.1, 0.5, 17)
    sigma = parzen.choose_sigma(validation, samples, sigmas)
    assert sigma in sigmas and abs(sigma - 0.2) <= 0.025
    means = [np.mean(parzen.log_prob(validation, samples, s)) for s in sigmas]
    assert sigma == sigmas[np.argmax(means)]
    default = parzen.choose_sigma(validation, samples)
    np.testing.assert_allclose(default, 10 ** (-1 + 1 / 3))  # 0.215, nearest to 0.2.


def test_refusals():
    """Catch a variance of nothing, and a mean over no example, which is NaN."""
    x = np.zeros((3, 2))
    for sigma in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match='sigma'):
            parzen.log_prob(x, x, sigma)
    for validation, sigmas in ((x[:0], [1.0]), (x, [])):
        with pytest.raises(ValueError, match='compared'):
            parzen.choose_sigma(validation, x, sigmas)
    with pytest.raises(ValueError, match='nothing'):
        parzen.log_prob(x, x[:0], 1.0)
    with pytest.raises(AssertionError):
        parzen.log_prob(x, np.zeros((3, 1)), 1.0)
    with pytest.raises(ValueError, match='2 training images'):
        parzen.compare(x, x, x[:1])


def test_centroids_score_above_the_data():
    """Catch a comparison that hides what the score prefers, or mixes up its rows."""
    rng = np.random.default_rng(3)
    centres = rng.integers(0, 2, (5, 30))

    def draw(num):
        x = centres[rng.integers(5, size=num)]
        return np.where(rng.random(x.shape) < 0.1, 1 - x, x).astype(float)

    train, test = draw(500), draw(200)
    scores = parzen.compare(test, draw(40), train)
    assert scores['num_samples'] == scores['num_training_images'] == 40
    assert scores['k_means'] > scores['training_images'] + 1
    # Samples of the distribution itself score as the training images do.
    assert abs(scores['samples'] - scores['training_images']) < 1
    copies = parzen.compare(test, train[100:], train)
    assert copies['samples'] == copies['training_images']
    assert copies['num_k_means'] == 200
