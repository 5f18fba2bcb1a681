"""Communication between the processes of a run; with one process it does nothing.

Every process runs the same loop on the same numbers, each with its own part of every
batch; only the primary process (process 0) writes files.
"""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ['all_agree', 'barrier', 'from_primary', 'gather', 'is_primary', 'several']


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


def all_agree(mine: bool) -> bool:
    """Return whether `mine` is true in all processes; each waits for the others."""
    return bool(np.all(gather(np.array([mine]))))
