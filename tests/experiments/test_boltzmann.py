"""Boltzmann machines as experiments: learning, devices, resume, and their numbers."""

import dataclasses
import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gm_jax
from experiments import dbm, rbm
from gm_jax import loading
from gm_jax.data import sources
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.errors import UserError
from gm_jax.losses import energy
from gm_jax.losses.energy import RBM
from gm_jax.training import parallel
from gm_jax.training.train_state import TrainState
from tests.losses.test_energy import states
from tests.training import tiny

FLAGS = (
    '--batch_size=16', '--num_steps=40', '--log_every=10', '--eval_every=20',
    '--checkpoint_every=10', '--num_samples=8', '--steps_per_dispatch=10',
    '--gibbs_steps=11', '--ais_temperatures=50', '--ais_sweeps=20', '--ais_chains=20',
    '--eval_batch_size=100', '--ema=0.9', '--schedule=constant',
)
EXPERIMENTS = {'rbm': (rbm.main, '--hidden=24'), 'dbm': (dbm.main, '--hidden=22,21')}


@pytest.fixture(name='trained', scope='module', params=[
    'rbm', pytest.param('dbm', marks=pytest.mark.long),
])
def make_trained(request, tmp_path_factory):
    """Return (name, work directory) of a tiny machine whose log Z is estimated."""
    main, *flags = EXPERIMENTS[request.param]
    workdir = tmp_path_factory.mktemp(request.param)
    assert main([f'--workdir={workdir}', *FLAGS, *flags]) == 0
    return request.param, workdir


def test_resumes_with_the_same_bits(trained, tmp_path):
    """Catch chains or offsets that a checkpoint does not hold."""
    name, workdir = trained
    main, *flags = EXPERIMENTS[name]
    stopped = tmp_path / 'stopped'
    assert main([f'--workdir={stopped}', *FLAGS, *flags, '--num_steps=20']) == 0
    assert main([f'--workdir={stopped}', *FLAGS, *flags]) == 0
    assert tiny.differences(workdir, stopped) == []


def test_a_dbm_begins_with_an_rbm(trained, tmp_path, capfd):
    """Catch weights that are not taken, and a resume that needs the RBM again."""
    name, workdir = trained
    copy = shutil.copytree(workdir, tmp_path / name)
    flags = [*FLAGS, f'--workdir={tmp_path / "run"}', f'--first_layer={copy}']
    if name != 'rbm':
        assert dbm.main([*flags, '--hidden=22,21']) == 2
        assert f'{copy} is a run of dbm, not of rbm' in capfd.readouterr().err
        return
    flags += ['--hidden=24,21', '--learning_rate=0']
    assert dbm.main([*flags, '--num_steps=10']) == 0
    found, rbm_params = (
        gm_jax.load(x).variables['params'] for x in (tmp_path / 'run', copy)
    )
    for name, value in zip(('weights1', 'visible_bias', 'hidden1_bias'), (
        rbm_params['weights'], rbm_params['visible_bias'], rbm_params['hidden_bias']
    )):
        np.testing.assert_array_equal(found[name], value)
    shutil.rmtree(copy)
    assert dbm.main([*flags, '--num_steps=20']) == 0


@pytest.mark.parametrize('trained', ['rbm'], indirect=True)
@pytest.mark.parametrize('flags, said', [
    (['--hidden=22,21'], 'has 24 hidden units, and --hidden=22,21 asks for 22'),
    (['--first_layer=nowhere'], '--first_layer=nowhere: nowhere holds no run'),
    (['--binarize=static'], 'of digits (8, 8, 1) with --binarize=threshold, not'),
])
def test_an_rbm_that_does_not_fit_is_refused(trained, tmp_path, capfd, flags, said):
    """Catch a layer of another size, or of pixels made bits in another way."""
    _, workdir = trained
    flags = ['--hidden=24,21', f'--first_layer={workdir}', *flags]
    assert dbm.main([f'--workdir={tmp_path}/run', *FLAGS, *flags]) == 2
    assert said in capfd.readouterr().err
    assert not (tmp_path / 'run').exists()


