"""SIGTERM, SIGINT and SIGHUP: a run that is told to stop ends with a sentence.

In training a signal is only noted, and the loop stops after a checkpoint. Elsewhere it
raises `Stopped` at once. Python drops an exception that a handler raises inside a
callback of the garbage collector, so the signal is noted as well, and what takes long
calls `check` between its batches.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ['check', 'ending', 'noting', 'Stopped']

_NUMBERS = signal.SIGTERM, signal.SIGINT, signal.SIGHUP

_STOPPING = (
    'stopping: finishing this step and saving a checkpoint; once more ends at once.'
)

# The signals that have told this process to end; there is one process.
_received: list[int] = []


class Stopped(BaseException):
    """Raised when a run is told to stop, with a sentence and the signal.

    It is not an Exception: no handler of errors may take a stop for an error.
    """

    def __init__(self, sentence: str, number: int, agreed: bool = False) -> None:
        """Take the sentence, the signal, and whether all processes stop with it."""
        super().__init__(sentence, number)
        self.agreed = agreed


def check() -> None:
    """Raise Stopped if a signal has come, whatever became of its exception."""
    if _received:
        raise Stopped(
            'told to stop: the same command resumes from the last checkpoint, if any.',
            _received[0],
        )


@contextlib.contextmanager
def ending() -> Iterator[None]:
    """Let signals raise Stopped."""
    _received.clear()
    try:
        with _handling(_end), _quiet_drops():
            yield
    finally:
        _received.clear()


@contextlib.contextmanager
def _quiet_drops() -> Iterator[None]:
    """Do not tell of a stop that was raised where Python drops it; `check` finds it."""
    before = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        if not isinstance(unraisable.exc_value, Stopped):
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextlib.contextmanager
def noting() -> Iterator[list[int]]:
    """Collect signals, so that the run can save; a second one ends it."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, _end)
        _acknowledge()

    with _handling(note):
        yield received


def _acknowledge() -> None:
    """Say at once that the signal has come; a step may take long.

    A handler must not print: it may have interrupted a print. Nor must it wait for a
    pipe that nobody reads.
    """
    # A bar of progress leaves the cursor in its own line.
    start = '\n' if os.isatty(2) else ''
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0)[1]:
            os.write(2, f'{start}{_STOPPING}\n'.encode())


def _end(number: int, frame: Any) -> None:
    _received.append(number)
    check()


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    old = {}
    if threading.current_thread() is threading.main_thread():  # others get no signals
        old = {
            number: signal.signal(number, handler) for number in _NUMBERS
            # nohup ignores SIGHUP, and so does the run.
            if signal.getsignal(number) is not signal.SIG_IGN
        }
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
