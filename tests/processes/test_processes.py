"""Runs of several real processes; tests.processes.topologies has longer ones."""

import importlib
import json
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import vae
from gm_jax.errors import UserError
from gm_jax.training import distributed, flags, loop, parallel, processes
from tests.processes import families, launch
from tests.training import tiny

# The others take minutes to compile; tests.processes.topologies runs them all.
_NAMES = 'vae', 'dcgan'


@pytest.fixture(name='by_two', scope='module')
def make_by_two(tmp_path_factory):
    """Run three steps of each family by 2 processes x 4 devices."""
    workdir = tmp_path_factory.mktemp('two')
    program = (sys.executable, '-m', 'tests.processes.families')
    started = launch.start(2, 4, program, (str(workdir), '3', ','.join(_NAMES)))
    for status, output in launch.finish(started):
        assert status == 0, output[-3000:]
        # The step compiles when it is called, not before as in a run of one process.
        assert 'and the training step' not in output
    return workdir


@pytest.fixture(name='by_one', scope='module')
def make_by_one(tmp_path_factory):
    """Return the same, computed by this process with its 8 devices."""
    workdir = tmp_path_factory.mktemp('one')
    families.run(workdir, 3, _NAMES)
    return workdir


def test_the_flags_of_all_families_are_accepted():
    """Catch a flag that has gone, in families that only the long command runs."""
    for name, own in families.FAMILIES.items():
        main = importlib.import_module(f'experiments.{name}').main
        flags.parse(
            ['--workdir=DIR', *families.COMMON, *own], main.config_class, presets={},
            program='', about='',
        )


@pytest.mark.long
@pytest.mark.parametrize('name', _NAMES)
def test_two_processes_run_as_one(name, by_one, by_two):
    """Catch a part of a batch, noise, moments or samples that belong to a process."""
    found = families.differences(by_one / name, by_two / name)
    assert found['lines'] == 4
    assert found['losses'] < 1e-5 and found['final'] < 1e-5, found
    assert found['others'] < 1e-4 and found['pixels'] == 0, found


def _last_step(workdir):
    log = workdir / 'metrics.jsonl'
    steps = re.findall('"step": ([0-9]+),', log.read_text() if log.exists() else '')
    return max(map(int, steps), default=0)


def _start(processes, devices, workdir, argv):
    """Start a run, and wait until it is some steps further than it was."""
    before = _last_step(workdir)
    started = launch.start(processes, devices, launch.experiment('vae'), argv)
    deadline = time.monotonic() + 300
    while _last_step(workdir) < before + 24:
        assert time.monotonic() < deadline
        assert all(process.poll() is None for process in started)
        time.sleep(0.05)
    return started


@pytest.mark.long
def test_killed_and_stopped_and_taken_over_by_one(tmp_path):
    """Catch a hang, a traceback, a lost step, or a checkpoint bound to a process."""
    flags = list(tiny.FLAGS)
    flags[flags.index('--num_steps=36')] = '--num_steps=600'
    whole, workdir = tmp_path / 'whole', tmp_path / 'run'
    argv = (f'--workdir={workdir}', *flags)
    for victim in (1, 0):
        started = _start(2, 1, workdir, argv)
        started[victim].kill()
        status, output = launch.finish(started, timeout=60)[1 - victim]
        # Without process 0 JAX aborts the others, who exit before it does, mostly.
        aborted = victim == 0 and status == -signal.SIGABRT
        assert aborted or status == 1, output
        assert aborted or 'another process of this run has ended' in output
        assert 'Traceback' not in output
    started = _start(2, 2, workdir, argv)
    started[1].send_signal(signal.SIGTERM)
    for status, output in launch.finish(started, timeout=30):
        assert status == 128 + signal.SIGTERM
        saved = re.search('told to stop: saved at step ([0-9]+) of 600', output)
        # Before the end: an order that is not passed on is only obeyed after the run.
        assert saved and int(saved[1]) < 600 and 'Traceback' not in output, output
    assert vae.main(list(argv)) == 0
    assert vae.main([f'--workdir={whole}', *flags]) == 0
    one, other = tiny.metrics(whole), tiny.metrics(workdir)
    assert [line['step'] for line in one] == [line['step'] for line in other]
    for a, b in zip(one, other):
        assert a['loss'] == pytest.approx(b['loss'], rel=1e-3)


def test_the_process_that_differs_is_named(monkeypatch):
    """Catch a setting that only one process has, and a sentence that names another."""
    def text(problem='', **values):
        values = {f'--{name}': value for name, value in values.items()}
        return json.dumps({'problem': problem, 'values': values})

    texts = [text(seed='0'), text(seed='0'), text(seed='1')]
    monkeypatch.setattr(processes, '_texts', lambda mine: texts)
    with pytest.raises(UserError, match='process 2 has --seed 1 and process 0 has 0'):
        processes.check_alike({'--seed': '0'})
    texts[2] = text(seed='0', beta='2')
    with pytest.raises(UserError, match='process 2 has --beta 2 and process 0 .* miss'):
        processes.check_alike({'--seed': '0'})
    texts[2] = text('there is no file x.')
    with pytest.raises(UserError, match='process 2 cannot start: there is no file x'):
        processes.check_alike({'--seed': '0'})
    texts.pop()
    processes.check_alike({'--seed': '0'})


