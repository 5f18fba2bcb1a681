"""Which images are held out, whatever the reader."""

import numpy as np
import pytest

from gm_jax.data.splits import hold_out, number_labels, with_test
from gm_jax.errors import UserError


def test_the_draw_is_for_good():
    """Catch another shuffle, which would make numbers of two versions differ."""
    assert hold_out(np.full(60, -1), '')[1].tolist() == [20, 22, 29, 47, 55, 56]
    assert hold_out(np.arange(60) % 3, '')[1].tolist() == [4, 12, 42, 44, 46, 47]


@pytest.mark.parametrize('num', [2, 9, 10, 11, 19, 20, 200])
def test_a_tenth_of_all_without_labels(num):
    """Catch images in both parts or in none, and the last tenth for a draw."""
    train, test = hold_out(np.full(num, -1), '')
    assert len(test) == max(num // 10, 1)
    assert sorted([*train, *test]) == list(range(num))
    assert (np.diff(train) > 0).all() and (np.diff(test) > 0).all()
    if num == 200:
        assert test[0] < 50 and test[-1] > 150


@pytest.mark.parametrize('sizes', [
    [50, 50, 50], [100, 30, 7, 1], [5] * 20, [2] * 3, [1, 1, 2], [1000, 11],
])
def test_a_tenth_of_each_class(sizes):
    """Catch a file sorted by class whose last class alone is tested on."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    train, test = hold_out(labels, '')
    counts = np.bincount(labels[test], minlength=len(sizes))
    assert (np.abs(counts - np.array(sizes) / 10) < 1).all()
    assert set(labels[train]) == set(labels)
    assert len(test) == max(sum(n for n in sizes if n > 1) // 10, 1)
    # Shuffled, the images of a class are others, but as many.
    order = np.random.default_rng(0).permutation(len(labels))
    again = hold_out(labels[order], '')[1]
    assert np.bincount(labels[order][again], minlength=len(sizes)).tolist() == list(
        counts
    )


@pytest.mark.parametrize('labels', [[], [0], [0, 1, 2]])
def test_too_few_to_hold_one_out(labels):
    """Catch a set without training or without test images."""
    with pytest.raises(UserError, match=f'mine has {len(labels)} image.s.'):
        hold_out(np.array(labels, int), 'mine')


def test_own_splits_stay():
    """Catch a test split replaced by the validation split."""
    assert with_test({'train': 1, 'validation': 2}, '') == {'train': 1, 'test': 2}
    for splits in (
        {'train': 1}, {'train': 1, 'test': 3}, {'train': 1, 'validation': 2, 'test': 3}
    ):
        assert with_test(splits, '') == splits
    with pytest.raises(UserError, match='mine has no split "train", only test'):
        with_test({'test': 3}, 'mine')


def test_splits_share_the_numbers():
    """Catch labels that are numbered in each split anew."""
    labels = {'train': np.array(['b', 'a', 'd']), 'test': np.array(['d', 'b'])}
    names, numbers = number_labels(labels, '')
    assert names.tolist() == ['a', 'b', 'd']
    assert numbers['train'].tolist() == [1, 0, 2] and numbers['test'].tolist() == [2, 1]
