"""The first seconds of a command: signals, and what the environment asks of JAX."""

import ast
import importlib
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import pytest

from experiments import NAMES, vae
from gm_jax import entry


@pytest.fixture(autouse=True)
def handlers():
    """Put back the handlers of the tests."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before):
        signal.signal(number, handler)


@pytest.mark.parametrize('devices', ['0', '1025', '9' * 5000])
def test_number_of_devices_that_hangs_jax_is_refused(devices, monkeypatch, capfd):
    """Catch a traceback, and a start that never ends."""
    monkeypatch.setenv('JAX_NUM_CPU_DEVICES', devices)
    with pytest.raises(SystemExit) as ended:
        entry.begin()
    assert ended.value.code == 2
    error = capfd.readouterr().err
    assert 'must be from 1 to 1024' in error and error.count('\n') == 1


def test_devices_that_are_not_there_are_a_sentence(tmp_path, monkeypatch, capfd):
    """Catch a traceback for JAX_PLATFORMS=cuda where there is none."""
    def no_devices(*args):
        raise AssertionError  # as JAX does, without a text

    monkeypatch.setenv('JAX_PLATFORMS', 'cuda')
    monkeypatch.setattr(jax, 'device_put', no_devices)
    assert vae.main([f'--workdir={tmp_path}/run']) == 2
    error = capfd.readouterr().err
    assert 'AssertionError' in error and 'JAX_PLATFORMS=cuda' in error
    assert error.count('\n') == 1 and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', NAMES)
def test_every_experiment_begins_before_it_imports(name):
    """Catch an experiment that prints a traceback when it is stopped at once."""
    path = importlib.import_module(f'experiments.{name}').__file__
    first = ast.parse(pathlib.Path(path).read_text()).body[1]
    assert ast.unparse(first).splitlines() == [
        "if __name__ == '__main__':", '    from gm_jax import entry',
        '    entry.begin()',
    ]


def test_without_docstrings(tmp_path, capfd):
    """Catch `python -OO`, which drops them, failing for want of help."""
    assert vae.main._replace(about=None)([]) == 2
    assert '--workdir=DIR is missing' in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.usefixtures('heeded_signals')
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    'command', [('-m', 'experiments.vae'), ('experiments/vae.py',)]
)
def test_signal_while_importing_is_quiet(command, number, tmp_path):
    """Catch a traceback of whatever is being imported."""
    delays = random.Random(0)
    for _ in range(5):
        started = subprocess.Popen(
            [sys.executable, *command, f'--workdir={tmp_path}/run'],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
            env={**os.environ, 'PYTHONPATH': '.'},
        )
        time.sleep(delays.uniform(0.3, 3))
        started.send_signal(number)
        error = started.communicate(timeout=120)[1]
        assert 'Traceback' not in error
        assert started.returncode == 128 + number
