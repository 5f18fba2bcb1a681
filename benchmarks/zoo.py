"""The models behind the numbers: trains, evaluates and draws.

    python -m benchmarks.zoo train            # results/models/digits, 10 minutes
    python -m benchmarks.zoo check --data_dir=DIR
    python -m benchmarks.zoo check digits/vae digits/made
    python -m benchmarks.zoo draw results/gan_grid25.png --data_dir=DIR

Each row of `results/*.json` with `weights` has the numbers of an exported model, which
lies in `results/models/` under this name. `check` evaluates the models by the command
that anyone would use, and compares what it finds with the recorded numbers. `draw`
draws figures again.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gm_jax import plotting

RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'results'
# Bytes that one model may have, a small one, and all together.
MOST, MOST_DIGITS, MOST_TOTAL = 2_000_000, 300_000, 25_000_000
TOLERANCE = 1e-4  # relative
_TABLE = 'digits.json'
_ROUNDING = 1e-4  # numbers in lists, one per latent unit, have four decimals
# Shares of images or values: some lie so near to what they are compared with that
# rounding counts them or does not.
_COUNTED = re.compile('share|accuracy|precision|recall|density|coverage')
_COUNTED_AWAY = 5e-4  # one of 2,000

# A small model of every experiment: its name, its experiment, its flags.
DIGITS = {
    'autoencoder': 'autoencoder --hidden=128,64',
    'nade': 'nade --hidden=48',
    'made': 'made --hidden=64',
    'pixel_rnn': 'pixel_rnn',
    'pixel_cnn': 'pixel_cnn',
    'gated_pixel_cnn': 'gated_pixel_cnn',
    'gated_pixel_cnn_of_classes': 'gated_pixel_cnn --class_conditional',
    'gated_pixel_cnn_completion': 'gated_pixel_cnn --task=completion',
    'pixel_cnn_pp': 'pixel_cnn_pp --features=14',
    'multiscale_pixel_cnn': 'multiscale_pixel_cnn --features=14 --head=32',
    'time_series': 'time_series',
    'nice': 'nice',
    'real_nvp': 'real_nvp --features=18',
    'vae': 'vae --hidden=48,48 --test_samples=5000',
    'vae_manifold': 'vae --preset=manifold --hidden=48,48 --test_samples=1000',
    'pixel_vae': 'pixel_vae --test_samples=200',
    # So few units that log Z is exact: chains of another machine round otherwise.
    'rbm': 'rbm --hidden=20',
    'dbm': 'dbm --hidden=20,20',
    'gsn': 'gsn --test_samples=1000',
    'gan': 'gan --hidden=96,96 --discriminator_hidden=64,64',
    'dcgan': 'dcgan --features=24,48',
    'wgan': 'wgan --features=24,48',
    'adversarial_autoencoder': 'adversarial_autoencoder --hidden=96,96',
    'classifier': 'classifier',
}
# Those that are stored as float16, since they would be too large. The scores of samples
# change when arrays are rounded, so the adversarial models are not among them.
HALF = {
    'made', 'gated_pixel_cnn_of_classes', 'gated_pixel_cnn_completion',
    'multiscale_pixel_cnn', 'pixel_cnn_pp',
}


class Figure(NamedTuple):
    """Where a figure comes from.

    Attributes:
        model: its name.
        pictures: those in `samples/` of `--mode=sample`, if it is 'generated', and of
            `--mode=eval`; several are put side by side.
    """

    model: str
    pictures: tuple[str, ...]


FIGURES = {
    'docs/demo.png': Figure('digits/gated_pixel_cnn', ('completions', 'generated')),
    'results/gated_pixel_cnn_samples.png': Figure(
        'gated_pixel_cnn_binarized_mnist', ('generated',)
    ),
    'results/conditional_fashion_mnist_completion.png': Figure(
        'gated_pixel_cnn_fashion_mnist_completion', ('completion',)
    ),
    'results/conditional_fashion_mnist_super_resolution.png': Figure(
        'pixel_cnn_pp_fashion_mnist_super_resolution', ('super_resolution',)
    ),
    'results/time_series_forecasts.png': Figure('time_series_lorenz', ('forecasts',)),
    'results/pixel_vae_redrawn.png': Figure('pixel_vae_binarized_mnist', ('redrawn',)),
    'results/rbm_chains.png': Figure('rbm_binarized_mnist', ('chains',)),
    'results/real_nvp_samples.png': Figure('real_nvp_mnist', ('generated',)),
    'results/real_nvp_fashion_samples.png': Figure(
        'real_nvp_fashion_mnist', ('generated',)
    ),
    'results/gan_grid25.png': Figure('gan_minimax_grid25', ('points',)),
    'results/wgan_grid25.png': Figure('wgan_gp01_grid25', ('points',)),
}


class Difference(NamedTuple):
    """A recorded number and what was found.

    Attributes:
        name: of the number.
        recorded: what the table says.
        found: what the evaluation says.
        rounding: a difference that rounding alone may make.
    """

    name: str
    recorded: float
    found: float
    rounding: float = 0.0

    @property
    def relative(self) -> float:
        """The difference relative to the recorded number; 0 if it may be rounding.

        Infinity if either is not a number.
        """
        difference = abs(self.found - self.recorded)
        if math.isnan(difference):  # missing, or another text
            return math.inf
        if difference <= 1.01 * self.rounding:
            return 0.0
        return difference / max(abs(self.recorded), 1e-300)


def main() -> None:
    """Train, check or draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition('\n')[0])
    parser.add_argument('what', choices=('train', 'check', 'draw'))
    parser.add_argument('names', nargs='*', help='models or figures; by default all')
    parser.add_argument('--data_dir', default='', help='directory of prepared sets')
    args = parser.parse_args()
    every = {'train': list(DIGITS), 'check': list(recorded()), 'draw': list(FIGURES)}
    known = every[args.what]
    for name in args.names:
        if name not in known:
            parser.error(f'{name!r} is none of {", ".join(known)}')
    if args.what == 'train':
        train(args.names)
    elif args.what == 'draw':
        draw(args.names, args.data_dir)
    else:
        sys.exit(check(args.names, args.data_dir))


