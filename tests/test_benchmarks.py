"""Benchmarks that nothing else runs."""

import dataclasses
import importlib
import json
import pathlib
import shutil
import sys
import time

import jax
import jax.numpy as jnp
import pytest

import gm_jax
from benchmarks import (
    compiled,
    gpu,
    jaxprs,
    mixture,
    rows,
    start,
    tables,
    times,
    turns,
)
from gm_jax.errors import UserError
from gm_jax.training import flags


@pytest.mark.long
def test_start(tmp_path):
    """Catch the time of a run that did nothing."""
    out = tmp_path / 'start.json'
    start.main(['--names=autoencoder,classifier', '--repeats=1', f'--out={out}'])
    with_sampler, without = json.loads(out.read_text())
    assert with_sampler['experiment'] == 'autoencoder'
    assert min(with_sampler['first_line_seconds'], with_sampler['sample_seconds']) > 1
    assert without['first_line_seconds'] > 1 and without['sample_seconds'] is None


@pytest.mark.long
def test_times(tmp_path, capsys):
    """Catch a row that is measured twice, and one that hides what it lacks."""
    out = tmp_path / 'times.json'
    for names in ('nade', 'nade,gan'):
        times.main([f'--names={names}', '--datasets=digits', f'--out={out}'])
    nade, gan = json.loads(out.read_text())
    assert capsys.readouterr().out.count('"nade"') == 1
    for row in (nade, gan):
        assert 'error' not in row
        seconds = [row[f'{what}_seconds'] for what in ('train', 'validation', 'test')]
        assert min(seconds) > 0
    assert (nade['num_steps'], nade['validations']) == (600, 2)
    assert times.main(['--names=vae', '--datasets=nowhere', f'--out={out}']) == 1
    assert 'No prepared TFDS set nowhere' in capsys.readouterr().err
    assert len(json.loads(out.read_text())) == 2


def test_rows_are_measured_once_and_all(tmp_path, capsys):
    """Catch a row that is measured again, and one failure that ends the rest."""
    path, calls = str(tmp_path / 'there' / 'rows.json'), []

    def measure(name):
        calls.append(name)
        return {'inverse': 1 / (len(name) - 3)}

    keys = [{'name': name} for name in ('nade', 'vae', 'dcgan')]
    for _ in range(2):
        assert rows.fill(path, keys, measure, {'machine': 'this'}) == 1
    assert calls == ['nade', 'vae', 'dcgan', 'vae']
    assert json.loads(pathlib.Path(path).read_text()) == [
        {'name': 'nade', 'inverse': 1.0, 'machine': 'this'},
        {'name': 'dcgan', 'inverse': 0.5, 'machine': 'this'},
    ]
    assert 'vae failed' in capsys.readouterr().err


def test_table_of_growth(tmp_path):
    """Catch a table that needs rows that could not be measured."""
    (tmp_path / 'g.json').write_text(json.dumps([
        {'name': 'vae', 'along': 'pixels', 'sizes': [4, 64], 'exponent': 0.814,
         'largest_misfit': 1.1},
        {'name': 'vae', 'along': 'memory', 'steps': [10, 2000],
         'resident_mib': [700.2, 705.0]},
    ]))
    text = tables.render('<!-- growth g -->', tmp_path)
    memory = '700 after 10, 705 after 2,000'
    assert f'| vae | 0.81 (4 to 64, within 1.10) |  | {memory} |' in text


def test_mixture(tmp_path):
    """Catch the likelihood of one model, and models of different images."""
    out, kept = tmp_path / 'mixture.json', 'results/models/digits'
    mixture.main([
        f'--runs={kept}/nade,{kept}/made', '--examples=100', f'--out={out}',
    ])
    found, = json.loads(out.read_text())
    numbers = found['metrics']
    each = numbers['nats_of_each']
    assert numbers['mixture_weights'] == [0.5, 0.5] and found['num_examples'] == 100
    assert min(each) - 1 < numbers['nats_per_image'] < sum(each) / 2
    paths = [f'{kept}/nade', f'{kept}/rbm']
    runs = [gm_jax.load(path) for path in paths]
    with pytest.raises(UserError, match='models of different images: digits'):
        mixture.images(paths, runs, '')
    dynamic = dataclasses.replace(runs[0].data, binarize='dynamic')
    runs = [dataclasses.replace(runs[0], data=dynamic)] * 2
    with pytest.raises(UserError, match='on bits of its own'):
        mixture.images(paths, runs, '')


