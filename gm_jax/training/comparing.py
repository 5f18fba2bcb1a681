"""A table of runs: the settings in which they differ, and their final numbers.

    gm-jax compare-runs DIR ...

The numbers are those of results.json, which training writes at its end; those of later
evaluations, results_eval_*.json, are left out, since they may be of another checkpoint.
A run that has not come to its end shows its last line of metrics.jsonl.
"""

import csv
import io
import json
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from rich.cells import cell_len

from gm_jax.data import files
from gm_jax.errors import UserError

__all__ = [
    'Column', 'read', 'Run', 'Table', 'table', 'to_csv', 'to_markdown', 'to_text',
]

# Where something lies changes no number.
_PLACES = 'module', 'data_dir'
# Numbers of runs that differ in one of these are not of the same thing.
_CONDITIONS = (
    'dataset', 'binarize', 'task', 'given class', 'horizon', 'split', 'test images',
    'num_examples', 'number of samples', 'judge', 'estimator',
    'choice of the checkpoint',
)
# They are in columns of their own, or names.
_NO_NUMBERS = 'estimator', 'judged_by', 'task'
_ERROR = '_standard_error'
_GAP = '  '
# Digits after the point, at most.
_MOST_DIGITS = 12


class Run(NamedTuple):
    """What the files of a run say.

    Attributes:
        name: what it is called in the table.
        settings: the contents of config.json.
        data: those of data.json; {} if there is none.
        results: those of results.json; {} before the end of training.
        last: the last whole line of metrics.jsonl of a run without results; or {}.
    """

    name: str
    settings: Mapping[str, Any]
    data: Mapping[str, Any]
    results: Mapping[str, Any]
    last: Mapping[str, Any]


class Column(NamedTuple):
    """A column of a table.

    Attributes:
        kind: one of 'run', 'setting', 'count' and 'number', from left to right; a
            setting and a number may share a name.
        name: the heading.
    """

    kind: str
    name: str


class Table(NamedTuple):
    """A table with one row per run.

    Attributes:
        columns: the columns from left to right.
        rows: the value in each column; one that a run does not have is missing.
        errors: the column of the standard error of a number; it is not in `columns`.
        notes: sentences on what is not comparable.
    """

    columns: tuple[Column, ...]
    rows: tuple[Mapping[Column, Any], ...]
    errors: Mapping[Column, Column]
    notes: tuple[str, ...]


def read(paths: Sequence[str]) -> list[Run]:
    """Read runs; nothing is written.

    Args:
        paths: work directories, or exported models.

    Raises:
        UserError: one is no run or is damaged, or one is there twice.
    """
    found = [os.path.expanduser(path) for path in paths]
    seen: dict[str, str] = {}
    for path in found:
        real = os.path.realpath(path)
        if real in seen:
            if path == seen[real]:
                raise UserError(f'{path} is there twice: name each run once.')
            raise UserError(f'{seen[real]} and {path} are one run: name it once.')
        seen[real] = path
    runs = [_read_run(path) for path in found]
    names = [os.path.basename(os.path.abspath(path)) for path in found]
    if len(set(names)) < len(names):
        names = found
    return [run._replace(name=name) for run, name in zip(runs, names)]


def _read_run(path: str) -> Run:
    if not os.path.isdir(path):
        what = 'a file' if os.path.exists(path) else 'not there'
        raise UserError(f'{path} is {what}: name the work directory of a run.')
    config = os.path.join(path, 'config.json')
    if not os.path.exists(config):
        raise UserError(f'{path} holds no run: it has no config.json.')
    results = _read_if_there(path, 'results.json')
    if results is not None and not (
        isinstance(results.get('metrics'), dict) and _is_number(results.get('step'))
    ):
        raise UserError(
            f'{os.path.join(path, "results.json")} is damaged: it has no step or no '
            f'metrics.'
        )
    return Run(
        path, files.read_object(config, 'a config'),
        _read_if_there(path, 'data.json') or {}, results or {},
        {} if results else _last_line(os.path.join(path, 'metrics.jsonl')),
    )


def _read_if_there(path: str, name: str) -> dict[str, Any] | None:
    file = os.path.join(path, name)
    return files.read_object(file, 'JSON') if os.path.exists(file) else None


def _last_line(path: str) -> dict[str, Any]:
    """Return the last line of metrics; one that was cut by a kill does not count."""
    if os.path.exists(path):
        with open(files.find(path), encoding='utf-8', errors='replace') as lines:
            for line in reversed(lines.readlines()):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict) and _is_number(row.get('step')):
                    return row
    return {}


