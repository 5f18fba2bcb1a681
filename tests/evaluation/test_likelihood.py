"""What is reported of a likelihood."""

import math

import numpy as np
import pytest

from gm_jax.evaluation import likelihood


def test_chunks_are_averaged():
    """Catch a sum of weights, and weights that underflow far from 1."""
    log_w = np.log([[1.0, 2.0, 6.0], [0.5, 0.5, 0.5]])
    expected = np.log([3.0, 0.5])
    np.testing.assert_allclose(likelihood.combine(log_w), expected, rtol=1e-14)
    far = likelihood.combine(log_w - 5000)
    np.testing.assert_allclose(far, expected - 5000, rtol=1e-14)
    with pytest.raises(AssertionError, match='rank'):
        likelihood.combine(log_w[0])
    with pytest.raises(AssertionError, match='rank'):
        likelihood.report(log_w, 4, 'exact')


def test_one_image_has_no_error():
    """Catch a number of one image that is reported as certain."""
    found = likelihood.report(np.array([-10.0]), num_dims=8, estimator='exact')
    assert found['nats_per_image'] == 10.0 and np.isnan(found['nats_standard_error'])


def test_report_in_both_units():
    """Catch another D, bits for nats, and an error without its root of N."""
    found = likelihood.report(np.array([-10.0, -14.0]), num_dims=8, estimator='elbo')
    assert found == {
        'nats_per_image': 12.0,
        'nats_standard_error': pytest.approx(math.sqrt(8) / math.sqrt(2)),
        'bits_per_dim': pytest.approx(12 / (8 * math.log(2))),
        'estimator': 'elbo',
    }
