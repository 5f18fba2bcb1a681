"""The classifier, and its features in the hands of another experiment."""

import json

import numpy as np
import pytest

from experiments import adversarial_autoencoder, classifier, gan
from gm_jax import loading
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.families.classifier import load

TINY = (
    '--batch_size=64', '--maps=8,16', '--num_features=32', '--log_every=50',
    '--learning_rate=5e-3', '--dropout=0.2',
)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> str:
    """Return the work directory of a classifier of digits."""
    workdir = str(tmp_path_factory.mktemp('classifier'))
    flags = (f'--workdir={workdir}', '--num_steps=150', '--eval_every=75', *TINY)
    assert classifier.main(list(flags)) == 0
    return workdir


def test_it_learns_and_its_features_tell_digits_apart(trained, tmp_path):
    """Catch features of an untrained network, or of images scaled otherwise."""
    with open(f'{trained}/results.json', encoding='utf-8') as file:
        assert json.load(file)['metrics']['accuracy'] > 0.9
    data = sources.load('digits')
    features, classify, digest = load(trained, data)
    test = data.splits['test']
    images = np.rint(test.images * (255 / (data.num_values - 1))).astype(np.uint8)
    f = features(images)
    assert f.shape == (len(test), 32) and f.min() >= 0
    loading.export(trained, tmp_path / 'model')
    exported, _, same = load(str(tmp_path / 'model'), data)
    assert digest == same and len(digest) == 8
    np.testing.assert_array_equal(exported(images), f)
    np.testing.assert_allclose(features(images[:7]), f[:7], rtol=1e-4, atol=1e-5)
    assert np.mean(classify(images) == test.labels) > 0.9
    # The mean of each class in one half finds the classes of the other.
    half = len(f) // 2
    means = np.stack([f[:half][test.labels[:half] == k].mean(0) for k in range(10)])
    nearest = np.argmin(((f[half:, None] - means) ** 2).sum(-1), axis=1)
    assert np.mean(nearest == test.labels[half:]) > 0.85


def test_the_score_is_called_by_its_name(trained, tmp_path):
    """Catch a score that could be taken for another network's."""
    flags = (
        f'--workdir={tmp_path}', f'--classifier={trained}', '--num_steps=2',
        '--hidden=8', '--num_samples=8', '--score_samples=40', '--batch_size=8',
    )
    assert gan.main(list(flags)) == 0
    metrics = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert metrics['classifier_frechet_distance'] > 0
    assert not any('fid' in name.lower() or 'pixel' in name for name in metrics)
    # Two steps from the start all samples look alike, so that classes may be missing.
    assert ('analogy_both' in metrics) == (metrics['analogies'] > 0)


def test_arithmetic_on_the_codes_of_images(trained, tmp_path):
    """Catch codes that are not those of the images, or that lose the category."""
    flags = (
        f'--workdir={tmp_path}', f'--classifier={trained}', '--num_steps=400',
        '--hidden=64', '--num_labels=400', '--log_every=100', '--eval_every=400',
        '--learning_rate=3e-3',
    )
    assert adversarial_autoencoder.main(list(flags)) == 0
    metrics = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert metrics['analogies'] >= 200
    assert metrics['analogy_attribute'] > metrics['control_attribute'] + 0.2
    assert metrics['analogy_class'] > 0.7
    assert (tmp_path / 'samples' / 'analogies.png').exists()


@pytest.mark.parametrize('name, sentence', [
    ('synthetic:checkers', 'holds a classifier of digits'),
    ('digits', 'holds no run'),
])
def test_a_classifier_that_does_not_fit(name, sentence, trained, tmp_path):
    """Catch features of another set, and a traceback where there are none."""
    workdir = str(tmp_path) if name == 'digits' else trained
    with pytest.raises(UserError, match=sentence):
        load(workdir, sources.load(name))


def test_it_generates_nothing(trained, capsys):
    """Catch a traceback for a mode that it has not."""
    assert classifier.main([f'--workdir={trained}', '--mode=sample']) == 2
    assert 'generates nothing' in capsys.readouterr().err
