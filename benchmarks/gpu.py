"""Trains what a CPU is too slow for, on one GPU that is at hand for some minutes.

    python -m benchmarks.gpu pack --data_dir=DIR --to=data      # on a machine with TFDS
    python -m benchmarks.gpu run --data=data --out=OUT --minutes=14
    python -m benchmarks.gpu run --data=data --out=OUT --tiny   # tries every line here

The lines of `QUEUE` are taken from the top. Each has a time limit, after which it is
told to stop and saves a checkpoint; its evaluation follows. What is done is in OUT: a
line that came to its end is not run again, and one that was stopped goes on. With
little time left, no line begins that could not train for a minute. summary.json is
written after each line. What `--tiny` does is in OUT/tiny.
"""

import argparse
import contextlib
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from benchmarks import rows
from gm_jax.data import sources
from gm_jax.errors import UserError

__all__ = ['command', 'Line', 'main', 'pack', 'QUEUE', 'run']

# Sets that are packed, the most images of each split, and how they are called there.
_SETS = {
    'binarized_mnist': 0, 'mnist': 0, 'fashion_mnist': 0, 'cifar10_jpeg': 3_500,
}
# Seconds that a run has to save a checkpoint after it is told to stop, and that the
# evaluation of a stopped run may take.
_GRACE, _EVALUATION = 60, 120
_LEAST = 60
# Statuses of a command that was told to stop: one that saves, and one that does not.
_STOPPED = 128 + signal.SIGTERM, -signal.SIGTERM


class Line(NamedTuple):
    """A line of the queue.

    Attributes:
        name: the name of its directory.
        minutes: how long it may train.
        dataset: the name of a packed set.
        command: the experiment and its flags.
        tiny: flags that make it small enough to be tried on a CPU.
    """

    name: str
    minutes: float
    dataset: str
    command: str
    tiny: str = ''


_PP = (
    'pixel_cnn_pp --num_mixtures=1 --num_resnets=2 --num_levels=2 --batch_size=64 '
    '--learning_rate=1e-3 --ema=0.9995 --num_steps=20000 --eval_every=1000 '
    '--log_every=100 --eval_batch_size=500'
)
_GATED = (
    'gated_pixel_cnn --preset=paper --batch_size=64 --features=64 --eval_every=2000 '
    '--log_every=100 --eval_batch_size=500 --num_steps=30000 --weight_decay=0.2'
)
_NARROW = '--features=4'
# In the order of what the numbers need most.
QUEUE = (
    Line('bench', 3, '', 'benchmarks.bench --turns=5 --max_load=1'),
    *(
        Line(
            f'pixel_cnn_pp_{features}', 5, 'binarized_mnist',
            f'{_PP} --features={features} --dropout={dropout}', _NARROW,
        ) for features, dropout in ((64, 0.5), (96, 0.5), (128, 0.5))
    ),
    Line('gated_dropout', 4, 'binarized_mnist', f'{_GATED} --dropout=0.2', _NARROW),
    Line(
        'pixel_vae', 4, 'binarized_mnist',
        'pixel_vae --preset=hour --batch_size=100 --num_steps=40000 --log_every=100 '
        '--eval_every=4000 --eval_batch_size=100', _NARROW,
    ),
    Line(
        'row_lstm_32', 4, 'binarized_mnist',
        'pixel_rnn --preset=row_lstm --features=32 --batch_size=64 --dropout=0.1 '
        '--num_steps=20000 --eval_every=2000 --eval_batch_size=500', _NARROW,
    ),
    Line(
        'diagonal_bilstm_32', 5, 'binarized_mnist',
        'pixel_rnn --preset=paper --features=32 --batch_size=64 --dropout=0.1 '
        '--num_steps=20000 --eval_every=2000 --eval_batch_size=500', _NARROW,
    ),
    Line(
        'real_nvp_mnist', 5, 'mnist',
        'real_nvp --preset=mnist --batch_size=256 --features=64 --num_steps=60000 '
        '--eval_every=5000 --eval_batch_size=500', _NARROW,
    ),
    Line(
        'real_nvp_fashion', 5, 'fashion_mnist',
        'real_nvp --preset=fashion --batch_size=256 --features=64 --num_steps=60000 '
        '--eval_every=5000 --eval_batch_size=500', _NARROW,
    ),
    Line(
        'made_32_masks', 4, 'binarized_mnist',
        'made --preset=paper --hidden=8000,8000 --num_masks=32 --num_steps=200000 '
        '--eval_every=10000', '--hidden=8,8',
    ),
    Line(
        'super_resolution', 4, 'cifar10_jpeg',
        'pixel_cnn_pp --task=super_resolution --features=96 --num_resnets=3 '
        '--num_mixtures=10 --batch_size=64 --learning_rate=1e-3 --ema=0.9995 '
        '--num_steps=20000 --eval_every=2000 --eval_batch_size=250', _NARROW,
    ),
    *(
        Line(
            f'dcgan_{seed}', 3, 'cifar10_jpeg',
            f'dcgan --preset=colour --num_steps=60000 --eval_every=5000 '
            f'--seed={seed}', '--features=4,8',
        ) for seed in range(3)
    ),
    Line(
        'iwae_50', 4, 'mnist',
        'vae --preset=iwae_1l --binarize=dynamic --k=50 --batch_size=100 '
        '--schedule=cosine --learning_rate=1e-3 --num_steps=300000 --eval_every=20000',
        '--hidden=8,8',
    ),
)


