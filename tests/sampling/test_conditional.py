"""What a network is given of an image is what it says, and nothing more."""

import numpy as np
import pytest

from gm_jax.sampling import conditional

RNG = np.random.default_rng(0)


@pytest.mark.parametrize('region, first, last, size', [
    ('bottom', (3, 0), (5, 4), 15), ('top', (0, 0), (2, 4), 15),
    ('left', (0, 0), (5, 1), 12), ('right', (0, 2), (5, 4), 18),
    ('center', (2, 1), (3, 3), 6),
])
def test_regions(region, first, last, size):
    """Catch rows that are taken for columns, and a center that is none."""
    missing = conditional.missing_region((6, 5, 1), region)
    places = np.argwhere(missing)
    assert len(places) == size
    np.testing.assert_array_equal([places[0], places[-1]], [first, last])


def test_completion_hides_what_is_missing():
    """Catch a value that leaks, and a given value that looks like a missing one."""
    x = RNG.integers(0, 4, (2, 4, 4, 3))
    missing = conditional.missing_region((4, 4, 3), 'left')
    other = np.where(missing[..., None], 3 - x, x)
    given = np.asarray(conditional.completion(x, missing, num_values=4))
    np.testing.assert_array_equal(
        given, conditional.completion(other, missing, num_values=4)
    )
    np.testing.assert_allclose(given[:, :, 2:, :3], 2 * x[:, :, 2:] / 3 - 1, rtol=1e-6)
    np.testing.assert_array_equal(given[..., 3], np.broadcast_to(~missing, (2, 4, 4)))


def test_a_mask_of_numbers_is_refused():
    """Catch 1 and 0 whose complement are -2 and -1."""
    missing = conditional.missing_region((4, 4, 3), 'left').astype(int)
    with pytest.raises(AssertionError, match='bool'):
        conditional.completion(np.zeros((2, 4, 4, 3), int), missing, num_values=4)


def test_colorization_gives_the_brightness():
    """Catch weights that do not add up to one: grey stays what it is."""
    grey = np.repeat(np.arange(256).reshape(1, 16, 16, 1), 3, axis=3)
    given = np.asarray(conditional.colorization(grey, num_values=256))
    np.testing.assert_allclose(given, 2 * grey[..., :1] / 255 - 1, atol=1e-6)
    x = np.array([[[[255, 0, 0], [0, 255, 0], [0, 0, 255]]]])
    given = np.asarray(conditional.colorization(x, num_values=256)).ravel()
    np.testing.assert_allclose((given + 1) / 2 * 255, [76, 150, 29], atol=1e-4)


def test_super_resolution_gives_the_means():
    """Catch blocks that straddle, and an image that is given whole."""
    x = RNG.integers(0, 256, (2, 4, 6, 3))
    given = np.asarray(conditional.super_resolution(x, 2, num_values=256))
    for r in range(0, 4, 2):
        for w in range(0, 6, 2):
            mean = np.round(x[:, r:r + 2, w:w + 2].mean((1, 2)).astype(np.float32))
            block = given[:, r:r + 2, w:w + 2]
            expected = np.broadcast_to(2 * mean[:, None, None] / 255 - 1, block.shape)
            np.testing.assert_allclose(block, expected, atol=1e-6)
    with pytest.raises(AssertionError):
        conditional.super_resolution(x, 4, num_values=256)
