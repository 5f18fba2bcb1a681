"""Attribute arithmetic, where codes are known to hold class and brightness apart."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.families import attributes

CLASSES, EACH = 4, 40


def draw(codes, label=None):
    """Draw [N, 2, 4, 1]: above one lit pixel of the class, below a grey bar."""
    images = np.zeros((len(codes), 2, CLASSES, 1), np.uint8)
    images[:, 0, :, 0] = np.rint(100 * np.clip(codes[:, :CLASSES], 0, 1))
    images[:, 1] = np.rint(255 * np.clip(codes[:, CLASSES, None, None], 0, 1))
    return images


def classify(images):
    """Return which pixel is lit."""
    return np.argmax(images[:, 0, :, 0], axis=1)


@pytest.fixture(name='codes')
def make_codes() -> jax.Array:
    """Codes: the class as a vector, then the grey level."""
    label = np.repeat(np.arange(CLASSES), EACH)
    level = np.tile(np.r_[np.full(EACH // 2, 0.2), np.full(EACH // 2, 0.8)], CLASSES)
    codes = np.concatenate([np.eye(CLASSES)[label], level[:, None]], axis=1)
    return jnp.asarray(codes, jnp.float32)


def test_linear_codes_score_one(codes):
    """Catch a sign, a class or a threshold that is another's."""
    numbers, pictures = attributes.compare(codes, draw, classify, CLASSES)
    assert numbers == {
        'analogies': 10 * CLASSES * (CLASSES - 1),
        'analogy_attribute': 1.0, 'analogy_class': 1.0, 'analogy_both': 1.0,
        'control_attribute': 0.0, 'control_class': 1.0, 'control_both': 0.0,
    }
    (picture,) = pictures.values()
    assert picture.dtype == np.uint8 and picture.ndim == 3


def test_labels_that_the_generator_is_given_are_kept(codes):
    """Catch a class-conditional generator that is given other classes."""
    labels = np.repeat(np.arange(CLASSES), EACH)

    def conditional(codes, label):
        seen = np.concatenate([np.eye(CLASSES)[label], codes[:, CLASSES:]], axis=1)
        return draw(seen)

    numbers, _ = attributes.compare(codes, conditional, classify, CLASSES, labels)
    assert numbers['analogy_both'] == 1 and numbers['control_class'] == 1


def test_a_class_that_moves_with_brightness_is_seen(codes):
    """Catch a share of the class that cannot fall."""
    def entangled(codes, label):
        codes = np.asarray(codes)
        bright = codes[:, CLASSES:] > 0.5
        moved = np.concatenate([np.roll(codes[:, :-1], 1, 1), codes[:, -1:]], axis=1)
        return draw(np.where(bright, moved, codes))

    numbers, _ = attributes.compare(codes, entangled, classify, CLASSES)
    assert numbers['analogy_attribute'] == 1 and numbers['analogy_class'] < 0.5
    assert numbers['analogy_both'] == numbers['analogy_class']


def test_analogies_are_of_the_right_kinds(codes):
    """Catch rows of another class or brightness, and one exemplar taken twice."""
    is_bright = np.asarray(codes[:, CLASSES] > 0.5)
    labels = np.repeat(np.arange(CLASSES), EACH)
    a, b, c, label = attributes.draw_analogies(
        is_bright, labels, CLASSES, np.random.default_rng(1)
    )
    assert is_bright[a].all() and not is_bright[b].any() and not is_bright[c].any()
    assert (labels[a] == labels[b]).all() and (labels[a] == labels[a][:, :1]).all()
    assert (labels[c[:, 0]] == label).all() and (labels[a[:, 0]] != label).all()
    assert all(len(set(row)) == len(row) for rows in (a, b) for row in rows)


def test_without_two_whole_classes_there_is_nothing_to_compare(codes):
    """Catch a crash where a generator draws one class only."""
    assert attributes.compare(codes[:EACH], draw, classify, CLASSES) == (
        {'analogies': 0}, {}
    )
