"""Mode coverage of samples whose modes are chosen by hand."""

import numpy as np
import pytest

from gm_jax.evaluation import modes

CENTRES = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])


def test_perfect_samples():
    """Catch coverage that misses a mode, or high quality by one coordinate.

    In two dimensions a share of exp(-3^2 / 2) lies more than 3 std away.
    """
    rng = np.random.default_rng(0)
    samples = np.repeat(CENTRES, 5000, axis=0) + rng.normal(0, 0.5, size=(20000, 2))
    scores = modes.mode_coverage(samples, CENTRES, 0.5)
    expected = 1 - np.exp(-4.5)
    error = np.sqrt(expected * (1 - expected) / 20000)
    assert scores['modes_covered'] == 4
    assert abs(scores['high_quality_share'] - expected) < 4 * error
    assert 0 <= scores['modes_kl_nats'] < 1e-4


def test_collapse_on_one_mode():
    """Catch a divergence over the modes that are covered alone: it would be 0."""
    samples = np.tile(CENTRES[2], (7, 1))
    scores = modes.mode_coverage(samples, CENTRES, 0.5)
    assert scores['modes_covered'] == 1 and scores['high_quality_share'] == 1
    np.testing.assert_allclose(scores['modes_kl_nats'], np.log(4), rtol=1e-14)


def test_all_samples_far_away():
    """Catch a mean of no sample, or a perfect score for one."""
    scores = modes.mode_coverage(CENTRES + 4, CENTRES, 0.5)
    assert scores == {
        'modes_covered': 0, 'high_quality_share': 0, 'modes_kl_nats': np.inf,
    }


def test_only_samples_of_high_quality_count():
    """Catch a mode covered by a sample far from it, or shares of all samples.

    Samples 3 std away count, those 3.1 away do not: 6 of 8, shares 4/6, 2/6 and 0.
    """
    samples = CENTRES[[0, 0, 0, 0, 1, 1, 2, 3]].copy()
    samples[:6, 1] += 1.5
    samples[6:, 1] += 1.55
    scores = modes.mode_coverage(samples, CENTRES, 0.5)
    assert scores['modes_covered'] == 2 and scores['high_quality_share'] == 6 / 8
    expected = 4 / 6 * np.log(4 * 4 / 6) + 2 / 6 * np.log(4 * 2 / 6)
    np.testing.assert_allclose(scores['modes_kl_nats'], expected, rtol=1e-14)
    wider = modes.mode_coverage(samples, CENTRES, 0.5, within=3.2)
    assert wider['modes_covered'] == 4 and wider['high_quality_share'] == 1


def test_a_sample_belongs_to_one_mode():
    """Catch balls that overlap: a sample in both counts for the nearer alone."""
    centres = np.array([[0.0], [1.0]])
    scores = modes.mode_coverage(np.array([[0.4]]), centres, 1.0)
    assert scores['modes_covered'] == 1
    np.testing.assert_allclose(scores['modes_kl_nats'], np.log(2), rtol=1e-14)


def test_refusals():
    """Catch a share of no samples, and centres for other samples."""
    for samples, std, within in (
        (CENTRES[:0], 1.0, 3.0), (CENTRES, 0.0, 3.0), (CENTRES, 1.0, -1.0),
    ):
        with pytest.raises(ValueError, match='above 0'):
            modes.mode_coverage(samples, CENTRES, std, within=within)
    with pytest.raises(AssertionError):
        modes.mode_coverage(CENTRES, CENTRES[:, :1], 1.0)
    with pytest.raises(ValueError, match='finite'):
        modes.mode_coverage(CENTRES * np.nan, CENTRES, 1.0)