def table(runs: Sequence[Run]) -> Table:
    """Make the table of some runs.

    Args:
        runs: the runs, with different names.
    """
    settings = _differing([run.settings for run in runs])
    rows = [_row(run, settings) for run in runs]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    kinds = 'run', 'setting', 'count', 'number'
    columns.sort(key=lambda column: kinds.index(column.kind))  # else as they came
    errors = {
        number: column for column in columns
        for number in (_number_of(column),) if number in columns
    }
    return Table(
        tuple(c for c in columns if c not in errors.values()), tuple(rows), errors,
        tuple(map(_printable, (*_unfinished(runs), *_incomparable(runs)))),
    )


def _differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the settings that are not the same in all runs.

    What is off in a run may be unknown to another, of an older version.
    """
    names = dict.fromkeys(name for each in settings for name in each)
    return [
        name for name in names if name not in _PLACES
        and len({_key(each.get(name) or None) for each in settings}) > 1
    ]


def _key(value: Any) -> str:
    """Return a text that is the same for equal values: 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)


def _row(run: Run, settings: Sequence[str]) -> dict[Column, Any]:
    """Return the values of a run by column."""
    numbers = run.results.get('metrics', run.last)
    row = {Column('run', 'run'): run.name}
    for name in settings:
        if name in run.settings:
            row[Column('setting', name)] = run.settings[name]
    counts = {
        'step': run.results.get('step', run.last.get('step')),
        'split': _conditions(run).get('split'),
        'num_parameters': run.results.get('num_parameters'),
        'wall_seconds': run.results.get('wall_seconds'),
        'estimator': numbers.get('estimator'),
    }
    if not run.results and run.last:
        counts['split'] = f'{run.last.get("split")}, unfinished'
    for name, value in counts.items():
        if value is not None:
            row[Column('count', name)] = value
    for name, value in numbers.items():
        if name not in (*_NO_NUMBERS, 'step') and (value is None or _is_number(value)):
            row[Column('number', name)] = value
    return row


def _is_number(value: Any) -> bool:
    """Return whether a value is a number of a sensible size."""
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool)
        and abs(value) < 1e300
    )


def _number_of(column: Column) -> Column | None:
    """Return the column of the number whose standard error a column has."""
    if column.kind != 'number' or not column.name.endswith(_ERROR):
        return None
    name = column.name.removesuffix(_ERROR)
    return Column('number', {'nats': 'nats_per_image'}.get(name, name))


def _conditions(run: Run) -> dict[str, Any]:
    """Return under which conditions the numbers of a run were computed, if known."""
    results = run.results or {'split': run.last.get('split')}
    try:
        digest = f'digest {run.data["splits"]["test"]["digest"][:8]}'
    except (KeyError, TypeError):
        digest = None  # of an older version
    chosen = results.get('checkpoint'), results.get('best_checkpoint_chosen_on')
    last = results.get('step') == results.get('trained_steps')
    metrics = run.results.get('metrics', run.last)
    dataset = str(results.get('dataset', run.data.get('name', '')))
    given = 'yes' if run.settings.get('class_conditional') else 'no'
    found = {
        # Where files lie makes no difference if a digest says what is in them.
        'dataset': files.kind(dataset) if digest else dataset,
        'binarize': results.get('binarize', run.settings.get('binarize')),
        'task': _task(run.settings),
        'given class': given if 'nats_per_image' in metrics else None,
        'horizon': run.settings.get('horizon'),
        'number of samples': metrics.get('num_fake'),
        'split': results.get('split'),
        'test images': digest,
        # Samples are compared with as many images.
        'num_examples': None if 'num_fake' in metrics else results.get('num_examples'),
        'judge': _judge(metrics),
        'estimator': metrics.get('estimator'),
        'choice of the checkpoint': (
            'by the test images' if chosen == ('best', 'test') and not last
            else 'not by the test images'
        ) if run.results else None,
    }
    return {name: value for name, value in found.items() if value not in (None, '')}


def _task(settings: Mapping[str, Any]) -> str:
    """Return which part of an image is generated given the rest."""
    task = str(settings.get('task') or 'none')
    detail = {'completion': 'missing', 'super_resolution': 'factor'}.get(task, '')
    return f'{task}, {detail} {settings.get(detail)}' if detail else task


def _judge(metrics: Mapping[str, Any]) -> Any:
    """Return by what images were judged, if it is known which network it was."""
    pixels = 'pixel' if 'pixel_frechet_distance' in metrics else None
    return metrics.get('judged_by', pixels)


def _unfinished(runs: Sequence[Run]) -> list[str]:
    """Say which runs have not come to their end."""
    notes = []
    for run in runs:
        last = run.settings.get('num_steps', '?')
        trained = run.results.get('trained_steps', run.results.get('step'))
        if not run.results and run.last:
            notes.append(
                f'{run.name} is not finished: its numbers are those of the last line '
                f'of its metrics.jsonl, step {run.last["step"]} of {last}.'
            )
        elif not run.results:
            notes.append(
                f'{run.name} is not finished, or was not evaluated: it has no numbers.'
            )
        elif _is_number(last) and _is_number(trained) and trained < last:
            notes.append(
                f'{run.name} is not finished: its numbers are those of step '
                f'{run.results["step"]}, and it goes on to {last}.'
            )
    return notes


