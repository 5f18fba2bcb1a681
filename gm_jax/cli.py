"""The command gm-jax: experiments, image sets, exported models and tables of runs.

    gm-jax
    gm-jax vae --workdir=/tmp/vae
    gm-jax export --workdir=/tmp/vae --to=/tmp/model
    gm-jax prepare mnist --data_dir=/tmp/data
    gm-jax compare-runs /tmp/vae /tmp/model
    gm-jax compare --workdir=/tmp/all
"""

import argparse
import ast
import contextlib
import difflib
import importlib
import os
import pathlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator

from gm_jax import entry
from gm_jax.errors import UserError, did_you_mean

__all__ = [
    'compare_runs', 'export', 'listing', 'main', 'prepare', 'show', 'unknown',
]

# A module is called by the second name.
_COMPARE = ['compare-runs'], ['compare_runs']
# Where the wheel installs the experiments.
_PACKAGE = 'gm_jax.experiments'


def main(argv: list[str] | None = None) -> int:
    """Run an experiment, list them all, or do one of the other commands.

    Args:
        argv: the name of an experiment, `prepare`, `export`, `compare-runs` or
            `compare`, and its flags; None: the process's arguments.

    Returns:
        The exit status.
    """
    started, argv = argv is None, sys.argv[1:] if argv is None else argv
    if started:
        entry.handle_signals()
    if argv[:1] in _COMPARE:
        return compare_runs(argv[1:], 'gm-jax compare-runs')
    if started:
        entry.begin()
    if not argv or argv[0] in ('-h', '--help'):
        show(listing(_PACKAGE, 'gm-jax '))
        return 0
    name, *flags = argv
    if name == 'prepare':
        return prepare(flags, 'gm-jax prepare')
    if name == 'export':
        return export(flags, 'gm-jax export')
    if name == 'compare':
        return importlib.import_module(f'{_PACKAGE}.compare').main(flags)
    names = importlib.import_module(_PACKAGE).NAMES
    if name not in names:
        guess = did_you_mean(name, names) or f': there are {", ".join(names)}.'
        print(f'gm-jax: there is no experiment {name!r}{guess}', file=sys.stderr)
        return 2
    module = importlib.import_module(f'{_PACKAGE}.{name}')
    return module.main(flags, program=f'gm-jax {name}')


def unknown(name: str, package: str) -> int:
    """Say what `python -m experiments NAME` should have been; return the status 2.

    Args:
        name: the first argument.
        package: the package of the experiments.
    """
    known = (*importlib.import_module(package).NAMES, 'compare')
    program = f'python -m {package}'
    if name in known:
        told = f'the command is {program}.{name}, with a point.'
    else:
        guess = did_you_mean(name, (*known, 'prepare', 'export', 'compare-runs'))
        told = f'there is no command {name!r}{guess or f": {program} lists them."}'
    print(f'{program}: {told}', file=sys.stderr)
    return 2


def show(text: str) -> None:
    """Print a text, whether or not there is anybody to read it."""
    from gm_jax.training import screen

    with screen.tolerant():
        print(text)


def listing(package: str, prefix: str) -> str:
    """Return one line per experiment: the command and a description.

    Args:
        package: the package of the experiments.
        prefix: the text before the name of an experiment in a command.
    """
    names = importlib.import_module(package).NAMES
    width = max(map(len, names))
    lines = [f'  {prefix}{name:<{width}}  {_about(package, name)}' for name in names]
    return '\n'.join([
        'Experiments, in the order of the lecture; each explains itself with --help:',
        '', *lines, '', f'For instance: {prefix}vae --workdir=/tmp/vae',
        f'Image sets such as MNIST: {prefix[:-1]} prepare lists and downloads them.',
        f'The numbers of several runs: {prefix[:-1]} compare-runs DIR ...',
        f'Every model on one image set: {prefix}compare --workdir=/tmp/all',
    ])


