"""Every step and sampler compiles as far as can be seen without a TPU or a GPU.

They are lowered for these on the CPU: what has no kernel there fails, and what would
call back to the host shows in the program.
"""

import functools
import importlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from experiments import NAMES
from gm_jax.data import sources
from gm_jax.keys import fold_in_each
from gm_jax.training.contracts import ByExample

# What is not the default.
SETTINGS = {
    'pixel_rnn': {'num_layers': 2}, 'pixel_cnn': {'num_blocks': 2},
    'gated_pixel_cnn': {'class_conditional': True, 'num_layers': 3},
    'pixel_cnn_pp': {'features': 4, 'num_resnets': 1}, 'vae': {'test_samples': 2},
    'nice': {'hidden': (4,), 'dequantization': 'variational', 'noise_couplings': 1},
    'real_nvp': {'channelwise': (2,), 'checkerboard': 1, 'last': 1},
    'gsn': {'layers': (8, 6), 'chain_steps': 5, 'thin': 2, 'test_samples': 4},
    'pixel_vae': {'test_samples': 2, 'decoder_layers': 2, 'encoder': (8,)},
    'gan': {'k': 2}, 'dcgan': {'norm': 'spectral'},
    'adversarial_autoencoder': {
        'num_labels': 20, 'batch_norm': True, 'image_noise': 0.3, 'category_noise': 0.3,
    },
}
# What JAX marks in a program for its compilers to see, not to call.
_MARKS = {'Sharding', 'SPMDFullToShardShape', 'SPMDShardToFullShape'}


def _final(shared, state, rng):
    return shared(state, rng, True)


@pytest.mark.parametrize('name', NAMES)
def test_lowers_for_tpu_and_cuda(name, monkeypatch):
    """Catch an operation that only a CPU has, or that runs on the host."""
    command = importlib.import_module(f'experiments.{name}').main
    config = command.config_class(**SETTINGS.get(name, {}))
    data = sources.load(config.dataset, binarize=config.binarize)
    # Some layers are written otherwise for a CPU.
    monkeypatch.setattr(jax, 'default_backend', lambda: 'tpu')
    experiment = command.build(config, data)
    state = jax.eval_shape(experiment.init, jax.random.key(0))
    examples = data.splits['train'].fetch(np.arange(8))
    batch = {**examples, 'index': np.arange(8, dtype=np.int32)}
    many = max(experiment.minibatches, 1)
    stacked = {k: np.stack([v] * many) for k, v in batch.items()}
    rng = jax.random.key(1)
    chunk = {'chunk': np.zeros(8, np.int32)}
    programs = {'train': (
        experiment.train_step, state, stacked if experiment.minibatches else batch, rng
    )}
    if isinstance(experiment.evaluation, ByExample):
        if (shared := experiment.evaluation.shared) is not None:
            numbers = functools.partial(_final, shared)
            programs['shared'] = numbers, state, rng
            found = jax.eval_shape(numbers, state, rng)
            state = state.replace(model_state={**state.model_state, 'shared': found})
        for step in ('eval_step', 'test_step'):
            function = getattr(experiment.evaluation, step)
            programs[step] = function, state, {**batch, **chunk}, rng
    if experiment.sample is not None:
        rngs = fold_in_each(rng, jnp.arange(8))
        programs['sample'] = experiment.sample, state, rngs, batch['index']
    for what, (function, *args) in programs.items():
        exported = export.export(jax.jit(function), platforms=('tpu', 'cuda'))(*args)
        lowered = exported.mlir_module()
        targets = set(re.findall(r'custom_call @([\w.]+)', lowered)) - _MARKS
        assert not targets, (what, targets)
        assert not re.search('infeed|outfeed|callback', lowered), what
