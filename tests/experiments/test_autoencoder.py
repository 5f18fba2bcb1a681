"""The autoencoder's experiment: its loss, its samples, and what probes may touch."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import autoencoder
from gm_jax.data import sources
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.families import probes
from gm_jax.keys import Stream, Use, derive, stream
from gm_jax.models.autoencoder import Autoencoder, Classifier
from gm_jax.training import optimizer

V = 5


def _split(num, seed):
    """Return rows of noise; the label is the row that is bright."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, num).astype(np.int32)
    images = rng.integers(0, 3, (num, 3, 4, 1))
    images[np.arange(num), labels] = V - 1
    return ArrayExamples(images.astype(np.uint8), labels)


def _data(num_train=48, num_classes=3, binarize='none'):
    return ImageSet(
        name='rows', image_shape=(3, 4, 1), num_values=V, num_classes=num_classes,
        splits={'train': _split(num_train, 0), 'test': _split(20, 1)},
        binarize=binarize,
    )


def _config(**kwargs):
    settings = dict(
        hidden=(8,), latent_dim=3, batch_size=16, num_steps=10, probe_steps=2
    )
    return autoencoder.Config(**{**settings, **kwargs})


def _start(config, data):
    experiment = autoencoder.build(config, data)
    return experiment, experiment.init(jax.random.key(0))


def _fit(config, data):
    model = autoencoder.make_model(config, data)
    return probes.make_fit(
        autoencoder.make_probe(autoencoder.Setting(config, data, model))
    )


def _ignore(sentence):
    del sentence


def test_the_loss_is_of_pixels_from_0_to_1(rng):
    """Catch pixels divided by V or by 255, or an error averaged over pixels."""
    data = _data()
    config = _config()
    experiment, state = _start(config, data)
    test = data.splits['test']
    batch = {'image': test.images, 'index': np.arange(20)}
    loss = experiment.evaluation.eval_step(state, batch, rng)['loss']
    x = test.images / (V - 1)
    x_hat = autoencoder.make_model(config, data).apply(
        {'params': state.params}, jnp.asarray(x, jnp.float32)
    )
    expected = ((np.asarray(x_hat, np.float64) - x) ** 2).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    metrics = experiment.evaluation.summarize({
        'squared_error_per_image': np.asarray(loss)[:, None]
    })
    np.testing.assert_allclose(metrics['squared_error_per_image'], expected.mean())
    np.testing.assert_allclose(
        metrics['squared_error_per_value'], expected.mean() / 12
    )


@pytest.mark.parametrize('binarize', ['none', 'dynamic'])
def test_training_learns(binarize, rng):
    """Catch a gradient of the wrong sign, or dynamic pixels scaled as grey ones."""
    data = _data(binarize=binarize)
    config = _config(binarize=binarize, learning_rate=1e-2, num_steps=200)
    experiment, state = _start(config, data)
    images = data.splits['train'].images
    batch = {'image': images, 'index': np.arange(48)}
    step = jax.jit(experiment.train_step)
    for _ in range(200):
        state, metrics = step(state, batch, rng)
    # The error of the mean image; what is drawn adds its own variance p (1 - p).
    mean = images.mean(axis=0) / (V - 1)
    variance = (images / (V - 1)).var(axis=0)
    if binarize == 'dynamic':
        variance = mean * (1 - mean)
    assert metrics['loss'] < 0.7 * variance.sum()


def test_samples_lie_between_codes_of_training_images(rng):
    """Catch noise that is decoded, or a sample that others generated with it change."""
    data = _data(num_train=1)
    experiment, state = _start(_config(), data)
    rngs = jax.random.split(rng, 4)
    x = jnp.asarray(data.splits['train'].images / (V - 1), jnp.float32)
    x_hat = autoencoder.make_model(_config(), data).apply({'params': state.params}, x)
    images = experiment.sample(state, rngs, jnp.arange(4))
    assert images.dtype == jnp.uint8
    # Between an image and itself there is only its reconstruction.
    expected = np.broadcast_to(255 * np.asarray(x_hat), images.shape)
    np.testing.assert_allclose(images, expected, atol=0.6)

    experiment, state = _start(_config(), _data())
    images = np.asarray(experiment.sample(state, rngs, jnp.arange(4)))
    alone = experiment.sample(state, rngs[2:3], jnp.arange(1))
    np.testing.assert_array_equal(images[2:3], alone)
    assert len(np.unique(images.reshape(4, -1), axis=0)) > 1