def prepare(argv: list[str], program: str) -> int:
    """Download image sets and write them where experiments read them.

    Args:
        argv: the names of the sets and the flags.
        program: the command, for its sentences.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 130 after Ctrl-C.
    """
    # What argparse would say for itself is longer than a sentence.
    parser = argparse.ArgumentParser(
        program, usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    parser.add_argument('names', nargs='*')
    parser.add_argument('--data_dir', default='')
    parser.add_argument('--from', default='', dest='from_dir')
    parser.add_argument('-h', '--help', action='store_true')
    args = parser.parse_args(argv)
    from gm_jax.training import screen

    if signal.getsignal(signal.SIGINT) is entry.leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with screen.tolerant():
        try:
            if args.help or not args.names:
                print(_sets(program))
            else:
                _prepare(args.names, args.data_dir, args.from_dir)
            return 0
        except UserError as error:
            message, status = str(error), 2
        except KeyboardInterrupt:
            message, status = 'interrupted: the same command goes on from here.', 130
        print(f'{program}: {message}', file=sys.stderr)
        return status


def export(argv: list[str], program: str) -> int:
    """Export a trained model: `gm-jax export --workdir=DIR --to=OUT`.

    Args:
        argv: the flags.
        program: the command, for its sentences.

    Returns:
        The exit status: 0, or 2 for a mistake of the user.
    """
    parser = argparse.ArgumentParser(
        program, allow_abbrev=False, usage=argparse.SUPPRESS,
        description='Writes a trained model as safetensors with its settings, its '
        'numbers and a model card.',
    )
    parser.add_argument('--workdir', required=True, help='directory of the run')
    parser.add_argument('--to', required=True, help='directory to make')
    parser.add_argument('--checkpoint', default='last', choices=('last', 'best'))
    parser.add_argument('--half', action='store_true', help='store as float16')
    args = parser.parse_args(argv)
    from gm_jax import loading
    from gm_jax.training import parallel, screen

    with screen.tolerant():
        try:
            parallel.check_devices()
            loading.export(
                args.workdir, args.to, checkpoint=args.checkpoint, half=args.half
            )
        except UserError as error:
            print(f'{program}: {error}', file=sys.stderr)
            return 2
        print(f'{args.to} is ready.')
        return 0


def compare_runs(argv: list[str], program: str) -> int:
    """Show a table of runs: `gm-jax compare-runs DIR ...`; JAX is not imported.

    Args:
        argv: the directories and the flags.
        program: the command, for its sentences.

    Returns:
        The exit status: 0, or 2 for a mistake of the user.
    """
    parser = argparse.ArgumentParser(
        program, allow_abbrev=False, usage=argparse.SUPPRESS,
        description='Shows the settings in which runs differ, and the numbers of '
        'results.json; of a run that has not ended, its last line of metrics.jsonl.',
    )
    parser.add_argument('runs', nargs='+', metavar='DIR', help='work directory, or an '
                        'exported model')
    parser.add_argument('--csv', default='', help='file to write; - for the screen')
    parser.add_argument('--markdown', default='', help='the same')
    args = parser.parse_args(argv)
    from gm_jax.training import screen

    with screen.tolerant():
        try:
            shown = _compare(args.runs, args.csv, args.markdown)
        except UserError as error:
            print(f'{program}: {error}', file=sys.stderr)
            return 2
        print(shown, end='')
        return 0


def _compare(paths: list[str], csv_path: str, markdown_path: str) -> str:
    """Write the table of runs to files; return what is shown."""
    from gm_jax.training import comparing

    both = {os.path.realpath(os.path.expanduser(x)) for x in (csv_path, markdown_path)}
    if csv_path and markdown_path and len(both) == 1:
        raise UserError(f'--csv and --markdown are both {csv_path}: name two files.')
    table = comparing.table(comparing.read(paths))
    # A terminal has a width; a pipe has as much as it takes.
    shown = comparing.to_text(table, shutil.get_terminal_size((10_000, 24)).columns)
    for path, text in (
        (csv_path, comparing.to_csv(table)),
        (markdown_path, comparing.to_markdown(table)),
    ):
        if path == '-':
            shown = text
        elif path:
            _write(os.path.expanduser(path), text, paths)
    return shown


def _write(path: str, text: str, runs: list[str]) -> None:
    """Write a text file, outside the directories of runs."""
    from gm_jax.data import files

    place = os.path.dirname(os.path.realpath(path))
    for run in runs:
        real = os.path.realpath(os.path.expanduser(run))
        if os.path.commonpath([place, real]) == real:
            raise UserError(f'{path} lies in the run {run}, which stays as it is.')
    path = os.path.realpath(path)  # what a link names, not the link
    try:
        if os.path.isdir(path):
            raise IsADirectoryError('it is a directory')
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError('it is a device or a pipe; - is the screen')
        with (
            files.replacing(path) as new,
            # The name of a directory need not be UTF-8.
            open(new, 'w', encoding='utf-8', errors='backslashreplace') as file,
        ):
            file.write(text)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f'{path} cannot be written: {reason}.') from None


def _sets(program: str) -> str:
    """Return the help of `prepare`, with the sets and how much they download."""
    from gm_jax.data import originals, prepare

    lines = []
    for name, about in originals.SETS.items():
        size = sum(file.size for file in prepare.original_files(name))
        lines.append(f'  {name:<16} {size / 1e6:4.0f} MB  {about}')
    return '\n'.join([
        f'{program} NAME [NAME ...] [--data_dir=DIR] [--from=DIR]', '',
        'Downloads image sets and prepares them for --dataset, without TensorFlow:',
        '', *lines, '',
        '  --data_dir=DIR   where to write them: the --data_dir of the experiments',
        '                   [$TFDS_DATA_DIR, or else ~/tensorflow_datasets]',
        '  --from=DIR       take the original files from there, download nothing', '',
        'The same command goes on after an interruption. Downloaded files are kept in',
        'downloads/ of --data_dir.',
    ])


def _prepare(names: list[str], data_dir: str, from_dir: str) -> None:
    from gm_jax.data import originals, prepare

    for name in names:
        if name not in originals.SETS:
            known = list(originals.SETS)
            close = [
                *(each for each in known if each.startswith(f'{name}/')),
                *difflib.get_close_matches(name, known, n=1),
            ]
            guess = (
                f'did you mean {close[0]}?' if close
                else f'there are {", ".join(known)}.'
            )
            raise UserError(f'{name!r} is none of the sets: {guess}')
    for name in names:
        with _progress() as show:
            path, new = prepare.prepare(name, data_dir, from_dir=from_dir, show=show)
        print(f'{path} is {"ready" if new else "there already"}.', flush=True)


@contextlib.contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """Show what is done: bars on a terminal, a line every ten seconds elsewhere."""
    from rich import progress

    from gm_jax.training import screen

    if not screen.has_bars():
        last_line = time.monotonic()

        def line(what: str, done: int, total: int) -> None:
            nonlocal last_line
            if time.monotonic() - last_line > 10:
                last_line = time.monotonic()
                print(f'{what}: {100 * done // total} %', flush=True)

        yield line
        return
    with progress.Progress() as bars:
        tasks: dict[str, progress.TaskID] = {}

        def bar(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, completed=done)
            bars.update(tasks[what], completed=done)

        yield bar


def _about(package: str, name: str) -> str:
    """Return the first line of a module's docstring without importing the module."""
    path = pathlib.Path(importlib.import_module(package).__path__[0], f'{name}.py')
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return (ast.get_docstring(tree) or '').partition('\n')[0]
