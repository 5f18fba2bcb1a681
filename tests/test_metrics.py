"""Every number that a run reports is in docs/metrics.md, under one name."""

import json
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).parent.parent
FEATURES = 'pixel|classifier|inception'


def _is_listed(name):
    rows = (ROOT / 'docs' / 'metrics.md').read_text().splitlines()
    first_cells = ' '.join(row.split('|')[1] for row in rows if row.startswith('|'))
    for listed in re.findall(r'`(\w+)`', first_cells):
        pattern = listed.replace('FEATURES', f'({FEATURES})').replace('NAME', '[a-z_]+')
        if re.fullmatch(pattern, name):
            return True
    return False


def _metrics(value):
    """Return the names under every 'metrics' of a file of results."""
    if isinstance(value, list):
        return set().union(*map(_metrics, value))
    if not isinstance(value, dict):
        return set()
    return set(value.get('metrics', ())) | _metrics(list(value.values()))


@pytest.mark.parametrize('path', sorted((ROOT / 'results').glob('*.json')), ids=str)
def test_names_in_results(path):
    """Catch a name that nothing explains, and one from before a change of names."""
    names = _metrics(json.loads(path.read_text()))
    assert [name for name in sorted(names) if not _is_listed(name)] == []


def test_an_unknown_name_is_found():
    """Catch a pattern that takes every name."""
    for name in ('elbo', 'log_px', 'error', 'kl', 'x_frechet_distance', 'entropy'):
        assert not _is_listed(name)
    assert _is_listed('pixel_frechet_distance') and _is_listed('generator_loss')


def test_results_name_no_place_of_data():
    """Catch a command that only the machine that ran it can repeat."""
    for path in (ROOT / 'results').glob('*.json'):
        places = re.findall(r'--data_dir[= ]([^\s"\']+)', path.read_text())
        assert set(places) <= {'DIR', 'DATA'}, path
