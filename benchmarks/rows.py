"""The file of a benchmark: rows of JSON, none of which is measured twice."""

import json
import pathlib
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gm_jax.training.writers import write_atomically

__all__ = ['fill']


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
    file.parent.mkdir(parents=True, exist_ok=True)
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
        write_atomically(path, json.dumps([*rows, {**row, **common}], indent=2) + '\n')
        print(json.dumps(row), flush=True)
    return failed
