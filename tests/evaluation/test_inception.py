"""Inception features: of weights at random, against PyTorch's own network."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gan
from gm_jax.errors import UserError
from gm_jax.evaluation import inception


@pytest.fixture(name='weights', scope='module')
def make_weights() -> dict[str, np.ndarray]:
    """Draw weights that keep the size of what passes through."""
    rng, weights = np.random.default_rng(0), {}
    for name, shape in inception.shapes().items():
        if name.endswith('conv.weight'):
            x = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
        elif name.endswith(('bn.weight', 'running_var')):
            x = rng.uniform(0.5, 1.5, shape)
        else:
            x = 0.2 * rng.standard_normal(shape)
        weights[name] = x.astype(np.float32)
    return weights


@pytest.fixture(name='path', scope='module')
def make_path(weights, tmp_path_factory) -> str:
    """Write a file of weights."""
    path = tmp_path_factory.mktemp('inception') / 'inception.npz'
    np.savez(path, sha256=inception.digest(weights), **weights)
    return str(path)


@pytest.fixture(name='images', scope='module')
def make_images() -> np.ndarray:
    """Draw two colour images."""
    return np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)


def test_features_are_those_of_pytorch(weights, images):
    """Catch a branch, a stride, a padding or a pool that is another's.

    The numbers are torchvision 0.29's Inception3 in float64 with these weights, its
    averages without the padding and its last block pooled by the maximum.
    """
    f = inception.features(weights, images, batch=2)
    assert f.shape == (2, inception.NUM_FEATURES) and f.min() >= 0
    # One of each branch of the last block.
    np.testing.assert_allclose(f[:, [0, 320, 1088, 1856, 2047]], [
        [2.29892051, 1.42601345, 0.45960609, 12.63843994, 0.0583818],
        [2.438284, 1.35072412, 0.46054309, 12.24535809, 0.03739068],
    ], rtol=1e-4)
    np.testing.assert_allclose(f.mean(axis=1), [6.12570585, 6.12960517], rtol=1e-5)
    # A batch that is filled up changes nothing; grey is three equal channels.
    grey = images[:, :, :, :1]
    np.testing.assert_allclose(
        inception.features(weights, grey[:1], batch=2)[0],
        inception.features(weights, grey.repeat(3, axis=3), batch=2)[0], rtol=1e-5,
    )


def test_means_leave_out_the_padding():
    """Catch an average that takes the zeros around the image for pixels."""
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    pooled = inception._mean_pool(x)[0, :, :, 0]
    np.testing.assert_allclose(pooled, [[2, 2.5, 3], [2, 2.5, 3]], rtol=1e-6)


def test_a_file_comes_back_and_damage_is_found(weights, path, tmp_path):
    """Catch a changed weight, a missing one, and one of another shape."""
    loaded = inception.load(path)
    jax.tree.map(np.testing.assert_array_equal, loaded, weights)
    name = 'Mixed_7c.branch_pool.bn.bias'
    sha256 = inception.digest(weights)
    broken = tmp_path / 'broken.npz'
    for value, sentence in [
        (np.nextafter(weights[name], np.float32(9)), 'damaged'),
        (weights[name][:-1], r'\(191,\), not as \(192,\)'), (None, 'as None'),
    ]:
        changed = {**weights, name: value}
        if value is None:
            del changed[name]
        np.savez(broken, sha256=sha256, **changed)
        with pytest.raises(UserError, match=sentence):
            inception.load(str(broken))


def test_the_score_is_called_by_its_name(path, tmp_path, monkeypatch):
    """Catch a score of these features under another name."""
    def mean_colours(weights, images):
        assert set(weights) == set(inception.shapes())
        return images.mean(axis=(1, 2), dtype=np.float32)

    # The network itself would take minutes for 1500 images.
    monkeypatch.setattr(inception, 'features', mean_colours)
    flags = (
        f'--workdir={tmp_path}', f'--inception={path}', '--num_steps=1', '--hidden=8',
        '--num_samples=8', '--score_samples=5', '--batch_size=8',
    )
    assert gan.main(list(flags)) == 0
    metrics = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert metrics['inception_frechet_distance'] > 0
    assert metrics['num_real'] == metrics['num_fake'] == 5
