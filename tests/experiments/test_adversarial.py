"""The adversarial experiments: whole runs, and that devices only share the work."""

import json
import shutil

import chex
import jax
import numpy as np
import pytest
from PIL import Image

from experiments import adversarial, dcgan, gan, wgan
from gm_jax.data import sources
from gm_jax.training import parallel
from tests.training import tiny

TINY = (
    '--num_steps=4', '--batch_size=16', '--num_samples=8', '--latent_dim=4',
    '--log_every=2', '--eval_every=2', '--checkpoint_every=2', '--score_samples=40',
)
CONVOLUTIONS = ('--features=4,8',)


@pytest.mark.parametrize('module, flags', [
    (gan, ('--generator_loss=minimax', '--k=2', '--hidden=8')),
    (dcgan, (*CONVOLUTIONS, '--class_conditional', '--loss=hinge', '--norm=spectral')),
    (wgan, ('--network=dense', '--features=8,4', '--dataset=synthetic:grid25')),
    (wgan, (*CONVOLUTIONS, '--lipschitz=clip', '--k=2', '--ema=0.9')),
])
def test_run_goes_on_with_the_same_bits(module, flags, tmp_path):
    """Catches a player, a moment or a minibatch that a checkpoint does not hold."""
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    assert module.main([f'--workdir={whole}', *TINY, *flags]) == 0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / 'checkpoints' / '4')
    assert module.main([f'--workdir={stopped}', *TINY, *flags]) == 0
    assert tiny.differences(whole, stopped) == []
    metrics = json.loads((whole / 'results.json').read_text())['metrics']
    assert metrics['pixel_frechet_distance'] > 0
    assert metrics['num_real'] == metrics['num_fake'] == 40
    assert ('modes_covered' in metrics) == ('--dataset=synthetic:grid25' in flags)
    with Image.open(whole / 'samples' / 'interpolations.png') as image:
        image.load()
    if '--lipschitz=clip' in flags:
        arrays = tiny.final_arrays(whole)
        names = [name for name in arrays if name.startswith('params/discriminator')]
        assert names and max(np.abs(arrays[name]).max() for name in names) <= 0.01


@pytest.mark.parametrize('module, settings', [
    (dcgan, {'k': 2}), (dcgan, {'norm': 'spectral', 'class_conditional': True}),
    (wgan, {'k': 1}),
])
def test_one_and_eight_devices_agree(module, settings):
    """Catches BatchNorm's moments, noise or a penalty that belong to a device."""
    config = module.Config(
        features='4,8', latent_dim=4, learning_rate=1e-3, adam_eps=1e-3, **settings
    )
    data = sources.load('digits')
    experiment = adversarial.build(
        config, data, make_networks=module.make_networks, make_losses=module.make_losses
    )
    train, k = data.splits['train'], config.k
    one = many = experiment.init(jax.random.key(1))
    many = parallel.replicate(many)
    rng, step = jax.random.key(2), jax.jit(experiment.train_step)
    step_many = parallel.train_many(experiment.train_step, 1)
    index = np.broadcast_to(np.arange(16, dtype=np.int32), (k, 16))
    for i in range(6):
        row = (16 * k * i + np.arange(16 * k)).reshape(k, 16)
        batch = {
            'image': train.images[row], 'label': train.labels[row], 'index': index
        }
        one, expected = step(one, batch, rng)
        parts = parallel.split(jax.tree.map(lambda x: x[None], batch), axis=2)
        many, got = step_many(many, {}, parts, np.int32(1), rng)
        got = jax.tree.map(lambda m: m[0], got)
        chex.assert_trees_all_close(got, expected, rtol=1e-4, atol=1e-5)
    assert abs(expected['generator_loss']) > 0
    chex.assert_trees_all_close(
        jax.device_get(many.model_state), jax.device_get(one.model_state), atol=1e-4
    )


@pytest.mark.parametrize('module, flags, sentence', [
    (gan, ('--class_conditional',), 'only the networks of convolutions alone'),
    (dcgan, ('--class_conditional', '--dataset=synthetic:ising'), 'has none'),
    (dcgan, ('--features=4,8,8,8,8',), '32 must divide their sides'),
    (wgan, ('--features=4,',), 'must be sizes such as'),
])
def test_settings_that_do_not_fit(module, flags, sentence, tmp_path, capsys):
    """Catches a traceback for what the user can mend."""
    assert module.main([f'--workdir={tmp_path}/run', *flags]) == 2
    assert sentence in capsys.readouterr().err
