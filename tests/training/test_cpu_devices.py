"""The number of virtual devices of a CPU: what is chosen, and what a run keeps."""

import json
import os
import subprocess
import sys

import pytest

from gm_jax.training import cpu_devices


@pytest.mark.parametrize('batch_size, share, cores, expected', [
    (32, 1, 2, 2), (32, 1, 3, 2), (32, 1, 1, 1), (32, 1, 0, 1), (31, 1, 2, 1),
    (32, 16, 8, 2), (32, 32, 8, 1), (48, 1, 6, 6), (64, 1, 64, 8), (4, 1, 64, 4),
    (32, 5, 8, 1),
])
def test_the_largest_number_that_divides_the_batch(batch_size, share, cores, expected):
    """Catch a choice that the batch or a micro-batch cannot be divided by."""
    assert cpu_devices.most(batch_size, share, cores) == expected


def _run(workdir, *flags, cores=None, **variables):
    """Run NADE in a process of its own; return its number of devices."""
    start = [sys.executable, '-m', 'experiments.nade']
    affinity = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    done = subprocess.run(
        [*start, f'--workdir={workdir}', '--hidden=2', '--batch_size=6',
         '--num_samples=2', '--test_examples=6', '--schedule=constant', *flags],
        env={**os.environ, **variables}, preexec_fn=affinity, check=False,
        capture_output=True, text=True,
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
    workdir = tmp_path / 'run'
    assert _run(workdir, '--num_steps=1', cores=cores[:2]) == (num, f'{num} x cpu')
    # Fewer cores, and more steps.
    assert _run(workdir, '--num_steps=2', cores=cores[:1]) == (num, f'{num} x cpu')
    other = tmp_path / 'other'
    found = _run(other, '--num_steps=1', '--cpu_devices=3', cores=cores[:1])
    assert found == (3, '3 x cpu')
    by_jax = tmp_path / 'by_jax'
    assert _run(by_jax, '--num_steps=1', JAX_NUM_CPU_DEVICES='6') == (0, '6 x cpu')
