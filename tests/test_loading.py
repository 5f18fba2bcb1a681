"""A trained model in Python gives what the command line gives, without the data."""

import dataclasses
import functools
import gc
import json
import os
import pathlib
import pickle
import re
import runpy
import shutil
import subprocess
import sys
import time
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import gm_jax
from experiments import classifier, gan, made, vae
from gm_jax import loading
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.training import command, parallel

ROOT = pathlib.Path(__file__).resolve().parents[1]
FLAGS = ('--num_steps=2', '--batch_size=16', '--num_samples=8', '--eval_batch_size=50')
EXPERIMENTS = {
    'vae': (vae.main, '--test_samples=50', '--hidden=8', '--latent_dims=3',
            '--binarize=dynamic', '--batch_norm', '--ema=0.9'),
    'made': (made.main, '--hidden=8', '--class_conditional', '--num_masks=2'),
    'gan': (gan.main, '--score_samples=20'),
    'classifier': (classifier.main,),
}
DIGITS = sources.load('digits').splits['test']


@pytest.fixture(name='trained', scope='module', params=[
    'vae', 'made', pytest.param('gan', marks=pytest.mark.long),
    pytest.param('classifier', marks=pytest.mark.long),
])
def make_trained(request, tmp_path_factory):
    """Return (name, work directory) of a tiny model."""
    main, *flags = EXPERIMENTS[request.param]
    workdir = tmp_path_factory.mktemp(request.param)
    assert main([f'--workdir={workdir}', *FLAGS, *flags]) == 0
    return request.param, workdir


