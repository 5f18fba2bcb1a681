"""Writes results/README.md from its template and the files of results.

    python -m benchmarks.tables           # writes it
    python -m benchmarks.tables --check   # only says whether it is up to date

The template, results/README.in.md, holds the sentences. What it takes from the files:

    {{FILE[3].metrics.nats_per_image:.2f}}   a number of the row 3 of results/FILE.json
    {{FILE[3,4,5].metrics.error_rate:.1%}}   mean and standard deviation over rows

and tables, in which each line names a row, the model, the published number, and what is
reported: `nats`, `bits`, or a number with its format:

    <!-- table
    nade_binarized_mnist[0] | NADE, 500 units | 88.33 | nats
    gan_losses[0] | minimax GAN | | metrics.classifier_frechet_distance:.1f
    -->

and the table of `benchmarks.bench`, with the bounds of `benchmarks.bounds`:

    <!-- speed bench_cpu bench_bounds -->

and that of `benchmarks.growth`:

    <!-- growth growth -->

and the contents of a file of this directory, such as that of `experiments.compare`:

    <!-- include compare_digits/compare.md -->
"""

import argparse
import json
import pathlib
import re
import statistics
import sys
from typing import Any

__all__ = ['main', 'render', 'RESULTS']

RESULTS = pathlib.Path(__file__).resolve().parents[1] / 'results'
_NUMBER = re.compile(r'\{\{(\w+)(?:\[([\d,]+)\])?\.([^:}]+):([^}]*)\}\}')
_TABLE = re.compile(r'<!-- table\n(.*?)\n-->', re.DOTALL)
_SPEED = re.compile(r'<!-- speed (\w+) (\w+) -->')
_GROWTH = re.compile(r'<!-- growth (\w+) -->')
_INCLUDE = re.compile(r'<!-- include (\S+) -->')
_NOTE = (
    '<!-- Written by `python -m benchmarks.tables` from README.in.md and the files of '
    'this directory: edit those. -->\n\n'
)


def render(template: str, results: pathlib.Path = RESULTS) -> str:
    """Return the text of the README.

    Args:
        template: the text of the template.
        results: the directory of the files.

    Raises:
        KeyError: a row does not have the number.
        FileNotFoundError: there is no such file.
    """
    def number(match: re.Match[str]) -> str:
        file, rows, path, form = match.groups()
        found = [
            _find(_row(results, file, int(row)), path)
            for row in (rows or '0').split(',')
        ]
        if len(found) == 1:
            return format(found[0], form)
        mean, deviation = statistics.mean(found), statistics.stdev(found)
        return f'{mean:{form}} +- {deviation:{form}}'

    def table(match: re.Match[str]) -> str:
        return _table(results, match[1].splitlines())

    def speed(match: re.Match[str]) -> str:
        return _speed(*(json.loads((results / f'{n}.json').read_text())
                        for n in match.groups()))

    def growth(match: re.Match[str]) -> str:
        return _growth(json.loads((results / f'{match[1]}.json').read_text()))

    def include(match: re.Match[str]) -> str:
        return (results / match[1]).read_text().strip()

    text = _INCLUDE.sub(include, template)
    text = _GROWTH.sub(growth, _SPEED.sub(speed, _TABLE.sub(table, text)))
    return _NOTE + _NUMBER.sub(number, text)


def _row(results: pathlib.Path, file: str, number: int) -> dict[str, Any]:
    rows = json.loads((results / f'{file}.json').read_text())
    if isinstance(rows, dict):
        rows = [rows]
    return rows[number]


def _find(row: dict[str, Any], path: str) -> Any:
    found: Any = row
    for name in path.split('.'):
        found = found[int(name)] if isinstance(found, list) else found[name]
    return found


def _table(results: pathlib.Path, lines: list[str]) -> str:
    """Return a table in Markdown, and below it the commands of its rows."""
    rows = [
        '| model | here | published | estimator | seed, steps, hours | hardware '
        '| weights, file |',
        '|' + '---|' * 7,
    ]
    commands = []
    for line in lines:
        where, title, published, metric = (part.strip() for part in line.split('|'))
        match = re.fullmatch(r'(\w+)(?:\[(\d+)\])?', where)
        if match is None:
            raise ValueError(f'{line!r} does not begin with a row such as FILE[0]')
        file = match[1]
        row = _row(results, file, int(match[2] or 0))
        weights = row.get('weights')
        files = f'[model](models/{weights}), ' if weights else ''
        cells = (
            title, _value(row, metric), published,
            row['metrics'].get('estimator', ''),
            f'{row["seed"]}; {row["step"]:,}; {row["hours"]:.2g}', _hardware(row),
            f'{files}[{file}.json]({file}.json)',
        )
        rows.append(f'| {" | ".join(cells)} |')
        commands.append(f'- {title}: `{row["command"]}`')
    summary = '<details><summary>Commands</summary>'
    return '\n'.join([*rows, '', summary, '', *commands, '', '</details>'])