def test_numbers_of_a_run(trained):
    """Catch a likelihood without its bracket, and a rough one that has its name."""
    name, workdir = trained
    metrics = json.loads((workdir / 'results.json').read_text())['metrics']
    assert metrics['estimator'] == {'rbm': 'ais', 'dbm': 'ais-elbo'}[name]
    low, high = metrics['nats_bracket']
    log_z = metrics['log_partition']
    assert low - 1e-4 < metrics['nats_per_image'] < high + 1
    for end, which in ((low, 'low'), (high, 'high')):
        shift = metrics[f'log_partition_{which}'] - log_z
        np.testing.assert_allclose(end, metrics['nats_per_image'] + shift, atol=1e-4)
    assert 1 <= metrics['effective_sample_size'] <= 20
    assert isinstance(metrics['alarms'], list)
    last = [x for x in tiny.metrics(workdir) if x['split'] == 'test'][-1]
    assert last['short_ais_nats'] == last['loss'] and 'nats_per_image' not in last
    # The first estimate of log Z has the same temperatures here.
    np.testing.assert_allclose(last['loss'], metrics['nats_per_image'], rtol=1e-6)
    assert {path.stem for path in (workdir / 'samples').glob('*.png')} >= {
        'filters', 'chains', 'completions', 'loss',
    }


def test_loaded_machine_has_the_same_numbers(trained, tmp_path, monkeypatch):
    """Catch another log Z, one that costs minutes, and a function without it."""
    name, workdir = trained
    main, *_ = EXPERIMENTS[name]
    out = tmp_path / 'exported'
    loading.export(workdir, out)
    run, exported = gm_jax.load(workdir), gm_jax.load(out)
    images = sources.load('digits', binarize='threshold').splits['test']
    images = images.fetch(np.arange(len(images)))['image']
    # With another seed it is estimated again; the machine is the same.
    other = run.log_prob(images[:5], seed=7)
    with monkeypatch.context() as patch:
        patch.setattr(jax, 'jit', functools.partial(_no_annealing, jax.jit))
        log_px = run.log_prob(images)
        found = exported.log_prob(images[:5])  # a batch of another size rounds
        np.testing.assert_allclose(found, log_px[:5], rtol=1e-6)
    metrics = run.results['metrics']
    np.testing.assert_allclose(-log_px.mean(), metrics['nats_per_image'], rtol=1e-6)
    assert run.estimator == metrics['estimator']
    np.testing.assert_allclose(np.ptp(other - log_px[:5]), 0, atol=1e-4)
    assert 0 < abs((other - log_px[:5]).mean()) < 2
    found = run.functions.log_prob(run.variables, jax.random.key(0), images[:5])
    np.testing.assert_allclose(found, log_px[:5], rtol=1e-5)
    bare = {key: x for key, x in run.variables.items() if key != 'shared'}
    with pytest.raises(ValueError, match="variables have no 'shared'"):
        run.functions.log_prob(bare, jax.random.key(0), images[:5])
    # Other parameters have another log Z.
    doubled = jax.tree.map(lambda x: 2 * x, run.variables['params'])
    changed, anew = (
        dataclasses.replace(run, variables={**variables, 'params': doubled})
        for variables in (run.variables, bare)
    )
    found = changed.log_prob(images[:5])
    np.testing.assert_array_equal(found, anew.log_prob(images[:5]))
    assert found.max() < 0 and abs(found - log_px[:5]).min() > 1e-3
    with pytest.raises(ValueError, match='it has no gradient'):
        jax.grad(
            lambda v: run.functions.log_prob(v, jax.random.key(0), images[:5]).mean()
        )(run.variables)
    unfinished = dataclasses.replace(run, variables=bare, results={})
    assert unfinished.estimator == run.estimator
    np.testing.assert_allclose(unfinished.log_prob(images[:5]), log_px[:5], rtol=1e-6)


