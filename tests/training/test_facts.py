"""A run knows its images again: by their content, wherever they lie."""

import shutil

import numpy as np
import pytest

from experiments import vae
from gm_jax.data import splits
from tests.training import tiny

IMAGES = np.random.default_rng(0).integers(0, 2, (30, 4, 4, 1), dtype=np.uint8)
FLAGS = ('--num_steps=1', '--hidden=4', '--latent_dims=2', '--batch_size=8',
         '--test_samples=1')


@pytest.fixture(name='finished', scope='module')
def make_finished(tmp_path_factory):
    """Return the directory of a run, and the file of its images."""
    directory = tmp_path_factory.mktemp('facts')
    data, workdir = directory / 'data.npz', directory / 'run'
    np.savez(data, images=IMAGES)
    assert vae.main([f'--workdir={workdir}', f'--dataset=npz:{data}', *FLAGS]) == 0
    return workdir, data


TRAIN, TEST = splits.hold_out(np.full(30, -1), 'here')


def _flip(row):
    return np.where(np.arange(30)[:, None, None, None] == row, 1 - IMAGES, IMAGES)


@pytest.mark.parametrize('images, sentence', [
    (IMAGES[:, :3], 'its image_shape was (4, 4, 1) and is now (3, 4, 1)'),
    (np.concatenate([IMAGES, IMAGES[:10]]), 'test split had 3 images and now has 4'),
    (IMAGES[:20], 'test split had 3 images and now has 2'),
    (_flip(TRAIN[3]), 'the images or labels of its train split are others'),
    (_flip(TEST[2]), 'the images or labels of its test split are others'),
])
def test_other_images_are_refused(images, sentence, finished, tmp_path, capfd):
    """Catch a run that resumes with images, or is evaluated on some, not its own."""
    workdir = finished[0]
    np.savez(tmp_path / 'data.npz', images=images.astype(np.uint8))
    files = [path for path in workdir.rglob('*') if path.is_file()]
    before = {path: path.read_bytes() for path in files}
    flags = [f'--workdir={workdir}', f'--dataset=npz:{tmp_path}/data.npz', *FLAGS]
    for mode in ('train', 'eval'):
        assert vae.main([*flags, f'--mode={mode}']) == 2
        error = capfd.readouterr().err
        assert sentence in error and error.count('\n') == 1
    assert {path: path.read_bytes() for path in files} == before


def test_the_same_images_may_move(finished, tmp_path):
    """Catch a run that knows its images by their path."""
    workdir, data = tmp_path / 'run', tmp_path / 'moved.npz'
    shutil.copytree(finished[0], workdir)
    shutil.copy(finished[1], data)
    flags = [f'--workdir={workdir}', f'--dataset=npz:{data}', *FLAGS]
    assert vae.main(flags) == 0
    assert vae.main([*flags, '--mode=eval']) == 0
    before = tiny.results(finished[0])
    after = tiny.results(workdir, 'results_eval_step=1.json')
    assert after['metrics'] == before['metrics']
    assert after['dataset'] == f'npz:{data}'
