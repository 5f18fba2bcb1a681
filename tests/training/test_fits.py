"""What can never fit into memory is refused before anything is allocated or written."""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import NAMES, vae
from gm_jax import memory
from gm_jax.errors import UserError
from gm_jax.training import command, loop, parallel
from gm_jax.training.settings import Config

# Numbers whose size costs no memory, or that are compared with the images, the memory
# or the batch.
LARGE = {
    'num_steps', 'eval_every', 'checkpoint_every', 'log_every', 'warmup_steps',
    'kl_warmup_steps', 'probe_steps', 'seed', 'label', 'horizon', 'factor',
    'num_labels', 'micro_batch', 'batch_size', 'eval_batch_size', 'num_samples',
    'steps_per_dispatch', 'test_samples', 'test_examples', 'score_samples',
}


@pytest.mark.parametrize('name', NAMES)
def test_absurd_numbers_are_refused(name):
    """Catch a setting without a bound: a hang, a traceback or a full memory."""
    config_class = importlib.import_module(f'experiments.{name}').main.config_class
    common = {f.name for f in dataclasses.fields(Config)} if name != 'vae' else set()
    for f in dataclasses.fields(config_class):
        if isinstance(f.default, (bool, str)) or f.name in common:
            continue
        values = [2**32, 10**19, 10**4000]
        if f.name not in LARGE:
            values.append(10**9)
        if isinstance(f.default, float):
            values = [1e308, -1e308, 1e-300, float('nan'), float('inf'), 10**4000]
        for value in values:
            is_sizes = isinstance(f.default, tuple)
            for given in [(1, value), '1,' + '9' * 5000] if is_sizes else [value]:
                with pytest.raises(UserError) as refused:
                    config_class(**{f.name: given})
                assert len(str(refused.value)) < 200


def test_decays_leave_something():
    """Catch Adam dividing by 1 - 1."""
    for name in ('adam_b1', 'adam_b2'):
        with pytest.raises(UserError, match='must be at most'):
            Config(**{name: 1.0})
        decay = np.float32(vae.main.config_class(**{name: 0.9999999}).adam_b1)
        assert 1 - decay > 0


@pytest.mark.parametrize('flags, sentence', [
    (['--batch_size=1000000000'], '--batch_size=1000000000 would take at least 72'),
    (['--batch_size=80000000'], 'with 50 steps per dispatch would take'),
    (['--num_samples=1000000000'], '--num_samples=1000000000 would take at least 192'),
    (['--eval_batch_size=1000000000'], '--eval_batch_size=1000000000 would take'),
    (['--test_samples=2147483600'], '297 images 85899344 times each would take'),
    (['--hidden=1000000,1000000'], 'the network of --hidden=1000000,1000000 would'),
    (['--latent_dims=2', '--hidden=9,1000000,1000000'],
     'the network of --hidden=9,1000000,1000000 --latent_dims=2 would take'),
])
def test_refused_before_anything_is_written(
    tmp_path, capfd, monkeypatch, flags, sentence
):
    """Catch the kernel killing the run, and a directory for it."""
    monkeypatch.setattr(memory, 'of_host', lambda: 24 * 10**9)
    assert vae.main([f'--workdir={tmp_path}/run', *flags]) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []


def test_programs_that_cannot_run_are_not_run(monkeypatch):
    """Catch a program that fills the memory on the way."""
    def sample(state, rngs, index):
        table = jnp.cumsum(jnp.ones((1000, 1000)) * index[0], axis=0)
        return jnp.sort(table.ravel())[:1]

    indices = np.arange(8, dtype=np.int32).reshape(8, 1)
    monkeypatch.setattr(memory, 'of_host', lambda: 10**7)
    with pytest.raises(UserError, match='the sampler, with these sizes .* would take'):
        parallel.sample_many(sample)((), indices, jax.random.key(0))
    monkeypatch.undo()
    parallel.sample_many(sample)((), indices, jax.random.key(0))


def test_run_that_does_not_begin_leaves_nothing(tmp_path, monkeypatch, capfd):
    """Catch a directory that is taken by a run that was too large for the memory."""
    def allocate_too_much(*args):
        raise jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: Out of memory: 9 bytes')

    flags = [f'--workdir={tmp_path}/run', '--hidden=4', '--num_steps=2',
             '--log_every=9', '--num_samples=4', '--test_samples=1']
    with monkeypatch.context() as patch:
        patch.setattr(loop, '_first_state', allocate_too_much)
        assert vae.main(flags) == 2
    error = capfd.readouterr().err
    assert 'too little memory (RESOURCE_EXHAUSTED' in error and error.count('\n') == 1
    assert list(tmp_path.iterdir()) == []
    # But what a run has done stays.
    (tmp_path / 'run').mkdir()
    (tmp_path / 'run' / 'metrics.jsonl').write_text('{"step": 1, "split": "train"}\n')
    monkeypatch.setattr(loop, '_first_state', allocate_too_much)
    assert vae.main([*flags, '--latent_dims=3']) == 2
    assert (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize('error', [
    MemoryError(), ValueError('array is too big; `arr.size * arr.dtype` is larger'),
    jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: failed to allocate 7 bytes'),
])
def test_exhausted_memory_is_a_sentence(error, capfd):
    """Catch a traceback, and an error of the code that is taken for this one."""
    def act():
        try:
            raise error
        except Exception as cause:
            raise RuntimeError('while reading') from cause

    assert command._exit_status('toy', [], act) == 2
    assert capfd.readouterr().err.startswith('toy: there is too little memory (')
    with pytest.raises(ValueError):
        command._exit_status('toy', [], lambda: int('x'))
