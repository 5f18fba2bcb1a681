"""The choice of labelled examples, and the linear classifier on features."""

import numpy as np
import pytest

from gm_jax.evaluation import probe


def _labels():
    return np.repeat(np.arange(3, dtype=np.int32), [60, 20, 10])


@pytest.mark.parametrize('num', [1, 9, 29])
def test_balanced_rows_have_every_class_as_often(num):
    """Catch a plain random choice, a repeated row, or a class that gets fewer."""
    rows = probe.balanced_rows(_labels(), num, seed=0)
    assert len(set(rows.tolist())) == num
    counts = np.bincount(_labels()[rows], minlength=3)
    assert np.ptp(counts) <= 1


def test_balanced_rows_take_what_a_rare_class_has():
    """Catch fewer rows than asked for, where a class runs out."""
    labels = np.array([0] * 50 + [1] * 2 + [2] * 20, np.int32)
    rows = probe.balanced_rows(labels, 32, seed=0)
    assert np.bincount(labels[rows]).tolist() == [15, 2, 15]


def test_balanced_rows_are_nested_and_depend_on_the_seed_alone():
    """Catch a larger choice without the smaller one, or one of the first rows."""
    few, many = (probe.balanced_rows(_labels(), num, seed=1) for num in (9, 30))
    assert set(few) < set(many)
    assert np.array_equal(few, probe.balanced_rows(_labels(), 9, seed=1))
    assert set(few) != set(probe.balanced_rows(_labels(), 9, seed=2))


@pytest.mark.parametrize('num', [0, 91])
def test_balanced_rows_refuse_impossible_numbers(num):
    """Catch a choice silently cut short."""
    with pytest.raises(ValueError, match='90'):
        probe.balanced_rows(_labels(), num, seed=0)


def test_linear_accuracy_finds_what_is_linear():
    """Catch test labels used for fitting, or accuracy on what it was fitted to."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [9, 0], [0, 9]])
    labels, test_labels = rng.integers(0, 3, 60), rng.integers(0, 3, 400)
    z = centres[labels] + rng.normal(size=(60, 2))
    test_z = centres[test_labels] + rng.normal(size=(400, 2))
    assert probe.linear_accuracy(z, labels, test_z, test_labels) == 1.0
    # Five standard deviations about chance, for features without information.
    noise = rng.normal(size=(400, 2))
    chance = probe.linear_accuracy(rng.normal(size=(60, 2)), labels, noise, test_labels)
    assert abs(chance - 1 / 3) < 5 * np.sqrt(2 / 9 / 400)


def test_linear_accuracy_ignores_the_units_of_the_features():
    """Catch regularisation that a code with small numbers pays more for."""
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 2, 100)
    z = labels[:, None] + rng.normal(size=(100, 3))
    args = z[:50], labels[:50], z[50:], labels[50:]
    scaled = 1e-3 * z[:50] + 7, labels[:50], 1e-3 * z[50:] + 7, labels[50:]
    assert probe.linear_accuracy(*args) == probe.linear_accuracy(*scaled) > 0.6


def test_linear_accuracy_refuses_labels_of_other_examples():
    """Catch one label broadcast over all examples."""
    with pytest.raises(AssertionError):
        probe.linear_accuracy(
            np.zeros((4, 2)), np.zeros(1, int), np.zeros((4, 2)), np.zeros(4, int)
        )