@pytest.mark.long
@pytest.mark.parametrize('other, name', [
    ('--seed=1', '--seed'), ('--num_steps=40', '--num_steps'),
    ('--eval_every=7', '--eval_every'),
    ('--dataset=synthetic:checkers', '--dataset'),
])
def test_processes_that_are_not_the_same_run_end(other, name, tmp_path):
    """Catch a wrong number at the end, and a wait for steps that never come."""
    flags = (f'--workdir={tmp_path}/run', *tiny.FLAGS)
    started = launch.start(2, 1, launch.experiment('vae'), flags, others=(other,))
    for status, output in launch.finish(started, timeout=60):
        assert status == 2, output
        assert f'process 1 has {name} ' in output and 'Traceback' not in output
    assert not (tmp_path / 'run').exists()


@pytest.mark.long
@pytest.mark.parametrize('other, sentence', [
    ('--nonsense=1', "Unknown command line flag 'nonsense'"),
    ('--dataset=npz:/nowhere', 'There is no file /nowhere'),
    ('--config=/nowhere', 'There is no file /nowhere'),
])
def test_a_process_that_cannot_start_ends_all(other, sentence, tmp_path):
    """Catch processes that wait for minutes for one that has ended."""
    data = tmp_path / 'x.npz'
    np.savez(data, images=np.arange(160, dtype=np.uint8).reshape(10, 4, 4))
    flags = (f'--workdir={tmp_path}/run', *tiny.FLAGS, f'--dataset=npz:{data}')
    started = launch.start(2, 1, launch.experiment('vae'), flags, others=(other,))
    (first, output), (second, error) = launch.finish(started, timeout=60)
    assert first in (1, 2) and second == 2, output + error
    assert sentence in error
    # What is found before they meet, process 0 can tell.
    assert sentence in output or 'another process of this run has ended' in output
    assert 'Traceback' not in output + error
    assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize('given, sentence', [
    (('localhost:1', 2, -1), 'belong together'),
    (('', 2, 0), 'belong together'),
    (('localhost:1', 2, 2), 'below --num_processes=2'),
    (('localhost', 2, 0), 'must be HOST:PORT'),
    (('localhost:99999', 2, 0), 'from 1 to 65535'),
    (('', -3, -1), 'belong together'),
    (('localhost:1', -1, 0), '--num_processes=-1 must be 1 or more'),
])
def test_flags_that_do_not_fit(given, sentence):
    """Catch a wait for processes that will never come."""
    with pytest.raises(UserError, match=sentence):
        distributed.initialize(*given)


def test_processes_agree_on_the_seed_of_the_noise(monkeypatch, tmp_path):
    """Catch processes that draw with several seeds: that of the run is not it."""
    asked = {}

    class Asked(Exception):
        pass

    def check_alike(found):
        asked.update(found)
        raise Asked

    monkeypatch.setattr(processes, 'several', lambda: True)
    monkeypatch.setattr(processes, 'check_alike', check_alike)
    for seed, expected in ((3, '3'), (None, '0')):
        run = flags.Run(workdir=str(tmp_path), mode='sample', seed=seed)
        with pytest.raises(Asked):
            loop.start(run, vae.Config(), 'vae', vae.main.build)
        assert asked['--seed'] == expected and asked['number of devices'] == '8'


def test_a_pod_of_no_job_is_alone(monkeypatch):
    """Catch a notebook on Kubernetes that is taken for one of many processes."""
    monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
    monkeypatch.setattr(distributed, '_meet', lambda *args: pytest.fail('it asked'))
    distributed.initialize()

    def fail(*args):
        raise KeyError('job-name')

    monkeypatch.setenv('JOB_COMPLETION_INDEX', '0')
    monkeypatch.setattr(distributed, '_meet', fail)
    with pytest.raises(UserError, match="KeyError.'job-name'.*: pass --coordinator"):
        distributed.initialize()


def test_a_port_that_is_taken():
    """Catch a crash of JAX."""
    with socket.create_server(('', 0)) as taken:
        address = f'localhost:{taken.getsockname()[1]}'
        with pytest.raises(UserError, match='the port cannot be used'):
            distributed.initialize(address, 2, 0)


@pytest.mark.parametrize('process', [0, 1])
def test_peers_that_never_come(process):
    """Catch an abort by JAX, or a wait without an end."""
    with socket.create_server(('', 0)) as probe:
        address = f'localhost:{probe.getsockname()[1]}'
    program = (
        'from gm_jax.training import distributed\n'
        'distributed._MEETING = 2\n'
        f'distributed.initialize({address!r}, 2, {process})\n'
    )
    found = subprocess.run(
        [sys.executable, '-c', program], capture_output=True, text=True, timeout=120,
        check=False,
    )
    assert found.returncode == 2, found.stderr
    assert 'the other processes have not come within 2 seconds' in found.stderr
    assert 'Traceback' not in found.stderr and 'Check failure' not in found.stderr


def test_processes_of_mpi_that_jax_does_not_find(monkeypatch):
    """Catch four runs in one directory that think themselves alone."""
    monkeypatch.setenv('OMPI_COMM_WORLD_SIZE', '4')
    with pytest.raises(UserError, match='pass --coordinator_address'):
        distributed._check_alone()


def test_of_one_process_there_is_nothing_to_start(monkeypatch):
    """Catch a run on a laptop, or one task of Slurm, that looks for others."""
    distributed.initialize()
    distributed.initialize('localhost:1', 1, 0)
    assert not processes.several() and processes.is_primary()
    assert parallel.Agreement(2).ask(True) and processes.all_agree(True)
