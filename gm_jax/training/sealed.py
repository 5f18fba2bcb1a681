"""One checkpoint: arrays, a note, and a seal over all that is read from it.

The arrays and the note are written by Orbax, under another name until they are
complete. The note holds the step, a checksum over the arrays, and a digest over itself:
a checkpoint that was damaged or renamed is noticed instead of being trained on,
whichever of its files it is.
"""

import hashlib
import json
import logging
import os
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging
from flax import serialization, traverse_util

from gm_jax.training.orbax_errors import quiet_threads
from gm_jax.training.train_state import TrainState

__all__ = ['read', 'read_note', 'Sealed', 'write']


class Sealed(NamedTuple):
    """What was read from a checkpoint.

    Attributes:
        note: the numbers and strings that were saved with the state.
        checksum: that of the arrays.
        seal: a digest over the step, the note and the checksum.
        state: the training state, with NumPy arrays; None if only the note was read.
    """

    note: dict[str, Any]
    checksum: int
    seal: str
    state: TrainState | None = None


def write(path: str, step: int, state: TrainState, note: dict[str, Any]) -> None:
    """Write a checkpoint; it has its name only when it is complete.

    Args:
        path: the directory that is made.
        step: the state's step.
        state: the same on every device.
        note: numbers and strings to keep with it.
    """
    arrays = {name: np.asarray(x) for name, x in _flatten(state).items()}
    content = {'step': step, 'arrays': _checksum(arrays), 'note': note}
    with _checkpointer() as checkpointer:
        checkpointer.save(os.path.abspath(path), args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            note=ocp.args.JsonSave({**content, 'seal': _seal(content)}),
        ))


def read_note(path: str, step: int) -> Sealed:
    """Read the note of the checkpoint of a step.

    Raises:
        Exception: it is not whole; a damaged file makes a reader raise anything.
    """
    with _checkpointer() as checkpointer:
        content = checkpointer.restore(
            os.path.abspath(path), ocp.args.Composite(note=ocp.args.JsonRestore())
        )['note']
    return _opened(content, step)


def read(path: str, step: int, template: TrainState) -> Sealed:
    """Read the checkpoint of a step.

    Args:
        path: the directory of the checkpoint.
        step: the step that its name says.
        template: a state with the structure that was saved, or its shapes as
            jax.eval_shape returns them.

    Raises:
        Exception: it is not whole, or of another model or step; a damaged file makes a
            reader raise anything.
    """
    found, shapes = read_note(path, step), _flatten(template)
    with quiet_threads(), _checkpointer() as checkpointer:
        arrays = checkpointer.restore(os.path.abspath(path), ocp.args.Composite(
            state=ocp.args.StandardRestore(
                {name: np.empty(x.shape, x.dtype) for name, x in shapes.items()}
            ),
        ))['state']
    for name, shape in shapes.items():
        if arrays[name].shape != shape.shape or arrays[name].dtype != shape.dtype:
            raise ValueError(
                f'{name} is {arrays[name].dtype}{list(arrays[name].shape)}, the model '
                f'has {shape.dtype}{list(shape.shape)}'
            )
    if found.checksum != _checksum(arrays):
        raise ValueError('its checksum does not match')
    return found._replace(state=_from_arrays(template, arrays))


def _opened(content: dict[str, Any], step: int) -> Sealed:
    """Compare a note with its seal and with the step in the name of its directory."""
    seal = content.pop('seal', None)
    if seal is None:
        raise ValueError('it has no seal: an older version of gm_jax wrote it')
    if seal != _seal(content):
        raise ValueError('its note has changed')
    if content['step'] != step:
        raise ValueError(f'it is the checkpoint of step {content["step"]}')
    return Sealed(content['note'], content['arrays'], seal)


def _seal(content: dict[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value


def _checkpointer() -> ocp.Checkpointer:
    """Return Orbax's reader and writer of one checkpoint, for this process alone.

    Process 0 writes, and every process reads by itself. If all saved together and one
    failed, the others would wait in Orbax's barriers for 20 minutes.
    """
    # Orbax logs errors that it raises as well, and its loop those of tasks.
    absl_logging.set_verbosity(absl_logging.FATAL)
    logging.getLogger('asyncio').setLevel(logging.CRITICAL)
    process = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=process, active_processes={process},
        barrier_sync_key_prefix=f'process_{process}',
    )
    handler = ocp.CompositeCheckpointHandler(
        state=ocp.StandardCheckpointHandler(multiprocessing_options=alone),
        note=ocp.JsonCheckpointHandler(multiprocessing_options=alone),
        composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
    )
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _from_arrays(template: TrainState, arrays: dict[str, np.ndarray]) -> TrainState:
    # Look up the template's own keys: a / in an array's name may be part of a key.
    # Empty containers (an optimizer's EmptyState, no BatchNorm) have no arrays.
    def fill(target: Any, path: tuple[str, ...]) -> Any:
        if isinstance(target, dict):
            return {key: fill(value, (*path, key)) for key, value in target.items()}
        return None if target is None else arrays['/'.join(path)]

    return serialization.from_state_dict(
        template, fill(serialization.to_state_dict(template), ())
    )


def _flatten(state: TrainState) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state), sep='/')
    return {name: x for name, x in flat.items() if x is not None}