def test_pictures_of_one_image():
    """Catch pairs of images that a small test split does not have."""
    z = jnp.array([[1.0, 2.0]])
    drawn = autoencoder.make_pictures(
        lambda z: jnp.zeros((len(z), 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), z
    )
    assert set(drawn) == {'reconstructions', 'interpolations'}


def test_probes_repeat_and_leave_the_autoencoder_alone():
    """Catch a probe that trains the encoder it is given, or overwrites its buffers."""
    data = _data()
    experiment, state = _start(_config(), data)
    before = jax.tree.map(np.array, state.params)
    first, pictures = experiment.finish(state, 0, _ignore)
    assert experiment.finish(state, 0, _ignore) == (first, pictures) and not pictures
    jax.tree.map(np.testing.assert_array_equal, before, state.params)
    accuracy = first['probe_accuracy']
    assert set(accuracy) == {'all'}
    assert set(accuracy['all']) == {'frozen', 'fine_tuned', 'from_scratch'}


def test_fine_tuning_starts_from_the_autoencoder():
    """Catch a classifier from scratch under both names, or two different heads."""
    data = _data()
    # Nothing is learned, so the accuracy is that of where the training starts.
    config = _config(learning_rate=0.0)
    model = autoencoder.make_model(config, data)
    classifier = Classifier(model, 3)
    x = jnp.asarray(data.splits['test'].images / (V - 1), jnp.float32)
    rng = derive(stream(config.seed, Stream.PROBE), Use.WEIGHTS)
    params = classifier.init(rng, x)['params']
    fit = _fit(config, data)
    rows = np.arange(20)
    accuracies = set()
    for seed in range(3):
        trained = model.init(jax.random.key(seed), x)['params']
        z = model.apply({'params': trained}, x, method=Autoencoder.encode)
        head = params['head']
        predicted = (z @ head['kernel'] + head['bias'][None]).argmax(-1)
        expected = np.mean(predicted == data.splits['test'].labels)
        accuracies.add(fit(rows, trained))
        assert fit(rows, trained) == pytest.approx(expected)
    scratch = classifier.apply({'params': params}, x).argmax(-1)
    expected = np.mean(scratch == data.splits['test'].labels)
    assert fit(rows, None) == pytest.approx(expected)
    assert len(accuracies) > 1


@pytest.mark.parametrize('network', ['deep', 'conv'])
def test_classifiers_learn_what_is_easy(network):
    """Catch images and labels of different examples in a batch."""
    config = _config(network=network, learning_rate=3e-2, probe_steps=60)
    fit = _fit(config, _data())
    assert fit(np.arange(48), None) > 0.9


def test_probes_have_the_seed_of_an_evaluation():
    """Catch numbers of one seed under the name of another."""
    experiment, state = _start(_config(learning_rate=1e-2), _data())
    first, second = (
        experiment.finish(state, seed, _ignore)[0]['probe_accuracy']['all']
        for seed in (0, 3)
    )
    assert first['frozen'] == second['frozen']  # no randomness with all labels
    assert first != second


def test_probes_on_devices_that_do_not_divide_their_batch(monkeypatch):
    """Catch an evaluation that is lost at its end."""
    said = []
    experiment, state = _start(_config(batch_size=12), _data())
    monkeypatch.setattr(jax, 'device_count', lambda: 8)
    assert experiment.finish(state, 0, said.append) == ({}, {})
    assert 'their batch of 12 cannot be spread over 8 devices' in said[0]


def test_probes_warm_up_for_the_same_share_of_their_steps(monkeypatch):
    """Catch classifiers whose learning rate never leaves zero."""
    made, make = [], optimizer.make
    monkeypatch.setattr(optimizer, 'make', lambda c: made.append(c) or make(c))
    _fit(_config(num_steps=1000, warmup_steps=250, probe_steps=8), _data())
    assert (made[-1].num_steps, made[-1].warmup_steps) == (8, 2)


def test_codes_that_are_not_finite_lose_only_what_is_made_of_them(tmp_path, capsys):
    """Catch a traceback in place of the results, again after every start."""
    flags = [
        f'--workdir={tmp_path}', '--num_steps=2', '--hidden=8', '--latent_dim=2',
        '--num_samples=4', '--learning_rate=1e30', '--schedule=constant',
    ]
    assert autoencoder.main(flags) == 0
    assert 'have numbers that are not finite' in capsys.readouterr().out
    metrics = json.loads((tmp_path / 'results.json').read_text())['metrics']
    assert metrics['squared_error_per_image'] is None
    assert 'probe_accuracy' not in metrics


def test_a_set_without_labels_has_no_probes():
    """Catch an error at the end of a long run."""
    said = []
    experiment, state = _start(_config(), _data(num_classes=0))
    assert experiment.finish(state, 0, said.append) == ({}, {})
    assert 'rows' in said[0]
    assert autoencoder.build(_config(probe=False), _data()).finish is None


def test_the_command_trains_evaluates_and_samples(tmp_path, monkeypatch):
    """Catch a work directory that lacks a file, or evaluations that differ."""
    flags = [
        f'--workdir={tmp_path}', '--num_steps=2', '--probe_steps=1', '--hidden=8',
        '--latent_dim=2', '--num_samples=8',
    ]
    assert autoencoder.main(flags) == 0
    path = tmp_path / 'results.json'
    trained = json.loads(path.read_text())['metrics']
    assert set(trained['probe_accuracy']) == {'100', '1000', 'all'}
    assert autoencoder.main([*flags, '--mode=eval']) == 0
    again = json.loads((tmp_path / 'results_eval_step=2.json').read_text())
    assert again['metrics'] == trained
    monkeypatch.delattr(sources, 'load')  # sampling needs the checkpoint alone
    assert autoencoder.main([*flags, '--mode=sample']) == 0
    with np.load(tmp_path / 'samples.npz') as samples:
        assert samples['images'].shape == (8, 8, 8, 1)
    for name in ('reconstructions', 'interpolations'):
        assert (tmp_path / 'samples' / f'{name}.png').exists()
