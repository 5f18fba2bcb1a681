"""Parameters with which training begins."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import gm_jax
from experiments import autoencoder, dbm, made, nade, vae
from gm_jax import loading
from gm_jax.errors import UserError
from gm_jax.training import pretrained, processes, train_state
from gm_jax.training.contracts import Experiment
from tests.training import tiny


def _experiment(read):
    return Experiment(None, None, True, None, pretrained=read)


def test_is_read_once():
    """Catch a run that begins again with what has changed meanwhile."""
    values = iter([{'params': {'a': np.ones(2)}}])
    experiment = pretrained.read(_experiment(lambda: next(values)))
    for _ in range(2):
        found = experiment.pretrained()['params']['a']
        np.testing.assert_array_equal(found, np.ones(2))
    assert pretrained.read(_experiment(None)).pretrained is None


@pytest.mark.parametrize('other, said', [
    ({'params': {'a': np.zeros(2)}}, 'process 1 has parameters to begin with, of dig'),
    (None, 'process 1 cannot start: nowhere'),
])
def test_processes_begin_alike(monkeypatch, other, said):
    """Catch processes that begin with different parameters, and one that waits."""
    def fail():
        raise UserError('nowhere')

    monkeypatch.setattr(processes, 'several', lambda: True)
    texts = []
    monkeypatch.setattr(processes, '_texts', lambda mine: texts.append(mine) or texts)
    pretrained.read(_experiment(lambda: {'params': {'a': np.ones(2)}}))
    assert json.loads(texts[0])['problem'] == ''
    with pytest.raises(UserError, match=said):
        pretrained.read(_experiment(fail if other is None else lambda: other))


def test_begins_with_some_of_the_parameters():
    """Catch an average of other parameters, and arrays that share a buffer."""
    params = {'a': jnp.zeros(2), 'b': jnp.full(3, 5.0)}
    create = functools.partial(
        train_state.create, params, optax.sgd(0.1),
        model_state={'batch_stats': jnp.zeros(1), 'chains': jnp.zeros(1)},
    )
    ones = {'params': {'a': jnp.ones(2)}, 'batch_stats': jnp.ones(1)}
    state = train_state.begin_with(create(ema=True), ones)
    assert {name: x.item() for name, x in state.model_state.items()} == {
        'batch_stats': 1, 'chains': 0
    }
    for found in (state.params, state.ema_params):
        np.testing.assert_array_equal(found['a'], np.ones(2))
        np.testing.assert_array_equal(found['b'], np.full(3, 5.0))
    pointers = [
        x.unsafe_buffer_pointer()
        for x in jax.tree.leaves((state.params, state.ema_params))
    ]
    assert len(set(pointers)) == len(pointers)
    assert train_state.begin_with(create(), ones).ema_params is None
    for wrong in ({'params': {'a': jnp.ones(3)}}, {**ones, 'batch_stats': jnp.ones(2)}):
        with pytest.raises(AssertionError):
            train_state.begin_with(create(), wrong)


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
    """Return the work directory of a run."""
    workdir = tmp_path_factory.mktemp('trained')
    assert vae.main([f'--workdir={workdir}', *tiny.FLAGS]) == 0
    return workdir


def test_a_run_begins_with_another(trained, tmp_path):
    """Catch weights that are not taken, and a resume that needs the other run again."""
    out, workdir = tmp_path / 'exported', tmp_path / 'run'
    loading.export(trained, out)
    assert 'nothing but its training set.' in (out / 'README.md').read_text()
    # A rate of 0, other data, another optimizer, and no average.
    flags = [
        *tiny.FLAGS, '--learning_rate=0', '--binarize=threshold', '--ema=0',
        '--optimizer=sgd', '--schedule=constant', f'--workdir={workdir}',
        f'--begin_with={out}',
    ]
    assert vae.main([*flags, '--num_steps=12']) == 0
    found, old = (gm_jax.load(x).variables for x in (workdir, trained))
    jax.tree.map(np.testing.assert_array_equal, found['params'], old['params'])
    shutil.rmtree(out)
    assert vae.main([*flags, '--num_steps=24']) == 0
    loading.export(workdir, tmp_path / 'again')
    card = (tmp_path / 'again' / 'README.md').read_text()
    assert f'began with the parameters of {out}.' in card


def test_moments_are_taken_and_chains_of_another_batch_are_not(trained):
    """Catch a network whose moments of BatchNorm begin anew."""
    model = pretrained.read_model(str(trained), 'vae', vae.Config, vae.build)
    config = dataclasses.replace(model.config, begin_with=str(trained))
    found = pretrained.beginning(config, 'vae', vae.build, model.shapes)
    assert sorted(found) == ['batch_stats', 'params']
    jax.tree.map(np.testing.assert_array_equal, found, model.variables)
    shapes = model.shapes.replace(model_state={'batch_stats': jnp.zeros(2)})
    assert list(pretrained.beginning(config, 'vae', vae.build, shapes)) == ['params']


@pytest.mark.parametrize('module, changes, said', [
    (made, {'seed': 1}, '--seed is 0 there, and 1 by'),
    (made, {'num_masks': 2}, '--num_masks is 1 there'),
    (nade, {'order': 'random'}, '--order is raster there, and random by'),
    (nade, {'seed': 1}, ''),
    (vae, {'activation': 'tanh'}, '--activation is relu there'),
])
def test_a_network_of_the_same_sizes(tmp_path, monkeypatch, module, changes, said):
    """Catch masks and orders of another seed, by which all weights would be wrong."""
    name, config = module.main.name, module.Config()
    model = pretrained.Model(config, None, None, None, {'params': {}}, 0)
    monkeypatch.setattr(pretrained, 'read_model', lambda *args: model)
    config = dataclasses.replace(config, begin_with=str(tmp_path), **changes)
    shapes = train_state.create({}, optax.sgd(0.1))
    begin = functools.partial(pretrained.beginning, config, name, None, shapes)
    if not said:
        assert begin() == {'params': {}}
        return
    with pytest.raises(UserError, match=f'is another network: {said}'):
        begin()


@pytest.mark.parametrize('checkpoint', ['last', 'best'])
def test_reading_waits_for_no_other_process(trained, monkeypatch, checkpoint):
    """Catch processes of which one cannot read, and the others wait for it."""
    for name in ('all_agree', 'check_alike', 'from_primary', 'text_from_primary'):
        monkeypatch.setattr(processes, name, lambda *args: pytest.fail('it waits'))
    about = 'vae', vae.Config, vae.build
    assert pretrained.read_model(str(trained), *about, checkpoint).step


def test_images_of_the_training_set_are_not_taken(tmp_path):
    """Catch images of another set that are taken for those of this one."""
    own = '--latent', '--test_', '--num_s'
    flags = [flag for flag in tiny.PLAIN if not flag.startswith(own)]
    flags += ['--latent_dim=2', '--num_steps=1', '--num_samples=4', '--probe_steps=1']
    assert autoencoder.main([f'--workdir={tmp_path}', *flags]) == 0
    about = 'autoencoder', autoencoder.build
    model = pretrained.read_model(str(tmp_path), about[0], autoencoder.Config, about[1])
    config = dataclasses.replace(model.config, begin_with=str(tmp_path))
    assert sorted(model.variables) == ['params', 'pool']
    assert list(pretrained.beginning(config, *about, model.shapes)) == ['params']


@pytest.mark.parametrize('main, flags, said', [
    (vae.main, ['--hidden=17'], 'decoder/Dense_0/kernel is float32 (3, 16) there'),
    (vae.main, ['--begin_with=nowhere'], '--begin_with=nowhere: nowhere holds no run'),
    (autoencoder.main, [], "is of the experiment 'vae', not of autoencoder"),
    (dbm.main, ['--first_layer=rbm'], 'training begins with one of them'),
])
def test_another_network_is_refused(trained, tmp_path, capfd, main, flags, said):
    """Catch a network that does not fit, found after the work has begun."""
    common = [x for x in tiny.FLAGS if main is vae.main or x.startswith('--num_steps')]
    flags = [*common, f'--begin_with={trained}', *flags]
    assert main([f'--workdir={tmp_path}/run', *flags]) == 2
    message = capfd.readouterr().err
    assert said in message and message.count('\n') == 1
    assert not (tmp_path / 'run').exists()
