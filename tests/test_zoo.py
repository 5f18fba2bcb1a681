"""The models behind the numbers are there, are small, and give these numbers."""

import dataclasses
import importlib
import json
import re
import shlex
import shutil
import time

import numpy as np
import pytest

import experiments
import gm_jax
from benchmarks import tables, zoo
from gm_jax.data import sources
from gm_jax.evaluation import likelihood
from gm_jax.training import exporting, flags, settings

DIRECTORY = zoo.RESULTS / 'models'
NAMES = sorted(
    str(path.parent.relative_to(DIRECTORY))
    for path in DIRECTORY.glob('**/model.safetensors')
)
DIGITS = [name for name in NAMES if name.startswith('digits/')]
METHODS = {'log_prob', 'sample', 'encode', 'decode', 'embed'}


def test_every_experiment_has_a_small_model():
    """Catch an experiment without a model, and models that are too large."""
    assert {f'digits/{name}' for name in experiments.NAMES} <= set(NAMES)
    assert {f'digits/{name}' for name in zoo.DIGITS} == set(DIGITS)
    total = 0
    for name in NAMES:
        size = sum(path.stat().st_size for path in (DIRECTORY / name).iterdir())
        assert size <= (zoo.MOST_DIGITS if name in DIGITS else zoo.MOST), name
        total += size
    assert total <= zoo.MOST_TOTAL


def test_every_model_is_in_the_table():
    """Catch a number without its model, and a model with another number."""
    rows = zoo.recorded()
    assert sorted(rows) == NAMES
    for name, row in rows.items():
        own = json.loads((DIRECTORY / name / 'results.json').read_text())
        for key in ('experiment', 'dataset', 'step', 'metrics', 'num_examples'):
            assert row[key] == own[key], (name, key)


@pytest.mark.parametrize('name', NAMES)
def test_the_command_of_a_model_is_that_of_its_settings(name):
    """Catch a preset or a default that changes, and a command that stays behind."""
    words = shlex.split(zoo.recorded()[name]['command'].partition(' && ')[0])
    main = importlib.import_module(words[2]).main
    _, config = flags.parse(
        [*words[3:], '--workdir=DIR'], main.config_class, presets=main.presets,
        program='', about='',
    )
    path = DIRECTORY / name / 'config.json'
    saved = settings.load(str(path), main.config_class, main.name)
    left_out = {
        name: '' for name in exporting.LOCAL if getattr(saved, name, None) == ''
    }
    config = dataclasses.replace(config, **left_out)
    assert settings.changed(saved, config, 'train') == []


# Rows whose runs were stopped by hand, or gone on with after a change of config.json:
# their notes say so.
OF_ANOTHER_LENGTH = {
    ('conditional', 5), ('made_binarized_mnist', 4), ('pixel_rnn_binarized_mnist', 1),
    ('pixel_rnn_binarized_mnist', 4),
}


def test_a_recorded_command_trains_as_long_as_its_row_says():
    """Catch a command that gives another number than the one beside it."""
    found = set()
    for path in sorted(zoo.RESULTS.glob('*.json')):
        content = json.loads(path.read_text())
        for i, row in enumerate(content if isinstance(content, list) else [content]):
            words = shlex.split(str(row.get('command', '')).partition(' && ')[0])
            if words[2:3] != [f'experiments.{row.get("experiment")}'] or (
                '--mode=eval' in words
            ):
                continue
            main = importlib.import_module(words[2]).main
            _, config = flags.parse(
                words[3:], main.config_class, presets=main.presets, program='', about=''
            )
            best = '--checkpoint=best' in row['command']
            steps = row.get('trained_steps', row['step'])
            if best and steps > config.num_steps or not best and (
                steps != config.num_steps
            ):
                found.add((path.stem, i))
                assert re.search('stopped|config.json', row['note']), (path.stem, i)
    assert found == OF_ANOTHER_LENGTH


