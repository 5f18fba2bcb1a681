"""The same run as 1 x 1, 1 x 8, 2 x 4 and 4 x 2 processes x devices, for every family.

    python -m tests.processes.topologies --out=results/topologies.json

Compares every line of metrics, the final evaluation and the samples with those of one
process with one device, and writes the largest differences.
"""

import argparse
import json
import pathlib
import shlex
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

from tests.processes import launch

TOPOLOGIES = ((1, 1), (1, 8), (2, 4), (4, 2))
# An Adam whose steps are smooth in the gradient: with the usual 1e-8 a parameter whose
# gradient is 0 but for rounding moves by the learning rate, one way or the other.
COMMON = (
    '--num_steps=50', '--batch_size=16', '--num_samples=16', '--log_every=1',
    '--eval_every=50', '--checkpoint_every=25', '--adam_eps=1e-3', '--seed=1',
)
FAMILIES = {
    'vae': ('--hidden=32', '--latent_dims=4', '--test_samples=50'),
    'pixel_cnn_pp': (
        '--features=4', '--num_mixtures=2', '--dropout=0.5', '--ema=0.99',
    ),
    'dcgan': ('--features=4,8', '--latent_dim=8', '--score_samples=200', '--k=2'),
    'wgan': (
        '--features=4,8', '--latent_dim=8', '--score_samples=200', '--k=2',
    ),
    'adversarial_autoencoder': ('--hidden=32', '--latent_dim=4', '--num_labels=50'),
}


def run(module: str, processes: int, devices: int, workdir: pathlib.Path) -> None:
    """Runs an experiment to its end."""
    flags = (f'--workdir={workdir}', *COMMON, *FAMILIES[module])
    for status, output in launch.finish(launch.start(processes, devices, module, flags)):
        if status:
            raise RuntimeError(f'{module} {processes} x {devices}: {output[-3000:]}')


def read(workdir: pathlib.Path) -> tuple[list[dict], dict[str, Any], np.ndarray]:
    """Returns lines of metrics, final metrics and the last samples."""
    lines = [json.loads(x) for x in (workdir / 'metrics.jsonl').open(encoding='utf-8')]
    results = json.loads((workdir / 'results.json').read_text())
    with Image.open(max(workdir.glob('samples/samples_*.png'))) as image:
        return lines, results, np.asarray(image).astype(int)


def differences(one: pathlib.Path, other: pathlib.Path) -> dict[str, float]:
    """Returns how far two runs are apart.

    Returns:
        The largest relative difference of a number in the lines of metrics and in the
        final metrics, the examples evaluated more or less, and of the pixels of the
        samples the share that differs and the largest difference.
    """
    (lines, results, x), (lines_, results_, x_) = read(one), read(other)
    if [sorted(a) for a in lines] != [sorted(a) for a in lines_]:
        raise RuntimeError('the lines of metrics are of other things')
    pairs = [
        (a[name], b[name]) for a, b in zip(lines, lines_) for name in a
        if isinstance(a[name], (int, float))
    ]
    finals = results['metrics'], results_['metrics']
    final = [
        (finals[0][name], finals[1][name]) for name in finals[0]
        if isinstance(finals[0][name], (int, float))
    ]

    def largest(pairs: list[tuple[float, float]]) -> float:
        return max(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in pairs)

    return {
        'lines': len(lines), 'metrics': largest(pairs), 'final_metrics': largest(final),
        'num_examples': results['num_examples'] - results_['num_examples'],
        'pixels_that_differ': float(np.mean(x != x_)),
        'largest_pixel_difference': int(np.abs(x - x_).max()),
    }


def main(argv: list[str]) -> None:
    """Compares all of them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--families', default=','.join(FAMILIES))
    parser.add_argument('--out', default='results/topologies.json')
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        for module in args.families.split(','):
            for processes, devices in TOPOLOGIES:
                workdir = pathlib.Path(directory, f'{module}_{processes}x{devices}')
                run(module, processes, devices, workdir)
                row = {
                    'model': module, 'processes': processes, 'devices_each': devices,
                    **differences(
                        pathlib.Path(directory, f'{module}_1x1'), workdir
                    ),
                }
                print(row, flush=True)
                rows.append(row)
    command = shlex.join(['python', '-m', 'tests.processes.topologies', *argv])
    text = json.dumps([{**row, 'command': command} for row in rows], indent=2)
    pathlib.Path(args.out).write_text(text + '\n')


if __name__ == '__main__':
    main(sys.argv[1:])
