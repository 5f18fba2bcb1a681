"""The checkpoints of a work directory: the last two and the best are kept.

`checkpoints/STEP` is the checkpoint of a step; see `sealed` for what it holds. Training
waits until a checkpoint is written, so a kill never costs more than the steps between
two checkpoints.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gm_jax.errors import UserError
from gm_jax.training import processes, sealed
from gm_jax.training.sealed import Sealed
from gm_jax.training.train_state import TrainState

__all__ = ['Checkpoint', 'last_step', 'restore', 'save', 'set_aside']

# A name of more digits is not a step.
_MOST_DIGITS = 18
# How often a reader looks again when training replaces the best checkpoint beneath it.
_LOOKS = 10
# Warnings about unusable checkpoints that are told one by one.
_TOLD = 3


class Checkpoint(NamedTuple):
    """A restored checkpoint.

    Attributes:
        step: the step of the state.
        state: the training state, with NumPy arrays.
        note: the numbers and strings that were saved with it.
        warnings: sentences about newer checkpoints that were unusable.
        unusable: their steps.
    """

    step: int
    state: TrainState
    note: dict[str, Any]
    warnings: list[str]
    unusable: list[int]


def save(workdir: str, step: int, state: TrainState, note: dict[str, Any]) -> None:
    """Write a checkpoint, if this is the primary process and it is not there yet.

    Args:
        workdir: the work directory of the run.
        step: the state's step, after those that were saved before.
        state: the same on every device.
        note: numbers and strings to keep with it; note['best_step'] is the step of the
            best checkpoint, which is kept, or None.
    """
    path = _path(workdir, step)
    if not processes.is_primary() or os.path.lexists(path):
        return
    os.makedirs(_directory(workdir), exist_ok=True)
    _remove_unfinished(workdir)
    sealed.write(path, step, state, note)
    for old in _steps(workdir)[2:]:
        if old != note.get('best_step'):
            _remove(_path(workdir, old))


def restore(
    workdir: str, template: TrainState, which: str = 'last', *, alone: bool = False
) -> Checkpoint | None:
    """Read a checkpoint or, if it is damaged, the newest usable one before it.

    It may be read while another process trains there, which removes old checkpoints.
    The processes of a run read the same one.

    Args:
        workdir: the work directory of the run.
        template: a state with the structure that was saved, or its shapes as
            jax.eval_shape returns them.
        which: 'last' or 'best'.
        alone: whether only this process of a run reads it.

    Returns:
        The checkpoint, or None where there is none at all.

    Raises:
        UserError: there are checkpoints, but none can be used, or not the best.
    """
    def read(step: int) -> Sealed:
        return sealed.read(_path(workdir, step), step, template)

    if which == 'last':
        found = _newest(workdir, read, alone)
        return None if found is None else _checkpoint(found)
    reason = ''
    for _ in range(_LOOKS):
        newest = _newest(
            workdir, lambda step: sealed.read_note(_path(workdir, step), step), alone
        )
        if newest is None:
            return None
        best = newest.sealed.note.get('best_step')
        if best is None:
            raise UserError(
                'no evaluation has had a finite loss, so no checkpoint is the best: '
                'leave --checkpoint=best out.'
            )
        result = _try(read, best, alone)
        if isinstance(result, Sealed):
            return _checkpoint(newest._replace(step=best, sealed=result))
        reason = _unusable(workdir, best, result)
        if _is_there(_path(workdir, best), alone):
            break
    raise UserError(f'{reason}, and it is the best.')


class _Found(NamedTuple):
    """The newest usable checkpoint, and why those after it are not."""

    step: int
    sealed: Sealed
    reasons: dict[int, str]


def _newest(
    workdir: str, read: Callable[[int], Sealed], alone: bool
) -> _Found | None:
    """Read the newest checkpoint that can be read; None if there is none at all."""
    tried: set[int] = set()
    reasons: dict[int, str] = {}
    # Training may remove and add checkpoints meanwhile, so each time look again.
    look = _steps if alone else _agreed_steps
    while steps := [step for step in look(workdir) if step not in tried]:
        step = steps[0]
        tried.add(step)
        result = _try(read, step, alone)
        if isinstance(result, Sealed):
            return _Found(step, result, reasons)
        if _is_there(_path(workdir, step), alone):
            reasons[step] = _unusable(workdir, step, result)
    if reasons:
        raise UserError(
            '; '.join(_told(reasons)) + ': no checkpoint is left. Train in a new '
            '--workdir, or put a good checkpoint back.'
        )
    return None


def _try(read: Callable[[int], Sealed], step: int, alone: bool) -> Sealed | str:
    """Read a checkpoint in all processes, or return why one of them could not."""
    reason, found = 'another process cannot read it', None
    try:
        found = read(step)
    # A damaged file may make a reader raise anything: it must not end the run.
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if alone:
        return reason[:160] if found is None else found
    # All processes go back to the same checkpoint.
    if not processes.all_agree(found is not None) or found is None:
        return reason[:160]
    processes.check_alike({f'the checkpoint of step {step}': found.seal})
    return found


def _checkpoint(found: _Found) -> Checkpoint:
    state = found.sealed.state
    if state is None:
        raise ValueError('only the note was read')
    return Checkpoint(
        found.step, state, found.sealed.note, _told(found.reasons),
        list(found.reasons),
    )


def _unusable(workdir: str, step: int, reason: object) -> str:
    return f'checkpoint {_path(workdir, step)} cannot be used ({reason})'


def _told(reasons: dict[int, str]) -> list[str]:
    """Return the reasons, but only the number of those after the first few."""
    told = list(reasons.values())[:_TOLD]
    more = len(reasons) - len(told)
    return told + ([f'{more} more checkpoints cannot be used'] if more else [])


def last_step(workdir: str) -> int:
    """Return the step of the last checkpoint, 0 where there is none."""
    return max(_agreed_steps(workdir), default=0)


def _is_there(path: str, alone: bool) -> bool:
    """Return whether process 0 sees a path, or, if it is alone, this process."""
    here = os.path.lexists(path)
    return here if alone else bool(processes.from_primary(np.array(int(here))))


def _agreed_steps(workdir: str) -> list[int]:
    """Return the steps that process 0 sees, the latest first."""
    mine = json.dumps(_steps(workdir)) if processes.is_primary() else ''
    return json.loads(processes.text_from_primary(mine))


def _directory(workdir: str) -> str:
    return os.path.join(workdir, 'checkpoints')


def _path(workdir: str, step: int) -> str:
    return os.path.join(_directory(workdir), str(step))


def _steps(workdir: str) -> list[int]:
    """Return the steps by which something is called here, the latest first."""
    directory = _directory(workdir)
    if not os.path.lexists(directory):
        return []
    if not os.path.isdir(directory):
        raise UserError(f'{directory} is not a directory: choose another --workdir.')
    try:
        names = os.listdir(directory)
    except OSError as error:
        raise UserError(f'{directory} cannot be read: {error.strerror}.') from None
    steps = [
        int(name) for name in names if name.isdecimal() and len(name) <= _MOST_DIGITS
    ]
    return sorted((step for step in steps if str(step) in names), reverse=True)


def _remove_unfinished(workdir: str) -> None:
    """Remove what a killed process has left half written or half removed."""
    directory = _directory(workdir)
    for name in os.listdir(directory):
        step, _, ending = name.partition('.')
        # A copy that somebody keeps, such as 40.backup, is none of these.
        if step.isdecimal() and (
            ending == 'removed' or ending.startswith('orbax-checkpoint-tmp')
        ):
            shutil.rmtree(os.path.join(directory, name), ignore_errors=True)


def _remove(path: str) -> None:
    """Remove a checkpoint; a kill leaves nothing that looks like one."""
    # On some file systems what another process has open cannot be removed.
    with contextlib.suppress(OSError):
        os.rename(path, f'{path}.removed')
        shutil.rmtree(f'{path}.removed', ignore_errors=True)


def set_aside(workdir: str, steps: list[int]) -> None:
    """Rename the checkpoints that `restore` found unusable, so that they are kept.

    They are in the way: training will reach their steps again.
    """
    processes.barrier('found')
    if processes.is_primary():
        for step in steps:
            name = f'damaged_{step}_{time.time_ns()}'
            with contextlib.suppress(FileNotFoundError):
                os.rename(
                    _path(workdir, step), os.path.join(_directory(workdir), name)
                )
    processes.barrier('set aside')
