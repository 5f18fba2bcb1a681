"""Short runs of several kinds of model, one after the other, in this process of a job.

    python -m tests.processes.families DIR 50 vae,dcgan [flags of the processes]
"""

import importlib
import json
import os
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

COMMON = (
    '--batch_size=16', '--num_samples=16', '--log_every=1', '--eval_every=1000',
    '--checkpoint_every=1000', '--seed=1',
)
# An Adam whose steps are smooth in the gradient: with the usual 1e-8 a parameter whose
# gradient is 0 but for rounding moves by the learning rate, one way or the other.
_SMOOTH = '--adam_eps=1e-3'
_GAN = ('--features=4,8', '--latent_dim=8', '--score_samples=100', '--k=2', _SMOOTH)
FAMILIES = {
    'vae': (
        '--hidden=32', '--latent_dims=4', '--test_samples=50', '--batch_norm', _SMOOTH,
    ),
    'pixel_cnn_pp': (
        _SMOOTH, '--features=4', '--num_mixtures=2', '--dropout=0.5', '--ema=0.99',
    ),
    'real_nvp': (
        _SMOOTH, '--channelwise=2', '--last=1', '--features=4', '--test_samples=4',
        '--dequantization=variational', '--noise_couplings=1', '--noise_features=4',
    ),
    'gsn': (
        _SMOOTH, '--layers=16,12', '--chain_steps=10', '--thin=2', '--test_samples=50',
        '--parzen_samples=20', '--hidden_noise=0.5',
    ),
    'pixel_vae': (
        _SMOOTH, '--features=4', '--decoder_layers=1', '--encoder=4', '--latent_dim=4',
        '--free_bits=0.1', '--test_samples=10', '--ema=0.99',
    ),
    'dcgan': _GAN,
    'wgan': _GAN,
    'rbm': ('--hidden=24', '--k=2', '--ais_temperatures=100'),
    'dbm': ('--hidden=24,22', '--ais_temperatures=100'),
    'adversarial_autoencoder': (
        _SMOOTH, '--hidden=32', '--latent_dim=4', '--num_labels=50', '--batch_norm',
        '--image_noise=0.3',
    ),
}


def run(
    workdir: str | os.PathLike[str], steps: int, names: Sequence[str], *flags: str
) -> None:
    """Run families in directories of their names.

    Raises:
        RuntimeError: one has failed.
    """
    for name in names:
        module = importlib.import_module(f'experiments.{name}')
        argv = [f'--workdir={workdir}/{name}', f'--num_steps={steps}', *COMMON]
        if module.main([*argv, *FAMILIES[name], *flags]):
            raise RuntimeError(f'{name} has failed')


def differences(one: pathlib.Path, other: pathlib.Path) -> dict[str, Any]:
    """Return how far two runs are apart.

    Returns:
        The largest relative difference of a loss and of any other number in the lines
        of metrics, and of a number of the final evaluation; of the pixels of the
        samples the share that differs.

    Raises:
        RuntimeError: they have other lines, or evaluated other numbers of examples.
    """
    (lines, results, x), (lines_, results_, x_) = _read(one), _read(other)
    same = [list(a) for a in lines] == [list(a) for a in lines_]
    if not same or results['num_examples'] != results_['num_examples']:
        raise RuntimeError(f'{one} and {other} hold runs of other kinds')
    losses, others = [], []
    for a, b in zip(lines, lines_):
        for name in set(a) - {'alarms', 'split'}:
            pairs = losses if name.endswith('loss') else others
            pairs.append((a[name], b[name]))
    final, final_ = results['metrics'], results_['metrics']
    numbers = [name for name in final if isinstance(final[name], (int, float))]
    return {
        'lines': len(lines), 'losses': _largest(losses), 'others': _largest(others),
        'final': _largest([(final[name], final_[name]) for name in numbers]),
        'pixels': float(np.mean(x != x_)),
    }


def _largest(pairs: list[tuple[float, float]]) -> float:
    return max(abs(a - b) / max(abs(a), abs(b), 1e-3) for a, b in pairs)


def _read(workdir: pathlib.Path) -> tuple[list[dict], dict[str, Any], np.ndarray]:
    """Return lines of metrics, final results and the last samples."""
    text = (workdir / 'metrics.jsonl').read_text()
    results = json.loads((workdir / 'results.json').read_text())
    with Image.open(max(workdir.glob('samples/samples_*.png'))) as image:
        return [json.loads(x) for x in text.splitlines()], results, np.asarray(image)


if __name__ == '__main__':
    run(sys.argv[1], int(sys.argv[2]), sys.argv[3].split(','), *sys.argv[4:])