def recorded() -> dict[str, dict[str, Any]]:
    """Return the rows of the tables that have a model, by its name."""
    rows = {}
    for path in sorted(RESULTS.glob('*.json')):
        content = json.loads(path.read_text(encoding='utf-8'))
        for row in content if isinstance(content, list) else [content]:
            if 'weights' in row:
                rows[row['weights']] = row
    return rows


def train(names: list[str]) -> None:
    """Train the small models, export them, and write the table of their numbers."""
    table = RESULTS / _TABLE
    rows = json.loads(table.read_text()) if table.exists() else []
    for name in names or DIGITS:
        out = RESULTS / 'models' / 'digits' / name
        with tempfile.TemporaryDirectory() as directory:
            workdir = f'{directory}/{name}'
            experiment, *flags = DIGITS[name].split()
            _run(experiment, f'--workdir={workdir}', *flags)
            results = pathlib.Path(workdir, 'results.json')  # its command goes along
            results.write_text(results.read_text().replace(workdir, 'DIR'))
            shutil.rmtree(out, ignore_errors=True)
            half = ['--half'] if name in HALF else []
            _run('export', f'--workdir={workdir}', f'--to={out}', *half)
        row = json.loads((out / 'results.json').read_text())
        row['command'] = f'python -m experiments.{DIGITS[name]} --workdir=DIR'
        row['weights'] = f'digits/{name}'
        rows = [*(r for r in rows if r['weights'] != row['weights']), row]
        order = [f'digits/{each}' for each in DIGITS]
        rows.sort(key=lambda r: order.index(r['weights']))
        table.write_text(json.dumps(rows, indent=2) + '\n')


def check(names: list[str], data_dir: str) -> int:
    """Evaluate models and compare; return the exit status."""
    rows = recorded()
    status = 0
    for name in names or rows:
        started = time.monotonic()
        try:
            worst = max(evaluate(name, data_dir), key=lambda d: d.relative)
        except RuntimeError as error:
            print(f'{name:<36} FAILED   {str(error).splitlines()[-1]}', flush=True)
            status = 1
            continue
        wrong = not worst.relative <= TOLERANCE
        status |= wrong
        print(
            f'{name:<36} {"DIFFERS" if wrong else "ok":<8} {worst.name} '
            f'{worst.found:.8g}, recorded {worst.recorded:.8g} '
            f'({worst.relative:.1e}), {time.monotonic() - started:.0f} s', flush=True,
        )
    return status


