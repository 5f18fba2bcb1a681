"""Fills the disk of a real run; it must end with a sentence, and go on with more space.

    python -m tests.faults.full_disk --out=/tmp/one.json
    python -m tests.faults.full_disk --trials=3 --processes=2 --out=/tmp/two.json

The rows of both together are results/full_disk.json.

Needs to be root on Linux: each trial mounts a tmpfs of its own, of a size between what
an empty run takes and what a whole one does, so that the disk is full at another moment
of each: while a checkpoint, a line of metrics or a picture is written. Then the tmpfs
gets larger and the same command runs again. In the end every array of the last
checkpoint, metrics.jsonl and results.json must be those of an undisturbed run.
"""

import argparse
import json
import pathlib
import shlex
import subprocess
import sys
import tempfile
import time

from tests.processes import launch
from tests.training import tiny

FLAGS = (
    '--hidden=32', '--latent_dims=4', '--batch_size=32', '--num_steps=200',
    '--log_every=5', '--eval_every=50', '--checkpoint_every=25', '--num_samples=8',
    '--test_samples=25', '--steps_per_dispatch=5', '--dropout=0.2', '--ema=0.99',
)


def run(workdir: pathlib.Path, processes: int) -> tuple[int, str]:
    """Run the experiment; return the first exit status, and what all wrote."""
    ended = launch.finish(launch.start(
        processes, 1, launch.experiment('vae'), (f'--workdir={workdir}', *FLAGS)
    ))
    return ended[0][0], ''.join(output for _, output in ended[::-1])


def trial(whole: pathlib.Path, disk: pathlib.Path, size: int, processes: int) -> dict:
    """Run on a disk of so many bytes, then on a large one."""
    mount = ['mount', '-t', 'tmpfs', '-o', f'size={size}', 'tmpfs', str(disk)]
    subprocess.run(mount, check=True)
    try:
        start = time.monotonic()
        status, told = run(disk / 'run', processes)
        seconds = time.monotonic() - start
        subprocess.run(['mount', '-o', 'remount,size=64m', str(disk)], check=True)
        again, told_again = run(disk / 'run', processes)
        return {
            'bytes': size, 'processes': processes, 'seconds': round(seconds, 1),
            'status': status, 'told': told.splitlines()[-1:],
            'tracebacks': (told + told_again).count('Traceback'),
            'status_with_more_space': again,
            'differences': tiny.differences(whole, disk / 'run'),
        }
    finally:
        subprocess.run(['umount', str(disk)], check=True)


def main(argv: list[str]) -> int:
    """Run the trials; the exit status is 1 if one of them ended otherwise."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--trials', type=int, default=8)
    parser.add_argument('--processes', type=int, default=1)
    parser.add_argument('--out', default='', help='JSON file to write')
    args = parser.parse_args(argv)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        whole, disk = pathlib.Path(directory, 'whole'), pathlib.Path(directory, 'disk')
        disk.mkdir()
        run(whole, args.processes)
        total = sum(x.stat().st_size for x in whole.rglob('*') if x.is_file())
        for number in range(args.trials):
            size = int(total * (number + 0.5) / args.trials)
            row = trial(whole, disk, size, args.processes)
            row['command'] = shlex.join(['python', '-m', 'experiments.vae', *FLAGS])
            print(row, flush=True)
            rows.append(row)
    if args.out:
        pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + '\n')
    good = [
        not (row['differences'] or row['tracebacks'] or row['status_with_more_space'])
        and row['status'] in (0, 2) for row in rows
    ]
    filled = any(row['status'] == 2 for row in rows)
    return 0 if all(good) and filled else 1


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
