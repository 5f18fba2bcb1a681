"""How the time of a training step grows with the size of images and networks.

    python -m benchmarks.growth
    python -m benchmarks.growth --names=nade,vae --turns=5

For each model, the time per image of a training step at four sizes of the image or of
the network, and the exponent of a power of the size, fitted by least squares to their
logarithms. And the memory of a process early and late in training, which shows whether
anything accumulates. All cores work as one device, whether or not a command would
divide them. Rows that are in the file already are not measured again.

Fields of a row of times:

    along                  what grows: pixels, or the width of the layers
    sizes                  the numbers of pixels, or of feature maps or hidden units
    seconds_per_image      of a training step, at each size: the median of the turns
    exponent               of the power that fits them
    largest_misfit         the largest ratio of a time to its fit, or of the fit to it

Fields of a row of memory:

    steps                  of training, evaluations and checkpoints included
    resident_mib           memory of the process after each
    difference_mib         the second less the first
"""

import argparse
import functools
import json
import math
import pathlib
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from benchmarks import bench, machine, rows, start, turns
from benchmarks.cases import Case

__all__ = ['exponent', 'main', 'resident_mib', 'seconds_per_image']

_SIDE = 16  # where the width grows
_MAPS, _UNITS = (16, 32, 64, 128), (64, 128, 256, 512)
_SIDES = (8, 12, 16, 24)
_ALONG = 'pixels', 'width', 'memory'


class _Model(NamedTuple):
    """A model whose size can be chosen.

    Attributes:
        experiment: the name of the experiment.
        settings: the width of its layers -> its settings.
        widths: four widths; the second one is that of the networks of growing images.
        channels: of the images.
        num_values: of a pixel.
    """

    experiment: str
    settings: Callable[[int], dict[str, Any]]
    widths: Sequence[int] = _MAPS
    channels: int = 1
    num_values: int = 2

    def case(self, name: str, side: int, width: int) -> Case:
        """Return the model of one size."""
        shape = (side, side, self.channels)
        return Case(
            name, self.experiment, {'batch_size': 16, **self.settings(width)}, shape,
            self.num_values,
        )


_MODELS = {
    'vae': _Model('vae', lambda n: {'hidden': (n,), 'latent_dims': (20,)}, _UNITS),
    'nade': _Model('nade', lambda n: {'hidden': n}, _UNITS),
    'made': _Model('made', lambda n: {'hidden': (n,)}, _UNITS),
    'pixel_cnn': _Model('pixel_cnn', lambda n: {'features': n, 'num_blocks': 3}),
    'gated_pixel_cnn': _Model(
        'gated_pixel_cnn', lambda n: {'features': n, 'num_layers': 3}
    ),
    'pixel_rnn row_lstm': _Model(
        'pixel_rnn', lambda n: {'features': n, 'num_layers': 2, 'cell': 'row_lstm'}
    ),
    'pixel_rnn diagonal_bilstm': _Model(
        'pixel_rnn', lambda n: {'features': n, 'num_layers': 2}
    ),
    'pixel_cnn_pp': _Model(
        'pixel_cnn_pp', lambda n: {'features': n, 'num_resnets': 1}, _MAPS, 3, 256
    ),
    'real_nvp': _Model(
        'real_nvp', lambda n: {'features': n, 'channelwise': (2, 2)}, _MAPS, 1, 256
    ),
    'dcgan': _Model(
        'dcgan', lambda n: {'features': (n, 2 * n), 'latent_dim': 100}, _MAPS, 3, 256
    ),
    'pixel_vae': _Model('pixel_vae', lambda n: {'features': n}),
}
# Tiny networks, so that many steps take minutes.
_MEMORY = {
    'vae': ('--hidden=16', '--latent_dims=2', '--batch_size=16', '--test_samples=1'),
    'pixel_cnn': ('--features=2', '--num_blocks=1', '--head=4', '--batch_size=4'),
}


def seconds_per_image(case: Case, num_turns: int, max_load: float) -> float:
    """Return the median time of a training step, by image.

    Args:
        case: the model and its sizes.
        num_turns: quiet turns of about a second.
        max_load: the share of the cores that others may use in a quiet turn.

    Raises:
        turns.Busy: more than `num_turns` turns were not quiet.
    """
    data = bench.random_set(case)
    ours = bench.Ours(case, data, case.command.build(case.config, data))
    ours.train(ours.num)
    once, _ = turns.timed(ours.train, ours.num)
    steps = ours.num * max(1, round(1 / once))
    seconds = turns.alone(
        ours.train, turns=num_turns, num_steps=steps, max_load=max_load
    )
    return seconds / case.config.batch_size