def test_a_number_that_is_missing_differs():
    """Catch a check that passes over what is not a number."""
    recorded = {'nats': 3.0, 'each': [1.0], 'estimator': 'exact', 'more': {'a': 1.0}}
    found = {'nats': 3.0, 'each': [1.0], 'estimator': 'exact', 'more': {'a': 1.0}}
    assert max(d.relative for d in zoo.compare(recorded, found)) == 0
    for name in recorded:
        other = {**found, 'estimator': 'elbo'} if name == 'estimator' else {
            key: value for key, value in found.items() if key != name
        }
        worst = max(zoo.compare(recorded, other), key=lambda d: d.relative)
        assert worst.relative > zoo.TOLERANCE, name


def test_figures_have_their_models():
    """Catch a figure that cannot be drawn again, and one that the README shows so."""
    rows = zoo.recorded()
    for path, figure in zoo.FIGURES.items():
        assert figure.model in rows and (zoo.RESULTS.parent / path).exists(), path
    readme = (zoo.RESULTS.parent / 'README.md').read_text()
    shown = set(re.findall(r'!\[[^\]]*\]\(([^)]*)\)', readme))
    assert shown and shown <= set(zoo.FIGURES)


def test_every_picture_is_shown():
    """Catch a picture that stays behind when no page shows it any more."""
    root = zoo.RESULTS.parent
    pages = [root / 'README.md', zoo.RESULTS / 'README.md', *root.glob('docs/**/*.md')]
    text = '\n'.join(page.read_text() for page in pages)
    for picture in zoo.RESULTS.glob('*.png'):
        assert picture.name in text, picture


def test_the_page_of_numbers_is_that_of_the_files(tmp_path):
    """Catch a number that was changed in one place, and one that is not in the file."""
    template = (zoo.RESULTS / 'README.in.md').read_text()
    page = tables.render(template)
    assert (zoo.RESULTS / 'README.md').read_text() == page
    assert '{{' not in page and '<!-- table' not in page
    shutil.copy(zoo.RESULTS / 'nade_binarized_mnist.json', tmp_path / 'nade.json')
    rows = json.loads((tmp_path / 'nade.json').read_text())
    rows[0]['metrics']['nats_per_image'] = 12.345
    rows[0]['step'], rows[1]['step'] = 25_000, 50_000
    (tmp_path / 'nade.json').write_text(json.dumps(rows))
    line = '<!-- table\nnade[0] | NADE | 88.33 | nats\n-->'
    assert '| NADE | 12.35 +- 0.23 | 88.33 | exact |' in tables.render(line, tmp_path)
    assert tables.render('{{nade.metrics.nats_per_image:.1f}}', tmp_path)[-4:] == '12.3'
    two = tables.render('{{nade[0,1].step:.0f}}', tmp_path)
    assert two.endswith('37500 +- 17678')
    with pytest.raises(KeyError, match='bound'):
        tables.render('{{nade.metrics.bound:.1f}}', tmp_path)


# Rows whose models are too large, or were not kept: results/models/README.md.
WITHOUT_MODELS = {
    'adversarial_autoencoder_mnist.json': 9, 'conditional.json': 4,
    'dbm_binarized_mnist.json': 1, 'dcgan_cifar10_jpeg.json': 4, 'gan_losses.json': 32,
    'gated_pixel_cnn_binarized_mnist.json': 3, 'gated_pixel_cnn_fashion_mnist.json': 1,
    'gsn_mnist.json': 3, 'made_binarized_mnist.json': 7, 'nade_binarized_mnist.json': 7,
    'multiscale_likelihood.json': 7, 'nice_mnist.json': 1,
    'pixel_cnn_binarized_mnist.json': 1, 'pixel_cnn_pp_fashion_mnist.json': 1,
    'pixel_rnn_binarized_mnist.json': 5,
    'vae_mnist_iwae_1l.json': 3,
}


