"""A validation split that is held out of the training images."""

import numpy as np
import pytest
from PIL import Image

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
    for how in ('none', 'threshold', 'static'):
        held = sources.load('digits', validation=True, binarize=how)
        streamed = sources.load(
            'digits', validation=True, binarize=how, memory_limit=0
        )
        for name, split in held.splits.items():
            np.testing.assert_array_equal(rows(split), rows(streamed.splits[name]))


def test_pictures_that_are_streamed(tmp_path):
    """Catch a class without a training image, and a draw that memory decides."""
    for number in range(30):
        for name in ('a', 'b'):
            path = tmp_path / f'{number:02}' / f'{name}.png'
            path.parent.mkdir(exist_ok=True)
            pixels = np.full((2, 2), 2 * number + (name == 'b'), np.uint8)
            Image.fromarray(pixels).save(path)
    whole = {
        limit: sources.load(f'images:{tmp_path}', validation=True, memory_limit=limit)
        for limit in (0, 2**30)
    }
    for name in ('train', 'validation', 'test'):
        one, other = (rows(data.splits[name]) for data in whole.values())
        np.testing.assert_array_equal(one, other)
    assert set(rows(whole[0].splits['train'])[:, -1]) == set(range(30))


def test_too_few(tmp_path):
    """Catch a count of other images than those of the training split."""
    images = np.zeros((3, 2, 2), np.uint8)
    path = tmp_path / 'mine.npz'
    np.savez(path, train=images[:1], test=images)
    with pytest.raises(UserError, match='the training split of npz.* has 1 image'):
        sources.load(f'npz:{path}', validation=True)


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
