"""Communication between the processes of a run; with one process it does nothing.

Every process runs the same loop on the same numbers, each with its own part of every
batch; only the primary process (process 0) writes files.
"""

import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gm_jax.errors import UserError

__all__ = [
    'all_agree', 'barrier', 'check_alike', 'from_primary', 'gather', 'is_primary',
    'several', 'text_from_primary',
]


def several() -> bool:
    """Return whether this process is one of several, without starting JAX."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_primary() -> bool:
    """Return whether this is the process that writes."""
    return jax.process_index() == 0


def barrier(name: str) -> None:
    """Wait until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather(tree: Any) -> Any:
    """Concatenate the parts [N / P, ...] of all processes to arrays [N, ...]."""
    if jax.process_count() == 1:
        return tree
    return multihost_utils.process_allgather(tree, tiled=True)


def from_primary(array: np.ndarray) -> np.ndarray:
    """Return the array of process 0; all processes pass its shape and dtype."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.broadcast_one_to_all(array))


def text_from_primary(text: str) -> str:
    """Return the text of process 0; what the others pass does not matter."""
    return _texts(text)[0]


def all_agree(mine: bool) -> bool:
    """Return whether `mine` is true in all processes; each waits for the others."""
    return bool(np.all(gather(np.array([mine]))))


def check_alike(mine: Mapping[str, str], problem: str = '') -> None:
    """Check that all processes of the run have the same values; each waits for all.

    Args:
        mine: what the processes must agree on, by the name that the error uses.
        problem: why this process cannot go on; '': it can.

    Raises:
        UserError: a process has a problem, or another value than process 0; all
            processes raise it.
    """
    texts = _texts(json.dumps({'problem': problem, 'values': dict(mine)}))
    found = [json.loads(text) for text in texts]
    for process, other in enumerate(found):
        if other['problem']:
            raise UserError(f'process {process} cannot start: {other["problem"]}')
    first, *others = (each['values'] for each in found)
    for process, other in enumerate(others, 1):
        for name in first | other:
            values = other.get(name, 'missing'), first.get(name, 'missing')
            if values[0] != values[1]:
                raise UserError(
                    f'process {process} has {name} {values[0]} and process 0 has '
                    f'{values[1]}: start all processes of a run alike.'
                )


def _texts(mine: str) -> list[str]:
    """Return the texts of all processes, that of process 0 first."""
    if jax.process_count() == 1:
        return [mine]
    data = np.frombuffer(mine.encode(), np.uint8)
    sizes = gather(np.array([data.size]))
    padded = np.zeros((1, sizes.max()), np.uint8)
    padded[0, :data.size] = data
    return [
        bytes(row[:size]).decode() for row, size in zip(gather(padded), sizes)
    ]