def test_every_new_number_comes_with_its_model():
    """Catch a number that nobody can check."""
    found = {}
    for path in sorted(zoo.RESULTS.glob('*.json')):
        content = json.loads(path.read_text())
        rows = content if isinstance(content, list) else [content]
        without = [r for r in rows if 'num_parameters' in r and 'weights' not in r
                   and 'metrics' in r]
        if without:
            found[path.name] = len(without)
    assert found == WITHOUT_MODELS


@pytest.mark.parametrize('name', NAMES)
def test_every_model_loads(name):
    """Catch arrays of another code, and loading that compiles or initialises."""
    config = json.loads((DIRECTORY / name / 'config.json').read_text())
    importlib.import_module(config['module'])
    started = time.process_time()
    run = gm_jax.load(DIRECTORY / name)
    assert time.process_time() - started < 2
    assert run.experiment is not None and run.command.name in repr(run)
    assert METHODS & set(dir(run))
    numbers = run.results['metrics']
    assert ('nats_per_image' in numbers) <= ('log_prob' in dir(run))
    assert run.estimator == numbers.get('estimator', '')


@pytest.mark.parametrize('name', ['nade', 'made'])
def test_the_number_of_a_model(name):
    """Catch a change of code that changes the number of a trained model."""
    run = gm_jax.load(DIRECTORY / 'digits' / name)
    found = -run.log_prob(sources.load('digits').splits['test'].images).mean()
    expected = run.results['metrics']['nats_per_image']
    np.testing.assert_allclose(found, expected, rtol=zoo.TOLERANCE)


@pytest.mark.long
@pytest.mark.parametrize('name', DIGITS)
def test_every_model_gives_its_numbers_and_images(name, tmp_path, capsys, monkeypatch):
    """Catch numbers that are not reproduced, and other ones in Python."""
    run, row = gm_jax.load(DIRECTORY / name), zoo.recorded()[name]
    log_px, report = {}, likelihood.report  # of each image, by its estimator

    def remember(found, num_dims, estimator):
        log_px[estimator] = found
        return report(found, num_dims, estimator)

    monkeypatch.setattr(likelihood, 'report', remember)
    model = shutil.copytree(DIRECTORY / name, tmp_path / 'model')
    assert run.command(zoo.evaluation_flags(row, model)) == 0
    for difference in zoo.differences(row, model):
        assert difference.relative <= zoo.TOLERANCE, difference
    if hasattr(run, 'sample'):
        flags, given = ['--mode=sample', '--seed=3', '--num_samples=7'], {}
        if run.experiment.sample is None:  # a task, which hides a part of images
            assert run.command([f'--workdir={model}', *flags]) == 2
            assert 'needs --given=FILE' in capsys.readouterr().err
            with pytest.raises(ValueError, match='trained for a task: pass given'):
                run.sample(7)
            images = sources.load('digits').splits['test'].images[:2].astype(int)
            given['given'] = images
            np.savez(tmp_path / 'given.npz', images=images)
            flags.append(f'--given={tmp_path}/given.npz')
        assert run.command([f'--workdir={model}', *flags]) == 0
        with np.load(model / 'samples.npz') as file:
            np.testing.assert_array_equal(
                run.sample(7, seed=3, **given), file['images']
            )
    if run.data.name == 'digits':
        digits = sources.load('digits', binarize=run.config.binarize).splits['test']
        if hasattr(run, 'encode'):
            z = run.encode(digits.images[:5])
            assert run.decode(z).shape == (5, 8, 8, 1)
        if hasattr(run, 'embed'):
            assert run.embed(digits.images[:5]).shape[0] == 5
        if hasattr(run, 'log_prob'):
            conditional = getattr(run.config, 'class_conditional', False)
            label = digits.labels[:16] if conditional else None
            found = run.log_prob(digits.images[:16], label=label)
            expected = log_px[run.estimator][:16]
            np.testing.assert_allclose(found, expected, rtol=zoo.TOLERANCE)