def _no_annealing(jit, function, *args, **kwargs):
    assert 'log_partition' not in repr(function)
    return jit(function, *args, **kwargs)


def test_samples_codes_and_completions(trained):
    """Catch images that depend on others, and given pixels that are not kept."""
    name, workdir = trained
    run = gm_jax.load(workdir)
    images = run.sample(8, seed=3)
    assert images.shape == (8, 8, 8, 1) and set(np.unique(images)) <= {0, 255}
    np.testing.assert_array_equal(run.sample(3, seed=3), images[:3])
    bits, mask = images[:2] // 255, np.arange(8)[:, None] * np.ones(8) < 4
    drawn = run.sample(6, seed=1, given=bits, mask=mask)
    np.testing.assert_array_equal(drawn[:, :4], np.tile(images[:2, :4], (3, 1, 1, 1)))
    assert len(np.unique(drawn[::2, 4:], axis=0)) > 1
    code = run.encode(bits)
    assert code.shape == (2, {'rbm': 24, 'dbm': 22}[name])
    assert run.decode(code).shape == (2, 8, 8, 1)


def _tiny_data(counts) -> ImageSet:
    """Return 2x2 images of bits, as many of each as `counts` says."""
    rows = np.repeat(np.arange(16), counts)
    images = states(4)[rows].reshape(-1, 2, 2, 1).astype(np.uint8)
    examples = ArrayExamples(images, np.zeros(len(images), np.int32))
    return ImageSet(
        name='bits', image_shape=(2, 2, 1), num_values=2, num_classes=0,
        splits={'train': examples, 'test': examples},
    )


@pytest.mark.long
def test_given_on_the_command_line(trained, tmp_path):
    """Catch a mask that the command line ignores."""
    name, workdir = trained
    main, *flags = EXPERIMENTS[name]
    images, mask = np.random.default_rng(0).integers(0, 2, (3, 8, 8, 1)), np.eye(8)
    np.savez(tmp_path / 'given.npz', images=images, mask=mask)
    flags = [f'--workdir={workdir}', *FLAGS, *flags, '--mode=sample']
    assert main([*flags, f'--given={tmp_path / "given.npz"}']) == 0
    with np.load(workdir / 'samples.npz') as file:
        x, kept = file['images'], file['mask']
        np.testing.assert_array_equal(x[kept], file['given'][kept])
        assert x.shape == kept.shape == (8, 8, 8, 1) and kept[0].sum() == 8
    assert main([*flags, '--given=nowhere.npz']) == 2


@pytest.mark.parametrize('module, settings', [
    (rbm, {'hidden': 8}),
    pytest.param(
        rbm, {'hidden': 8, 'centered': False, 'persistent': False, 'k': 5},
        marks=pytest.mark.long,
    ),
    (dbm, {'hidden': (8, 3), 'mean_field_steps': 5}),
])
def test_learns_a_distribution(module, settings):
    """Catch an objective, a chain or an offset that keeps it from the data."""
    counts = np.array([1, 1, 1, 90, 2, 3, 0, 1, 0, 1, 2, 3, 90, 1, 2, 2])
    data = _tiny_data(counts)
    train = data.splits['train']
    config = module.Config(
        binarize='none', batch_size=len(train), learning_rate=0.3, num_steps=400,
        weight_decay=0.0, ema=0.9, **settings,
    )
    experiment = module.build(config, data)
    num = len(train)
    batch = {**train.fetch(np.arange(num)), 'index': np.arange(num, dtype=np.int32)}

    def step(state: TrainState, _: None) -> tuple[TrainState, None]:
        return experiment.train_step(state, batch, jax.random.key(1))[0], None

    def nats(state: TrainState) -> float:
        rng, evaluation = jax.random.key(2), experiment.evaluation
        numbers = evaluation.shared(state, rng, True)
        state = state.replace(model_state={**state.model_state, 'shared': numbers})
        return float(-evaluation.test_step(state, batch, rng)['log_px'].mean())

    state = experiment.init(jax.random.key(0))
    before = nats(state)
    train_all = jax.jit(lambda s: jax.lax.scan(step, s, None, config.num_steps)[0])
    after = nats(train_all(state))
    share = np.maximum(counts / num, 1e-9)
    entropy = -np.sum(share * np.log(share))
    assert before > entropy + 1
    assert entropy - 1e-3 < after < entropy + 0.1


