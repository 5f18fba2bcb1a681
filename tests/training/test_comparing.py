"""A table of runs: what differs, numbers with their errors, and what is comparable."""

import csv
import io
import json
import os
import subprocess
import sys

import pytest

from gm_jax import cli
from gm_jax.training import comparing

SETTINGS = {
    'experiment': 'vae', 'module': 'experiments.vae', 'dataset': 'mnist',
    'data_dir': '/a', 'binarize': 'dynamic', 'num_steps': 100, 'learning_rate': 0.001,
    'hidden': '8',
}
METRICS = {
    'nats_per_image': 86.87587, 'nats_standard_error': 0.2279, 'estimator': 'elbo',
    'kl_nats': 25.31, 'kl_nats_per_unit': [1.0, 2.0], 'pixel_kernel_distance': 0.00121,
    'pixel_kernel_distance_standard_error': 0.000312,
}


def _run(path, settings=None, metrics=None, **results) -> str:
    """Write a run by hand; it is finished if it has metrics."""
    path.mkdir()
    chosen = {**SETTINGS, **(settings or {})}
    (path / 'config.json').write_text(json.dumps(chosen))
    data = {'name': chosen['dataset'], 'splits': {'test': {'digest': '0' * 32}}}
    (path / 'data.json').write_text(json.dumps(data))
    if metrics is not None:
        found = {
            'experiment': chosen['experiment'], 'dataset': chosen['dataset'],
            'binarize': chosen['binarize'], 'split': 'test', 'step': 100,
            'num_examples': 10, 'num_parameters': 1234, 'wall_seconds': 5.5,
            'metrics': metrics, **results,
        }
        (path / 'results.json').write_text(json.dumps(found))
    return str(path)


def _table(*paths) -> comparing.Table:
    return comparing.table(comparing.read(paths))


def _csv(table) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(comparing.to_csv(table))))


def test_settings_that_differ_and_numbers(tmp_path):
    """Catch a setting that is the same in all, and a number without its error."""
    one = _run(tmp_path / 'one', {'learning_rate': 1e-3}, METRICS)
    other = _run(
        tmp_path / 'other', {'learning_rate': 0.01, 'hidden': '8,8', 'data_dir': '/b',
                             'num_steps': 100.0},
        {'nats_per_image': 90.0, 'nats_standard_error': 3.0, 'estimator': 'elbo'},
    )
    table = _table(one, other)
    assert table.notes == ()
    assert [column.name for column in table.columns] == [
        'run', 'learning_rate', 'hidden', 'step', 'split', 'num_parameters',
        'wall_seconds', 'estimator', 'nats_per_image', 'kl_nats',
        'pixel_kernel_distance',
    ]
    assert comparing.to_text(table, 200).splitlines() == [
        'run    learning_rate  hidden  step  split  num_parameters  wall_seconds  '
        'estimator  nats_per_image  kl_nats  pixel_kernel_distance',
        'one            0.001       8   100  test             1234           5.5  '
        'elbo         86.88 ± 0.23    25.31      0.00121 ± 0.00031',
        'other           0.01     8,8   100  test             1234           5.5  '
        'elbo           90.0 ± 3.0',
    ]
    rows = _csv(table)
    assert rows[0]['nats_per_image'] == '86.87587' and rows[1]['kl_nats'] == ''
    assert [row['nats_standard_error'] for row in rows] == ['0.2279', '3.0']
    assert [row['run'] for row in rows] == ['one', 'other']


def test_a_setting_that_an_older_run_does_not_know(tmp_path):
    """Catch a column for what no run has switched on, and one that is missing."""
    news = {'validation': False, 'dropout': 0.0, 'label': ''}
    old = _run(tmp_path / 'old', {}, METRICS)
    new = _run(tmp_path / 'new', news, METRICS)
    assert not set(news) & set(_csv(_table(old, new))[0])
    other = _run(tmp_path / 'other', {**news, 'validation': True}, METRICS)
    rows = _csv(_table(old, new, other))
    assert [row['validation'] for row in rows] == ['', 'False', 'True']
    assert 'dropout' not in rows[0]