def _content(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def test_the_same_numbers_and_images(trained, monkeypatch, capfd):
    """Catch other noise, other parameters, and data or files that are touched."""
    name, workdir = trained
    assert EXPERIMENTS[name][0]([f'--workdir={workdir}', '--mode=sample', '--seed=3']
                                ) == (2 if name == 'classifier' else 0)
    before = _content(workdir)
    monkeypatch.delattr(sources, 'load')
    monkeypatch.setattr(parallel, 'init', None)  # no parameters are made
    run = gm_jax.load(workdir)
    assert (run.step, run.data.image_shape) == (2, (8, 8, 1))
    assert run.results == json.loads((workdir / 'results.json').read_text())
    numbers = run.results['metrics']
    if 'nats_per_image' in numbers:
        label = DIGITS.labels if name == 'made' else None
        nats = -run.log_prob(DIGITS.images, label=label)
        np.testing.assert_allclose(nats.mean(), numbers['nats_per_image'], rtol=1e-6)
        assert run.estimator == numbers['estimator'] and nats.shape == (297,)
    if name != 'classifier':
        with np.load(workdir / 'samples_seed=3_step=2.npz') as file:
            np.testing.assert_array_equal(run.sample(8, seed=3), file['images'])
            np.testing.assert_array_equal(run.sample(3, seed=3), file['images'][:3])
    assert _content(workdir) == before
    assert 'WARNING' not in capfd.readouterr().err


def test_what_is_not_used_is_freed(trained):
    """Catch programs that keep every model that was ever loaded."""
    name, workdir = trained
    run = gm_jax.load(workdir)
    if name != 'classifier':
        run.sample(1)
    if 'encode' in dir(run):
        run.encode(DIGITS.images[:1])
    if 'log_prob' in dir(run):
        run.log_prob(DIGITS.images[:1], label=[0] if name == 'made' else None)
    gone, leaf = weakref.ref(run), weakref.ref(jax.tree.leaves(run.variables)[0])
    del run
    gc.collect()
    assert gone() is None and leaf() is None


def test_what_a_model_has_and_has_not(trained):
    """Catch a method that is missing, or one that fails inside a network."""
    name, workdir = trained
    run = gm_jax.load(workdir)
    has = {
        'vae': {'log_prob', 'sample', 'encode', 'decode', 'embed'},
        'made': {'log_prob', 'sample'}, 'gan': {'sample', 'decode'},
        'classifier': {'embed'},
    }[name]
    every = {'log_prob', 'sample', 'encode', 'decode', 'embed'}
    assert {method for method in every if hasattr(run, method)} == has
    assert has | {'estimator'} <= set(dir(run)) and name in repr(run)
    for method in every - has:
        with pytest.raises(AttributeError, match=f'{name} has no {method}.*{min(has)}'):
            getattr(run, method)
    if 'encode' in has:
        z = run.encode(DIGITS.images[:60])
        assert z.shape == (60, 3)
        # An image has the same code whatever else is encoded.
        np.testing.assert_allclose(run.encode(DIGITS.images[:7]), z[:7], atol=1e-5)
        assert run.decode(z).shape == (60, 8, 8, 1)
    if 'embed' in has:
        assert run.embed(DIGITS.images[:5]).ndim == 2


def test_functions_are_pure(trained):
    """Catch a function that jit, grad or vmap cannot take."""
    name, workdir = trained
    run, rngs = gm_jax.load(workdir), jax.random.split(jax.random.key(0), 3)
    x, label = jnp.asarray(DIGITS.images[:3]), jnp.asarray(DIGITS.labels[:3])
    functions = run.functions
    if functions.log_prob is not None:
        if name != 'made':
            with pytest.raises(ValueError, match='not class-conditional: leave out'):
                functions.log_prob(run.variables, rngs[0], x, label)
            label = None
        nats = jax.jit(functions.log_prob)(run.variables, rngs[0], x, label)
        assert nats.shape == (3,)
        slopes = jax.grad(
            lambda v: functions.log_prob(v, rngs[0], x, label).sum()
        )(run.variables)
        leaves = jax.tree.leaves(slopes['params'])
        assert any(bool(jnp.any(leaf != 0)) for leaf in leaves)
        each = jax.vmap(
            lambda x, label: functions.log_prob(run.variables, rngs[0], x, label)
        )(x[:, None], None if label is None else label[:, None])
        assert each.shape == (3, 1)
        # What is only known when it is computed.
        unknown = jax.jit(functions.log_prob)(
            run.variables, rngs[0], x.at[1, 0, 0, 0].set(17), label
        )
        assert np.isnan(unknown).tolist() == [False, True, False]
    for of_images in (functions.log_prob, functions.encode, functions.embed):
        if of_images is not None:
            with pytest.raises(ValueError, match=r'x is \[3, 4, 16, 1\], the model'):
                of_images(run.variables, rngs[0], x.reshape(3, 4, 16, 1))
            with pytest.raises(ValueError, match='x is float32, the model takes integ'):
                of_images(run.variables, rngs[0], x / 16)
            with pytest.raises(AssertionError, match='must be made by jax.random.key'):
                of_images(run.variables, jax.random.PRNGKey(0), x)
            labelled = label is not None and of_images is functions.log_prob
            for num, index in ((3, jnp.arange(2)), (3, jnp.arange(3.0)), (0, None)):
                more = {'label': label[:num]} if labelled else {}
                sentence = r'it must be integers \[3\]' if num else 'is no example'
                with pytest.raises(ValueError, match=sentence):
                    of_images(run.variables, rngs[0], x[:num], index=index, **more)
    if functions.sample is not None:
        drawn = jax.jit(functions.sample)(run.variables, rngs)
        assert drawn.shape == (3, 8, 8, 1) and drawn.dtype == jnp.uint8
        with pytest.raises(AssertionError, match='rngs must be .*per example'):
            functions.sample(run.variables, rngs[0])
        with pytest.raises(ValueError, match=r'index is int32\[2\], it must be'):
            functions.sample(run.variables, rngs, jnp.arange(2))


def test_what_is_given_is_checked(trained):
    """Catch a number for images of another scale, shape or type."""
    name, workdir = trained
    run = gm_jax.load(workdir)
    images = DIGITS.images[:4]
    for method in {'log_prob', 'encode', 'embed'} & set(dir(run)):
        for x, sentence in (
            (images / 16, 'x is float64, .* multiply images in .0, 1. by 16'),
            (images[..., 0], r'x is \[4, 8, 8\], the model takes \[N, 8, 8, 1\]'),
            (images[:, :4], r'x is \[4, 4, 8, 1\]'), (images[:0], r'x is \[0, 8'),
            (images * 15, 'has values from 0 to .* integers from 0 to 16: grey level'),
        ):
            with pytest.raises(ValueError, match=sentence):
                getattr(run, method)(x)
    if name == 'made':
        with pytest.raises(ValueError, match='class-conditional: pass label'):
            run.log_prob(images)
        with pytest.raises(UserError, match='12'):
            run.sample(2, label='12')
        for label in (12, -1, np.int64(10)):
            with pytest.raises(ValueError, match=f'label={label} is not a class: they'):
                run.sample(2, label=label)
        pure = functools.partial(
            run.functions.log_prob, run.variables, jax.random.key(0), images
        )
        with pytest.raises(ValueError, match='class-conditional: pass label'):
            pure()
        found = pure(jnp.array([0, -1, 9, 10]))
        assert np.isnan(found).tolist() == [False, True, False, True]
        np.testing.assert_array_equal(pure([1, 2, 3, 4]), pure(jnp.arange(1, 5)))
        for wrong in (jnp.ones((4, 1), int), jnp.ones(1, int), jnp.ones(4)):
            with pytest.raises(ValueError, match=r'it must be integers \[4\]'):
                pure(wrong)
        for given in ({'given': images}, {'mask': images[0, ..., 0]}):
            with pytest.raises(ValueError, match='given and mask belong together'):
                run.sample(2, **given)
        with pytest.raises(ValueError, match='must be arrays of numbers'):
            run.sample(2, given=images.astype(object), mask=images)
        for label, sentence in (
            ([1, 2], r'int64\[2\], it must be integers \[4\]'),
            ([1.0, 2, 3, 4], 'label is float64'), ([0, 1, 2, 10], 'from 0 to 10, the'),
            ([-1, 0, 0, 0], 'from -1 to 0, the classes are 0 to 9'),
        ):
            with pytest.raises(ValueError, match=sentence):
                run.log_prob(images, label=label)
        with pytest.raises(ValueError, match='batch_size=0 is not'):
            run.log_prob(images, label=[0, 1, 2, 3], batch_size=0)
    if name == 'made':
        np.testing.assert_array_equal(
            run.log_prob(images, label=np.array(['0', '9', '1', '1'], object)),
            run.log_prob(images, label=[0, 9, 1, 1]),
        )
        with pytest.raises(UserError, match='^label=ten is not a class of'):
            run.log_prob(images, label=['0', 'ten', '1', '1'])
    if name == 'vae':
        with pytest.raises(ValueError, match='not class-conditional: leave out label'):
            run.log_prob(images, label=[0, 1, 2, 3])
        for z in (np.zeros((2, 4)), np.zeros(3), np.zeros((0, 3)), [['a'] * 3]):
            with pytest.raises(ValueError, match=r'the model takes numbers \[N, 3\]'):
                run.decode(z)
        for number in (np.nan, np.inf, 1e300):
            with pytest.raises(ValueError, match='z has values that are not finite'):
                run.decode(np.full((2, 3), number))
        with pytest.raises(ValueError, match=r'z is \[6\], the model takes \[B, 3\]'):
            run.functions.decode(run.variables, jnp.zeros(6))
    if name != 'classifier':
        for wrong in (
            {'num': 0}, {'num': 1.5}, {'num': True}, {'seed': -1}, {'seed': 'a'}
        ):
            with pytest.raises(ValueError, match='is not an integer'):
                run.sample(**wrong)
    if name == 'gan':
        with pytest.raises(ValueError, match='gan has no temperature'):
            run.sample(2, temperature=0.5)


def test_a_run_is_pickled(trained):
    """Catch closures, which pickle refuses, and log Z that loses its parameters."""
    run = gm_jax.load(trained[1])
    params = run.variables['params']
    run = dataclasses.replace(run, shared_by=params)
    found = pickle.loads(pickle.dumps(run))
    assert repr(found) == repr(run)
    assert found.shared_by is found.variables['params']
    jax.tree.map(np.testing.assert_array_equal, found.variables, run.variables)
    assert found.functions.embed is None or found.embed(DIGITS.images[:2]).ndim == 2


@pytest.mark.parametrize('trained', ['made'], indirect=True)
def test_classes_with_numbers_for_names(trained):
    """Catch an integer that is a name here and a number there."""
    run = gm_jax.load(trained[1])
    names = tuple(str(number) for number in range(1, 11))
    named = dataclasses.replace(
        run, data=dataclasses.replace(run.data, class_names=names)
    )
    samples = [run.sample(8, label=label) for label in (1, 2)]
    assert not np.array_equal(*samples)
    np.testing.assert_array_equal(named.sample(8, label=1), samples[0])
    np.testing.assert_array_equal(named.sample(8, label='2'), samples[0])
    x = DIGITS.images[:2]
    np.testing.assert_array_equal(
        named.log_prob(x, label=[1, 1]), named.log_prob(x, label=['2', '2'])
    )


def test_completion_and_choices(tmp_path, monkeypatch):
    """Catch a choice that is ignored, and given pixels that are not kept."""
    main, *flags = EXPERIMENTS['made']
    assert main([f'--workdir={tmp_path}', *FLAGS, *flags]) == 0
    run, images = gm_jax.load(tmp_path), DIGITS.images[:2]
    mask = np.arange(8)[:, None] * np.ones(8) < 4
    np.savez(tmp_path / 'given.npz', images=images.astype(int), mask=mask)
    command = [f'--workdir={tmp_path}', '--mode=sample', '--label=2', '--seed=1',
               '--temperature=0.7', f'--given={tmp_path}/given.npz']
    assert main(command) == 0
    drawn = run.sample(
        8, seed=1, label=2, temperature=0.7, given=images, mask=mask
    )
    with np.load(tmp_path / 'samples.npz') as file:
        np.testing.assert_array_equal(drawn, file['images'])
    assert not np.array_equal(drawn, run.sample(8, seed=1))
    # The same images are not compiled in again for another seed.
    monkeypatch.setattr(parallel, 'sample_many', None)
    again = run.sample(8, seed=2, label=2, temperature=0.7, given=images, mask=mask)
    assert not np.array_equal(drawn, again)
    for wrong in ([0.5, 0.7], jnp.ones(1)):
        with pytest.raises(ValueError, match='temperature=.* is not one value'):
            run.sample(8, temperature=wrong)
    exact, like = np.float32(0.75), {'seed': 2, 'label': 2, 'given': images}
    monkeypatch.undo()
    np.testing.assert_array_equal(
        run.sample(2, temperature=exact, mask=mask, **like),
        run.sample(temperature=0.75, mask=mask, **like),  # as many as are given
    )
    with pytest.raises(ValueError, match='num=1 is less than the 2 images given'):
        run.sample(1, mask=mask, **like)


def test_other_experiments_are_refused_by_name(trained, tmp_path, capfd):
    """Catch settings of one experiment read as those of another."""
    name, workdir = trained
    other = gan.main if name != 'gan' else vae.main
    sentence = f"is of the experiment '{name}', not of {other.name}"
    with pytest.raises(UserError, match=sentence):
        gm_jax.load(workdir, experiment=other)
    for mode in ('train', 'eval', 'sample'):
        assert other([f'--workdir={workdir}', f'--mode={mode}']) == 2
        assert sentence in capfd.readouterr().err
    assert other([f'--workdir={tmp_path}/new', f'--config={workdir}/config.json']) == 2
    assert sentence in capfd.readouterr().err
    for path, missing in ((tmp_path, 'holds no run'), (tmp_path / 'x', 'holds no run')):
        with pytest.raises(UserError, match=missing):
            gm_jax.load(path)
    assert list(tmp_path.iterdir()) == []


def test_loading_is_quick(trained):
    """Catch an initialisation, or a program that is compiled, to load a model."""
    started = time.process_time()
    gm_jax.load(trained[1])
    assert time.process_time() - started < 2


@pytest.mark.parametrize('trained', ['vae'], indirect=True)
def test_codes_do_not_depend_on_the_batch(trained):
    """Catch noise that is keyed by the place in a batch, and not in the set."""
    run = gm_jax.load(trained[1])
    config = dataclasses.replace(run.config, eval_batch_size=7)
    other = dataclasses.replace(run, config=config)
    x = DIGITS.images[:20]
    z = run.encode(x)
    np.testing.assert_allclose(other.encode(x), z, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(other.decode(z), run.decode(z), atol=1)
    of_jax = run.decode(jnp.asarray(z, jnp.bfloat16))
    np.testing.assert_allclose(of_jax, run.decode(z), atol=16)


# What docs/tour.md leaves to the reader, before the code of its page.
HEAD = '''"""A flow."""

import dataclasses
import math

import jax.numpy as jnp

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.families import density
from gm_jax.keys import Use, derive
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import dequantization
from gm_jax.sampling import latent
from gm_jax.training import command, settings
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import field
from tests.families.test_density import Flow

'''


def test_an_experiment_of_other_people(tmp_path):
    """Catch what only the experiments of this repository can do."""
    code, = re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs/tour.md').read_text(), re.S
    )
    path = tmp_path / 'flow.py'
    end = "\nif __name__ == '__main__':\n    import sys\n\n    main(sys.argv[1:])\n"
    path.write_text(HEAD + code + end)
    done = subprocess.run(
        [sys.executable, path, f'--workdir={tmp_path}/run', '--num_steps=2',
         '--num_samples=4'],
        cwd=ROOT, env={**os.environ, 'PYTHONPATH': str(ROOT)},
        capture_output=True, text=True, check=False,
    )
    assert done.returncode == 0, done.stderr
    run = gm_jax.load(tmp_path / 'run')
    assert run.command.name == 'flow' and run.estimator == 'elbo'
    nats = -run.log_prob(DIGITS.images).mean()
    expected = run.results['metrics']['nats_per_image']
    np.testing.assert_allclose(nats, expected, rtol=1e-6)
    assert run.sample(3).shape == (3, 8, 8, 1)
    # An exported model may come from elsewhere: it makes nobody run a file.
    out = tmp_path / 'out'
    loading.export(tmp_path / 'run', out)
    config = json.loads((out / 'config.json').read_text())
    assert config['module'] == ''
    for module in ('', str(path)):
        (out / 'config.json').write_text(json.dumps({**config, 'module': module}))
        with pytest.raises(UserError, match='not named, which .* pass experiment='):
            gm_jax.load(out)
        assert gm_jax.load(out, experiment=run.command).step == 2
    for code, why in (
        ('import nowhere', 'nowhere'), ('exit(0)', 'SystemExit'), ('(', 'SyntaxError'),
        (None, 'No such file'),
    ):
        path.unlink() if code is None else path.write_text(code)
        sentence = f'of the experiment flow in .*flow.py, which cannot .*{why}'
        with pytest.raises(UserError, match=sentence):
            gm_jax.load(tmp_path / 'run')
        assert str(path) not in sys.modules
    assert loading.load(tmp_path / 'run', experiment=run.command).step == 2


def test_a_script_is_not_run_again(tmp_path, capfd):
    """Catch a script that trains and loads, and is run by loading once more."""
    end = (
        f"main(['--workdir={tmp_path}/WORK', '--num_steps=2', '--num_samples=4'])\n"
        f"print('loaded', gm_jax.load('{tmp_path}/WORK'))\n"
    )
    code, = re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs/tour.md').read_text(), re.S
    )
    flow = HEAD + code + '\nimport gm_jax\n' + end.replace('WORK', 'flow')
    (tmp_path / 'flow.py').write_text(flow)
    imported = 'import gm_jax\nfrom experiments.nade import main\n'
    (tmp_path / 'mine.py').write_text(imported + end.replace('WORK', 'nade'))
    for script in ('flow', 'mine'):
        runpy.run_path(str(tmp_path / f'{script}.py'), run_name='__main__')
        assert capfd.readouterr().out.count('loaded <run of') == 1
    config = json.loads((tmp_path / 'nade' / 'config.json').read_text())
    assert config['module'] == 'experiments.nade'
    # In another process the file is run, and by its own call of `load` not again.
    gm_jax.load(tmp_path / 'flow')
    assert capfd.readouterr().out.count('loaded <run of') == 1


def test_an_experiment_of_a_notebook(trained, tmp_path, monkeypatch):
    """Catch a traceback where the module of an experiment has no file."""
    name, workdir = trained
    cell = types.ModuleType('cell')
    cell.main = EXPERIMENTS[name][0]._replace(name='mine')
    monkeypatch.setitem(sys.modules, 'cell', cell)
    assert command._home(cell.main) == ''
    copy = shutil.copytree(workdir, tmp_path / 'run')
    config = json.loads((copy / 'config.json').read_text())
    config |= {'experiment': 'mine', 'module': ''}
    (copy / 'config.json').write_text(json.dumps(config))
    with pytest.raises(UserError, match='mine in a notebook .* pass experiment='):
        gm_jax.load(copy)
    assert gm_jax.load(copy, experiment=cell.main).step == 2
