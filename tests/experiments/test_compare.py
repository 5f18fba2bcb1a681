"""The table of every model."""

import json
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import NAMES, compare
from gm_jax import survey
from gm_jax.errors import UserError
from tests import test_html

FLAGS = ('--budget_minutes=0.005', '--models=NADE,RBM', '--binarize=none')


def test_every_model_is_in_the_tree():
    """Catch an experiment that the table leaves out."""
    # These generate no images.
    others = {'autoencoder', 'time_series', 'classifier'}
    assert {entry.experiment for entry in survey.TREE} == set(NAMES) - others
    names = [entry.name for entry in survey.TREE]
    assert len(set(names)) == len(names)


def test_a_flag_of_another_type(capsys):
    """Catch a page of usage in the place of a sentence."""
    with pytest.raises(SystemExit) as ended:
        compare.main(['--workdir=all', '--budget_minutes=x'])
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.count('\n') == 1
    assert "--budget_minutes: invalid float value: 'x'" in error


@pytest.mark.parametrize('flags, sentence', [
    (('--models=NODE',), "--models: there is no 'NODE': did you mean NADE?"),
    (('--budget_minutes=0',), '--budget_minutes=0.0 must be a finite number above 0.'),
    (('--epochs=-1',), '--epochs=-1.0 must be a finite number above 0.'),
    (('--budget_minutes=inf',), '=inf must be a finite number above 0.'),
    (('--dataset=nowhere',), 'nowhere'),
    (('--classifier=/nowhere',), '/nowhere holds no run'),
    (('--dataset=npz:few.npz',), 'the test split of npz:few.npz has 2 images'),
    (('--image_size=16',), '--image_size resizes images'),
    (('--image_size=-1',), '--image_size must be at least 0'),
    (('--background=red',), '--background=red is not a colour'),
])
def test_mistakes(flags, sentence, tmp_path, capsys, monkeypatch):
    """Catch work before a mistake is told."""
    monkeypatch.chdir(tmp_path)
    np.savez('few.npz', images=np.arange(20 * 16, dtype=np.uint8).reshape(20, 4, 4))
    assert compare.main([f'--workdir={tmp_path / "all"}', *flags]) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1
    assert not (tmp_path / 'all').exists()


def test_numbers_in_a_cell():
    """Catch an exponent for a whole number, and a number that there is not."""
    shown = [survey._number(x, '.2g').shown for x in (0.0123, 4.56, 99.7, 120, None)]
    assert shown == ['0.012', '4.6', '100', '120', '']


@pytest.mark.parametrize('content', ['{', '[]'])
def test_a_directory_that_cannot_be_used(content, tmp_path, capsys, monkeypatch):
    """Catch a traceback, and a home directory that is taken for a name."""
    monkeypatch.setenv('HOME', str(tmp_path))
    monkeypatch.setattr(compare, '_one', lambda args, entry: '')
    (tmp_path / 'file').write_text('')
    for path in (tmp_path / 'file', tmp_path / 'file' / 'all'):
        assert compare.main([f'--workdir={path}']) == 2
        assert 'cannot be written' in capsys.readouterr().err
    assert compare.main(['--workdir=~/all', '--models=NADE']) == 0
    path = tmp_path / 'all' / 'protocol.json'
    # Of a version that had no flag for the size.
    protocol = json.loads(path.read_text())
    assert protocol.pop('image_size') == 0
    path.write_text(json.dumps(protocol))
    assert compare.main(['--workdir=~/all', '--models=NADE']) == 0
    path.write_text(content)
    capsys.readouterr()
    assert compare.main(['--workdir=~/all', '--models=NADE']) == 2
    error = capsys.readouterr().err
    assert 'protocol.json cannot be read' in error and error.count('\n') == 1


def test_a_survey_of_other_images(tmp_path, capsys, monkeypatch):
    """Catch a table whose rows are of two sets, when a file has been written anew."""
    monkeypatch.setattr(compare, '_one', lambda args, entry: '')
    rng = np.random.default_rng(0)
    flags = [f'--workdir={tmp_path}/all', f'--dataset=npz:{tmp_path}/x.npz']
    for status in (0, 2):
        x = rng.integers(0, 2, (200, 4, 4), dtype=np.uint8)
        np.savez(tmp_path / 'x.npz', images=x)
        assert compare.main([*flags, '--models=NADE']) == status
    error = capsys.readouterr().err
    assert 'are others' in error and 'new --workdir' in error