@pytest.mark.parametrize('name, what', [
    ('gated_pixel_cnn_completion', 'given a part'), ('gan', 'has no likelihood'),
])
def test_what_cannot_be_mixed(name, what, capsys):
    """Catch a mixture of log p(x) with that of a part of x given the rest."""
    kept = 'results/models/digits'
    with pytest.raises(SystemExit, match='2'):
        mixture.main([f'--runs={kept}/gated_pixel_cnn,{kept}/{name}'])
    assert what in capsys.readouterr().err


def test_a_mixture_of_other_images_or_another_checkpoint(tmp_path):
    """Catch the numbers of a run by other arrays, and on other images than its own."""
    kept = shutil.copytree('results/models/digits/nade', tmp_path / 'nade')
    run = gm_jax.load(kept)
    mixture.check([str(kept)], [run])
    with pytest.raises(UserError, match='has no numbers of its checkpoint'):
        mixture.check([str(kept)], [dataclasses.replace(run, results={})])
    facts = json.loads((kept / 'data.json').read_text())
    facts['splits']['test']['digest'] = '0' * 32
    (kept / 'data.json').write_text(json.dumps(facts))
    with pytest.raises(UserError, match='holds a model of other images'):
        mixture.images([str(kept)], [run], '')


def test_names_that_there_are_not(capsys):
    """Catch a traceback, and work that a misspelling leaves out."""
    for main, flag in (
        (start.main, '--names=vaee'), (times.main, '--names=nade,vaee'),
        (compiled.main, '--names=vaee'), (gpu.main, '--names=vaee'),
    ):
        with pytest.raises(SystemExit, match='2'):
            main([*(['run'] if main is gpu.main else []), flag, *(
                ['--out=x'] if main is start.main else []
            )])
        assert "'vaee' is none of " in capsys.readouterr().err


def test_a_loop_alone_counts_quiet_turns(monkeypatch):
    """Catch the time of a turn in which others used the machine."""
    found = iter([(10.0, 0.9), (4.0, 0.0), (8.0, 0.01), (6.0, 0.0), (90.0, 0.5)])
    monkeypatch.setattr(turns, 'timed', lambda run, num_steps: next(found))
    seconds = turns.alone(lambda num: None, turns=3, num_steps=2, max_load=0.05)
    assert seconds == 3.0
    found = iter([(1.0, 0.9)] * 9)
    with pytest.raises(turns.Busy, match='only 0 of 7'):
        turns.alone(lambda num: None, turns=3, num_steps=2, max_load=0.05)


def test_what_the_queue_stops_stops_with_its_children(tmp_path):
    """Catch a process that holds the GPU beside the next line."""
    number = tmp_path / 'number'
    code = (
        'import subprocess, sys, time; child = subprocess.Popen([sys.executable, "-c", '
        '"import time; time.sleep(600)"]); open(sys.argv[1], "w").write(str(child.pid))'
        '; time.sleep(600)'
    )
    command = [sys.executable, '-c', code, str(number)]
    assert gpu._limited(command, str(tmp_path / 'log'), 3) in gpu._STOPPED
    state = pathlib.Path('/proc', number.read_text(), 'stat')
    deadline = time.monotonic() + 20
    while state.exists() and ') Z ' not in state.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_what_the_queue_tries_is_not_done(tmp_path, monkeypatch):
    """Catch a real run that is skipped, since its line was tried with some steps."""
    ran = []
    monkeypatch.setattr(gpu, '_limited', lambda command, *_: ran.append(command) or 0)
    for flag in (['--tiny'], [], []):
        assert gpu.main(['run', f'--out={tmp_path}', '--names=pixel_vae', *flag]) == 0
    assert len(ran) == 2


