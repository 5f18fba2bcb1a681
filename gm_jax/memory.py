"""How much memory there is, and the sentence for what cannot fit into it."""

import os
import pathlib

from gm_jax.errors import UserError

__all__ = ['check', 'gigabytes', 'is_exhausted', 'of_host']

# The limit of a container, in the two versions of Linux's control groups.
_LIMITS = '/sys/fs/cgroup/memory.max', '/sys/fs/cgroup/memory/memory.limit_in_bytes'
# What XLA and NumPy say where there is too little memory.
_EXHAUSTED = (
    'RESOURCE_EXHAUSTED', 'Out of memory', 'Maximum allowed dimension exceeded',
    'array is too big',
)


def of_host() -> int:
    """Return the bytes of memory that the processes of this machine may use."""
    found = [os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')]
    for path in _LIMITS:
        try:
            text = pathlib.Path(path).read_text().strip()
        except OSError:
            continue
        if text.isdecimal():  # not 'max'
            found.append(int(text))
    return min(found)


def check(what: str, num_bytes: int, limit: int | None = None) -> None:
    """Raise UserError for what can never fit into memory.

    Args:
        what: the flags that ask for it.
        num_bytes: the least number of bytes that it takes.
        limit: the bytes that there are; None: those of the host.
    """
    limit = of_host() if limit is None else limit
    if num_bytes > limit:
        raise UserError(
            f'{what} would take at least {gigabytes(num_bytes)} of memory, and there '
            f'are {gigabytes(limit)} in all: make it smaller.'
        )


def is_exhausted(error: BaseException | None) -> bool:
    """Return whether an exception, or one of its causes, reports too little memory."""
    while error is not None:
        if isinstance(error, MemoryError) or any(
            words in str(error) for words in _EXHAUSTED
        ):
            return True
        error = error.__cause__ or error.__context__
    return False


def gigabytes(num_bytes: int) -> str:
    """Return a number of bytes as text, such as '1.5 GB'."""
    return f'{num_bytes / 1e9:,.1f} GB'
