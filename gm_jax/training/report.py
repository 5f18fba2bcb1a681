"""report.html: a run on one page, with its numbers, pictures, curve and settings."""

import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gm_jax import html
from gm_jax.html import Cell
from gm_jax.training.writers import write_atomically

__all__ = ['write']

# Samples during training that are shown, from the first to the last.
_MOST_SAMPLES = 6
# Bytes of all pictures of a page; those that come later are only named.
_MOST_BYTES = 12_000_000
_ERROR = '_standard_error'


def write(workdir: str, results: Mapping[str, Any]) -> None:
    """Write the page of a run from its results and the files in its work directory.

    Args:
        workdir: has config.json, data.json and the pictures.
        results: the contents of results.json.
    """
    config, data = (
        _read(os.path.join(workdir, f'{name}.json')) for name in ('config', 'data')
    )
    title = f'{results["experiment"]} on {results["dataset"]}'
    page = html.document(title, _parts(workdir, results, config, data))
    write_atomically(os.path.join(workdir, 'report.html'), page)


def _read(path: str) -> dict[str, Any]:
    with open(path, encoding='utf-8') as file:
        return json.load(file)


def _parts(
    workdir: str, results: Mapping[str, Any], config: Mapping[str, Any],
    data: Mapping[str, Any],
) -> Iterator[str]:
    yield html.text(_summary(results, data))
    for sentence in results['metrics'].get('alarms', ()):
        yield html.text(f'Alarm: {sentence}.', alarm=True)
    yield html.heading('Numbers')
    yield html.text(
        f'Of {results["num_examples"]:,} examples of the {results["split"]} split, '
        f'by the {results["checkpoint"]} checkpoint, of step {results["step"]:,}. '
        f'docs/metrics.md says what each of them means.'
    )
    yield html.table(('number', 'value'), _numbers(results['metrics']))
    yield from _pictures(workdir)
    yield html.heading('How to use it')
    directory, which, flag = os.path.abspath(workdir), '', ''
    if results['checkpoint'] == 'best':
        which, flag = ", checkpoint='best'", ' --checkpoint=best'
    yield html.pre(
        f'import gm_jax\n\nrun = gm_jax.load({directory!r}{which})\n'
        f'run.results["metrics"]'
    )
    if _steps(_names(workdir)):  # a model that generates
        yield html.pre(
            f'{_program(results["command"])} --mode=sample '
            f'--workdir={shlex.quote(directory)}{flag}'
        )
    yield html.heading('How it was made')
    yield html.pre(results['command'])
    yield html.details('All settings', [html.table(('setting', 'value'), (
        (Cell(name), Cell(_shown(value))) for name, value in config.items()
    ))])


def _program(command: str) -> str:
    """Return a command without its flags, of which any may be quoted."""
    try:
        words = shlex.split(command)
    except ValueError:  # the name of the program has a quote in it
        return command.partition(' --')[0]
    return shlex.join(itertools.takewhile(
        lambda word: word == '-m' or not word.startswith('-'), words
    ))


def _summary(results: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    """Return one sentence: how large, how long, on what."""
    shape = 'x'.join(str(n) for n in data.get('image_shape', ()))
    seconds = results['wall_seconds']
    took = f'{seconds / 3600:.1f} hours' if seconds > 5400 else (
        f'{seconds / 60:.1f} minutes' if seconds > 90 else f'{seconds:.0f} seconds'
    )
    steps = results.get('trained_steps', results['step'])
    return (
        f'{results["num_parameters"]:,} parameters, {steps:,} steps, seed '
        f'{results["seed"]}, {took} on {results["devices"]}. Images of {shape}.'
    )


def _numbers(metrics: Mapping[str, Any]) -> Iterator[tuple[Cell, Cell]]:
    """Yield the numbers, each with its standard error."""
    for name, value in metrics.items():
        error = metrics.get(_error_of(name))
        if name.endswith(_ERROR) or isinstance(value, (dict, list)) and len(value) > 8:
            continue
        shown = _shown(value)
        if isinstance(error, (int, float)):
            shown += f' +- {error:.2g}'
        if shown:
            yield Cell(name), Cell(shown)


def _error_of(name: str) -> str:
    """Return the name of the standard error of a number."""
    return f'{name.removesuffix("_per_image")}{_ERROR}'


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f'{value:.4f}' if 0.001 <= abs(value) < 1e6 else f'{value:g}'
    if isinstance(value, list):
        return ', '.join(_shown(x) for x in value)
    if isinstance(value, dict):
        return ', '.join(f'{name}: {_shown(x)}' for name, x in value.items())
    return '' if value is None else str(value)


def _names(workdir: str) -> list[str]:
    """Return the names of the pictures, in order."""
    directory = os.path.join(workdir, 'samples')
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    return [
        name for name in names
        if name.endswith('.png') and os.path.isfile(os.path.join(directory, name))
    ]


def _steps(names: Iterable[str]) -> dict[str, int]:
    """Return the steps of the samples that were drawn during training, by name.

    A user may have put other pictures beside them, such as copies.
    """
    found = {name: re.fullmatch(r'samples_(\d+)\.png', name) for name in names}
    return {name: int(match[1]) for name, match in found.items() if match}


def _pictures(workdir: str) -> Iterator[str]:
    """Yield the curve, samples from first to last, and the pictures of the end."""
    pngs = _names(workdir)
    steps = _steps(pngs)
    last = [
        name for name in pngs if name != 'loss.png' and '_eval_' not in name
        and not name.startswith(('generated', 'samples_'))
    ]
    left = _MOST_BYTES
    groups = (
        ('Curve', [name for name in pngs if name == 'loss.png']),
        ('Samples during training', _evenly(list(steps))), ('Pictures', last),
    )
    for title, chosen in groups:
        figures = []
        for name in chosen:
            with open(os.path.join(workdir, 'samples', name), 'rb') as file:
                png = file.read()
            left -= len(png)
            if left < 0:
                figures.append(html.text(f'samples/{name} is too large for this page.'))
            else:
                words = _words(name)
                figures.append(html.picture(png, f'{words} of this run', words))
        if figures:
            yield html.heading(title)
            yield html.gallery(figures)


def _evenly(names: list[str]) -> list[str]:
    """Return at most six of the names, the first and the last among them."""
    if len(names) <= _MOST_SAMPLES:
        return names
    gaps = _MOST_SAMPLES - 1
    return [names[i * (len(names) - 1) // gaps] for i in range(_MOST_SAMPLES)]


def _words(name: str) -> str:
    """Return what a picture is called: 'samples at step 500', 'completions'."""
    stem = name.removesuffix('.png')
    for step in _steps([name]).values():
        return f'samples at step {step:,}'
    return {'loss': 'loss during training'}.get(stem, stem.replace('_', ' '))
