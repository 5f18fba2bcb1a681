"""The work directory of a run: whose it is, and who may write there.

`config.json` and `data.json` say which run it holds. A training run locks it, so that
no second one can write beside it; the system takes the lock away from a process that
ends, however it ends.
"""

import contextlib
import fcntl
import glob
import json
import os
import tempfile
from collections.abc import Iterator
from typing import IO

from gm_jax.data import files, image_set
from gm_jax.errors import UserError
from gm_jax.training import exporting, processes, settings, writers
from gm_jax.training.flags import Run
from gm_jax.training.settings import Config

__all__ = ['claimed', 'facts_path', 'has_begun', 'is_finished', 'withdraw']

# What a run writes into, beside its files.
_DIRECTORIES = ('checkpoints', 'samples', 'train', 'validation', 'test', 'final')


def facts_path(workdir: str) -> str:
    """Return the path of data.json."""
    return os.path.join(workdir, 'data.json')


@contextlib.contextmanager
def claimed(run: Run, config: Config, facts: str) -> Iterator[bool]:
    """Hold the work directory: check whose it is, and in training write that down.

    Args:
        run: what is done there.
        config: the settings.
        facts: what `image_set.facts` returns.

    Yields:
        Whether the directory is new.

    Raises:
        UserError: it holds another run, is in use, or cannot be written.
    """
    _check_same_run(run, config, facts)
    processes.barrier('checked')
    if not processes.is_primary():
        yield False
        return
    made = not os.path.exists(run.workdir)
    with contextlib.ExitStack() as held:
        try:
            os.makedirs(os.path.join(run.workdir, 'samples'), exist_ok=True)
            # Also where nothing is written before the end, which would be too late.
            tempfile.TemporaryFile(dir=run.workdir).close()
            if run.mode == 'train':
                held.enter_context(_lock(run.workdir))
                os.makedirs(os.path.join(run.workdir, 'checkpoints'), exist_ok=True)
                writers.write_atomically(_config_path(run), settings.to_json(
                    config, settings.Origin(run.experiment, run.module)
                ))
                writers.write_atomically(facts_path(run.workdir), facts)
        except OSError as error:
            raise UserError(f'{run.workdir} cannot be written: {error}.') from None
        yield made


def _config_path(run: Run) -> str:
    return os.path.join(run.workdir, 'config.json')


def _check_same_run(run: Run, config: Config, facts: str) -> None:
    if run.mode == 'train' and exporting.is_exported(run.workdir):
        raise UserError(
            f'{run.workdir} holds an exported model, which has no state of training: '
            f'choose another --workdir, or --mode=eval or sample.'
        )
    path = _config_path(run)
    if os.path.exists(path):
        changes = settings.changed(
            settings.load(path, type(config), run.experiment), config, run.mode
        )
        if changes:
            raise UserError(
                f'{run.workdir} holds another run: {"; ".join(changes)}. Choose '
                f'another --workdir, or pass the old settings to resume it.'
            )
    elif _has_checkpoints(run.workdir):
        raise UserError(
            f'{path} is missing, which has the settings of the run: put it back, or '
            f'train in a new --workdir.'
        )
    if os.path.exists(facts_path(run.workdir)):
        image_set.check_facts(facts_path(run.workdir), facts)
    elif _has_checkpoints(run.workdir):
        raise UserError(
            f'{facts_path(run.workdir)} is missing, which describes the images of the '
            f'run: put it back, or train in a new --workdir.'
        )
    for name in _DIRECTORIES:
        saved = os.path.join(run.workdir, name)
        if os.path.lexists(saved) and not os.path.isdir(saved):
            raise UserError(f'{saved} is not a directory: choose another --workdir.')
    for name in ('metrics.jsonl', 'results.json', 'report.html'):
        saved = os.path.join(run.workdir, name)
        if os.path.isdir(saved):
            raise UserError(f'{saved} is a directory: choose another --workdir.')


def _has_checkpoints(workdir: str) -> bool:
    saved = os.path.join(workdir, 'checkpoints')
    return os.path.isdir(saved) and bool(os.listdir(saved))


@contextlib.contextmanager
def _lock(workdir: str) -> Iterator[None]:
    """Lock the directory against a second training run."""
    path = os.path.join(workdir, '.lock')
    with open(path, 'a+', encoding='utf-8') as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in files.NO_LOCKS:
                yield
                return
            raise UserError(
                f'{workdir} is in use: {_holder(file)} trains there. Wait for it, or '
                f'choose another --workdir.'
            ) from None
        file.truncate(0)
        file.write(f'process {os.getpid()} on {os.uname().nodename}')
        file.flush()
        yield


def _holder(file: IO[str]) -> str:
    file.seek(0)
    return file.read(200).strip() or 'another process'


def has_begun(workdir: str) -> bool:
    """Return whether a run has left lines of metrics or checkpoints."""
    log = os.path.join(workdir, 'metrics.jsonl')
    lines = os.path.exists(log) and os.path.getsize(log) > 0
    return lines or _has_checkpoints(workdir)


def withdraw(workdir: str, *, made: bool) -> None:
    """Delete what a run has written that failed before it had anything to tell.

    It may be too large for the memory: with other settings it is another run.

    Args:
        workdir: its directory.
        made: whether the run has made the directory, which is then deleted too.
    """
    if has_begun(workdir) or not processes.is_primary():
        return
    events = glob.glob('events.out.tfevents.*', root_dir=workdir)
    for name in ('config.json', 'data.json', 'metrics.jsonl', '.lock', *events):
        with contextlib.suppress(OSError):
            os.remove(os.path.join(workdir, name))
    for name in ('samples', 'checkpoints', *([''] if made else [])):
        with contextlib.suppress(OSError):
            os.rmdir(os.path.join(workdir, name))


def is_finished(workdir: str, step: int) -> bool:
    """Return whether training has written its results, after as many steps.

    results.json is the last file that training writes. Its `step` is that of the
    checkpoint that was evaluated, which may be an earlier one.
    """
    finished = False
    if processes.is_primary():
        with contextlib.suppress(OSError, ValueError):
            path = os.path.join(workdir, 'results.json')
            with open(path, encoding='utf-8') as file:
                results = json.load(file)
            if isinstance(results, dict):
                finished = results.get('trained_steps', results.get('step')) == step
    return processes.text_from_primary('yes' if finished else 'no') == 'yes'
