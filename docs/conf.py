"""Configuration of the site: `make docs` builds it into docs/_build."""

import os
import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ['PYTHONPATH'] = str(ROOT)  # of the kernels that run the pages

import gm_jax  # noqa: E402

project = 'gm_jax'
author = 'the gm_jax authors'
copyright = author  # noqa: A001
release = gm_jax.__version__

extensions = [
    'myst_nb',
    'sphinx.ext.autodoc',
    'sphinx.ext.mathjax',
    'sphinx.ext.napoleon',
    'sphinx.ext.viewcode',
    'sphinx-mathjax-offline',  # formulas need no network
]
exclude_patterns = ['_build']
nitpicky = False
# A link to a heading that is not there is a warning, and warnings are errors.
myst_heading_anchors = 3
myst_enable_extensions = ['amsmath', 'colon_fence', 'dollarmath']

# Pages of the lecture run in seconds, by the small models of results/models/digits. The
# notebooks take minutes: a test runs them.
nb_execution_mode = 'force'
nb_execution_excludepatterns = ['notebooks/*']
nb_execution_timeout = 120
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_merge_streams = True

autodoc_member_order = 'bysource'
autodoc_typehints = 'none'
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # fields of a NamedTuple are described once

html_theme = 'sphinx_book_theme'
html_title = 'gm_jax'
html_theme_options = {'show_toc_level': 2}


def _as_text(lines: list[str]) -> list[str]:
    """Return a docstring as reStructuredText: its formulas are plain text.

    Bars and stars are escaped, and an indented block after a paragraph, which is a
    formula or code, becomes a literal block.
    """
    found: list[str] = []
    literal = False
    for number, line in enumerate(lines):
        if line.startswith(':') or not line.strip():  # a field of Napoleon
            literal = literal and not line.strip()
            found.append(_escaped(line))
            continue
        before = lines[number - 1] if number else ''
        if line.startswith('    ') and not before.strip() and not literal:
            inside = any(x.startswith(':') for x in lines[:number])
            literal = not inside
            if literal:
                found += ['::', '']
        elif not line.startswith(' '):
            literal = False
        found.append(line if literal else _escaped(line))
    return found


def _escaped(line: str) -> str:
    parts = line.split('``')
    parts[::2] = [part.replace('|', r'\|') for part in parts[::2]]
    return '``'.join(parts)


def _returns_as_list(lines: list[str]) -> list[str]:
    """Return a docstring whose several named results are a list."""
    if 'Returns:' not in lines:
        return lines
    first = lines.index('Returns:') + 1
    last = next(
        (n for n in range(first, len(lines)) if lines[n] and lines[n][0] != ' '),
        len(lines),
    )
    named = re.compile(r"    ['\w]+: ")
    if sum(bool(named.match(line)) for line in lines[first:last]) < 2:
        return lines
    listed = [
        f'    * {line[4:]}' if named.match(line) else line[2:]
        for line in lines[first:last]
    ]
    # Napoleon takes what is before the colon of a first line for a type.
    return [*lines[:first], '    These by name.', '', *listed, *lines[last:]]


def _before(app, what, name, obj, options, lines):  # noqa: ANN001, ANN202
    lines[:] = _returns_as_list(lines)


def _after(app, what, name, obj, options, lines):  # noqa: ANN001, ANN202
    lines[:] = _as_text(lines)


def setup(app):  # noqa: ANN001, ANN201
    """Register the hooks, before and after that of Napoleon."""
    app.connect('autodoc-process-docstring', _before, priority=100)
    app.connect('autodoc-process-docstring', _after, priority=900)
