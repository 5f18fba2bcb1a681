"""The command gm-jax, and how the experiments name the command that runs them."""

import importlib
import os
import re
import runpy
import signal
import subprocess
import sys

import pytest

from experiments import NAMES
from gm_jax import cli, entry
from gm_jax.errors import UserError
from gm_jax.training import parallel


@pytest.fixture(autouse=True)
def clone(monkeypatch):
    """Look for the experiments where a clone has them."""
    monkeypatch.setattr(cli, '_PACKAGE', 'experiments')


@pytest.mark.parametrize('argv', [[], ['--help']])
def test_lists_the_experiments_in_order(argv, capsys):
    """Catch an experiment that the list leaves out, or one without a description."""
    assert cli.main(argv) == 0
    found = re.findall(r'^  gm-jax (\w+) +\S.*[a-z].*$', capsys.readouterr().out, re.M)
    assert tuple(found) == NAMES


@pytest.mark.parametrize('name, sentence', [
    ('vea', 'did you mean vae?'), ('mnist', 'there are autoencoder, nade'),
])
def test_unknown_name_is_a_sentence(name, sentence, capsys):
    """Catch a traceback, and a list where one name is meant."""
    assert cli.main([name, '--workdir=nowhere']) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count('\n') == 1


@pytest.mark.parametrize('name', NAMES)
def test_help_names_the_command(name, capsys):
    """Catch the module of a class or of a family, which is no command."""
    module = importlib.import_module(f'experiments.{name}')
    for argv, program in ((None, f'python -m experiments.{name}'),
                          ([name, '--help'], f'gm-jax {name}')):
        with pytest.raises(SystemExit) as ended:
            module.main(['--help']) if argv is None else cli.main(argv)
        assert ended.value.code == 0
        out = ' '.join(capsys.readouterr().out.split())
        assert out.startswith(f'{program} --workdir=DIR [flags]')
        assert f'{program} --workdir=/tmp' in out
        others = re.findall(r'python -m ([\w.]+)', out)
        assert others == [] or program.startswith('python')
        assert not any('families' in other for other in others)


@pytest.mark.parametrize('command, start', [
    (['-m', 'experiments'], '  python -m experiments.autoencoder '),
    (['-m', 'experiments', '--help'], '  python -m experiments.autoencoder '),
    (['experiments/vae.py', '--help'], 'python experiments/vae.py --workdir=DIR'),
])
def test_other_ways_to_start(command, start):
    """Catch a name glued to the path of a file, and a list that cannot be run."""
    found = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=True,
        env={**os.environ, 'PYTHONPATH': '.'},
    )
    assert start in found.stdout
    assert 'vae.pyvae' not in found.stdout and 'vae.pydcgan' not in found.stdout


def test_ctrl_c_reaches_what_downloads(capsys):
    """Catch a process that leaves its bar and its files, without a word."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    try:
        entry.handle_signals()
        assert cli.prepare([], 'gm-jax prepare') == 0
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def test_export_without_a_device(monkeypatch, capsys, tmp_path):
    """Catch a traceback for what each experiment says in a sentence."""
    def refuse():
        raise UserError('JAX cannot use its devices: there is none.')

    monkeypatch.setattr(parallel, 'check_devices', refuse)
    flags = [f'--workdir={tmp_path}', f'--to={tmp_path}/out']
    assert cli.export(flags, 'gm-jax export') == 2
    assert 'JAX cannot use its devices' in capsys.readouterr().err


@pytest.mark.parametrize('name, sentence', [
    ('vae', 'the command is python -m experiments.vae, with a point.'),
    ('exprot', "there is no command 'exprot': did you mean export?"),
    ('zzz', "there is no command 'zzz': python -m experiments lists them."),
])
def test_a_misspelt_command_of_the_package(name, sentence, capsys, monkeypatch):
    """Catch a list, and the status 0, in place of what was asked for."""
    monkeypatch.setattr(sys, 'argv', ['experiments', name, '--workdir=DIR'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module('experiments', run_name='__main__')
    assert ended.value.code == 2
    assert capsys.readouterr().err == f'python -m experiments: {sentence}\n'