@pytest.mark.parametrize('module, settings', [
    (rbm, {'hidden': 24}),
    pytest.param(dbm, {'hidden': (6, 5)}, marks=pytest.mark.long),
])
def test_one_and_eight_devices_have_the_same_chains(module, settings):
    """Catch chains that belong to devices, and offsets of one device's examples."""
    config = module.Config(batch_size=16, **settings)
    data = sources.load('digits', binarize='threshold')
    experiment = module.build(config, data)
    state = experiment.init(jax.random.key(0))
    index = np.random.default_rng(0).permutation(16).astype(np.int32)
    batch = {**data.splits['train'].fetch(np.arange(16)), 'index': index}
    one, many = state, parallel.replicate(state)
    step = jax.jit(experiment.train_step)
    step_many = jax.pmap(
        functools.partial(experiment.train_step, axis_name=parallel.AXIS),
        axis_name=parallel.AXIS, in_axes=(None, 0, None), out_axes=None,
    )
    for _ in range(2):
        one, _ = step(one, batch, jax.random.key(1))
        many, _ = step_many(many, parallel.split(batch), jax.random.key(1))
    np.testing.assert_array_equal(
        one.model_state['chains'], many.model_state['chains']
    )
    assert np.any(one.model_state['chains'] != state.model_state['chains'])
    for a, b in zip(
        jax.tree.leaves((one.params, one.model_state['offsets'])),
        jax.tree.leaves((many.params, many.model_state['offsets'])),
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_few_hidden_units_are_enumerated(tmp_path):
    """Catch an estimate where the exact number is cheap, and one called exact."""
    flags = '--hidden=5', '--num_steps=10', '--eval_every=10', '--log_every=10'
    assert rbm.main([f'--workdir={tmp_path}', *FLAGS, *flags]) == 0
    run = gm_jax.load(tmp_path)
    metrics = run.results['metrics']
    assert metrics['estimator'] == 'exact' and 'nats_bracket' not in metrics
    exact = energy.log_partition_exact(RBM(**run.variables['params']))
    np.testing.assert_allclose(metrics['log_partition'], exact, rtol=1e-6)
    last = [x for x in tiny.metrics(tmp_path) if x['split'] == 'test'][-1]
    np.testing.assert_allclose(last['nats_per_image'], metrics['nats_per_image'])


@pytest.mark.parametrize('module', [rbm, dbm])
def test_grey_images_are_refused(module, tmp_path, capfd):
    """Catch grey levels taken for probabilities of bits."""
    flags = f'--workdir={tmp_path}/run', '--binarize=none'
    assert module.main(list(flags)) == 2
    said = capfd.readouterr().err
    assert 'models bits, and digits has 17 values: pass --binarize' in said
    assert not (tmp_path / 'run').exists()


def test_a_dbm_has_two_layers():
    """Catch a layer that is silently left out."""
    with pytest.raises(UserError, match='--hidden=5 must be two sizes'):
        dbm.Config(hidden=(5,))


def test_machines_learn_dynamic_bits():
    """Catch chains that start, or offsets that begin, at grey levels."""
    data = sources.load('digits', binarize='dynamic')
    config = rbm.Config(batch_size=8, hidden=4, binarize='dynamic')
    state = rbm.build(config, data).init(jax.random.key(0))
    assert set(np.unique(state.model_state['chains'])) == {0, 1}
    means = data.splits['train'].images.reshape(-1, 64).mean(0) / 16
    np.testing.assert_allclose(
        state.model_state['offsets']['visible'], means, atol=1e-6
    )
    assert jnp.isfinite(state.params['visible_bias']).all()
