r"""Kills a real run at random moments; what it leaves must not show it.

    python -m tests.faults.kill_and_resume --trials=20 --num_steps=400 \
        --out=results/kill_and_resume.json
    python -m tests.faults.kill_and_resume --models=real_nvp,gsn --trials=4

Each trial starts a small experiment with frequent checkpoints in a directory of its
own, kills it with SIGKILL, and runs the same command again until it ends. The VAE is
the default: it has EMA, dropout and BatchNorm. Every array of the last checkpoint,
metrics.jsonl, and results.json but for wall_seconds must then be equal to the
undisturbed run's, bit for bit, and no kill may cost more steps than lie between two
checkpoints.

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
from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.processes import families
from tests.training import tiny

ROOT = pathlib.Path(__file__).parents[2]
INTERVAL = 25  # of checkpoints, in steps
FLAGS = (
    '--batch_size=32', '--log_every=20', '--eval_every=100',
    f'--checkpoint_every={INTERVAL}', '--num_samples=8', '--steps_per_dispatch=7',
)
MODELS = {
    **families.FAMILIES,
    'vae': (
        '--hidden=32', '--latent_dims=4', '--test_samples=500', '--binarize=dynamic',
        '--batch_norm', '--dropout=0.2', '--ema=0.99',
    ),
}


def main() -> int:
    """Run the trials; the exit status is 1 if one ended otherwise or lost too much."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('--models', default='vae', help=f'of {", ".join(MODELS)}')
    parser.add_argument('--trials', type=int, default=20, help='of each model')
    parser.add_argument('--num_steps', type=int, default=400)
    parser.add_argument('--seed', type=int, default=0, help='of the moments')
    parser.add_argument('--out', default='', help='JSON file to write')
    args = parser.parse_args()
    if unknown := set(args.models.split(',')) - set(MODELS):
        parser.error(f'--models={",".join(sorted(unknown))} is not known')
    rows: list[dict[str, Any]] = []
    for name in args.models.split(','):
        for row in trials(name, args.trials, args.num_steps, random.Random(args.seed)):
            rows.append(row)
            print(row, flush=True)
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


def trials(
    name: str, num: int, num_steps: int, moments: random.Random
) -> Iterator[dict[str, Any]]:
    """Yield a row for each trial of a model."""
    with tempfile.TemporaryDirectory() as directory:
        base, started = pathlib.Path(directory), time.monotonic()
        run(name, base / 'whole', num_steps)
        seconds, trial = time.monotonic() - started, 0
        print(f'an undisturbed run of {name} takes {seconds:.1f} s', flush=True)
        while trial < num:
            by_step = trial % 3 < 2
            kill = Kill(
                step=moments.randrange(num_steps) if by_step else 0,
                seconds=moments.uniform(0, 0.5 if by_step else seconds),
            )
            row = try_once(name, base, trial, num_steps, kill)
            if row is not None:
                trial += 1
                yield row


def try_once(
    name: str, base: pathlib.Path, trial: int, num_steps: int, kill: Kill
) -> dict[str, Any] | None:
    """Kill one run, let it end, and compare it; None if it ended unkilled."""
    workdir = base / f'trial{trial}'
    if not run(name, workdir, num_steps, kill):
        shutil.rmtree(workdir)
        return None
    checkpoints = workdir / 'checkpoints'
    saved = checkpoints.iterdir() if checkpoints.exists() else []
    logged, last = logged_step(workdir), max(
        (int(path.name) for path in saved if path.name.isdecimal()), default=0
    )
    row = {
        'model': name,
        'trial': trial,
        'command': shlex.join(['python', *command(name, 'DIR', num_steps)]),
        'kill_after_step': kill.step,
        'kill_after_seconds': round(kill.seconds, 2),
        'last_logged_step': logged,
        'last_saved_step': last,
        # At least so many: only every twentieth is logged.
        'steps_lost': max(logged - last, 0),
        'evaluated': (workdir / 'results.json').exists(),
    }
    run(name, workdir, num_steps)
    differences = tiny.differences(base / 'whole', workdir)
    return {**row, 'equal': not differences, 'differences': differences}


def command(
    name: str, workdir: str | os.PathLike[str], num_steps: int
) -> list[str]:
    """Return the arguments of python for a run."""
    flags = [f'--workdir={workdir}', f'--num_steps={num_steps}', *FLAGS, *MODELS[name]]
    return ['-m', f'experiments.{name}', *flags]


def logged_step(workdir: pathlib.Path) -> int:
    """Return the last step in metrics.jsonl, 0 without."""
    log = workdir / 'metrics.jsonl'
    # The last line may be half-written: it is not counted.
    lines = log.read_text().split('\n')[:-1] if log.exists() else []
    return json.loads(lines[-1])['step'] if lines else 0


def run(
    name: str, workdir: pathlib.Path, num_steps: int, kill: Kill | None = None
) -> bool:
    """Run to the end or to where it is to be killed; return whether it was killed.

    Raises:
        RuntimeError: the run failed.
    """
    process = subprocess.Popen(
        [sys.executable, *command(name, workdir, num_steps)], cwd=ROOT,
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
