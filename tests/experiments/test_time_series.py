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


@pytest.mark.parametrize('binarize, least, most', [
    ('none', 10, 256), ('threshold', 0, 1),
])
def test_run(binarize, least, most, tmp_path):
    """Catch a truth in other values than the forecasts, and a missing picture."""
    series = tmp_path / 'series.npz'
    x = np.random.default_rng(0).integers(0, 256, (20, 1, 12, 1), dtype=np.uint8)
    np.savez(series, images=x)
    work = tmp_path / 'work'
    flags = (f'--workdir={work}', f'--dataset=npz:{series}', '--horizon=5', *TINY)
    assert time_series.main([*flags, f'--binarize={binarize}']) == 0
    metrics = json.loads((work / 'results.json').read_text())['metrics']
    assert least < metrics['crps_levels'] < most  # of noise
    assert metrics['error_of_the_mean_levels'] < most
    with Image.open(work / 'samples' / 'forecasts.png') as image:
        assert min(image.size) > 100
    # Another seed is another draw of the forecasts.
    scores = []
    for seed in (0, 1):
        flag = f'--seed={seed}'
        assert time_series.main([f'--workdir={work}', '--mode=eval', flag]) == 0
        found, = work.glob(f'results_eval_*{"_seed=1" * seed}.json')
        scores.append(json.loads(found.read_text())['metrics'])
        found.unlink()
    assert scores[0] == metrics
    assert scores[1]['crps_levels'] != metrics['crps_levels']


def test_the_scores_are_of_series_from_all_over_the_test_split(tmp_path):
    """Catch scores of the first series, where those that change are the last."""
    x = np.zeros((320, 1, 8, 1), np.uint8)
    x[300:, :, 1::2] = 200
    np.savez(tmp_path / 'series.npz', train=x[::8], test=x)
    flags = (f'--workdir={tmp_path}/w', f'--dataset=npz:{tmp_path}/series.npz')
    assert time_series.main([*flags, '--horizon=4', *TINY]) == 0
    metrics = json.loads((tmp_path / 'w' / 'results.json').read_text())['metrics']
    assert metrics['error_if_nothing_changes_levels'] > 0


@pytest.mark.parametrize('dataset,horizon', [('digits', 3), ('npz', 12)])
def test_what_is_no_time_series(dataset, horizon, tmp_path, capsys):
    """Catch images and too long a horizon, by a sentence."""
    if dataset == 'npz':
        path = tmp_path / 'series.npz'
        np.savez(path, images=np.zeros((20, 1, 12, 1), np.uint8))
        dataset = f'npz:{path}'
    flags = (f'--workdir={tmp_path}/w', f'--dataset={dataset}', f'--horizon={horizon}')
    assert time_series.main([*flags, *TINY]) == 2
    assert 'time series must be [1, T, 1]' in capsys.readouterr().err
