"""A writer of metrics of the user's own, beside metrics.jsonl and TensorBoard.

    python -m experiments.vae --workdir=DIR --logger=my_logger.py:make

`make(workdir, settings, first_step)` returns a `writers.MetricWriter`. What it raises
is an error of the user; what the writer raises later must not end a run.
"""

import contextlib
import copy
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from gm_jax.errors import UserError, did_you_mean
from gm_jax.training import modules, processes
from gm_jax.training.writers import Make, MetricWriter

__all__ = ['find', 'opened']

_FUNCTION = 'make'
# The files that call a logger or import it.
_CALLERS = __file__, modules.__file__, importlib.__file__
# How the methods are called, to find those that are missing or that take less.
_CALLS: Mapping[str, tuple[tuple[Any, ...], Mapping[str, float]]] = {
    'write': ((1, 'train', {}, ()), {'images_per_s': 1.0}),
    'picture': ((1, 'samples', None), {}),
    'final': ((1, {}, {}), {}),
    'sync': ((), {}),
    'close': ((), {}),
}


def find(spec: str) -> Make:
    """Return the function that --logger names.

    Args:
        spec: MODULE:FUNCTION or FILE.py:FUNCTION; without FUNCTION it is `make`.

    Raises:
        UserError: there is no such function, or its module fails.
    """
    name, _, function = spec.rpartition(':')
    if not name or not function.isidentifier():
        name, function = spec, _FUNCTION
    module = _module(spec, name)
    if not hasattr(module, function):
        guess = did_you_mean(function, vars(module)) or '.'
        raise UserError(f'--logger={spec}: {name} has no function {function!r}{guess}')
    make = getattr(module, function)
    if not callable(make):
        raise UserError(f'--logger={spec}: {function!r} of {name} is not a function.')
    if isinstance(make, type):  # its methods are known before anything is done
        _check_methods(make)
    return make


def _module(spec: str, name: str) -> ModuleType:
    """Import the module of a logger."""
    if name.endswith('.py') and not os.path.isfile(os.path.expanduser(name)):
        raise UserError(f'--logger={spec}: there is no file {name}.')
    try:
        return modules.load(name)
    except UserError as error:
        raise UserError(f'--logger={spec}: {error}') from None
    except (Exception, SystemExit) as error:
        raise UserError(
            f'--logger={spec}: {name} cannot be imported: {_told(error)}. Name a '
            f'module that Python finds, or the path of a file that ends in .py.'
        ) from None


@contextlib.contextmanager
def opened(
    make: Make | None, workdir: str, settings: Mapping[str, Any], first_step: int
) -> Iterator[Sequence[MetricWriter]]:
    """Make the logger of a run and close it at the end.

    Args:
        make: makes it; None: the run has none.
        workdir: the work directory.
        settings: the settings, as config.json has them.
        first_step: the step from which training goes on.

    Yields:
        The logger in the primary process of a run that has one, or nothing.

    Raises:
        UserError: it cannot be made, or lacks a method.
    """
    if make is None or not processes.is_primary():
        yield ()
        return
    try:
        writer = make(workdir, copy.deepcopy(dict(settings)), first_step)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f'the logger cannot start: {_told(error)}.') from None
    _check_methods(writer)
    _check_arguments(writer)
    with contextlib.closing(_Guarded(writer)) as guarded:
        yield guarded,


def _check_methods(writer: Any) -> None:
    """Check that a writer, or its class, has every method."""
    for name in _CALLS:
        if not callable(getattr(writer, name, None)):
            raise UserError(
                f'the logger has no method {name!r}: it needs {", ".join(_CALLS)}, see '
                f'gm_jax.training.writers.MetricWriter.'
            )


def _check_arguments(writer: MetricWriter) -> None:
    """Check that the methods of a writer take their arguments."""
    for name, (args, kwargs) in _CALLS.items():
        try:
            signature = inspect.signature(getattr(writer, name))
        except ValueError:
            continue  # Python does not know the arguments of a builtin function
        try:
            signature.bind(*args, **kwargs)
        except TypeError as error:
            raise UserError(
                f'the method {name!r} of the logger does not take its arguments '
                f'({error}): see gm_jax.training.writers.MetricWriter.'
            ) from None


class _Guarded:
    """A logger that cannot end a run, nor change what the run goes on with.

    A night's training is worth more than the lines that a server did not take.
    """

    def __init__(self, writer: MetricWriter) -> None:
        self._writer: MetricWriter | None = writer

    def _call(self, name: str, *args: Any, **kwargs: Any) -> None:
        if self._writer is None:
            return
        try:
            getattr(self._writer, name)(*copy.deepcopy(args), **kwargs)
        except (Exception, SystemExit) as error:
            self._writer = None
            print(
                f'WARNING: the logger has failed in {name!r} and is not called again: '
                f'{_told(error)}. Training goes on, and metrics.jsonl has every line.',
                file=sys.stderr, flush=True,
            )

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        self._call('write', step, split, scalars, alarms, **timing)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._call('picture', step, name, image)

    def final(
        self, step: int, numbers: Mapping[str, Any], pictures: Mapping[str, np.ndarray]
    ) -> None:
        self._call('final', step, numbers, pictures)

    def sync(self) -> None:
        self._call('sync')

    def close(self) -> None:
        self._call('close')


def _told(error: BaseException) -> str:
    """Return an error in one line, with the line of the logger that raised it."""
    text = ''.join(traceback.format_exception_only(error)[-1:])
    text = str(UserError(text)).rstrip('.')  # one line that is not too long
    for frame in traceback.extract_tb(error.__traceback__):
        if frame.filename not in _CALLERS and not frame.filename.startswith('<frozen'):
            return f'{text} ({os.path.basename(frame.filename)}, line {frame.lineno})'
    return text
