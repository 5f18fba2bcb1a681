"""The page of a run."""

import json

import numpy as np
import pytest

from gm_jax import plotting
from gm_jax.training import report
from tests.test_html import check

RESULTS = {
    'experiment': 'vae', 'dataset': '<set>', 'split': 'test', 'checkpoint': 'last',
    'num_examples': 1234, 'num_parameters': 5678, 'step': 900, 'seed': 3,
    'wall_seconds': 7200.0, 'devices': '1 x cpu', 'command': 'python -m x --y="<z>"',
    'metrics': {
        'nats_per_image': 12.3456, 'nats_standard_error': 0.231, 'estimator': 'exact',
        'modes_covered': 25, 'nothing': None, 'nats_bracket': [1.5, 2.5],
        'curve': {'1': 2.0, '10': 1.0}, 'alarms': ['the chain is stuck'],
        'kl_per_unit': [0.1] * 9,
    },
}


@pytest.fixture(name='workdir')
def make_workdir(tmp_path):
    """Return a work directory with pictures."""
    (tmp_path / 'config.json').write_text(json.dumps({'seed': 3, 'name': '<b>'}))
    (tmp_path / 'data.json').write_text(json.dumps({'image_shape': [8, 8, 1]}))
    (tmp_path / 'samples').mkdir()
    steps = [f'samples_{step:08d}' for step in range(100, 1000, 100)]
    others = ['loss', 'completions', 'generated_step=9', 'completions_eval_step=9']
    for name in steps + others:
        plotting.save_png(
            tmp_path / 'samples' / f'{name}.png', np.zeros((8, 8, 1), np.uint8)
        )
    return tmp_path


@pytest.mark.parametrize('command, program', [
    ('python -m experiments.vae --seed=1 --hidden=3', 'python -m experiments.vae'),
    ("gm-jax vae '--logger=/my dir/l.py' --seed=1", 'gm-jax vae'),
    ("python 'my dir/vae.py' '--a= --b'", "python 'my dir/vae.py'"),
    ("python it's/vae.py --seed=1", "python it's/vae.py"),
])
def test_a_command_without_its_flags(command, program):
    """Catch a flag that stays since it is quoted, and an open quote."""
    assert report._program(command) == program


def test_the_page_has_all_of_a_run(workdir, monkeypatch):
    """Catch a number, a picture or a setting that is left out, and HTML in them."""
    report.write(workdir, RESULTS)
    page = check((workdir / 'report.html').read_text())
    for words in (
        'vae on <set>', '12.3456 +- 0.23', 'exact', '25', '1.5000, 2.5000',
        '1: 2.0000, 10: 1.0000', 'Alarm: the chain is stuck.', '2.0 hours', '1,234',
        'python -m x --y="<z>"', f'python -m x --mode=sample --workdir={workdir}',
        f"gm_jax.load('{workdir}')", '<b>', '8x8x1',
    ):
        assert words in page.text, words
    assert 'nats_standard_error' not in page.text and 'per_unit' not in page.text
    alts = [a['alt'] for tag, a in page.elements if tag == 'img']
    assert alts == [
        'loss during training of this run', *(
            f'samples at step {step} of this run' for step in (100, 200, 400, 500, 700)
        ), 'samples at step 900 of this run', 'completions of this run',
    ]
    # Copies that a user made are no samples of a step.
    for name in ('samples_00000500 copy.png', 'samples_best.png'):
        (workdir / 'samples' / name).write_bytes(b'')
    report.write(workdir, RESULTS)
    again = check((workdir / 'report.html').read_text())
    assert [a['alt'] for tag, a in again.elements if tag == 'img'] == alts
    for path in (workdir / 'samples').glob('samples_*.png'):
        path.unlink()  # as of a classifier, which generates nothing
    report.write(workdir, RESULTS)
    assert '--mode=sample' not in (workdir / 'report.html').read_text()
    monkeypatch.setattr(report, '_MOST_BYTES', 10)
    report.write(workdir, RESULTS)
    page = check((workdir / 'report.html').read_text())
    assert 'samples/completions.png is too large for this page.' in page.text
    assert not [tag for tag, _ in page.elements if tag == 'img']