def test_runs_of_different_experiments(tmp_path):
    """Catch a crash where only some runs have a setting or a number."""
    one = _run(tmp_path / 'one', {'beta': 2.0}, METRICS)
    other = _run(tmp_path / 'other', {'experiment': 'gan'}, {'num_fake': 10})
    rows = _csv(_table(one, other))
    assert [row['experiment'] for row in rows] == ['vae', 'gan']
    assert [row['beta'] for row in rows] == ['2.0', '']
    assert [row['num_fake'] for row in rows] == ['', '10']


@pytest.mark.parametrize('settings, metrics, results, note', [
    ({'dataset': 'digits'}, {}, {}, 'other dataset (mnist: one; digits: other).'),
    ({'binarize': 'static'}, {}, {}, 'other binarize (dynamic: one; static: other).'),
    ({'task': 'colorization'}, {}, {}, 'other task (none: one; colorization: other).'),
    ({'class_conditional': True}, {}, {}, 'other given class (no: one; yes: other).'),
    ({}, {'estimator': 'exact'}, {}, 'other estimator (elbo: one; exact: other).'),
    ({}, {}, {'split': 'validation'}, 'other split (test: one; validation: other).'),
    ({}, {}, {'num_examples': 5}, 'other num_examples (10: one; 5: other).'),
    ({}, {}, {'checkpoint': 'best', 'best_checkpoint_chosen_on': 'test',
              'trained_steps': 200},
     'other choice of the checkpoint (not by the test images: one; by the test images: '
     'other).'),
])
def test_numbers_that_are_not_comparable(tmp_path, settings, metrics, results, note):
    """Catch numbers of other things beside each other without a word."""
    one = _run(tmp_path / 'one', {}, METRICS)
    other = _run(tmp_path / 'other', settings, {**METRICS, **metrics}, **results)
    table = _table(one, other)
    assert table.notes == (f'Not comparable, {note}',)
    assert comparing.to_text(table, 10_000).endswith(f'\n\n{table.notes[0]}\n')
    assert comparing.to_markdown(table).endswith(f'|\n\n{table.notes[0]}\n')


@pytest.mark.parametrize('task, name, values', [
    ('completion', 'missing', ('top', 'bottom')),
    ('super_resolution', 'factor', (2, 4)),
])
def test_other_parts_of_an_image_are_not_comparable(tmp_path, task, name, values):
    """Catch nats of other pixels under the name of one task."""
    one, other = (
        _run(tmp_path / str(value), {'task': task, name: value}, METRICS)
        for value in values
    )
    note, = _table(one, other).notes
    assert f'other task ({task}, {name} {values[0]}: {values[0]}; ' in note


def test_files_that_have_moved_and_other_judges(tmp_path):
    """Catch the same images called others, and scores by other features beside them."""
    score = {'pixel_frechet_distance': 3.0, 'precision': 0.5}
    by_classes = {'classifier_frechet_distance': 3.0, 'precision': 0.5}
    paths = [
        _run(tmp_path / name, {'dataset': f'npz:/{name}/set.npz'}, metrics)
        for name, metrics in (
            ('here', score), ('there', {**score, 'judged_by': 'pixel'}),
            ('old', by_classes), ('one', {**by_classes, 'judged_by': 'classifier 1'}),
            ('two', {**by_classes, 'judged_by': 'classifier 2'}),
            ('nats', METRICS),
        )
    ]
    assert _table(*paths[:2]).notes == ()
    assert _table(*paths).notes == (
        'Not comparable, other judge (pixel: here, there; classifier 1: one; '
        'classifier 2: two).',
    )
    assert 'judged_by' not in _csv(_table(*paths))[0]
    # Without a digest nobody knows whether they are the same.
    for name in ('here', 'there'):
        (tmp_path / name / 'data.json').write_text('{}')
    note, = _table(*paths[:2]).notes
    assert note.startswith('Not comparable, other dataset (npz:/here/set.npz: here; ')


