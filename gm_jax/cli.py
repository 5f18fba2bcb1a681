"""The command gm-jax: lists the experiments, and runs one.

    gm-jax
    gm-jax vae --workdir=/tmp/vae
"""

import ast
import difflib
import importlib
import pathlib
import sys

__all__ = ['listing', 'main']

# Where the wheel installs the experiments.
_PACKAGE = 'gm_jax.experiments'


def main(argv: list[str] | None = None) -> int:
    """Run an experiment, or list them all.

    Args:
        argv: the name of an experiment and its flags; None: the process's arguments.

    Returns:
        The exit status.
    """
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ('-h', '--help'):
        print(listing(_PACKAGE, 'gm-jax '))
        return 0
    name, *flags = argv
    names = importlib.import_module(_PACKAGE).NAMES
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        known = ', '.join(names)
        guess = f'did you mean {close[0]}?' if close else f'there are {known}.'
        print(f'gm-jax: there is no experiment {name!r}: {guess}', file=sys.stderr)
        return 2
    module = importlib.import_module(f'{_PACKAGE}.{name}')
    return module.main(flags, program=f'gm-jax {name}')


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
    ])


def _about(package: str, name: str) -> str:
    """Return the first line of a module's docstring without importing the module."""
    path = pathlib.Path(importlib.import_module(package).__path__[0], f'{name}.py')
    tree = ast.parse(path.read_text(encoding='utf-8'))
    return (ast.get_docstring(tree) or '').partition('\n')[0]
