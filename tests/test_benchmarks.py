"""Benchmarks that nothing else runs."""

import json

import pytest

from benchmarks import start


@pytest.mark.long
def test_start(tmp_path):
    """Catch the time of a run that did nothing."""
    out = tmp_path / 'start.json'
    start.main(['--names=autoencoder,classifier', '--repeats=1', f'--out={out}'])
    with_sampler, without = json.loads(out.read_text())
    assert with_sampler['experiment'] == 'autoencoder'
    assert min(with_sampler['first_line_seconds'], with_sampler['sample_seconds']) > 1
    assert without['first_line_seconds'] > 1 and without['sample_seconds'] is None


def test_a_run_that_fails_has_no_time(tmp_path):
    """Catch an endless wait, and the time of a traceback."""
    with pytest.raises(RuntimeError, match='nade has ended with 2'):
        start.seconds_to_first_line('nade', tmp_path, '--dataset=nowhere')