def exponent(sizes: Sequence[float], times: Sequence[float]) -> tuple[float, float]:
    """Fit times = c sizes^a by least squares of their logarithms.

    Returns:
        a, and the largest ratio of a time to its fit, or of the fit to it.
    """
    x, y = np.log(sizes), np.log(times)
    slope, constant = np.polyfit(x, y, 1)
    return float(slope), float(np.exp(np.abs(y - slope * x - constant).max()))


def _times(name: str, along: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a model at four sizes."""
    model = _MODELS[name]
    if along == 'pixels':
        sides = [int(side) for side in args.sides.split(',')]
        width = model.widths[1]
        cases = [model.case(name, side, width) for side in sides]
        sizes = [side**2 for side in sides]
    else:
        sizes = [int(size) for size in args.widths.split(',') if size]
        sizes = sizes or list(model.widths)
        cases = [model.case(name, _SIDE, size) for size in sizes]
    found = []
    for case in cases:
        found.append(seconds_per_image(case, args.turns, args.max_load))
        jax.clear_caches()
    slope, misfit = exponent(sizes, found)
    config = cases[0].settings if along == 'pixels' else {'side': _SIDE}
    return {
        'settings': config, 'sizes': sizes, 'seconds_per_image': found,
        'exponent': round(slope, 2), 'largest_misfit': round(misfit, 2),
    }


def resident_mib(
    name: str, flags: Sequence[str], steps: Sequence[int]
) -> list[float]:
    """Return the memory of a run, as a process of its own, after some training steps.

    Args:
        name: the name of the experiment.
        flags: its flags.
        steps: when to look, in ascending order; the run is killed after the last.

    Returns:
        The resident memory in MiB at each.

    Raises:
        RuntimeError: the run has ended before.
    """
    # A line of metrics is written at each of the steps.
    every = math.gcd(500, *steps)
    intervals = [f'--{what}_every={every}' for what in ('log', 'eval', 'checkpoint')]
    found: list[float] = []
    with tempfile.TemporaryDirectory() as parent:
        workdir = pathlib.Path(parent, 'run')
        command = start.command(
            name, workdir, f'--num_steps={2 * steps[-1]}', '--schedule=constant',
            '--num_samples=4', *intervals, *flags,
        )
        with subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        ) as process:
            try:
                while len(found) < len(steps):
                    if process.poll() is not None:
                        raise RuntimeError(f'{name} ended with {process.returncode}')
                    if _last_step(workdir / 'metrics.jsonl') >= steps[len(found)]:
                        found.append(_resident(process.pid))
                    time.sleep(0.05)
            finally:
                process.kill()
    return found


def _last_step(path: pathlib.Path) -> int:
    """Return the last step whose metrics are written; 0 if none are."""
    lines = path.read_text().split('\n')[:-1] if path.exists() else []
    return max((json.loads(line).get('step', 0) for line in lines[-10:]), default=0)


def _resident(pid: int) -> float:
    """Return the resident memory of a process, in MiB."""
    lines = pathlib.Path(f'/proc/{pid}/status').read_text().splitlines()
    kib, = (line.split()[1] for line in lines if line.startswith('VmRSS:'))
    return round(int(kib) / 1024, 1)


def _memory(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure the memory of a run."""
    steps = [int(step) for step in args.steps.split(',')]
    found = resident_mib(name, _MEMORY[name], steps)
    return {
        'flags': list(_MEMORY[name]), 'steps': steps, 'resident_mib': found,
        'difference_mib': round(found[-1] - found[0], 1),
    }


def _row(name: str, along: str, args: argparse.Namespace) -> dict[str, Any]:
    """Measure a row."""
    return _memory(name, args) if along == 'memory' else _times(name, along, args)


def main(argv: list[str]) -> int:
    """Measure what is not in the file yet, and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(_MODELS))
    parser.add_argument('--along', default=','.join(_ALONG))
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument(
        '--max_load', type=float, default=0.05,
        help='share of the CPU that other processes may use in a turn that counts',
    )
    parser.add_argument('--sides', default=','.join(map(str, _SIDES)))
    parser.add_argument(
        '--widths', default='', help='feature maps or hidden units; by default '
        f'{_MAPS} or {_UNITS}',
    )
    parser.add_argument('--steps', default='2000,20000', help='of the runs of memory')
    parser.add_argument('--out', default='results/growth.json')
    args = parser.parse_args(argv)
    common = {
        'device': machine.device_name(), 'python': platform.python_version(),
        'jax': jax.__version__,
        'command': shlex.join(['python', '-m', 'benchmarks.growth', *argv]),
    }
    alongs = rows.chosen(parser, '--along', args.along, _ALONG)
    keys = [
        {'name': name, 'along': along}
        for name in rows.chosen(parser, '--names', args.names, _MODELS)
        for along in alongs
        if along != 'memory' or name in _MEMORY
    ]
    return bool(rows.fill(
        args.out, keys, functools.partial(_row, args=args), common
    ))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