def test_other_images_of_one_name(tmp_path):
    """Catch two sets npz:FILE that are taken for one."""
    paths = [_run(tmp_path / name, {}, METRICS) for name in ('one', 'other')]
    data = {'name': 'mnist', 'splits': {'test': {'digest': '1' * 32}}}
    (tmp_path / 'other' / 'data.json').write_text(json.dumps(data))
    assert _table(*paths).notes == (
        'Not comparable, other test images (digest 00000000: one; digest 11111111: '
        'other).',
    )


def test_a_run_that_has_not_ended(tmp_path):
    """Catch numbers of training that look like those of the end."""
    lines = ['{"step": 10, "split": "train", "loss": 3.0}',
             '{"step": 20, "split": "train", "loss": null, "kl_nats": 1.5}',
             '{"step": 30, "spl']
    path = _run(tmp_path / 'going')
    (tmp_path / 'going' / 'metrics.jsonl').write_text('\n'.join(lines))
    new = _run(tmp_path / 'new')
    longer = _run(tmp_path / 'longer', {}, METRICS, step=50)
    table = _table(path, new, longer)
    row = _csv(table)[0]
    assert (row['step'], row['split']) == ('20', 'train, unfinished')
    assert (row['loss'], row['kl_nats'], row['num_parameters']) == ('', '1.5', '')
    assert table.notes[:3] == (
        'going is not finished: its numbers are those of the last line of its '
        'metrics.jsonl, step 20 of 100.',
        'new is not finished, or was not evaluated: it has no numbers.',
        'longer is not finished: its numbers are those of step 50, and it goes on to '
        '100.',
    )
    assert table.notes[3:] == (
        'Not comparable, other split (train: going; test: longer).',
    )


@pytest.mark.parametrize('width', [30, 60, 100])
def test_a_narrow_terminal_gets_every_cell(tmp_path, width):
    """Catch lines that the terminal breaks, and columns that are cut off."""
    paths = [_run(tmp_path / f'run{i}', {f'setting{j}': i for j in range(20)}, METRICS)
             for i in range(3)]
    table = _table(*paths)
    text = comparing.to_text(table, width)
    assert max(map(len, text.splitlines())) <= max(width, len('run0  wall_seconds'))
    assert text.split()[0] == 'run'
    blocks = text.strip().split('\n\n')
    assert len(blocks) > 1
    assert all(block.splitlines()[2].startswith('run1') for block in blocks)
    headings = [name for block in blocks for name in block.splitlines()[0].split()[1:]]
    assert headings == [column.name for column in table.columns[1:]]


def test_long_and_equal_names(tmp_path):
    """Catch a name that takes the line, and two runs of one name."""
    for parent in ('a', 'b'):
        (tmp_path / parent).mkdir()
    paths = [_run(tmp_path / parent / 'vae', {}, METRICS) for parent in ('a', 'b')]
    table = _table(*paths)
    assert [row['run'] for row in _csv(table)] == paths
    text = comparing.to_text(table, 30)
    assert text.endswith(f'\n\n1: {paths[0]}\n2: {paths[1]}\n')
    assert text.startswith('run  step')


def test_odd_values_stay_in_their_cell(tmp_path):
    """Catch a line break, a bar or a control character that destroys the table."""
    odd = {'name': 'a|b\nc\x1b[31m', 'half': '\ud800', 'scale': 10**400,
           'flag': True, 'more': [1, 'é']}
    one, other = _run(tmp_path / 'one', odd, METRICS), _run(tmp_path / 'o\x1b[31m')
    table = _table(one, other)
    assert table.notes and '\x1b' not in comparing.to_text(table, 10_000)
    assert 'a|b\\nc\\x1b[31m' in comparing.to_text(table, 10_000)
    assert 'a\\|b\\\\nc' in comparing.to_markdown(table)
    assert len(comparing.to_markdown(table).split('\n\n')[0].splitlines()) == 4
    assert cli.main(['compare-runs', one, other, f'--csv={tmp_path / "a.csv"}']) == 0


