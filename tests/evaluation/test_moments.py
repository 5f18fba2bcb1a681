"""Moments in batches, against those of all vectors at once."""

import numpy as np
import pytest

from gm_jax.evaluation import moments


def _in_batches(features, sizes):
    total = moments.empty(features.shape[1])
    for batch in np.split(features, np.cumsum(sizes)[:-1]):
        total = moments.update(total, batch)
    return total


def _assert_close(actual, expected):
    """Within 1e-12 of the largest entry."""
    atol = 1e-12 * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def _features(dtype, offset):
    rng = np.random.default_rng(0)
    mixed = rng.normal(size=(500, 5)) @ rng.normal(size=(5, 5))
    return (offset + 3 * mixed).astype(dtype)


@pytest.mark.parametrize('sizes', [[500], [1, 499], [499, 1], [20] * 25])
@pytest.mark.parametrize(
    'dtype, offset', [(np.float64, 0), (np.float32, 1e6), (np.float16, 100)]
)
def test_equal_numpy_s_of_all_vectors(dtype, offset, sizes):
    """Sums of squares or float32, which lose all digits; a merge without its mean."""
    features = _features(dtype, offset)
    total = _in_batches(features, sizes)
    exact = features.astype(np.float64)
    assert total.count == 500
    assert total.mean.dtype == total.scatter.dtype == np.float64
    _assert_close(total.mean, np.mean(exact, axis=0))
    _assert_close(moments.covariance(total), np.cov(exact, rowvar=False))


def test_the_order_does_not_matter():
    """A decaying average, or weights that forget how many came before."""
    features = _features(np.float64, 10)
    ones = _in_batches(features, [1] * 500)
    forth = _in_batches(features, [7, 93, 400])
    back = _in_batches(features[::-1], [250, 249, 1])
    for other in (back, ones):
        _assert_close(other.mean, forth.mean)
        _assert_close(other.scatter, forth.scatter)


def test_update_returns_new_moments():
    """An update in place, which changes moments that a caller kept."""
    features = _features(np.float64, 0)
    first = _in_batches(features, [500])
    kept = first.mean.copy(), first.scatter.copy(), features.copy()
    moments.update(first, features)
    for before, after in zip(kept, (first.mean, first.scatter, features)):
        np.testing.assert_array_equal(before, after)


def test_an_empty_batch_changes_nothing():
    """NaN from the mean of no vectors."""
    total = moments.update(moments.empty(3), np.zeros((0, 3)))
    assert total.count == 0 and not total.mean.any() and not total.scatter.any()


def test_refusals():
    """A covariance of one vector, and one vector [D] taken for D vectors."""
    one = moments.update(moments.empty(2), np.ones((1, 2)))
    with pytest.raises(ValueError, match='two vectors'):
        moments.covariance(one)
    for shape in ((2,), (4, 1), (1, 4, 2)):
        with pytest.raises(AssertionError):
            moments.update(one, np.ones(shape))
    with pytest.raises(ValueError, match='dim'):
        moments.empty(0)