def pack(data_dir: str, to: pathlib.Path) -> None:
    """Write the sets as files that need nothing but NumPy to be read."""
    to.mkdir(parents=True, exist_ok=True)
    for name, most in _SETS.items():
        data = sources.load(name, data_dir=data_dir)
        arrays: dict[str, Any] = {}
        for split, examples in data.splits.items():
            num = min(len(examples), most or len(examples))
            found = examples.fetch(np.arange(num))
            arrays[split] = found['image']
            if data.num_classes:
                arrays[f'{split}_labels'] = found['label']
        np.savez_compressed(to / f'{name}.npz', **arrays)


def command(
    line: Line, data: pathlib.Path, workdir: pathlib.Path, tiny: bool
) -> list[str]:
    """Return the arguments of Python that run a line.

    Args:
        line: a line with a set.
        data: the directory of the packed sets.
        workdir: the work directory of the run.
        tiny: whether it is only tried.
    """
    experiment, *flags = line.command.split()
    flags += [
        f'--workdir={workdir}', f'--dataset=npz:{data / line.dataset}.npz',
        '--checkpoint_every=500',
    ]
    if tiny:
        flags += line.tiny.split() + [
            '--num_steps=4', '--eval_every=2', '--log_every=2', '--batch_size=8',
            '--test_examples=16', '--eval_batch_size=8', '--num_samples=8',
        ]
    return ['-m', f'experiments.{experiment}', *flags]


def run(line: Line, args: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """Train for at most `seconds`, evaluate, and return what was found."""
    workdir = pathlib.Path(args.out, line.name).absolute()
    if not line.dataset:
        module = ['-m', *line.command.split(), f'--out={workdir}.json']
        if args.tiny:
            module += ['--names=vae', '--turns=1']
        status = _limited([sys.executable, *module], f'{workdir}.log', seconds)
        return {'name': line.name, 'status': status, 'command': shlex.join(module)}
    arguments = command(line, pathlib.Path(args.data).absolute(), workdir, args.tiny)
    argv = [sys.executable, *arguments]
    status = _limited(argv, f'{workdir}.log', seconds)
    row = {'name': line.name, 'status': status, 'command': shlex.join(arguments)}
    if status in _STOPPED:  # the number of what there is
        evaluate = [*argv, '--mode=eval', '--checkpoint=best']
        row['status_of_evaluation'] = _limited(
            evaluate, f'{workdir}.log', _EVALUATION
        )
    found = {}
    for path in sorted(workdir.glob('results*.json')):
        found[path.stem] = json.loads(path.read_text())['metrics']
    return {**row, 'results': found}


def _limited(command: list[str], log: str, seconds: float) -> int:
    """Run a command; after some seconds tell it to stop; return its status.

    What the command has started is stopped with it, and would hold the GPU otherwise.
    """
    with open(log, 'a', encoding='utf-8') as file, subprocess.Popen(
        command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return _stop(process)
        except KeyboardInterrupt:
            _stop(process)
            raise
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def _stop(process: subprocess.Popen) -> int:
    """Tell a group of processes to stop, and return the status of the first."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        return process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.wait()


def main(argv: list[str]) -> int:
    """Pack the sets, or take the queue from its top."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('what', choices=('pack', 'run'))
    parser.add_argument('--data_dir', default='', help='where the TFDS sets are')
    parser.add_argument('--to', default='data', help='directory of the packed sets')
    parser.add_argument('--data', default='data', help='the same, to read')
    parser.add_argument('--out', default='out', help='where runs are written')
    parser.add_argument('--minutes', type=float, default=14.0, help='of all lines')
    parser.add_argument('--names', default=','.join(line.name for line in QUEUE))
    parser.add_argument('--tiny', action='store_true', help='some steps of each line')
    args = parser.parse_args(argv)
    if args.what == 'pack':
        try:
            pack(args.data_dir, pathlib.Path(args.to))
        except UserError as error:
            parser.error(str(error))
        return 0
    names = rows.chosen(parser, '--names', args.names, [x.name for x in QUEUE])
    if args.tiny:
        args.out = os.path.join(args.out, 'tiny')
    out, failed = pathlib.Path(args.out), 0
    out.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * args.minutes
    summary = out / 'summary.json'
    found = json.loads(summary.read_text()) if summary.exists() else {}
    for line in QUEUE:
        if line.name not in names or found.get(line.name, {}).get(
            'status'
        ) == 0:
            continue
        left = end - time.monotonic() - _GRACE - _EVALUATION
        if not args.tiny and left < _LEAST:
            break
        seconds = 60 * line.minutes if args.tiny else min(60 * line.minutes, left)
        found[line.name] = run(line, args, seconds)
        failed += found[line.name]['status'] not in (0, *_STOPPED)
        rows.write(str(summary), found)
        print(f'{line.name}: status {found[line.name]["status"]}', flush=True)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
