"""Whole runs through the command line: what they leave, and that nothing stops them."""

import dataclasses
import errno
import functools
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from PIL import Image

from experiments import vae
from gm_jax.data import sources
from gm_jax.training import (
    cpu_devices,
    flags,
    loop,
    parallel,
    patience,
    recorder,
    sealed,
    settings,
    workdir,
)
from tests.training import tiny


@pytest.fixture(scope='module')
def whole(tmp_path_factory) -> pathlib.Path:
    """Return the work directory of a run that nothing disturbed."""
    workdir = tmp_path_factory.mktemp('whole')
    assert vae.main([f'--workdir={workdir}', *tiny.FLAGS]) == 0
    return workdir


@pytest.fixture
def finished(whole, tmp_path) -> pathlib.Path:
    """Return a copy of it, to be changed."""
    return shutil.copytree(whole, tmp_path / 'finished')


def _content(directory: pathlib.Path) -> dict[str, bytes]:
    files = sorted(path for path in directory.rglob('*') if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_work_directory(whole):
    """Catch any departure from what scripts expect to find there."""
    config = settings.load(str(whole / 'config.json'), vae.Config)
    assert (config.num_steps, config.batch_norm, config.ema) == (36, True, 0.9)
    lines = [(line['step'], line['split']) for line in tiny.metrics(whole)]
    assert lines == [
        (12, 'train'), (18, 'test'), (24, 'train'), (36, 'train'), (36, 'test')
    ]
    for line in tiny.metrics(whole):
        np.testing.assert_allclose(
            line['negative_elbo_nats'], line['kl_nats'] + line['reconstruction_nats'],
            rtol=1e-5,
        )
        if line['split'] == 'test':
            np.testing.assert_allclose(line['loss'], line['negative_elbo_nats'])
    for run in ('.', 'train', 'test', 'final'):
        assert list((whole / run).glob('events.out.tfevents.*'))
    kept = {path.name for path in (whole / 'checkpoints').iterdir()}
    assert {'24', '36'} <= kept <= {'18', '24', '36'}
    pictures = {path.name for path in (whole / 'samples').iterdir()}
    assert pictures == {
        'samples_00000018.png', 'samples_00000036.png', 'reconstructions.png',
        'traversals.png', 'loss.png',
    }
    for name in pictures:
        with Image.open(whole / 'samples' / name) as picture:
            picture.load()
    left = [name for name in _content(whole) if 'tmp' in name]
    assert not left


def test_validation_split_chooses_the_best_checkpoint(tmp_path, monkeypatch):
    """Catch a test set that is looked at before the end."""
    data = sources.load('digits', binarize='threshold')
    test = data.splits['test']
    other = sources.ArrayExamples(test.images[:9] * 0, test.labels[:9])
    splits = {**data.splits, 'validation': other}
    data = dataclasses.replace(data, splits=splits)
    monkeypatch.setattr(sources, 'load', lambda *args, **kwargs: data)
    assert vae.main([f'--workdir={tmp_path}', *tiny.PLAIN, '--eval_every=20']) == 0
    evaluated = [line for line in tiny.metrics(tmp_path) if line['split'] != 'train']
    assert [line['split'] for line in evaluated] == ['validation', 'validation']
    losses = {line['step']: line['loss'] for line in evaluated}
    best = min(losses, key=losses.get)
    note = sealed.read_note(str(tmp_path / 'checkpoints' / str(best)), best).note
    assert (note['best_step'], note['best_loss']) == (best, losses[best])
    results = json.loads((tmp_path / 'results.json').read_text())
    assert (results['split'], results['num_examples']) == ('test', len(test))
    assert results['best_checkpoint_chosen_on'] == 'validation'


def test_results(whole):
    """Catch a field that is missing, or a number that contradicts another."""
    results = json.loads((whole / 'results.json').read_text())
    assert set(results) >= {
        'experiment', 'dataset', 'split', 'step', 'num_examples', 'num_parameters',
        'metrics', 'wall_seconds', 'devices', 'command',
    }
    assert (results['experiment'], results['dataset']) == ('vae', 'digits')
    assert (results['split'], results['step']) == ('test', 36)
    assert results['num_examples'] == 297 and results['binarize'] == 'dynamic'
    command = f'python -m experiments.vae --workdir={whole} ' + ' '.join(tiny.FLAGS)
    assert results['command'] == command
    arrays = tiny.final_arrays(whole)
    sizes = [x.size for name, x in arrays.items() if name.startswith('params/')]
    assert results['num_parameters'] == sum(sizes)
    metrics = results['metrics']
    assert metrics['estimator'] == 'iwae-2'
    # Two samples bound closer than one, and no worse than guessing each pixel.
    bound = metrics['negative_elbo_nats']
    assert 0 < metrics['nats_per_image'] < bound < 64 * np.log(2)
    bits = metrics['nats_per_image'] / np.log(2) / 64
    np.testing.assert_allclose(metrics['bits_per_dim'], bits, rtol=1e-6)
    np.testing.assert_allclose(
        bound, metrics['reconstruction_nats'] + metrics['kl_nats']
    )
    np.testing.assert_allclose(
        sum(metrics['kl_nats_per_unit']), metrics['kl_nats'], atol=1e-3
    )
    page = (whole / 'report.html').read_text()
    assert f'{results["num_parameters"]:,} parameters' in page and '<img' in page


@pytest.mark.usefixtures('heeded_signals')
def test_stopped_twice_ends_with_the_same_bits(whole, tmp_path, monkeypatch, capfd):
    """Catch a state that is not saved whole, and data or noise that starts anew."""
    add = recorder.Recorder.add
    stops = {17: signal.SIGTERM, 29: signal.SIGINT}

    def add_and_stop(self, step, *args):
        add(self, step, *args)
        if step in stops:
            signal.raise_signal(stops[step])

    argv = [f'--workdir={tmp_path}', *tiny.FLAGS]
    monkeypatch.setattr(recorder.Recorder, 'add', add_and_stop)
    assert vae.main(argv) == 128 + signal.SIGTERM
    error = capfd.readouterr().err
    assert 'saved at step 17 of 36' in error and 'Traceback' not in error
    assert not (tmp_path / 'results.json').exists()
    # From 17 the dispatches end at 18, 23, 24 and 29.
    assert vae.main(argv) == 128 + signal.SIGINT
    captured = capfd.readouterr()
    assert 'resuming from step 17' in captured.out
    assert 'saved at step 29 of 36' in captured.err
    assert vae.main(argv) == 0
    assert tiny.differences(whole, tmp_path) == []


def test_killed_ends_with_the_same_bits(whole, tmp_path):
    """Catch a file that only an orderly end leaves whole."""
    argv = [f'--workdir={tmp_path}', *tiny.FLAGS]
    process = subprocess.Popen(
        [sys.executable, '-m', 'experiments.vae', *argv],
        env={**os.environ, 'JAX_NUM_CPU_DEVICES': '8'},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    metrics = tmp_path / 'metrics.jsonl'
    while process.poll() is None:
        if metrics.exists() and '"step": 18' in metrics.read_text():
            break
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    # A process that began with `python -m` names the module, not its file.
    config = json.loads((tmp_path / 'config.json').read_text())
    assert config['module'] == 'experiments.vae'
    assert vae.main(argv) == 0
    assert tiny.differences(whole, tmp_path) == []


def test_streamed_data_trains_to_the_same_bits(whole, tmp_path, monkeypatch):
    """Catch another order, another keying of noise, or a batch read twice."""
    streamed = functools.partial(sources.load, memory_limit=0)
    monkeypatch.setattr(sources, 'load', streamed)
    assert vae.main([f'--workdir={tmp_path}', *tiny.FLAGS]) == 0
    assert tiny.differences(whole, tmp_path) == []


def test_another_run_in_the_directory_is_refused(whole, capfd):
    """Catch a run that goes on with other settings, or overwrites what is there."""
    before = _content(whole)
    assert vae.main([f'--workdir={whole}', *tiny.FLAGS, '--seed=1', '--beta=2']) == 2
    error = capfd.readouterr().err
    assert '--seed was 0 and is now 1; --beta was 1.0 and is now 2.0' in error
    assert error.count('\n') == 1
    assert _content(whole) == before


@pytest.mark.parametrize('mode', ['train', 'eval', 'sample'])
def test_directory_that_cannot_be_written_is_found_first(
    mode, finished, monkeypatch, capfd
):
    """Catch an evaluation of hours whose results have no place."""
    def refuse(dir):
        raise PermissionError(errno.EACCES, 'Permission denied', dir)

    monkeypatch.setattr(workdir.tempfile, 'TemporaryFile', refuse)
    monkeypatch.setattr(loop, '_restore', None)  # no work has been done by then
    assert vae.main([f'--workdir={finished}', f'--mode={mode}', *tiny.FLAGS]) == 2
    error = capfd.readouterr().err
    assert f'{finished} cannot be written' in error and error.count('\n') == 1


@pytest.mark.parametrize('name', ['checkpoints', 'train', 'final', 'metrics.jsonl'])
def test_what_is_in_the_way_is_a_sentence(tmp_path, capfd, name):
    """Catch a traceback, and one after all training."""
    path = tmp_path / name
    path.mkdir() if '.' in name else path.write_text('')
    assert vae.main([f'--workdir={tmp_path}', *tiny.PLAIN]) == 2
    error = capfd.readouterr().err
    assert f'{path} is {"" if "." in name else "not "}a directory: choose' in error
    assert error.count('\n') == 1


@pytest.mark.parametrize('name, said', [
    ('a[1]/b', 'has [...] or a backslash'), ('lr=[0.1] b', 'has [...] or'),
    ('a\\b', 'has [...] or a backslash'), ('gs://bucket/run', 'is an address, and'),
])
def test_directories_that_cannot_hold_checkpoints(tmp_path, monkeypatch, capfd, name,
                                                  said):
    """Catch a path that Orbax takes for a pattern: nothing of the arrays is kept."""
    monkeypatch.chdir(tmp_path)
    assert vae.main([f'--workdir={name}', *tiny.PLAIN]) == 2
    error = capfd.readouterr().err
    assert said in error and error.count('\n') == 1 and not list(tmp_path.iterdir())


def test_two_slashes_are_one():
    """Catch $PREFIX/run with a prefix /, which TensorStore refuses when it saves."""
    run, _ = flags.parse(
        ['--workdir=//tmp/a//b'], vae.Config, presets={}, program='vae', about=''
    )
    assert run.workdir == '/tmp/a//b'


def test_settings_that_are_gone_are_a_sentence(finished, capfd):
    """Catch a run that goes on with other settings, which then are those of all."""
    (finished / 'config.json').unlink()
    assert vae.main([f'--workdir={finished}', *tiny.FLAGS, '--seed=7']) == 2
    error = capfd.readouterr().err
    assert 'config.json is missing, which has the settings of the run: put' in error


@pytest.mark.parametrize('text', [
    '', '[]', '{}', '3', '{"image_shape": 3}', '{"splits": []}', 'null',
])
def test_damaged_facts_are_a_sentence(text, finished, capfd):
    """Catch a traceback for data.json, whatever has become of it."""
    facts = json.loads((finished / 'data.json').read_text())
    damaged = [text]
    if text == '{}':  # each fact in turn is of another type
        damaged = [
            json.dumps({**facts, name: wrong})
            for name in facts for wrong in (None, 'x', [1], {'a': 1}, -5)
            if not (name in ('name', 'binarize') or name == 'entropy' and wrong in
                    (None, -5))
        ]
    for content in damaged:
        (finished / 'data.json').write_text(content)
        assert vae.main([f'--workdir={finished}', '--mode=sample']) == 2, content
        error = capfd.readouterr().err
        assert 'data.json' in error and error.count('\n') == 1, content


def test_damaged_checkpoint_is_replaced(finished, whole, capfd):
    """Catch a run that never saves again because a damaged checkpoint is in the way.

    Orbax refuses to save a step that is not after the last one there is.
    """
    for path in (finished / 'checkpoints' / '36' / 'state').rglob('*'):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert vae.main([f'--workdir={finished}', *tiny.FLAGS]) == 0
    out, err = capfd.readouterr()
    assert 'checkpoints/36 cannot be used' in err and 'resuming from step 24' in out
    assert len(list((finished / 'checkpoints').glob('damaged_36_*'))) == 1
    assert tiny.differences(whole, finished) == []


def test_stop_while_reading_a_checkpoint_damages_none(finished, monkeypatch):
    """Catch a signal that is taken for a damaged file, and the file set aside."""
    read = sealed.read

    def stopped(path, step, template):
        os.kill(os.getpid(), signal.SIGTERM)
        return read(path, step, template)

    monkeypatch.setattr(sealed, 'read', stopped)
    before = _content(finished)
    assert vae.main([f'--workdir={finished}', *tiny.FLAGS]) == 143
    assert _content(finished) == before


def test_number_of_samples_that_fits(finished, monkeypatch):
    """Catch a number that no file records, or that cannot be asked for again."""
    monkeypatch.setattr(patience, '_SECONDS', 0.0)
    monkeypatch.setattr(patience, '_SHARE', 0.0)
    found = []
    for samples in (0, 25):
        flags = ['--mode=eval', f'--test_samples={samples}', '--test_examples=40']
        assert vae.main([f'--workdir={finished}', *flags]) == 0
        name = f'results_eval_step=36_test_examples=40_test_samples={samples}.json'
        found.append(tiny.results(finished, name))
    assert found[0]['metrics']['estimator'] == 'iwae-25'
    assert found[0]['metrics']['importance_samples'] == 25
    assert found[0]['num_examples'] == 40
    assert found[0]['metrics'] == found[1]['metrics']


@pytest.mark.parametrize('eval_batch_size', [7, 297])
def test_evaluation_needs_only_the_directory(whole, finished, eval_batch_size):
    """Catch padding that counts, noise keyed by the batch, and settings not saved."""
    flags = ['--mode=eval', f'--eval_batch_size={eval_batch_size}']
    assert vae.main([f'--workdir={finished}', *flags]) == 0
    expected = tiny.results(whole)
    name = f'results_eval_step=36_eval_batch_size={eval_batch_size}.json'
    got = tiny.results(finished, name)
    assert got.pop('command') != expected.pop('command')
    numbers, others = expected.pop('metrics'), got.pop('metrics')
    assert got == expected
    assert numbers.pop('estimator') == others.pop('estimator')
    for name, value in numbers.items():
        # Those of each unit are rounded to 4 digits.
        np.testing.assert_allclose(others[name], value, rtol=2e-6, atol=1.01e-4)
    nats = [results['nats_per_image'] for results in (numbers, others)]
    np.testing.assert_allclose(*nats, rtol=2e-6)


def test_samples_do_not_depend_on_how_many(whole, finished, monkeypatch):
    """Catch keys split by the number of images, batches cut to it, data needed."""
    images = []
    monkeypatch.delattr(sources, 'load')
    for num in (3, 21):
        flags = ['--mode=sample', f'--num_samples={num}']
        assert vae.main([f'--workdir={finished}', *flags]) == 0
        with np.load(finished / 'samples.npz') as file:
            assert set(file.files) == {
                'images', 'seconds', 'sampler', 'classes', 'seed', 'step', 'command'
            }
            assert (file['seed'], file['step']) == (0, 36)
            assert file['images'].shape == (num, 8, 8, 1)
            assert file['images'].dtype == np.uint8
            assert file['seconds'] > 0 and file['sampler'].dtype.kind == 'U'
            images.append(file['images'].astype(int))
    np.testing.assert_array_equal(images[0], images[1][:3])
    assert np.abs(np.diff(images[1], axis=0)).max(axis=(1, 2, 3)).min() > 1
    kept = _content(whole)
    now = _content(finished)
    assert {name: now[name] for name in kept} == kept
    start = 'samples_seed=0_step=36_num_samples'
    names = {f'{start}=21.npz', f'{start}=3.npz'}
    assert names < set(now)
    assert now['samples.npz'] == now[f'{start}=21.npz']


def test_results_of_training_stay(whole, finished, capfd, monkeypatch):
    """Catch numbers of a quick evaluation in the place of those of training."""
    kept = _content(whole)
    same_command = [f'--workdir={finished}', *tiny.FLAGS]
    assert vae.main(same_command) == 0
    assert 'finished: ' in capfd.readouterr().out
    assert _content(finished) == kept
    # The number of devices is not part of what is evaluated.
    monkeypatch.setattr(
        cpu_devices, 'settle', lambda c, _: dataclasses.replace(c, cpu_devices=8)
    )
    # The same command evaluates, when it is told to.
    assert vae.main([*same_command, '--mode=eval']) == 0
    flags = ['--mode=eval', '--test_samples=1', '--seed=5', '--checkpoint=best']
    assert vae.main([f'--workdir={finished}', *flags]) == 0
    now = _content(finished)
    assert {name: now[name] for name in kept} == kept
    again = tiny.results(finished, 'results_eval_step=36.json')
    assert again.pop('command') != (expected := tiny.results(whole)).pop('command')
    assert again == expected
    best, = finished.glob('results_eval*best_seed=5_test_samples=1.json')
    other = json.loads(best.read_text())
    assert (other['seed'], other['noise_seed'], other['checkpoint']) == (0, 5, 'best')
    assert other['best_checkpoint_chosen_on'] == 'test'
    assert other['metrics']['estimator'] == 'iwae-1'


def test_another_seed_draws_other_samples_of_the_same_model(finished, monkeypatch):
    """Catch the seed of a run that cannot be left, or that changes the model."""
    monkeypatch.delattr(sources, 'load')
    images = []
    for seed in (0, 1, 1):
        flags = ['--mode=sample', f'--seed={seed}']
        assert vae.main([f'--workdir={finished}', *flags]) == 0
        with np.load(finished / f'samples_seed={seed}_step=36.npz') as file:
            images.append(file['images'])
    assert not np.array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[1], images[2])


def test_a_preset_and_free_flags_may_be_evaluated(tmp_path):
    """Catch a finished run whose own command with --mode=eval is refused."""
    flags = [f'--workdir={tmp_path}', '--preset=two_layers', '--data_dir=/nowhere',
             *tiny.PLAIN[1:], '--hidden=8', '--latent_dims=4,2', '--num_steps=2']
    presets = {'two_layers': vae.Config(hidden=(16, 16))}
    main = vae.main._replace(presets=presets)
    assert main(flags) == 0
    assert main([*flags, '--mode=eval']) == 0
    assert main([*flags, '--mode=eval', '--data_dir=/elsewhere', '--seed=3']) == 0
    assert main([*flags, '--mode=eval', '--hidden=9']) == 2
    assert main([*flags, '--mode=sample', '--seed=3']) == 0


def test_two_runs_of_one_directory(finished, capfd):
    """Catch two processes that write into one directory."""
    (finished / 'results.json').unlink()
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'a+'); "
        "fcntl.lockf(file, fcntl.LOCK_EX); print('process 7 on host', file=file, "
        "flush=True); print(flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, '-c', hold, finished / '.lock'], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    other.stdout.readline()
    before = _content(finished)
    assert vae.main([f'--workdir={finished}', *tiny.FLAGS]) == 2
    error = capfd.readouterr().err
    assert 'is in use: process' in error and error.count('\n') == 1
    assert _content(finished) == before
    # Who only reads may do so beside it.
    assert vae.main([f'--workdir={finished}', '--mode=sample']) == 0
    other.kill()
    other.wait()
    other.stdin.close()
    other.stdout.close()
    assert vae.main([f'--workdir={finished}', *tiny.FLAGS]) == 0


def test_parameters_are_made_once_and_never_to_be_thrown_away(
    finished, tmp_path, monkeypatch, capfd
):
    """Catch a checkpoint that is read into parameters made for it, and silence."""
    made = []

    def once(make):
        def counted(rng):
            made.append(isinstance(rng, jax.core.Tracer))
            return make(rng)

        return init(counted)

    init = parallel.init
    monkeypatch.setattr(parallel, 'init', once)
    assert vae.main([f'--workdir={tmp_path}/run', *tiny.PLAIN]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert made == [True]
    assert 'compiling the initialisation and the training step' in lines
    assert 'compiling the evaluation' in lines and 'compiling the sampler' in lines
    assert lines.index('compiling the sampler') < lines.index('drawing the pictures')
    # An initialisation that is only ever traced.
    monkeypatch.setattr(parallel, 'init', lambda make: lambda rng: make(
        rng if isinstance(rng, jax.core.Tracer) else pytest.fail('made for nothing')
    ))
    for mode in ('sample', 'eval', 'train'):
        flags = [f'--workdir={finished}', f'--mode={mode}', *tiny.FLAGS]
        assert vae.main(flags) == 0
