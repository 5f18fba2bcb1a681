r"""Kills a real run at random moments; what it leaves must not show it.

    python -m tests.faults.kill_and_resume --trials=20 --num_steps=400 \
        --out=results/kill_and_resume.json

Each trial starts `python -m experiments.vae` with EMA, dropout, BatchNorm and frequent
checkpoints in a directory of its own, kills it with SIGKILL, and runs the same command
again until it ends. Every array of the last checkpoint, metrics.jsonl, and results.json
but for wall_seconds must then be equal to the undisturbed run's, bit for bit, and no
kill may cost more steps than lie between two checkpoints.

Two trials of three kill as soon as a step drawn uniformly from the run is logged and a
drawn moment of up to half a second has passed: in the middle of steps, evaluations and
writing of checkpoints. The third kills at a moment drawn from the time that an
undisturbed run takes, mostly while it starts or in the final evaluation. A run that
ends before it is killed is drawn again.
"""

import argparse
import json
import os
import pathlib
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]
INTERVAL = 25  # of checkpoints, in steps
FLAGS = (
    '--hidden=32', '--latent_dims=4', '--batch_size=32', '--log_every=20',
    '--eval_every=100', f'--checkpoint_every={INTERVAL}', '--num_samples=8',
    '--test_samples=500', '--steps_per_dispatch=7', '--binarize=dynamic',
    '--batch_norm', '--dropout=0.2', '--ema=0.99',
)


def main() -> int:
    """Run the trials; the exit status is 1 if one ended otherwise or lost too much."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--trials', type=int, default=20)
    parser.add_argument('--num_steps', type=int, default=400)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--out', default='', help='JSON file to write')
    args = parser.parse_args()
    moments = random.Random(args.seed)
    rows = []
    with tempfile.TemporaryDirectory() as directory:
        base = pathlib.Path(directory)
        started = time.monotonic()
        run(base / 'whole', args.num_steps)
        seconds = time.monotonic() - started
        print(f'an undisturbed run takes {seconds:.1f} s', flush=True)
        while len(rows) < args.trials:
            by_step = len(rows) % 3 < 2
            kill = Kill(
                step=moments.randrange(args.num_steps) if by_step else 0,
                seconds=moments.uniform(0, 0.5 if by_step else seconds),
            )
            row = try_once(base, len(rows), args.num_steps, kill)
            if row is None:
                continue
            rows.append(row)
            print(rows[-1], flush=True)
            if args.out:
                os.makedirs(os.path.dirname(args.out) or '.', exist_ok=True)
                pathlib.Path(args.out).write_text(json.dumps(rows, indent=2) + '\n')
    equal = sum(row['equal'] for row in rows)
    lost = max((row['steps_lost'] for row in rows), default=0)
    print(f'{equal} of {len(rows)} ended with the same bits; a kill cost {lost} logged '
          f'steps at most, checkpoints are {INTERVAL} apart')
    return 0 if equal == len(rows) and lost <= INTERVAL else 1


class Kill(NamedTuple):
    """When to kill a run.

    Attributes:
        step: the step that must be logged first; 0: none.
        seconds: how long after that.
    """

    step: int
    seconds: float


def try_once(
    base: pathlib.Path, trial: int, num_steps: int, kill: Kill
) -> dict[str, object] | None:
    """Kill one run, let it end, and compare it; None if it ended unkilled."""
    workdir = base / f'trial{trial}'
    if not run(workdir, num_steps, kill):
        shutil.rmtree(workdir)
        return None
    checkpoints = workdir / 'checkpoints'
    saved = checkpoints.iterdir() if checkpoints.exists() else []
    logged, last = logged_step(workdir), max(
        (int(path.name) for path in saved if path.name.isdecimal()), default=0
    )
    row = {
        'trial': trial,
        'command': shlex.join(['python', *command(pathlib.Path('DIR'), num_steps)]),
        'kill_after_step': kill.step,
        'kill_after_seconds': round(kill.seconds, 2),
        'last_logged_step': logged,
        'last_saved_step': last,
        # At least so many: only every twentieth is logged.
        'steps_lost': max(logged - last, 0),
        'evaluated': (workdir / 'results.json').exists(),
    }
    run(workdir, num_steps)
    differences = tiny.differences(base / 'whole', workdir)
    return {**row, 'equal': not differences, 'differences': differences}


def command(workdir: pathlib.Path, num_steps: int) -> list[str]:
    """Return the arguments of python for a run."""
    flags = [f'--workdir={workdir}', f'--num_steps={num_steps}', *FLAGS]
    return ['-m', 'experiments.vae', *flags]


def logged_step(workdir: pathlib.Path) -> int:
    """Return the last step in metrics.jsonl, 0 without."""
    log = workdir / 'metrics.jsonl'
    # The last line may be half-written: it is not counted.
    lines = log.read_text().split('\n')[:-1] if log.exists() else []
    return json.loads(lines[-1])['step'] if lines else 0


def run(workdir: pathlib.Path, num_steps: int, kill: Kill | None = None) -> bool:
    """Run to the end or to where it is to be killed; return whether it was killed.

    Raises:
        RuntimeError: the run failed.
    """
    process = subprocess.Popen(
        [sys.executable, *command(workdir, num_steps)], cwd=ROOT,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )
    if kill is not None:
        while process.poll() is None and logged_step(workdir) < kill.step:
            time.sleep(0.01)
        try:
            process.wait(kill.seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return True
    errors = process.communicate()[1]
    if process.returncode:
        raise RuntimeError(f'exit status {process.returncode}: {errors[-2000:]}')
    return False


if __name__ == '__main__':
    sys.exit(main())