def test_what_a_survey_asks_of_a_run(tmp_path, monkeypatch):
    """Catch models that are chosen by the test images, or by other features.

    A user may pass --validation, as to an experiment: it changes nothing.
    """
    asked = []
    monkeypatch.setattr(compare.classifier, 'check', lambda *args: None)
    monkeypatch.setattr(
        compare, '_one', lambda args, entry: asked.append((args, entry)) or ''
    )
    assert compare.main([
        f'--workdir={tmp_path}', '--models=NADE,GAN', '--validation',
        '--classifier=there',
    ]) == 0
    flags = {}
    for args, entry in asked:
        path = tmp_path / entry.name.lower() / 'pace.json'
        path.parent.mkdir()
        path.write_text('{"num_steps": 145}')
        flags[entry.name] = compare._flags(args, entry)
        assert {'--validation', '--num_steps=145', '--eval_every=4'} <= set(
            flags[entry.name]
        )
    assert '--classifier=there' in flags['GAN']
    assert '--classifier=there' not in flags['NADE']


@pytest.mark.parametrize('readable', [True, False])
def test_a_model_that_fails(readable, tmp_path, monkeypatch):
    """Catch images that are away for a while and a model that is left out for ever."""
    args = compare._parse([f'--workdir={tmp_path}'])
    args.validation = False
    monkeypatch.setattr(compare, '_readable', lambda args: readable)
    monkeypatch.setattr(compare, '_finish', lambda *_: (2, 'compare: it cannot be.\n'))
    entry = survey.TREE[0]
    assert compare._one(args, entry) == 'it cannot be.'
    assert (tmp_path / 'nade' / 'compare.json').exists() == readable


def test_the_pace_is_that_of_the_training(tmp_path, monkeypatch):
    """Catch a step that is timed on other devices than the model trains on."""
    settled = []
    monkeypatch.setattr(
        compare.cpu_devices, 'settle', lambda c, path: settled.append(path) or c
    )
    args = compare._parse([f'--workdir={tmp_path}', '--budget_minutes=0.001'])
    args.validation = False
    entry = survey.TREE[0]
    config = tmp_path / 'nade' / 'run' / 'config.json'
    config.parent.mkdir(parents=True)
    compare._pace(args, entry)
    config.write_text(json.dumps({'experiment': 'nade'}))
    with pytest.raises(UserError):  # nothing has been trained
        compare._assess(args, entry)
    assert settled == ['', str(config)]


@pytest.mark.long
def test_a_survey(tmp_path, capsys):
    """Catch a model that is trained twice, one that fails silently, and a bad page."""
    flags = [f'--workdir={tmp_path}', *FLAGS]
    assert compare.main(flags) == 1
    nade, rbm = json.loads((tmp_path / 'compare.json').read_text())
    assert rbm['name'] == 'RBM'
    assert rbm['error'].startswith('a Boltzmann machine models bits')
    results = json.loads((tmp_path / 'nade' / 'run' / 'results.json').read_text())
    assert nade['nats']['test']['value'] == results['metrics']['nats_per_image']
    assert nade['estimator'] == 'exact' and 'density' in nade['can']
    assert nade['images_seen'] == results['step'] * 32
    assert 2 < nade['nats']['train']['value'] < 250
    page = test_html.check((tmp_path / 'report.html').read_text())
    assert 'NADE' in page.text and 'not here' in page.text
    assert f'2 of the {len(survey.TREE)} models on digits' in page.text
    assert '| RBM | ' in (tmp_path / 'compare.md').read_text()
    capsys.readouterr()
    assert compare.main(flags) == 0
    told = capsys.readouterr().out
    assert 'of which 2 are done' in told and '1/1' not in told
    # A part of the models does not drop the others from the table.
    assert compare.main([flags[0], FLAGS[0], FLAGS[2], '--models=NADE']) == 0
    assert len(json.loads((tmp_path / 'compare.json').read_text())) == 2
    assert compare.main([*flags, '--binarize=threshold']) == 2
    assert 'has a survey with --binarize=none' in capsys.readouterr().err
    if shutil.which('chromium'):
        found = test_html.in_a_browser(
            (tmp_path / 'report.html').read_text(), tmp_path, 360
        )
        assert found['wide'] == [] and found['broken'] == 0 and not found['scrolls']


@pytest.mark.long
def test_told_to_stop(tmp_path):
    """Catch a training that goes on when nobody waits for it."""
    with subprocess.Popen([
        sys.executable, '-m', 'experiments.compare', f'--workdir={tmp_path}',
        '--budget_minutes=5', '--models=NADE',
    ], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / 'nade' / 'run' / 'metrics.jsonl').exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        error = process.communicate()[1]
    assert process.returncode == 143
    assert error == 'compare: interrupted: the same command goes on from here.\n'
    assert 'told to stop' in (tmp_path / 'nade' / 'log.txt').read_text()
