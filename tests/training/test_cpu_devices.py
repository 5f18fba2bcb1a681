"""The number of virtual devices of a CPU: what is chosen, and what a run keeps."""

import json
import os
import subprocess
import sys

import jax
import pytest

from experiments import nade
from gm_jax.training import cpu_devices


@pytest.mark.parametrize('batch_size, share, cores, expected', [
    (32, 1, 2, 2), (32, 1, 3, 2), (32, 1, 1, 1), (32, 1, 0, 1), (31, 1, 2, 1),
    (32, 16, 8, 2), (32, 32, 8, 1), (48, 1, 6, 6), (64, 1, 64, 8), (4, 1, 64, 4),
    (32, 5, 8, 1),
])
def test_the_largest_number_that_divides_the_batch(batch_size, share, cores, expected):
    """Catch a choice that the batch or a micro-batch cannot be divided by."""
    assert cpu_devices.most(batch_size, share, cores) == expected


def test_a_number_of_the_user_is_kept(tmp_path):
    """Catch a choice that overrides JAX's own setting, as these tests have it.

    It is written down, so that the run goes on with it where the setting is not there.
    """
    config, path = nade.Config(), str(tmp_path / 'config.json')
    assert config.gains_from_cpu_devices
    assert cpu_devices.settle(config, path).cpu_devices == 8
    assert cpu_devices.settle(nade.Config(cpu_devices=4), path).cpu_devices == 8
    assert jax.local_device_count() == 8


def test_another_number_is_told_in_training_and_no_matter_after_it(tmp_path, capsys):
    """Catch a flag that is ignored in silence, and an evaluation that is refused."""
    flags = ('--hidden=2', '--batch_size=8', '--num_samples=2', '--test_examples=6')
    run = (f'--workdir={tmp_path}', '--num_steps=1', *flags)
    assert nade.main([*run, '--cpu_devices=4']) == 0
    told = '--cpu_devices=4 cannot be had: JAX has 8 devices here already'
    assert told in capsys.readouterr().err
    path = tmp_path / 'config.json'
    config = json.loads(path.read_text())
    assert config['cpu_devices'] == 8
    path.write_text(json.dumps({**config, 'cpu_devices': 1}))
    assert nade.main([f'--workdir={tmp_path}', '--mode=eval']) == 0
    assert 'cannot be had' not in capsys.readouterr().err


@pytest.mark.parametrize('by', ['use', 'flags'])
def test_a_program_that_uses_jax_already(by, tmp_path, monkeypatch):
    """Catch a number that is not JAX's, with which the run would go on elsewhere."""
    assert jax.local_device_count() == 8
    monkeypatch.setitem(jax.config.values, 'jax_num_cpu_devices', -1)
    if by == 'flags':
        flags = '--xla_force_host_platform_device_count=8'
        monkeypatch.setenv('XLA_FLAGS', flags)
    path = str(tmp_path / 'config.json')
    for config in (nade.Config(), nade.Config(cpu_devices=4)):
        settled = cpu_devices.settle(config, path)
        assert settled.cpu_devices == 8
        told = cpu_devices.warning(config, settled)
        assert ('cannot be had' in told) == (config.cpu_devices == 4)
    monkeypatch.setattr(jax.distributed, 'is_initialized', lambda: True)
    assert cpu_devices.settle(config, path) == config
    assert 'for a run of one process' in cpu_devices.warning(config, config)


def _run(workdir, cores, *flags):
    """Run NADE in a process of its own on some cores; return its number of devices."""
    start = (
        f'import os, runpy; os.sched_setaffinity(0, {cores}); '
        f'runpy.run_module("experiments.nade", run_name="__main__", alter_sys=True)'
    )
    done = subprocess.run(
        [sys.executable, '-c', start, f'--workdir={workdir}', '--hidden=2',
         '--batch_size=6', '--num_samples=2', '--test_examples=6',
         '--schedule=constant', *flags],
        check=False, capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    kept = json.loads((workdir / 'config.json').read_text())['cpu_devices']
    results = json.loads((workdir / 'results.json').read_text())
    return kept, results['devices']


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, 'sched_setaffinity'), reason='not Linux')
def test_a_run_keeps_its_devices(tmp_path):
    """Catch a resumed run with other devices, and a choice that is not the user's."""
    cores = sorted(os.sched_getaffinity(0))
    num = 2 if len(cores) > 1 else 1
    assert _run(tmp_path, cores[:2], '--num_steps=1') == (num, f'{num} x cpu')
    # Fewer cores, and more steps.
    assert _run(tmp_path, cores[:1], '--num_steps=2') == (num, f'{num} x cpu')
