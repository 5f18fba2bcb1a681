"""Atomic Orbax checkpoints, of which the last two and the best are kept.

A checkpoint holds the whole TrainState as a flat dict of NumPy arrays, a note (the
loop's own few numbers) and a checksum over the arrays, so that a damaged file is
noticed instead of being trained on. Training waits until a checkpoint is written, so a
kill never costs more than the steps between two checkpoints.
"""

import contextlib
import errno
import os
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from flax import serialization, traverse_util

from gm_jax.errors import UserError
from gm_jax.training import processes
from gm_jax.training.train_state import TrainState

__all__ = [
    'Checkpoint', 'disk_is_full', 'last_step', 'open_directory', 'quiet_threads',
    'restore', 'save', 'set_aside_after',
]

# An upper bound on the number of checkpoints in a directory.
_MAX_STEPS = 16


class Checkpoint(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: the step of the state.
        state: the training state, with NumPy arrays.
        note: the numbers and strings that were saved with it.
        warnings: one sentence for each newer checkpoint that was unusable.
    """

    step: int
    state: TrainState
    note: dict[str, Any]
    warnings: list[str]


def open_directory(workdir: str) -> ocp.CheckpointManager:
    """Open `workdir`/checkpoints, which keeps the last two and the best one.

    Raises:
        UserError: something else is there.
    """
    directory = os.path.join(workdir, 'checkpoints')
    if os.path.lexists(directory) and not os.path.isdir(directory):
        raise UserError(f'{directory} is not a directory: choose another --workdir.')
    policy = ocp.checkpoint_managers
    # Orbax warns about every checkpoint without an evaluation, and logs errors that it
    # raises as well.
    logging.set_verbosity(logging.FATAL)
    options = ocp.CheckpointManagerOptions(
        best_fn=lambda metrics: metrics['loss'],
        best_mode='min',
        # BestN keeps the end of the list it sorts, hence reverse for the least loss.
        preservation_policy=policy.AnyPreservationPolicy([
            policy.LatestN(n=2),
            policy.BestN(
                get_metric_fn=lambda metrics: metrics['loss'], reverse=True, n=1,
                keep_checkpoints_without_metrics=False,
            ),
        ]),
        create=False,
        enable_async_checkpointing=False,
        # Process 0 writes, and every process reads by itself. If all saved together and
        # one failed, the others would wait in Orbax's barriers for 20 minutes.
        read_only=not processes.is_primary(),
        multiprocessing_options=ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes={jax.process_index()},
            barrier_sync_key_prefix=f'process_{jax.process_index()}',
        ),
    )
    path = os.path.abspath(os.path.join(workdir, 'checkpoints'))
    if processes.is_primary():
        os.makedirs(path, exist_ok=True)
    processes.barrier('directory')
    return ocp.CheckpointManager(path, options=options)


def save(
    manager: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    note: dict[str, Any],
    *,
    loss: float | None = None,
) -> None:
    """Write a checkpoint, if this is the primary process.

    Args:
        manager: from `open_directory`.
        step: the state's step.
        state: the same on every device.
        note: numbers and strings to keep with it.
        loss: the loss of an evaluation at this step, by which the best is chosen.
    """
    if not processes.is_primary() or step in manager.all_steps():
        return
    arrays = _to_arrays(state)
    manager.save(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardSave(arrays),
            note=ocp.args.JsonSave(dict(note, checksum=_checksum(arrays))),
        ),
        metrics=None if loss is None else {'loss': loss},
    )


def restore(
    manager: ocp.CheckpointManager, template: TrainState, which: str = 'last'
) -> Checkpoint | None:
    """Read a checkpoint or, if it is damaged, the newest usable one before it.

    Args:
        manager: from `open_directory`.
        template: a state with the structure that was saved, or its shapes as
            jax.eval_shape returns them.
        which: 'last' or 'best'.

    Returns:
        The checkpoint, or None where there is none at all.

    Raises:
        UserError: there are checkpoints, but none can be used.
    """
    steps = _agreed(manager.all_steps())
    if which == 'best' and steps:
        best = manager.best_step()
        steps = _agreed([] if best is None else [best])
        if not steps:
            raise UserError('no checkpoint was evaluated, so none is the best.')
    if not processes.is_primary():
        manager.reload()
    warnings: list[str] = []
    for step in steps:
        reason, found = 'another process cannot read it', None
        try:
            with quiet_threads():
                found = _read(manager, step, template)
        # A damaged file may make a reader raise anything: it must not end the run.
        except Exception as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        # All processes go back to the same checkpoint.
        if processes.all_agree(found is not None) and found is not None:
            return Checkpoint(step, *found, warnings)
        warnings.append(
            f'checkpoint {manager.directory / str(step)} cannot be used '
            f'({reason[:160]})'
        )
    if warnings:
        raise UserError(
            '; '.join(warnings) + ': no checkpoint is left. Train in a new --workdir, '
            'or put a good checkpoint back.'
        )
    return None


def last_step(manager: ocp.CheckpointManager) -> int:
    """Return the step of the last checkpoint, 0 where there is none."""
    return max(_agreed(manager.all_steps()), default=0)


def _agreed(steps: Iterable[int]) -> list[int]:
    """Return the steps that process 0 knows, the latest first."""
    padded = np.full(_MAX_STEPS, -1, np.int32)
    known = sorted(steps, reverse=True)[:_MAX_STEPS]
    padded[:len(known)] = known
    return [int(step) for step in processes.from_primary(padded) if step >= 0]


def set_aside_after(manager: ocp.CheckpointManager, step: int) -> None:
    """Rename the checkpoints after `step`, which `restore` found unusable.

    Orbax does not save a step at or before the last one in the directory, so nothing
    would be saved until training has passed these checkpoints.
    """
    later_steps = [later for later in manager.all_steps() if later > step]
    processes.barrier('found')
    if processes.is_primary():
        for later in later_steps:
            path = manager.directory / str(later)
            os.rename(path, manager.directory / f'damaged_{later}_{time.time_ns()}')
    processes.barrier('set aside')
    manager.reload()


def _read(
    manager: ocp.CheckpointManager, step: int, template: TrainState
) -> tuple[TrainState, dict[str, Any]]:
    shapes = {
        name: jax.ShapeDtypeStruct(x.shape, x.dtype)
        for name, x in _flatten(template).items()
    }
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            state=ocp.args.StandardRestore(
                {k: np.empty(s.shape, s.dtype) for k, s in shapes.items()}
            ),
            note=ocp.args.JsonRestore(),
        ),
    )
    arrays, note = restored['state'], dict(restored['note'])
    for name, shape in shapes.items():
        if arrays[name].shape != shape.shape or arrays[name].dtype != shape.dtype:
            raise ValueError(
                f'{name} is {arrays[name].dtype}{list(arrays[name].shape)}, the model '
                f'has {shape.dtype}{list(shape.shape)}'
            )
    if note.pop('checksum') != _checksum(arrays):
        raise ValueError('its checksum does not match')
    return _from_arrays(template, arrays), note


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, reports a full disk."""
    while error is not None:
        # Orbax's own errors have no number, only text.
        number = getattr(error, 'errno', None)
        if number in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextlib.contextmanager
def quiet_threads() -> Iterator[None]:
    """Hide tracebacks of Orbax's threads for errors that their caller sees as well.

    If one array cannot be read or written, the threads of the others report to an event
    loop that is closed by then.
    """
    def of_thread(args: Any) -> None:
        if not disk_is_full(args.exc_value):
            hooks[0](args)

    def of_callback(unraisable: Any) -> None:
        if 'Event loop is closed' not in str(unraisable.exc_value):
            hooks[1](unraisable)

    hooks = threading.excepthook, sys.unraisablehook
    threading.excepthook, sys.unraisablehook = of_thread, of_callback
    try:
        yield
    except Exception:
        time.sleep(0.2)  # until the last thread has failed
        raise
    finally:
        threading.excepthook, sys.unraisablehook = hooks


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


def _to_arrays(state: TrainState) -> dict[str, np.ndarray]:
    return {name: np.asarray(x) for name, x in _flatten(state).items()}


def _flatten(state: TrainState) -> dict[str, Any]:
    flat = traverse_util.flatten_dict(serialization.to_state_dict(state), sep='/')
    return {name: x for name, x in flat.items() if x is not None}


def _checksum(arrays: dict[str, np.ndarray]) -> int:
    value = 0
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        value = zlib.crc32(array.reshape(-1).view(np.uint8).data, value)
    return value
