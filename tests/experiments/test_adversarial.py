"""The adversarial experiments: whole runs, and that devices only share the work."""

import json
import shutil
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments import dcgan, gan, wgan
from gm_jax.data import sources
from gm_jax.families import adversarial
from gm_jax.training import game, loop, parallel
from tests.training import tiny

TINY = (
    '--num_steps=4', '--batch_size=16', '--num_samples=8', '--latent_dim=4',
    '--log_every=2', '--eval_every=2', '--checkpoint_every=2', '--score_samples=40',
)
CONVOLUTIONS = ('--features=4,8',)


@pytest.mark.parametrize('module, flags', [
    (gan, ('--generator_loss=minimax', '--k=2', '--hidden=8')),
    (dcgan, (
        *CONVOLUTIONS, '--class_conditional', '--loss=hinge', '--norm=spectral',
        '--r1=1',
    )),
    (wgan, ('--network=dense', '--features=8,4', '--dataset=synthetic:grid25')),
    (wgan, (*CONVOLUTIONS, '--lipschitz=clip', '--k=2', '--ema=0.9')),
])
def test_run_goes_on_with_the_same_bits(module, flags, tmp_path, monkeypatch):
    """Catch a player, a moment or a minibatch that a checkpoint does not hold.

    The speed of training is of all minibatches of a step.
    """
    whole, stopped = tmp_path / 'whole', tmp_path / 'stopped'
    make = mock.Mock(wraps=loop.Recorder)
    monkeypatch.setattr(loop, 'Recorder', make)
    assert module.main([f'--workdir={whole}', *TINY, *flags]) == 0
    k = json.loads((whole / 'config.json').read_text())['k']
    assert make.call_args.args[3] == 16 * k and (k == 2) == ('--k=2' in flags)
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / 'checkpoints' / '4')
    assert module.main([f'--workdir={stopped}', *TINY, *flags]) == 0
    assert tiny.differences(whole, stopped) == []
    results = json.loads((whole / 'results.json').read_text())
    metrics = results['metrics']
    assert metrics['pixel_frechet_distance'] > 0
    assert metrics['num_real'] == metrics['num_fake'] == results['num_examples'] == 40
    assert ('modes_covered' in metrics) == ('--dataset=synthetic:grid25' in flags)
    on_grid = '--dataset=synthetic:grid25' in flags
    for name in ['points'] if on_grid else ['interpolations', 'nearest']:
        with Image.open(whole / 'samples' / f'{name}.png') as image:
            image.load()
    if '--lipschitz=clip' in flags:
        arrays = tiny.final_arrays(whole)
        names = [name for name in arrays if name.startswith('params/discriminator')]
        assert names and max(np.abs(arrays[name]).max() for name in names) <= 0.01


