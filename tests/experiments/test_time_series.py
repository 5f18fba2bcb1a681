"""Forecasts of time series."""

import json

import numpy as np
import pytest
from PIL import Image

from experiments import time_series

TINY = (
    '--num_steps=2', '--batch_size=8', '--num_samples=8', '--features=4',
    '--num_blocks=1', '--first_kernel=3', '--head=4',
)


def test_scores_of_two_draws():
    """Catches a score that is not proper: E|y - x| - E|y - y'| / 2, worked by hand."""
    x = np.array([[4, 4, 6]])
    draws = np.array([[[5], [9]]])
    # (1 + 3) / 2 - 4 / 2, of draws on both sides of the truth.
    numbers = time_series.scores(x, draws)
    assert numbers['crps'] == 0
    assert numbers['error_if_nothing_changes'] == numbers['error_of_the_mean'] == 2
    # The 5 % quantile is 5.2, the 25 % quantile 6.
    assert numbers['inside_90_percent'] == numbers['inside_50_percent'] == 1


def test_scores_of_the_true_distribution_are_best():
    """Catches a score that prefers forecasts too narrow or too wide."""
    rng = np.random.default_rng(0)
    x = np.concatenate([np.zeros((4000, 1)), rng.normal(size=(4000, 2))], axis=1)
    draws = rng.normal(size=(4000, 20, 2))
    crps, inside = (
        [time_series.scores(x, scale * draws)[name] for scale in (0.7, 1.0, 1.4)]
        for name in ('crps', 'inside_90_percent')
    )
    assert crps[1] == min(crps)
    # 1 / sqrt(pi) is the score of a standard normal distribution.
    np.testing.assert_allclose(crps[1], np.pi**-0.5, rtol=0.02)
    assert inside[0] < inside[1] < inside[2]


@pytest.mark.parametrize('binarize, least, most', [
    ('none', 10, 256), ('threshold', 0, 1),
])
def test_run(binarize, least, most, tmp_path):
    """Catches a truth in other values than the forecasts, and a missing picture."""
    series = tmp_path / 'series.npz'
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 12, 1), dtype=np.uint8)
    np.savez(series, images=x)
    work = tmp_path / 'work'
    flags = (f'--workdir={work}', f'--dataset=npz:{series}', '--horizon=5', *TINY)
    assert time_series.main([*flags, f'--binarize={binarize}']) == 0
    metrics = json.loads((work / 'results.json').read_text())['metrics']
    assert least < metrics['crps'] < most  # of noise
    assert metrics['error_of_the_mean'] < most
    with Image.open(work / 'samples' / 'forecasts.png') as image:
        assert min(image.size) > 100


@pytest.mark.parametrize('dataset,horizon', [('digits', 3), ('npz', 12)])
def test_what_is_no_time_series(dataset, horizon, tmp_path, capsys):
    """Catches images and too long a horizon, by a sentence."""
    if dataset == 'npz':
        path = tmp_path / 'series.npz'
        np.savez(path, images=np.zeros((20, 1, 12, 1), np.uint8))
        dataset = f'npz:{path}'
    flags = (f'--workdir={tmp_path}/w', f'--dataset={dataset}', f'--horizon={horizon}')
    assert time_series.main([*flags, *TINY]) == 2
    assert 'time series must be [1, T, 1]' in capsys.readouterr().err
