"""Runs whose best checkpoint is evaluated when training has ended."""

import dataclasses
import html
import json

import pytest

import gm_jax
from experiments import vae
from gm_jax.data import sources
from gm_jax.training import comparing, evaluate, loop
from tests.training import tiny

FLAGS = (
    '--hidden=8', '--latent_dims=2', '--batch_size=8', '--num_steps=30',
    '--log_every=30', '--eval_every=10', '--checkpoint_every=10', '--num_samples=8',
    '--test_samples=1', '--steps_per_dispatch=10', '--binarize=threshold',
    '--learning_rate=0.01',
)


@pytest.fixture(name='workdir')
def make_workdir(tmp_path, monkeypatch):
    """Return where runs are best at their first evaluation: it is of white images."""
    data = sources.load('digits', binarize='threshold')
    test = data.splits['test']
    white = sources.ArrayExamples(test.images[:9] * 0 + 1, test.labels[:9])
    data = dataclasses.replace(data, splits={**data.splits, 'validation': white})
    monkeypatch.setattr(sources, 'load', lambda *args, **kwargs: data)
    return tmp_path / 'run'


def test_best_checkpoint_is_evaluated_at_the_end(workdir, capsys, monkeypatch):
    """Catch results of the last checkpoint, and a run that never counts as finished."""
    flags = [f'--workdir={workdir}', *FLAGS, '--checkpoint=best']
    assert vae.main(flags) == 0
    losses = {
        line['step']: line['loss'] for line in tiny.metrics(workdir)
        if line['split'] == 'validation'
    }
    assert losses[10] < losses[20] < losses[30]
    results = json.loads((workdir / 'results.json').read_text())
    assert (results['step'], results['trained_steps']) == (10, 30)
    assert results['checkpoint'] == 'best'
    # The same numbers as when the best checkpoint is evaluated by itself.
    evaluation = [f'--workdir={workdir}', '--mode=eval', '--checkpoint=best']
    assert vae.main(evaluation) == 0
    other = workdir / 'results_eval_step=10_best.json'
    assert json.loads(other.read_text())['metrics'] == results['metrics']
    assert gm_jax.load(workdir, checkpoint='best').results['step'] == 10
    assert gm_jax.load(workdir).results == {}  # the last was not evaluated
    page = html.unescape((workdir / 'report.html').read_text())
    assert 'by the best checkpoint, of step 10.' in page and '30 steps' in page
    assert f"gm_jax.load('{workdir}', checkpoint='best')" in page
    assert f'--mode=sample --workdir={workdir} --checkpoint=best' in page
    table = comparing.table(comparing.read([str(workdir)]))
    assert 'not finished' not in ' '.join(table.notes)
    capsys.readouterr()
    monkeypatch.delattr(evaluate, 'over_examples')
    assert vae.main(flags) == 0
    assert 'finished: ' in capsys.readouterr().out
    for text in ('[]', '"x"', '{', '{"step": "10"}'):  # damaged: evaluated again
        (workdir / 'results.json').write_text(text)
        with pytest.raises(AttributeError, match='over_examples'):
            vae.main(flags)


def test_a_run_that_is_killed_before_its_results(workdir, monkeypatch):
    """Catch other results when the evaluation at the end is made again."""
    flags = [f'--workdir={workdir}', *FLAGS]
    assert vae.main([*flags, '--checkpoint=best']) == 0
    whole = tiny.results(workdir)
    (workdir / 'results.json').unlink()
    assert vae.main([*flags, '--checkpoint=best']) == 0
    assert tiny.results(workdir) == whole


def test_no_checkpoint_is_the_best(workdir, capsys, monkeypatch):
    """Catch a false sentence, and a training that is lost."""
    flags = [f'--workdir={workdir}', *FLAGS]
    with monkeypatch.context() as patched:
        patched.setattr(loop, '_means', lambda *args: {'loss': float('nan')})
        assert vae.main([*flags, '--checkpoint=best']) == 2
    error = capsys.readouterr().err
    assert 'no evaluation has had a finite loss' in error and error.count('\n') == 1
    assert vae.main(flags) == 0
    assert tiny.results(workdir)['checkpoint'] == 'last'
