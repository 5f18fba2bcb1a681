"""What keeps a DCGAN stable: changes of one thing at a time, each with several seeds.

    python -m experiments.classifier --dataset=cifar10_jpeg --image_size=16 \
        --num_steps=1500 --data_dir=DIR --workdir=CLASSIFIER
    python -m benchmarks.stability --data_dir=DIR --classifier=CLASSIFIER

A small DCGAN of colour images of 16 x 16 pixels trains for 5,000 steps at five times
the usual learning rate. Rows that are in the file already are not measured again.

Fields of a row:

    name, seed             the change and the seed
    flags                  of the change
    steps, distances       classifier Frechet distances of 2,000 samples to as many test
                           images, during training
    alarms                 lines of metrics with an alarm
"""

import argparse
import functools
import json
import pathlib
import platform
import subprocess
import sys
import tempfile
from typing import Any

import jax

from benchmarks import machine, rows

__all__ = ['CHANGES', 'FLAGS', 'main', 'measure', 'read']

FLAGS = (
    '--dataset=cifar10_jpeg', '--image_size=16', '--features=16,32,64',
    '--latent_dim=100', '--learning_rate=1e-3', '--num_steps=5000', '--eval_every=500',
    '--checkpoint_every=2500', '--log_every=500', '--score_samples=2000',
)
CHANGES: dict[str, tuple[str, ...]] = {
    'as it is, BatchNorm in both': (),
    'rate of the discriminator times 4': ('--discriminator_learning_rate=4e-3',),
    'labels of data at 0.9': ('--label_smoothing=0.1',),
    'averaged generator': ('--ema=0.999',),
    'rates fall to zero': ('--schedule=cosine',),
    'discriminator without BatchNorm': ('--norm=none',),
    'R1 penalty, without BatchNorm': ('--norm=none', '--r1=5'),
    'spectral norm': ('--norm=spectral',),
    'spectral norm, hinge loss': ('--norm=spectral', '--loss=hinge'),
}


def read(workdir: pathlib.Path) -> dict[str, Any]:
    """Return the distances of a run during training, and how often an alarm rang."""
    lines = [
        json.loads(line)
        for line in (workdir / 'metrics.jsonl').read_text().splitlines()
    ]
    name = 'classifier_frechet_distance'
    found = {line['step']: line[name] for line in lines if name in line}
    return {
        'steps': list(found), 'distances': [round(x, 2) for x in found.values()],
        'alarms': sum('alarms' in line for line in lines),
    }


def measure(name: str, seed: str, data_dir: str, classifier: str) -> dict[str, Any]:
    """Train with one change."""
    with tempfile.TemporaryDirectory() as parent:
        workdir = pathlib.Path(parent, 'run')
        subprocess.run([
            sys.executable, '-m', 'experiments.dcgan', *FLAGS, *CHANGES[name],
            f'--seed={seed}', f'--data_dir={data_dir}', f'--classifier={classifier}',
            f'--workdir={workdir}',
        ], check=True, stdout=subprocess.DEVNULL)
        return {'flags': list(CHANGES[name]), **read(workdir)}


def main(argv: list[str]) -> int:
    """Measure what is not in the file yet, and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--data_dir', required=True)
    parser.add_argument('--classifier', required=True)
    parser.add_argument('--seeds', default='0,1,2')
    parser.add_argument('--out', default='results/dcgan_stability.json')
    args = parser.parse_args(argv)
    common = {
        'device': machine.device_name(), 'python': platform.python_version(),
        'jax': jax.__version__, 'command':
        'python -m benchmarks.stability --data_dir=DIR --classifier=CLASSIFIER',
    }
    keys = [
        {'name': name, 'seed': seed} for name in CHANGES
        for seed in args.seeds.split(',')
    ]
    one = functools.partial(
        measure, data_dir=args.data_dir, classifier=args.classifier
    )
    return bool(rows.fill(args.out, keys, one, common))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
