"""The seconds until an experiment shows something, for every experiment's defaults.

Runs `python -m experiments.NAME` until the first line of metrics is written, then
`--mode=sample` of a run of two steps, each in a new process and with nothing compiled
before:

    python -m benchmarks.start --out=results/bench_start.json

Rows that are in the file already are not measured again.
"""

import argparse
import importlib.metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks import machine, rows
from experiments import NAMES

# Experiments that have nothing to sample.
NO_SAMPLER = ('classifier',)
# What the end of a run of two steps would spend minutes on, and no sample depends on.
SHORT = {'vae': ('--test_samples=1',), 'autoencoder': ('--noprobe',)}


def command(name: str, workdir: pathlib.Path, *flags: str) -> list[str]:
    """Return the command of an experiment, with a work directory and flags."""
    return [
        sys.executable, '-m', f'experiments.{name}', f'--workdir={workdir}', *flags
    ]


def seconds_to_first_line(name: str, workdir: pathlib.Path, *flags: str) -> float:
    """Measure from the start of a command to its first line of metrics.

    Args:
        name: the name of the experiment.
        workdir: a directory that does not exist yet.
        *flags: flags besides the defaults.

    Returns:
        Seconds; the run is killed.

    Raises:
        RuntimeError: the run has ended without a line.
    """
    metrics = workdir / 'metrics.jsonl'
    start = time.perf_counter()
    with subprocess.Popen(
        command(name, workdir, *flags),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    ) as process:
        while True:
            ended = process.poll() is not None  # asked first, then the last line counts
            if metrics.exists() and '\n' in metrics.read_text():
                break
            if ended:
                raise RuntimeError(f'{name} has ended with {process.returncode}')
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        process.kill()
    return seconds


def seconds_to_sample(name: str, workdir: pathlib.Path, *flags: str) -> float:
    """Measure `--mode=sample` of a run of two steps, which is made first.

    Args:
        name: the name of the experiment.
        workdir: a directory that does not exist yet.
        *flags: flags of the run besides the defaults.

    Returns:
        Seconds of the whole process.

    Raises:
        subprocess.CalledProcessError: one of them has failed.
    """
    short = ('--num_steps=2', *SHORT.get(name, ()), *flags)
    subprocess.run(
        command(name, workdir, *short), check=True, stdout=subprocess.DEVNULL
    )
    start = time.perf_counter()
    subprocess.run(
        command(name, workdir, '--mode=sample'), check=True, stdout=subprocess.DEVNULL
    )
    return time.perf_counter() - start


def main(argv: list[str]) -> int:
    """Time experiments and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(NAMES))
    parser.add_argument(
        '--repeats', type=int, default=3, help='times; the fastest is reported'
    )
    parser.add_argument('--out', required=True, help='rows that are there stay')
    args = parser.parse_args(argv)
    common = {
        'repeats': args.repeats, 'device': machine.cpu_name(),
        'python': platform.python_version(),
        'jax': importlib.metadata.version('jax'),
        'command': shlex.join(['python', '-m', 'benchmarks.start', *argv]),
    }

    def measure(experiment: str) -> dict[str, Any]:
        first, sample = [], []
        for _ in range(args.repeats):
            with tempfile.TemporaryDirectory() as parent:
                directory = pathlib.Path(parent)
                first.append(seconds_to_first_line(experiment, directory / 'first'))
                if experiment not in NO_SAMPLER:
                    sample.append(seconds_to_sample(experiment, directory / 'sample'))
        return {
            'first_line_seconds': round(min(first), 1),
            'sample_seconds': round(min(sample), 1) if sample else None,
            'load_average': round(os.getloadavg()[0], 1),  # over the last minute
        }

    names = rows.chosen(parser, '--names', args.names, NAMES)
    keys = [{'experiment': name} for name in names]
    return bool(rows.fill(args.out, keys, measure, common))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