@pytest.mark.parametrize('module, settings', [
    (dcgan, {'k': 2}),
    (dcgan, {'norm': 'spectral', 'class_conditional': True, 'r1': 1.0}),
    (wgan, {'k': 1}), (gan, {'hidden': (8,), 'discriminator_hidden': (8,)}),
])
def test_one_and_eight_devices_agree(module, settings):
    """Catch BatchNorm's moments, noise or a penalty that belong to a device."""
    if module is not gan:
        settings = {'features': (4, 8), **settings}
    config = module.Config(
        latent_dim=4, learning_rate=1e-3, adam_eps=1e-3, **settings
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
        chex.assert_trees_all_close(got, expected, rtol=1e-5, atol=1e-6)
    assert min(expected['generator_grad_norm'], expected['discriminator_grad_norm']) > 0
    chex.assert_trees_all_close(
        jax.device_get(many.params), jax.device_get(one.params), atol=1e-6
    )
    chex.assert_trees_all_close(
        jax.device_get(many.model_state), jax.device_get(one.model_state), atol=1e-6
    )


def _rules(module=dcgan, **settings):
    """Return a game on digits, its state and a batch of a step."""
    config = module.Config(**{'features': (4, 8), 'latent_dim': 4, **settings})
    data = sources.load('digits')
    rules = adversarial.Game(
        config, data, module.make_networks(config, data), module.make_losses(config)
    )
    tx = game.optimizers(
        adversarial.make_turns(rules), adversarial.make_optimizers(config)
    )
    state = adversarial.init(rules, tx, jax.random.key(0))
    train = data.splits['train']
    batch = {'image': train.images[:16], 'label': train.labels[:16]}
    return rules, state, batch, jax.random.split(jax.random.key(1), 16)


def test_real_and_generated_images_are_normalised_apart():
    """Catch one BatchNorm over both: it would tell how many are generated.

    The scores of real images do not depend on those of the generator.
    """
    rules, state, batch, rngs = _rules()
    metrics = []
    for scale in (1.0, 3.0):
        params = dict(state.params)
        weights = state.params['generator']
        params['generator'] = jax.tree.map(lambda w, s=scale: s * w, weights)
        metrics.append(adversarial.discriminator_loss(
            rules, params, state.model_state, batch, rngs, step=0, axis_name=None
        ).metrics)
    assert metrics[0]['real_score'] == metrics[1]['real_score']
    assert metrics[0]['fake_score'] != metrics[1]['fake_score']


def test_penalty_has_its_weight():
    """Catch a weight of a penalty on the gradient that is not used."""
    # A new discriminator without normalisation hardly slopes.
    for module, name, setting, unit, fixed in (
        (wgan, 'gradient_penalty', 'penalty', 1.0, {}),
        (dcgan, 'r1_penalty', 'r1', 1e6, {'norm': 'none'}),
    ):
        losses = []
        for weight in (unit, 10 * unit):
            g, state, batch, rngs = _rules(module, **{setting: weight}, **fixed)
            out = adversarial.discriminator_loss(
                g, state.params, state.model_state, batch, rngs, step=0, axis_name=None
            )
            losses.append(float(out.loss))
        penalty = float(out.metrics[name])
        assert penalty > 0
        # The alarm of saturation looks at the game alone.
        np.testing.assert_allclose(
            out.loss, out.metrics['game_loss'] + 10 * unit * penalty, rtol=1e-5
        )
        np.testing.assert_allclose(
            losses[1] - losses[0], 9 * unit * penalty, rtol=1e-4
        )


def test_smoothed_labels_reach_the_loss():
    """Catch a setting without effect, and an alarm at the least loss there can be."""
    losses = []
    for s in (0.0, 0.2):
        g, state, batch, rngs = _rules(label_smoothing=s)
        out = adversarial.discriminator_loss(
            g, state.params, state.model_state, batch, rngs, step=0, axis_name=None
        )
        losses.append(float(out.loss))
    real = float(out.metrics['real_score'])
    np.testing.assert_allclose(losses[1] - losses[0], 0.2 * real, rtol=1e-4)
    np.testing.assert_allclose(
        g.losses.saturated_below - 0.1, -0.2 * np.log(0.2) - 0.8 * np.log(0.8)
    )


def test_running_averages_are_each_players_own():
    """Catch averages of the generator that move with the discriminator's turn."""
    rules, state, batch, rngs = _rules()
    for loss, moved in (
        (adversarial.discriminator_loss, 'discriminator'),
        (adversarial.generator_loss, 'generator'),
    ):
        after = loss(
            rules, state.params, state.model_state, batch, rngs, step=0, axis_name=None
        ).model_state['batch_stats']
        for name, stats in state.model_state['batch_stats'].items():
            equal = jax.tree.map(lambda a, b: bool((a == b).all()), stats, after[name])
            assert all(jax.tree.leaves(equal)) == (name != moved)


@pytest.mark.parametrize('loss, slope', [
    # |d loss / d logit| of one sample is D, or 1 - D, of it; of a critic's score 1.
    ('minimax', lambda d: d), ('non_saturating', lambda d: 1 - d),
    ('hinge', lambda d: 1.0),
])
def test_the_slope_of_the_generators_loss(loss, slope):
    """Catch an alarm that looks at another number than the lecture's picture."""
    rules, state, batch, rngs = _rules(loss=loss, norm='none')
    params = jax.tree.map(lambda w: w, state.params)
    params['discriminator']['Dense_0']['bias'] -= 2.0  # nearly all samples are fake
    output = adversarial.generator_loss(
        rules, params, state.model_state, batch, rngs, step=0, axis_name=None
    )
    expected = slope(1 / (1 + np.exp(2.0)))
    np.testing.assert_allclose(output.metrics['generator_slope'], expected, rtol=0.1)


def test_samples_are_drawn_with_the_average():
    """Catch samples of the last parameters, with --ema."""
    rules, state, _, _ = _rules(ema=0.9)
    z, label = jax.random.normal(jax.random.key(2), (4, 4)), jnp.zeros(4, jnp.int32)
    before = adversarial.generate(rules, state, z, label)
    moved = state.replace(params=jax.tree.map(lambda w: w + 1, state.params))
    chex.assert_trees_all_equal(adversarial.generate(rules, moved, z, label), before)
    averaged = jax.tree.map(lambda w: w + 1, state.ema_params)
    other = adversarial.generate(rules, state.replace(ema_params=averaged), z, label)
    assert (other != before).any()


def test_a_finished_run_goes_on_for_more_steps(tmp_path):
    """Catch a longer run that starts anew, or is another than a long one."""
    grown, whole = tmp_path / 'grown', tmp_path / 'whole'
    flags = (*TINY, '--hidden=8', '--discriminator_hidden=8')
    assert gan.main([f'--workdir={grown}', *flags]) == 0
    assert gan.main([f'--workdir={grown}', *flags, '--num_steps=6']) == 0
    assert gan.main([f'--workdir={whole}', *flags, '--num_steps=6']) == 0
    assert tiny.differences(grown, whole) == []


def test_alarms_ring_in_the_metrics(tmp_path, capsys):
    """Catch alarms that reach no file: the game starts with samples all alike."""
    flags = (
        f'--workdir={tmp_path}', *TINY, '--hidden=8', '--generator_loss=minimax',
        '--discriminator_learning_rate=0.5', '--learning_rate=0', '--num_steps=30',
        '--eval_every=30', '--log_every=15', '--latent_dim=1',
    )
    assert gan.main(list(flags)) == 0
    lines = tiny.metrics(tmp_path)
    assert any('saturates' in text for text in lines[1].get('alarms', []))
    assert any('vanishes' in text for text in lines[1]['alarms'])
    assert any('repeat' in text for text in lines[-1]['alarms'])
    assert 'ALARM: the samples repeat' in capsys.readouterr().out


@pytest.mark.parametrize('module, flags, sentence', [
    (wgan, ('--lipschitz=clip', '--clip=0'), 'bounds nothing'),
    (gan, ('--class_conditional',), 'only the all-convolutional networks'),
    (dcgan, ('--class_conditional', '--dataset=synthetic:ising'), 'has none'),
    (dcgan, ('--features=4,8,8,8,8',), 'needs sides that are multiples of 32'),
    (wgan, ('--features=4,',), 'must be sizes such as'),
    (dcgan, ('--r1=1',), 'add --norm=spectral or --norm=none'),
    (dcgan, ('--loss=hinge', '--label_smoothing=0.1'), 'leave out --loss=hinge'),
    (gan, ('--test_examples=3',), '--test_examples=3 is too few: 5 images are needed'),
    (gan, ('--network=small', '--hidden=8'), '--hidden needs --network=dense'),
    (wgan, ('--network=small', '--features=8,8'), '--features is not used by'),
    (wgan, ('--network=dense', '--kernel_size=3'), '--kernel_size needs --network'),
    (wgan, ('--clip=0.1',), '--clip needs --lipschitz=clip: leave it out.'),
])
def test_settings_that_do_not_fit(module, flags, sentence, tmp_path, capsys):
    """Catch a traceback for what the user can mend."""
    assert module.main([f'--workdir={tmp_path}/run', *flags]) == 2
    assert sentence in capsys.readouterr().err
