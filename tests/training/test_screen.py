"""What a run shows: it never ends the run, whoever reads it."""

import os
import subprocess
import sys

import pytest

from gm_jax.training import screen

FLAGS = '--num_steps=1 --hidden=4 --latent_dims=2 --test_samples=1 --num_samples=4'


@pytest.mark.parametrize('where', [
    '| head -1', *(
        pytest.param(where, marks=pytest.mark.long)
        for where in ('>&-', '>&- 2>&-', '> /dev/full')
    ),
])
def test_the_reader_may_go_away(where, tmp_path):
    """Catch a run that ends because nobody reads it, and a traceback at its end."""
    command = f'{sys.executable} -m experiments.vae --workdir={tmp_path}/run {FLAGS}'
    found = subprocess.run(
        ['bash', '-c', f'set -o pipefail; {command} {where}'],
        capture_output=True, text=True, check=False,
    )
    assert found.returncode == 0, found
    assert found.stderr == ''
    assert (tmp_path / 'run' / 'results.json').exists()


def test_help_may_be_cut():
    """Catch a traceback of `--help | head -1`."""
    command = f'{sys.executable} -m experiments.vae --help | head -1'
    found = subprocess.run(
        ['bash', '-c', command], capture_output=True, text=True, check=True
    )
    assert found.stdout.count('\n') == 1 and found.stderr == ''


def test_a_screen_may_know_ascii_only(tmp_path):
    """Catch a letter that a terminal does not know."""
    path = tmp_path / 'ascii.txt'
    with open(path, 'w', encoding='ascii') as file, pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'stdout', file)
        with screen.tolerant():
            print('déjà vu')
    assert path.read_text() == 'd\\xe9j\\xe0 vu\n'


def test_the_screen_is_given_back():
    """Catch a stream that is still replaced after the run."""
    before = sys.stdout, sys.stderr
    with pytest.raises(RuntimeError), screen.tolerant():
        assert sys.stdout is not before[0]
        raise RuntimeError
    assert (sys.stdout, sys.stderr) == before


def test_a_closed_pipe_is_dropped_once():
    """Catch a write that raises, and an error at every later one."""
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, 'w') as file, pytest.MonkeyPatch.context() as m:
        m.setattr(sys, 'stdout', file)
        with screen.tolerant():
            for _ in range(3):
                print('nobody reads this', flush=True)