def test_a_run_that_dies_early_has_no_time(tmp_path, monkeypatch):
    """Catch an endless wait for the first line of a file that stays empty."""
    made = f'open({str(tmp_path / "metrics.jsonl")!r}, "w"); raise SystemExit(3)'
    monkeypatch.setattr(start, 'command', lambda *_: [sys.executable, '-c', made])
    with pytest.raises(RuntimeError, match='nade has ended with 3'):
        start.seconds_to_first_line('nade', tmp_path)


def test_the_bound_of_a_ratio_is_that_of_its_own_time(tmp_path):
    """Catch a bound that an older time of PyTorch gave."""
    (tmp_path / 'speed.json').write_text(json.dumps([{
        'name': 'vae', 'images_per_s': 1000.0, 'flops': 1, 'matrix_share': 0.5,
        'peak_mib': 1, 'torch_peak_mib': 2, 'first_line_seconds': 3,
        'train': {'ratio': 1.5, 'ratio_range': [1.4, 1.6], 'torch_seconds': 0.9},
    }]))
    (tmp_path / 'bounds.json').write_text(json.dumps([
        {'name': 'vae', 'product_seconds': 0.2, 'traffic_seconds': 0.1},
    ]))
    text = tables.render('<!-- speed speed bounds -->', tmp_path)
    assert '| vae | 1,000 | 1.50 (1.40 to 1.60) | 3.0 |' in text


def test_a_run_that_fails_has_no_time(tmp_path):
    """Catch an endless wait, and the time of a traceback."""
    with pytest.raises(RuntimeError, match='nade has ended with 2'):
        start.seconds_to_first_line('nade', tmp_path, '--dataset=nowhere')


@pytest.mark.long
@pytest.mark.parametrize('name', ['nade', 'dcgan'])
def test_nothing_is_compiled_twice(name):
    """Catch a sampler or an evaluation that is compiled for training and at the end."""
    assert compiled.twice(name) == {'train': {}, 'sample': {}}


def test_repeated_programs(tmp_path):
    """Catch a program that is told apart by its lines, and one that is not by more."""
    texts = 'add loc(#loc1)\n#loc1 = loc("a.py":1:2 to :3)\n', 'add\n', 'multiply\n'
    for number, text in enumerate(texts):
        (tmp_path / f'jax_ir000{number}_jit__fun_compile.mlir').write_text(text)
    assert compiled.repeated(tmp_path) == {'_fun': 1}


@pytest.mark.parametrize('tiny', [False, True])
def test_lines_of_the_queue(tiny, tmp_path):
    """Catch a flag that an experiment does not have, on a machine that costs."""
    lines = [line for line in gpu.QUEUE if line.dataset]
    assert len({line.name for line in gpu.QUEUE}) == len(gpu.QUEUE) > len(lines) > 10
    for line in lines:
        command = gpu.command(line, tmp_path / 'data', tmp_path / line.name, tiny)
        _, name, *argv = command
        main = importlib.import_module(name).main
        _, config = flags.parse(
            argv, main.config_class, presets=main.presets, program=name, about=''
        )
        assert config.dataset.endswith(f'{line.dataset}.npz')
        assert config.num_steps == 4 or not tiny


def test_products_of_a_program():
    """Catch the length of a scan, and products in functions, that are not counted."""

    @jax.jit
    def product(x):
        return x @ x

    def program(x):
        x = product(x)
        x, _ = jax.lax.scan(lambda x, _: (product(product(x)), None), x, length=5)
        image = x[None, :, :, None]
        return jax.lax.conv_general_dilated(
            image, jnp.ones((3, 3, 1, 1)), (1, 1), 'SAME',
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    jaxpr = jax.make_jaxpr(program)(jnp.eye(4)).jaxpr
    found = [(e.primitive.name, times) for e, times in jaxprs.products(jaxpr)]
    assert found == [
        ('dot_general', 1), ('dot_general', 5), ('dot_general', 5),
        ('conv_general_dilated', 1),
    ]
    flops = [jaxprs.flops(e) for e, _ in jaxprs.products(jaxpr)]
    assert flops == [2 * 4**3] * 3 + [2 * 4 * 4 * 9]
