"""An exported model is that of its run, and says what it is."""

import json
import re
import shutil
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

import gm_jax
from gm_jax import cli, loading
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.training import exporting
from tests.test_loading import EXPERIMENTS, make_trained

fixture = make_trained  # the same tiny models


def _content(directory):
    return {path: path.read_bytes() for path in directory.rglob('*') if path.is_file()}


def test_exported_models_are_the_same(trained, tmp_path, monkeypatch, capfd):
    """Catch an array that is lost, and numbers or images of another model."""
    name, workdir = trained
    out = tmp_path / 'out'
    assert cli.export([f'--workdir={workdir}', f'--to={out}'], 'gm-jax export') == 0
    copied = {'config.json', 'data.json', 'results.json'}
    written = copied | {'README.md', 'model.safetensors'}
    assert {x.name for x in out.iterdir()} == written
    before, run, again = _content(out), gm_jax.load(workdir), gm_jax.load(out)
    chex.assert_trees_all_equal(again.variables, run.variables)
    assert (again.step, again.results) == (run.step, run.results)
    main = EXPERIMENTS[name][0]
    assert main([f'--workdir={out}']) == 2
    assert 'holds an exported model' in capfd.readouterr().err
    assert cli.export([f'--workdir={workdir}', f'--to={out}'], 'gm-jax export') == 2
    assert 'is there already' in capfd.readouterr().err
    assert _content(out) == before
    assert main([f'--workdir={out}', '--mode=eval']) == 0
    found = json.loads((out / 'results_eval_step=2.json').read_text())
    assert found['metrics'] == run.results['metrics'] and found['step'] == 2
    if name != 'classifier':
        monkeypatch.delattr(sources, 'load')
        assert main([f'--workdir={out}', '--mode=sample']) == 0
        with np.load(out / 'samples_seed=0_step=2.npz') as file:
            np.testing.assert_array_equal(file['images'], run.sample(8))


def test_the_best_checkpoint_is_known_in_another_place(trained, tmp_path, capfd):
    """Catch a choice by the test images that is called the last checkpoint."""
    name, workdir = trained
    main = EXPERIMENTS[name][0]
    best, again, last = (tmp_path / each for each in ('best', 'again', 'last'))
    loading.export(workdir, best, checkpoint='best')
    loading.export(best, again)
    loading.export(workdir, last)
    found = [exporting.checkpoint_of(str(x), 'last') for x in (best, again, last)]
    assert found == ['best', 'best', 'last']
    assert (again / 'model.safetensors').read_bytes() == (
        best / 'model.safetensors'
    ).read_bytes()
    assert main([f'--workdir={again}', '--mode=eval', '--test_examples=20']) == 0
    found, = again.glob('results_eval_*_best_*.json')
    assert json.loads(found.read_text())['checkpoint'] == 'best'
    capfd.readouterr()
    for act in (
        lambda: gm_jax.load(last, checkpoint='best'),
        lambda: loading.export(last, tmp_path / 'none', checkpoint='best'),
    ):
        with pytest.raises(UserError, match='is of the last checkpoint alone'):
            act()
    assert main([f'--workdir={last}', '--mode=eval', '--checkpoint=best']) == 2
    assert 'is of the last checkpoint alone' in capfd.readouterr().err
    # An older version did not say in its arrays which one it had exported.
    (last / 'README.md').unlink()  # which has their digest
    path = last / 'model.safetensors'
    save_file(load_file(path), path, metadata={'step': '2'})
    assert exporting.checkpoint_of(str(last), 'last') == 'last'
    with pytest.raises(UserError, match='is of the last checkpoint alone'):
        gm_jax.load(last, checkpoint='best')
    (last / 'results.json').unlink()
    assert gm_jax.load(last, checkpoint='best').step == 2


