"""No key of a run is used twice: in its start, steps, samples and pictures."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import NAMES, autoencoder, vae
from gm_jax import keys
from gm_jax.data import sources
from gm_jax.keys import Stream, fold_in_each, stream
from gm_jax.training import evaluate
from gm_jax.training.contracts import ByExample
from tests import recorded_keys

NARROW = {'features': 4, 'head': 4, 'first_kernel': 3}
CONVOLUTIONS = {'features': (4, 8), 'latent_dim': 4}
ANNEALED = {
    'ais_chains': 3, 'ais_temperatures': 5, 'ais_sweeps': 2, 'gibbs_steps': 11,
    'batch_size': 8,
}
# All that draws is switched on.
SETTINGS = {
    'autoencoder': [{'hidden': (8,), 'latent_dim': 2}],
    'nade': [{'hidden': 4, 'dropout': 0.5}],
    'made': [{'hidden': (4,), 'dropout': 0.5}],
    'pixel_rnn': [{'num_layers': 2, 'dropout': 0.5, **NARROW}],
    'pixel_cnn': [{'num_blocks': 1, **NARROW}],
    'gated_pixel_cnn': [
        {'num_layers': 1, 'dropout': 0.5, **NARROW},
        {'num_layers': 1, 'task': 'completion', 'observer_blocks': 1, **NARROW},
    ],
    'pixel_cnn_pp': [{
        'features': 4, 'num_levels': 1, 'num_mixtures': 2, 'num_resnets': 1,
        'dropout': 0.5, 'binarize': 'none',
    }],
    'multiscale_pixel_cnn': [{'features': 4, 'num_layers': 1, 'head': 4}],
    'time_series': [{
        'num_blocks': 1, 'binarize': 'none', 'dataset': 'synthetic:lorenz', **NARROW,
    }],
    'nice': [{
        'hidden': (4,), 'num_couplings': 2, 'dequantization': 'variational',
        'noise_couplings': 1, 'noise_features': 2,
    }],
    'real_nvp': [{'channelwise': (1,), 'last': 0, 'features': 2, 'num_blocks': 0}],
    'vae': [
        {'hidden': (8,), 'latent_dims': (2,), 'likelihood': 'gaussian',
         'dropout': 0.5, 'k': 2, 'test_samples': 2},
        {'hidden': (8,), 'latent_dims': (3, 2), 'test_samples': 2},
    ],
    'gsn': [{
        'layers': (8, 6), 'walkbacks': 2, 'chain_steps': 4, 'thin': 2,
        'test_samples': 3,
    }],
    'pixel_vae': [{
        'features': 4, 'decoder_layers': 1, 'head': 4, 'first_kernel': 3,
        'encoder': (4,), 'latent_dim': 2, 'test_samples': 2,
    }],
    'gan': [{'hidden': (8,), 'discriminator_hidden': (8,), 'k': 2}],
    'dcgan': [CONVOLUTIONS],
    'wgan': [CONVOLUTIONS],
    'adversarial_autoencoder': [
        {'hidden': (8,), 'num_labels': 20, 'batch_norm': True, 'image_noise': 0.3,
         'category_noise': 0.3},
        {'hidden': (8,), 'latent_dim': 2, 'prior': 'mixture', 'image_noise': 0.3},
    ],
    'rbm': [{'hidden': 24, 'persistent': False, **ANNEALED}],
    'dbm': [{'hidden': (22, 21), **ANNEALED}],
    'classifier': [{'maps': (4, 8), 'num_features': 8, 'dropout': 0.5}],
}
# Those that share their randomness with another, but for what tests/test_keys.py reads.
_ALIKE = (
    'nade', 'made', 'pixel_rnn', 'pixel_cnn', 'pixel_cnn_pp', 'multiscale_pixel_cnn',
    'time_series', 'real_nvp', 'pixel_vae', 'dcgan', 'wgan', 'dbm', 'classifier',
)
RUNS = [
    pytest.param(name, settings, marks=[pytest.mark.long] * (name in _ALIKE))
    for name in NAMES for settings in SETTINGS[name]
]
B = 8


def _built(name, settings):
    command = importlib.import_module(f'experiments.{name}').main
    config = command.config_class(
        **{'dataset': 'digits', 'binarize': 'dynamic', **settings}
    )
    data = sources.load(config.dataset, binarize=config.binarize)
    return command.build(config, data), data


def _batch(data, split, minibatches=0):
    index = np.arange(B, dtype=np.int32)
    batch = {**data.splits[split].fetch(index), 'index': index}
    if minibatches:
        batch = {k: np.stack([v] * minibatches) for k, v in batch.items()}
    return batch


@pytest.mark.parametrize('name, settings', RUNS)
def test_no_key_is_used_twice(name, settings, monkeypatch):
    """Catch noise that is that of something else, which makes a number wrong."""
    record = recorded_keys.start(monkeypatch)
    experiment, data = _built(name, settings)
    state = experiment.init(stream(0, Stream.INIT))
    train = jax.jit(experiment.train_step)
    batch = _batch(data, 'train', experiment.minibatches)
    state, _ = train(state, batch, stream(0, Stream.TRAIN))
    state, _ = train(state, batch, stream(0, Stream.TRAIN))
    if experiment.sample is not None:
        rngs = fold_in_each(stream(0, Stream.SAMPLE), np.arange(B))
        jax.jit(experiment.sample)(state, rngs, jnp.arange(B))
    if isinstance(experiment.evaluation, ByExample):
        rng = stream(0, Stream.EVAL)
        batch = {**_batch(data, 'test'), 'chunk': np.zeros(B, np.int32)}
        shared = evaluate.shared(experiment.evaluation, state, rng, final=True)
        state = evaluate.with_shared(state, shared)
        jax.jit(experiment.evaluation.eval_step)(state, batch, rng)
    assert record.drawn and record.faults() == []
    if isinstance(experiment.evaluation, ByExample):
        record.clear()  # the same noise of the same examples
        jax.jit(experiment.evaluation.test_step)(state, batch, stream(0, Stream.EVAL))
        assert record.faults() == []
    if experiment.pictures is not None:
        record.clear()
        experiment.pictures(state, _batch(data, 'test'), stream(0, Stream.PICTURES))
        assert record.faults() == []


@pytest.mark.parametrize('module, name', [(vae, 'vae'), (autoencoder, 'autoencoder')])
def test_planted_reuse_is_found(module, name, monkeypatch):
    """Catch a record that is blind."""
    monkeypatch.setattr(module, 'derive', lambda rngs, *uses: rngs)
    with pytest.raises(AssertionError, match='is drawn from'):
        test_no_key_is_used_twice(name, SETTINGS[name][0], monkeypatch)


@pytest.mark.parametrize('misuse, sentence', [
    (lambda rng: (jax.random.normal(rng), jax.random.uniform(rng)), 'from 2 times'),
    (lambda rng: (jax.random.normal(rng), fold_in_each(rng, 1)), 'has children'),
    (lambda rng: (jax.random.split(rng), fold_in_each(rng, 1)), 'is split, and'),
    (lambda rng: (jax.random.split(rng), jax.random.split(rng)), 'is split 2 times'),
])
def test_every_kind_of_reuse_is_found(misuse, sentence, monkeypatch):
    """Catch a record that knows only one kind."""
    record = recorded_keys.start(monkeypatch)
    rng = stream(0, Stream.EVAL)
    jax.jit(misuse)(keys.derive(rng, keys.Use.LATENT))
    fault, = record.faults()
    assert sentence in fault
