"""What a run tells never ends it: nobody may read the screen any more."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import IO, Any, cast

__all__ = ['has_bars', 'tolerant']


class _Tolerant:
    """A text stream whose reader may go away, and that may not know every letter.

    After the first failure, such as that of a closed pipe or a full disk, the rest is
    dropped.
    """

    def __init__(self, stream: IO[str] | None) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream or sys.__stderr__, name)

    def write(self, text: str) -> int:
        stream = self._stream
        if stream is not None:
            try:
                stream.write(text)
            except UnicodeEncodeError:
                known = getattr(stream, 'encoding', None) or 'ascii'
                self.write(text.encode(known, 'backslashreplace').decode(known))
            except (OSError, ValueError):
                self._drop()
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._drop()

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _drop(self) -> None:
        stream, self._stream = self._stream, None
        with contextlib.suppress(OSError, ValueError, AttributeError):
            # What is left in its buffer goes nowhere, or Python complains at its end.
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, cast(IO[str], stream).fileno())
            os.close(nowhere)


def has_bars() -> bool:
    """Return whether the screen can show a bar: a terminal that moves its cursor."""
    return sys.stdout.isatty() and os.environ.get('TERM') not in ('dumb', 'unknown')


@contextlib.contextmanager
def tolerant() -> Iterator[None]:
    """Replace the standard output and error by streams that never raise."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(Any, _Tolerant(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stdout, sys.stderr = before
