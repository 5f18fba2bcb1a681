"""What Orbax raises and prints when a file cannot be read or written."""

import contextlib
import errno
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

__all__ = ['disk_is_full', 'quiet_threads', 'too_many_open']


def disk_is_full(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, reports a full disk."""
    return _reports(error, (errno.ENOSPC, errno.EDQUOT), 'No space left')


def too_many_open(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, reports too many files."""
    return _reports(error, (errno.EMFILE, errno.ENFILE), 'Too many open files')


def _reports(
    error: BaseException | None, numbers: tuple[int, ...], words: str
) -> bool:
    while error is not None:
        # Orbax's own errors have no number, only text.
        if getattr(error, 'errno', None) in numbers or words in str(error):
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
        if not (disk_is_full(args.exc_value) or too_many_open(args.exc_value)):
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
