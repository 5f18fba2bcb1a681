"""A validation split that is held out of the training images."""

import numpy as np
import pytest

from experiments import nade
from gm_jax.data import sources
from gm_jax.errors import UserError


def rows(examples) -> np.ndarray:
    """Return [N, H * W * C + 1] images and labels."""
    found = examples.fetch(np.arange(len(examples)))
    return np.column_stack([found['image'].reshape(len(examples), -1), found['label']])


def test_a_tenth_is_held_out():
    """Catch an image on which a model is both trained and chosen."""
    whole = sources.load('digits', binarize='static').splits
    found = sources.load('digits', binarize='static', validation=True).splits
    train, held = rows(found['train']), rows(found['validation'])
    assert (len(train), len(held)) == (1350, 150)
    # The static draw of an image is the one that it has without a validation split.
    together = np.concatenate([train, held])
    np.testing.assert_array_equal(
        np.unique(together, axis=0, return_counts=True)[1],
        np.unique(rows(whole['train']), axis=0, return_counts=True)[1],
    )
    np.testing.assert_array_equal(
        np.unique(together, axis=0), np.unique(rows(whole['train']), axis=0)
    )
    np.testing.assert_array_equal(rows(found['test']), rows(whole['test']))
    shares = np.bincount(held[:, -1]) / np.bincount(rows(whole['train'])[:, -1])
    assert shares.min() > 0.09 and shares.max() < 0.11


def test_streamed():
    """Catch a row of the split taken for a row of the set."""
    kept = sources.load('digits', validation=True).splits
    unlabelled = sources.load('digits', validation=True, memory_limit=0).splits
    assert len(unlabelled['validation']) == len(kept['validation'])
    both = np.concatenate([rows(unlabelled[x]) for x in ('train', 'validation')])
    whole = rows(sources.load('digits').splits['train'])
    np.testing.assert_array_equal(
        both[np.lexsort(both.T)], whole[np.lexsort(whole.T)]
    )


def test_a_set_that_has_one(tmp_path):
    """Catch a split that disappears."""
    images = np.zeros((4, 2, 2), np.uint8)
    path = tmp_path / 'mine.npz'
    np.savez(path, train=images, validation=images, test=images)
    with pytest.raises(UserError, match='has a validation split of its own'):
        sources.load(f'npz:{path}', validation=True)


def test_a_run_chooses_by_it(tmp_path):
    """Catch a run that chooses its best checkpoint by the test images."""
    flags = [
        f'--workdir={tmp_path}', '--hidden=2', '--num_steps=2', '--eval_every=1',
        '--num_samples=1', '--batch_size=8',
    ]
    nade.main([*flags, '--validation'])
    results = (tmp_path / 'results.json').read_text()
    assert '"best_checkpoint_chosen_on": "validation"' in results
