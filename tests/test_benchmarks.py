"""Benchmarks that nothing else runs."""

import dataclasses
import importlib
import json
import pathlib

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
    times.main(['--names=vae', '--datasets=nowhere', f'--out={out}'])
    assert 'nowhere' in json.loads(out.read_text())[-1]['error'][0]


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
    runs = [gm_jax.load(f'{kept}/{name}') for name in ('nade', 'rbm')]
    with pytest.raises(UserError, match='models of different images: digits'):
        mixture.evaluate(runs, '', 10, 10)
    dynamic = dataclasses.replace(runs[0].data, binarize='dynamic')
    runs = [dataclasses.replace(runs[0], data=dynamic)] * 2
    with pytest.raises(UserError, match='on bits of its own'):
        mixture.evaluate(runs, '', 10, 10)


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
