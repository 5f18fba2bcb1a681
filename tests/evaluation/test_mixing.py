"""Mixing of chains whose speed is known."""

import numpy as np
import pytest

from gm_jax.evaluation import mixing


def test_two_states():
    """Catch eigenvectors of the wrong side, or the first eigenvalue for the second."""
    T = np.array([[0.9, 0.1], [0.3, 0.7]])
    np.testing.assert_allclose(mixing.stationary(T), [0.75, 0.25], rtol=1e-12)
    assert mixing.spectral_gap(T) == pytest.approx(0.4)
    # It alternates, and so never forgets.
    assert mixing.spectral_gap(np.eye(2)[::-1]) == pytest.approx(0)
    with pytest.raises(ValueError, match='sum to 1'):
        mixing.stationary(T.T)
    for wrong in (T[:1], np.ones((1, 1))):
        with pytest.raises(AssertionError):
            mixing.spectral_gap(wrong)


def test_labels():
    """Catch changes per step of the whole array, or across chains."""
    labels = np.array([[1, 1, 1, 1, 1], [2, 3, 2, 2, 4]])
    assert mixing.label_scores(labels) == {
        'label_changes_per_100_steps': 37.5, 'distinct_labels': 2.0,
    }


def test_autocorrelation_of_a_known_process():
    """Catch a lag that is off by one: x_t+1 = a x_t + noise has a^k at lag k."""
    rng, a = np.random.default_rng(0), 0.8
    x = np.empty((200, 300, 2))
    x[:, 0] = rng.normal(size=(200, 2))
    for t in range(1, 300):
        noise = rng.normal(size=(200, 2)) * np.sqrt(1 - a * a)
        x[:, t] = a * x[:, t - 1] + noise
    rho = mixing.autocorrelation(5 + x, (0, 1, 2, 10, 100))
    np.testing.assert_allclose(rho, [1, a, a**2, a**10, 0], atol=0.02)


def test_chains_that_do_not_mix():
    """Catch means of each chain, under which a stuck chain looks perfect."""
    stuck = np.broadcast_to(np.arange(4.0)[:, None, None], (4, 9, 1))
    noisy = stuck + 0.01 * np.random.default_rng(0).normal(size=stuck.shape)
    np.testing.assert_allclose(mixing.autocorrelation(noisy, (1, 8)), 1, atol=0.01)
    np.testing.assert_array_equal(mixing.autocorrelation(0 * stuck, (1, 8)), 1)
    with pytest.raises(ValueError, match='lags'):
        mixing.autocorrelation(stuck, (9,))
    with pytest.raises(AssertionError):
        mixing.autocorrelation(stuck[0], (1,))
