"""The three ways to make pixels 0 or 1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.data import binarize
from gm_jax.data.image_set import ArrayExamples, StreamedExamples

NUM_VALUES = 17


def make_examples(images: np.ndarray) -> ArrayExamples:
    """Return a set of images without labels."""
    return ArrayExamples(images.astype(np.uint8), np.full(len(images), -1, np.int32))


def repeated(num: int) -> np.ndarray:
    """[num, 1, V, 1]: each image has every value once."""
    return np.tile(np.arange(NUM_VALUES, dtype=np.uint8), (num, 1))[:, None, :, None]


def assert_bernoulli(draws: np.ndarray) -> None:
    """Each column of [N, V] has mean x / (V - 1), within 4.5 standard errors."""
    p = np.arange(NUM_VALUES) / (NUM_VALUES - 1)
    errors = np.abs(draws.mean(0) - p)
    assert (errors <= 4.5 * np.sqrt(p * (1 - p) / len(draws))).all()
    assert set(np.unique(draws)) == {0, 1}


def draw_dynamic(rngs: jax.Array, image: np.ndarray) -> np.ndarray:
    """Jitted, and of one shape in all tests: one compilation."""
    draw = jax.jit(binarize.binarize_dynamic, static_argnums=2)
    return np.asarray(draw(rngs, jnp.asarray(image), NUM_VALUES))


def test_a_binarized_stream_is_known_by_its_files():
    """Catch a set whose files were exchanged, and that resumes as if they were not."""
    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        return make_examples(repeated(2)).fetch(indices)

    stream = StreamedExamples(2, fetch, 'names and sizes')
    assert binarize.threshold(stream, NUM_VALUES).files == 'names and sizes'
    assert binarize.static(stream, NUM_VALUES, 'train').files == 'names and sizes'
    assert not binarize.threshold(make_examples(repeated(2)), NUM_VALUES).files


def test_dynamic_draws_the_right_probabilities():
    """Catch x / V for x / (V - 1): the extremes must be certain."""
    draws = draw_dynamic(jax.random.split(jax.random.key(0), 4000), repeated(4000))
    assert draws.dtype == np.int32 and draws.shape == (4000, 1, NUM_VALUES, 1)
    assert_bernoulli(draws[:, 0, :, 0])


def test_dynamic_depends_on_the_example_s_key_alone():
    """Catch noise that moves with the place in the batch or is shared by it."""
    rngs = jax.random.split(jax.random.key(0), 4000)
    image = np.full((4000, 1, NUM_VALUES, 1), 8, np.uint8)
    whole, order = draw_dynamic(rngs, image), np.random.default_rng(0).permutation(4000)
    np.testing.assert_array_equal(whole[order], draw_dynamic(rngs[order], image))
    # 2^17 outcomes: some 60 of 4000 fair draws meet another one by chance.
    assert len({row.tobytes() for row in whole}) > 3800


@pytest.mark.parametrize('shape', [(6, 4, 4), (5, 4, 4, 1), (1, 4, 4, 1)])
def test_dynamic_rejects_wrong_shapes(shape):
    """Catch one key broadcast over images, or images without channels."""
    rngs = jax.random.split(jax.random.key(1), 6)
    with pytest.raises(AssertionError):
        binarize.binarize_dynamic(rngs, jnp.zeros(shape, jnp.uint8), 17)


@pytest.mark.parametrize('num_values', [17, 256])
def test_threshold_is_at_half(num_values):
    """Catch > for >=, and half of an odd V rounded down."""
    values = np.arange(num_values).reshape(1, 1, -1, 1)
    batch = binarize.threshold(make_examples(values), num_values).fetch(np.arange(1))
    expected = (values >= num_values / 2).astype(np.uint8)
    np.testing.assert_array_equal(batch['image'], expected)
    assert batch['image'].dtype == np.uint8


def test_static_draws_the_right_probabilities():
    """Catch x / V for x / (V - 1), and pixels or images that share a draw."""
    examples = binarize.static(make_examples(repeated(4000)), NUM_VALUES, 'train')
    draws = examples.fetch(np.arange(4000))['image'][:, 0, :, 0]
    assert_bernoulli(draws)
    half = draws[:, NUM_VALUES // 2].astype(float)
    neighbour = draws[:, NUM_VALUES // 2 - 1].astype(float)
    for left, right in ((half[1:], half[:-1]), (half, neighbour)):
        assert abs(np.corrcoef(left, right)[0, 1]) < 4.5 / np.sqrt(4000)


def test_static_images_share_no_draws():
    """Catch streams that overlap: one image's draws, shifted, in the next one."""
    data = make_examples(np.full((4000, 5, 5, 1), 8))
    examples = binarize.static(data, NUM_VALUES, 'train')
    draws = examples.fetch(np.arange(4000))['image'].reshape(4000, 25) - 0.5
    for shift in range(25):
        pairs = draws[:-1, shift:] * draws[1:, :25 - shift]
        assert abs(4 * pairs.mean()) < 5 / np.sqrt(pairs.size), shift


def test_static_depends_on_split_and_index_only():
    """Catch a draw that changes with the order or the size of reading."""
    data = make_examples(np.full((9, 5, 5, 1), 8))
    train = binarize.static(data, NUM_VALUES, 'train')
    whole = train.fetch(np.arange(9))['image']
    order = np.array([7, 2, 2, 0])
    np.testing.assert_array_equal(train.fetch(order)['image'], whole[order])
    test = binarize.static(data, NUM_VALUES, 'test').fetch(np.arange(9))['image']
    assert not np.array_equal(whole, test)
