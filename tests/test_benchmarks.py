"""Benchmarks that nothing else runs."""

import json

import pytest

from benchmarks import start, times


@pytest.mark.long
def test_start(tmp_path):
    """Catch the time of a run that did nothing."""
    out = tmp_path / 'start.json'
    start.main(['--names=autoencoder,classifier', '--repeats=1', f'--out={out}'])
    with_sampler, without = json.loads(out.read_text())
    assert with_sampler['experiment'] == 'autoencoder'
    assert min(with_sampler['first_line_seconds'], with_sampler['sample_seconds']) > 1
    assert without['first_line_seconds'] > 1 and without['sample_seconds'] is None


@pytest.mark.long
def test_times(tmp_path, capsys):
    """Catch a row that is measured twice, and one that hides what it lacks."""
    out = tmp_path / 'times.json'
    for names in ('nade', 'nade,gan'):
        times.main([f'--names={names}', '--datasets=digits', f'--out={out}'])
    nade, gan = json.loads(out.read_text())
    assert capsys.readouterr().out.count('"nade"') == 1
    for row in (nade, gan):
        assert 'error' not in row
        seconds = [row[f'{what}_seconds'] for what in ('train', 'validation', 'test')]
        assert min(seconds) > 0
    assert (nade['num_steps'], nade['validations']) == (600, 2)
    times.main(['--names=vae', '--datasets=nowhere', f'--out={out}'])
    assert 'nowhere' in json.loads(out.read_text())[-1]['error'][0]


def test_a_run_that_fails_has_no_time(tmp_path):
    """Catch an endless wait, and the time of a traceback."""
    with pytest.raises(RuntimeError, match='nade has ended with 2'):
        start.seconds_to_first_line('nade', tmp_path, '--dataset=nowhere')