def test_half_is_half_and_nearly_equal(trained, tmp_path):
    """Catch arrays that stay in float16, or lose more than its rounding."""
    _, workdir = trained
    out = tmp_path / 'half'
    loading.export(workdir, out, half=True)
    loading.export(workdir, tmp_path / 'whole')
    arrays = [path / 'model.safetensors' for path in (out, tmp_path / 'whole')]
    half, whole = (path.stat().st_size for path in arrays)
    assert half < 0.75 * whole
    assert 'stored as float16' in (out / 'README.md').read_text()
    run, again = gm_jax.load(workdir), gm_jax.load(out)
    chex.assert_trees_all_equal_shapes_and_dtypes(again.variables, run.variables)
    chex.assert_trees_all_close(again.variables, run.variables, rtol=1e-3, atol=1e-7)
    # A process with JAX_ENABLE_X64 has wider parameters.
    wide = jax.tree.map(lambda x: np.empty(x.shape, np.float64), run.variables)
    chex.assert_trees_all_equal(exporting.read(out, wide).variables, again.variables)
    chex.assert_trees_all_equal_dtypes(exporting.read(out, wide).variables, wide)
    loading.export(out, tmp_path / 'again')  # it stays what it is
    for file in out.iterdir():
        assert (tmp_path / 'again' / file.name).read_bytes() == file.read_bytes()
    # Evaluated anew, its numbers are of the rounded arrays.
    assert 'before they were rounded' in (out / 'README.md').read_text()
    (out / 'results.json').rename(out / f'results_eval_step={run.step}.json')
    loading.export(out, tmp_path / 'anew')
    card = (tmp_path / 'anew' / 'README.md').read_text()
    assert 'before they were rounded' not in card and 'stored as float16' in card


def test_numbers_are_of_the_arrays_beside_them(trained, tmp_path):
    """Catch the numbers of the last step in the card of another, and a path in it."""
    name, workdir = trained
    copy = shutil.copytree(workdir, tmp_path / 'run')
    results = json.loads((copy / 'results.json').read_text())
    (copy / 'results.json').write_text(json.dumps({**results, 'step': 1}))
    config = json.loads((copy / 'config.json').read_text())
    (copy / 'config.json').write_text(json.dumps({
        **config, 'data_dir': '/home/me',
        **({'classifier': '/home/me/it'} if 'classifier' in config else {}),
    }))
    loading.export(copy, tmp_path / 'without')
    assert not (tmp_path / 'without' / 'results.json').exists()
    assert '/home/me' not in (tmp_path / 'without' / 'config.json').read_text()
    assert 'not been evaluated' in (tmp_path / 'without' / 'README.md').read_text()
    run = gm_jax.load(tmp_path / 'without')
    assert run.results == {} == gm_jax.load(copy).results
    assert run.estimator == results['metrics'].get('estimator', '')
    evaluated = copy / 'results_eval_step=2_best.json'
    evaluated.write_text(json.dumps({**results, 'checkpoint': 'best'}))
    loading.export(copy, tmp_path / 'with', checkpoint='best')
    assert gm_jax.load(tmp_path / 'with').results['checkpoint'] == 'best'
    for damaged in ('{', '{"metrics": null, "step": 2}'):
        (copy / 'results.json').write_text(damaged)
        with pytest.raises(UserError, match='results.json (cannot be|is damaged)'):
            gm_jax.load(copy)


def test_the_card_is_what_it_says(trained, tmp_path):
    """Catch a loader that does not work, and other arrays beside the card."""
    name, workdir = trained
    loading.export(workdir, tmp_path / 'out')
    card = (tmp_path / 'out' / 'README.md').read_text()
    head, text = card.split('---\n')[1:3]
    assert f'- {name}' in head and 'on digits' in text
    loader = re.findall(r'```python\n(.*?)```', card, re.S)[1]
    assert len(loader.splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, '-c', loader + 'import sys; print("jax" in sys.modules, '
         'len(variables["params"]))'],
        cwd=tmp_path / 'out', capture_output=True, text=True, check=True,
    )
    names, has_jax, num = done.stdout.replace('\n', ' ').rsplit(maxsplit=2)
    variables = gm_jax.load(workdir).variables
    assert names == str(sorted(variables)) and has_jax == 'False'
    assert int(num) == len(variables['params'])
    path = tmp_path / 'out' / 'model.safetensors'
    content = bytearray(path.read_bytes())
    for place in (len(content) - 9, 30):
        content[place] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError, match='SHA-256 is another'):
            gm_jax.load(tmp_path / 'out')
        # Without its card a file of another model is refused all the same.
    (tmp_path / 'out' / 'README.md').unlink()
    path.write_bytes(content[:50])
    with pytest.raises(UserError, match='cannot be used'):
        gm_jax.load(tmp_path / 'out')


def test_an_export_that_stops_leaves_nothing(trained, tmp_path, monkeypatch):
    """Catch half a model under the name of a whole one."""
    def fail(*args, **kwargs):
        raise error('No space left on device')

    for name, error in ('_card', OSError), ('save_file', SafetensorError):
        monkeypatch.setattr(exporting, name, fail)
        with pytest.raises(UserError, match='cannot be written: No space'):
            loading.export(trained[1], tmp_path / 'out')
        assert list(tmp_path.iterdir()) == []
