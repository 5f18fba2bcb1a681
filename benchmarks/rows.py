"""The file of a benchmark: rows of JSON, none of which is measured twice."""

import argparse
import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from gm_jax.training.writers import write_atomically

__all__ = ['chosen', 'fill', 'write']


def chosen(
    parser: argparse.ArgumentParser, flag: str, text: str, known: Collection[str]
) -> list[str]:
    """Return the names of a flag; end with a sentence if there is no such name.

    Args:
        parser: the one of the flag.
        flag: how it is called.
        text: names with commas between them.
        known: all names that there are.
    """
    names = text.split(',')
    for name in names:
        if name not in known:
            parser.error(f'{flag}: {name!r} is none of {", ".join(known)}')
    return names


def write(path: str, content: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> None:
    """Write rows, or one, to a file; its directory is made."""
    pathlib.Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2) + '\n')


def fill(
    path: str, keys: Iterable[Mapping[str, str]],
    measure: Callable[..., Mapping[str, Any]], common: Mapping[str, Any],
) -> int:
    """Measure the rows that a file lacks; each is written as soon as it is measured.

    A row that cannot be measured is told with its reason, and the others follow.

    Args:
        path: the file; its directory is made.
        keys: the fields by which a row is known, of each row.
        measure: called with these fields, returns the others.
        common: fields that all rows have, such as the machine.

    Returns:
        The number of rows that could not be measured.
    """
    file = pathlib.Path(path)
    failed = 0
    for key in keys:
        rows = json.loads(file.read_text()) if file.exists() else []
        if any(key.items() <= row.items() for row in rows):
            continue
        try:
            row = {**key, **measure(**key)}
        except Exception:
            print(f'{", ".join(key.values())} failed:', file=sys.stderr)
            traceback.print_exc()
            failed += 1
            continue
        write(path, [*rows, {**row, **common}])
        print(json.dumps(row), flush=True)
    return failed
