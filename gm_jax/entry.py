"""The first moments of a command, before JAX is imported, which takes seconds."""

import os
import signal
import sys
from typing import Any, NoReturn

__all__ = ['begin', 'handle_signals', 'leave']

# More virtual devices than this take JAX minutes to make.
_MOST_DEVICES = 1024


def handle_signals() -> None:
    """Let a signal end the process without a traceback.

    A run has handlers of its own, from `training.signals`.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, leave)


def begin() -> None:
    """Handle signals, and import JAX.

    What JAX says of its environment variables becomes a sentence, and the exit status
    is 2.
    """
    handle_signals()
    devices = os.environ.get('JAX_NUM_CPU_DEVICES', '')
    if devices.isdecimal() and not 0 < int(devices[:9]) <= _MOST_DEVICES:
        _refuse(f'JAX_NUM_CPU_DEVICES={devices} must be from 1 to {_MOST_DEVICES}')
    try:
        import jax  # noqa: F401  It reads the environment when it is imported.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        _refuse(f'JAX cannot be imported: {reason}')


def leave(number: int, frame: Any) -> NoReturn:
    """End the process at once, as the handler of a signal."""
    # An exception would be printed, or dropped, by whatever is being imported.
    os._exit(128 + number)


def _refuse(sentence: str) -> NoReturn:
    print(f'{sentence.rstrip(".")}.', file=sys.stderr)
    raise SystemExit(2)