def evaluate(name: str, data_dir: str = '') -> list[Difference]:
    """Evaluate a model as its user would, and compare every number.

    Args:
        name: the directory of the model in results/models.
        data_dir: the directory of prepared sets.
    """
    row = recorded()[name]
    flags = [f'--data_dir={data_dir}'] if data_dir else []
    with _copy(name) as model:
        _run(row['experiment'], *evaluation_flags(row, model), *flags)
        return differences(row, model)


def evaluation_flags(row: dict[str, Any], model: pathlib.Path) -> list[str]:
    """Return the flags with which a copy of the model of a row is evaluated."""
    flags = [f'--workdir={model}', '--mode=eval']
    numbers = row['metrics']
    samples = numbers.get('importance_samples') or numbers.get('chain_states')
    return [*flags, f'--test_samples={samples}'] if samples else flags


def differences(row: dict[str, Any], model: pathlib.Path) -> list[Difference]:
    """Compare a row with the evaluation of its model."""
    path, = model.glob('results_eval_*.json')
    return compare(row['metrics'], json.loads(path.read_text())['metrics'])


def draw(names: list[str], data_dir: str) -> None:
    """Draw figures again, by the models that have drawn them.

    Args:
        names: their paths; [] for all.
        data_dir: the directory of prepared sets.
    """
    data = [f'--data_dir={data_dir}'] if data_dir else []
    for path in names or FIGURES:
        figure = FIGURES[path]
        experiment = recorded()[figure.model]['experiment']
        with _copy(figure.model) as model:
            drawn = []
            for picture in figure.pictures:
                how = 'sample' if picture == 'generated' else 'eval'
                flags = [] if how == 'sample' else data
                _run(experiment, f'--workdir={model}', f'--mode={how}', *flags)
                one = sorted((model / 'samples').glob(f'{picture}_*.png'))[0]
                drawn.append(np.asarray(Image.open(one).convert('RGB')))
        plotting.save_png(str(RESULTS.parent / path), beside(drawn))
        print(path, flush=True)


def beside(pictures: list[np.ndarray], gap: int = 20) -> np.ndarray:
    """Put pictures [H, W, 3] side by side on white."""
    height = max(len(x) for x in pictures)
    parts = []
    for x in pictures:
        above = (height - len(x)) // 2
        edges = (above, height - len(x) - above), (0, gap), (0, 0)
        parts.append(np.pad(x, edges, constant_values=255))
    return np.concatenate(parts, axis=1)[:, :-gap]


@contextlib.contextmanager
def _copy(name: str) -> Iterator[pathlib.Path]:
    """Copy a model, so that nothing is written beside it."""
    with tempfile.TemporaryDirectory() as directory:
        yield shutil.copytree(
            RESULTS / 'models' / name, pathlib.Path(directory, 'model')
        )


def compare(recorded: dict[str, Any], found: dict[str, Any]) -> list[Difference]:
    """Compare the numbers of two results, those in lists too."""
    parts: list[Difference] = []
    for name, value in recorded.items():
        if isinstance(value, dict):
            parts += compare(value, found.get(name, {}))
        elif isinstance(value, list):
            several = compare(_numbered(value), _numbered(found.get(name, [])))
            parts += [part._replace(rounding=_ROUNDING) for part in several]
        elif isinstance(value, (int, float)):
            near = _COUNTED_AWAY if _COUNTED.search(name) else 0.0
            parts.append(Difference(name, value, found.get(name, math.nan), near))
        elif value != found.get(name):
            parts.append(Difference(name, 0, math.nan))
    return parts


def _numbered(values: list[Any]) -> dict[str, Any]:
    return {str(i): value for i, value in enumerate(values)}


def _run(name: str, *flags: str) -> None:
    command = [sys.executable, '-m', 'experiments', name, *flags]
    if name != 'export':
        command = [sys.executable, '-m', f'experiments.{name}', *flags]
    done = subprocess.run(
        command, cwd=RESULTS.parent, capture_output=True, text=True, check=False,
        env={**os.environ, 'JAX_PLATFORMS': 'cpu'},
    )
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}\n{done.stdout}{done.stderr}')


if __name__ == '__main__':
    main()