def _incomparable(runs: Sequence[Run]) -> list[str]:
    """Say in what the numbers of the runs are not of the same thing."""
    notes: dict[str, str] = {}
    found = {run.name: _conditions(run) for run in runs}
    for condition in _CONDITIONS:
        if condition == 'test images' and notes.keys() & {'dataset', 'binarize'}:
            continue  # they say why
        names: dict[str, list[str]] = {}
        for name, conditions in found.items():
            if condition in conditions:
                names.setdefault(_cell(conditions[condition]), []).append(name)
        if len(names) > 1:
            groups = '; '.join(f'{v}: {", ".join(each)}' for v, each in names.items())
            notes[condition] = f'Not comparable, other {condition} ({groups}).'
    return list(notes.values())


def _cell(value: Any, error: Any = None) -> str:
    """Return a value, and its standard error, as a cell of a table."""
    if _is_number(value) and _is_number(error) and error > 0:
        # Two digits of the error, and the number as exact as that.
        digits = min(max(0, 1 - int(f'{error:.1e}'.partition('e')[2])), _MOST_DIGITS)
        return f'{value:.{digits}f} ± {error:.{digits}f}'
    if isinstance(value, float):
        return f'{value:.5g}' if abs(value) < 1e5 else f'{value:.0f}'
    return _printable(value if isinstance(value, str) else json.dumps(value))


def _printable(text: str) -> str:
    """Return a text in which what would steer a terminal is written out."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _cells(table: Table) -> list[list[str]]:
    """Return the heading and the rows as texts."""
    heading = [column.name for column in table.columns]
    return [heading, *(
        [_cell_of(table, row, column) for column in table.columns] for row in table.rows
    )]


def _cell_of(table: Table, row: Mapping[Column, Any], column: Column) -> str:
    if column not in row:
        return ''
    error = table.errors.get(column)
    return _cell(row[column], None if error is None else row.get(error))


def to_csv(table: Table) -> str:
    """Return a table as CSV; a standard error is a column after its number."""
    columns: list[Column] = []
    for column in table.columns:
        columns.append(column)
        if column in table.errors:
            columns.append(table.errors[column])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator='\n')
    writer.writerow(column.name for column in columns)
    for row in table.rows:
        writer.writerow(row.get(column, '') for column in columns)
    return text.getvalue()


def to_markdown(table: Table) -> str:
    """Return a table in Markdown, with its notes below."""
    heading, *rows = (
        [cell.replace('\\', '\\\\').replace('|', '\\|') for cell in row]
        for row in _cells(table)
    )
    lines = [heading, ['---'] * len(heading), *rows]
    text = ''.join(f'| {" | ".join(cells)} |\n' for cells in lines)
    return text + ''.join(f'\n{note}\n' for note in table.notes)


def to_text(table: Table, width: int) -> str:
    """Return a table for a terminal, with its notes below.

    Args:
        table: the table.
        width: the characters of a line. Columns that do not fit beside each other are
            below each other, each time with the names of the runs; names that take more
            than half of a line are numbers there.
    """
    first, *others = map(list, zip(*_cells(table)))
    legend = []
    if max(map(cell_len, first)) > width // 2:
        legend = [f'{i}: {name}' for i, name in enumerate(first[1:], 1)]
        first = ['run', *map(str, range(1, len(first)))]
    margin = _aligned(first)
    blocks: list[list[str]] = []
    for column in map(_aligned, others):
        wide = blocks and cell_len(_GAP.join((blocks[-1][0], column[0]))) > width
        if not blocks or wide:
            blocks.append(margin)
        blocks[-1] = [_GAP.join(pair) for pair in zip(blocks[-1], column)]
    parts = ['\n'.join(line.rstrip() for line in block) for block in blocks or [margin]]
    notes = [line for note in table.notes for line in textwrap.wrap(
        note, max(width, 20), break_long_words=False, break_on_hyphens=False
    )]
    parts += ['\n'.join(lines) for lines in (legend, notes) if lines]
    return '\n\n'.join(parts) + '\n'


def _aligned(cells: Iterable[str]) -> list[str]:
    """Pad cells to one width, texts on their right and numbers on their left."""
    heading, *values = cells
    width = max(map(cell_len, (heading, *values)))
    numeric = all(not cell or cell[0] in '-.0123456789' for cell in values)
    pads = [' ' * (width - cell_len(cell)) for cell in (heading, *values)]
    pairs = zip((heading, *values), pads)
    return [pad + cell if numeric else cell + pad for cell, pad in pairs]