def _speed(rows: list[dict[str, Any]], bounds: list[dict[str, Any]]) -> str:
    """Return the table of speeds beside PyTorch."""
    least = {
        row['name']: row['product_seconds'] + row['traffic_seconds'] for row in bounds
    }
    lines = [
        '| model | images/s | training | at most | evaluation | 64 samples | s for 64 '
        'samples | of the matrix rate | first line, s | MiB, here and PyTorch |',
        '|' + '---|' * 10,
    ]
    for row in rows:
        ratios = [_ratio(row.get(what)) for what in ('train', 'evaluation', 'sampling')]
        drawn = row.get('sampling', {}).get('seconds')
        highest = ''
        if row['name'] in least:
            highest = f'{row["train"]["torch_seconds"] / least[row["name"]]:.1f}'
        cells = (
            row['name'], f'{row["images_per_s"]:,.0f}', ratios[0],
            highest, *ratios[1:],
            '' if drawn is None else f'{drawn:.2g}',
            f'{row["matrix_share"]:.0%}' if row['flops'] else '',
            f'{row["first_line_seconds"]:.0f}',
            f'{row["peak_mib"]:,}, {row["torch_peak_mib"]:,}',
        )
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def _growth(rows: list[dict[str, Any]]) -> str:
    """Return the table of exponents, and of the memory of long runs."""
    found = {(row['name'], row['along']): row for row in rows}
    lines = [
        '| model | exponent in pixels | exponent in the width | MiB after steps |',
        '|' + '---|' * 4,
    ]
    for name in dict.fromkeys(row['name'] for row in rows):
        powers = []
        for along in ('pixels', 'width'):
            row = found.get((name, along))
            if row is None:
                powers.append('')
                continue
            low, high = row['sizes'][0], row['sizes'][-1]
            powers.append(
                f'{row["exponent"]:.2f} ({low} to {high}, within '
                f'{row["largest_misfit"]:.2f})'
            )
        memory = found.get((name, 'memory'), {'steps': [], 'resident_mib': []})
        mib = ', '.join(
            f'{size:.0f} after {step:,}'
            for step, size in zip(memory['steps'], memory['resident_mib'])
        )
        lines.append(f'| {name} | {" | ".join(powers)} | {mib} |')
    return '\n'.join(lines)


def _ratio(found: dict[str, Any] | None) -> str:
    """Return the ratio to PyTorch with its range; nothing where there is none."""
    if found is None or 'ratio' not in found:
        return ''
    least, greatest = found['ratio_range']
    return f'{found["ratio"]:.2f} ({least:.2f} to {greatest:.2f})'


def _value(row: dict[str, Any], metric: str) -> str:
    """Return a number with its standard error, if it has one."""
    metrics = row['metrics']
    if metric not in ('nats', 'bits'):
        path, form = metric.split(':')
        return format(_find(row, path), form)
    nats, error = metrics['nats_per_image'], metrics['nats_standard_error']
    if metric == 'nats':
        return f'{nats:.2f} +- {error:.2f}'
    bits = metrics['bits_per_dim']
    return f'{bits:.3f} +- {error * bits / nats:.3f}'


def _hardware(row: dict[str, Any]) -> str:
    """Return the first words of what the row says of its machine."""
    words = re.split('[,;:]', row['machine'])[0]
    return words.replace(' of an AMD EPYC with 2', '').replace('NVIDIA ', '')


def main(argv: list[str]) -> int:
    """Write the README, or compare it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--check', action='store_true')
    args = parser.parse_args(argv)
    text = render((RESULTS / 'README.in.md').read_text())
    path = RESULTS / 'README.md'
    if not args.check:
        path.write_text(text)
    elif path.read_text() != text:
        print('results/README.md is out of date: python -m benchmarks.tables')
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