def test_files_and_the_screen(tmp_path, monkeypatch, capsys):
    """Catch an output that is not what was asked for."""
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / 'one', {}, METRICS)
    files = sorted(tmp_path.rglob('*'))
    assert cli.main(['compare-runs', 'one', '--csv=a.csv', '--markdown=a.md']) == 0
    out = capsys.readouterr().out
    assert out.startswith('run  step') and '±' in out
    assert (tmp_path / 'a.csv').read_text().startswith('run,step,')
    assert (tmp_path / 'a.md').read_text().startswith('| run | step |')
    assert {*tmp_path.rglob('*')} == {*files, tmp_path / 'a.csv', tmp_path / 'a.md'}
    (tmp_path / 'link.csv').symlink_to('a.csv')
    (tmp_path / 'a.csv').write_text('')
    assert cli.main(['compare-runs', 'one', '--csv=link.csv']) == 0
    capsys.readouterr()
    assert (tmp_path / 'link.csv').is_symlink()
    assert cli.main(['compare-runs', 'one', '--csv=-']) == 0
    assert capsys.readouterr().out == (tmp_path / 'a.csv').read_text()


@pytest.mark.parametrize('argv, sentence', [
    (['nowhere'], 'nowhere is not there: name the work directory of a run'),
    (['one/config.json'], 'one/config.json is a file'),
    (['empty'], 'empty holds no run: it has no config.json'),
    (['one', 'one'], 'one is there twice'),
    (['one', 'empty/../one/'], 'one and empty/../one/ are one run: name it once'),
    (['one', 'link'], 'one and link are one run: name it once'),
    (['torn'], 'torn/config.json cannot be read as a config'),
    (['list'], 'list/config.json cannot be read as a config: it is not a JSON object'),
    (['torn_results'], 'torn_results/results.json cannot be read as JSON'),
    (['no_metrics'], 'no_metrics/results.json is damaged'),
    (['no_object'], 'no_object/results.json is damaged'),
    (['one', '--csv=no_such/a.csv'], 'no_such/a.csv cannot be written: No such file'),
    (['one', '--markdown=empty'], 'empty cannot be written: it is a directory'),
    (['one', '--csv=/dev/null'], 'it is a device or a pipe; - is the screen'),
    (['one', '--csv=one/results.json'], 'lies in the run one, which stays as it is'),
    (['one', '--csv=link/new.csv'], 'lies in the run one, which stays as it is'),
    (['one', '--csv=-', '--markdown=-'], '--csv and --markdown are both -: name two'),
    (['one', '--csv=x', '--markdown=empty/../x'], 'are both x: name two files'),
])
def test_mistakes_are_a_sentence(tmp_path, monkeypatch, capsys, argv, sentence):
    """Catch a traceback, and a file of a run that is replaced."""
    monkeypatch.chdir(tmp_path)
    _run(tmp_path / 'one', {}, METRICS)
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'link').symlink_to('one')
    for name in ('torn', 'list', 'torn_results', 'no_metrics', 'no_object'):
        _run(tmp_path / name, {}, METRICS)
    (tmp_path / 'torn' / 'config.json').write_text('{"dataset": ')
    (tmp_path / 'list' / 'config.json').write_text('[]')
    (tmp_path / 'torn_results' / 'results.json').write_text('{"step": 1')
    (tmp_path / 'no_metrics' / 'results.json').write_text('{"step": 1, "metrics": 3}')
    (tmp_path / 'no_object' / 'results.json').write_text('{}')
    before = (tmp_path / 'one' / 'results.json').read_bytes()
    assert cli.main(['compare-runs', *argv]) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err and captured.err.count('\n') == 1
    assert captured.out == ''
    assert (tmp_path / 'one' / 'results.json').read_bytes() == before


def test_no_jax_to_wait_for(tmp_path):
    """Catch an import that takes seconds, and a command that no module has."""
    path = _run(tmp_path / 'one', {}, METRICS)
    code = (
        'import runpy, sys; sys.argv = ["", *sys.argv[1:]]\n'
        'try: runpy.run_module("experiments.compare_runs", run_name="__main__")\n'
        'except SystemExit as end: print(end.code, {"jax", "numpy"} & {*sys.modules})'
    )
    done = subprocess.run(
        [sys.executable, '-c', code, path], capture_output=True, text=True, timeout=60,
        env={**os.environ, 'PYTHONPATH': '.'}, check=True,
    )
    assert done.stdout.endswith('0 set()\n') and 'one' in done.stdout
