"""Paths that a user has named, and files that are replaced as a whole."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from typing import Any

from gm_jax.errors import UserError

__all__ = ['find', 'kind', 'NO_LOCKS', 'read_object', 'replacing']

# What file systems without locks answer.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def kind(spec: str) -> str:
    """Return what a data set is called wherever its files lie: npz for npz:FILE."""
    before, colon, _ = spec.partition(':')
    return before if colon and before in ('idx', 'images', 'npz') else spec


def find(path: str, flag: str = '') -> str:
    """Return the path of a regular file, with ~ for the home directory expanded.

    A pipe or a device would be read for ever.

    Args:
        path: the path, which may be that of a link to the file.
        flag: the flag that names it, for the error message; '' for none.

    Raises:
        UserError: there is no such file, it is something else, or may not be read.
    """
    path, advice = os.path.expanduser(path), f': check --{flag}.' if flag else '.'
    if not os.path.exists(path):
        raise UserError(f'There is no file {path}{advice}')
    if not os.path.isfile(path):
        what = 'a directory' if os.path.isdir(path) else 'a pipe or a device'
        raise UserError(f'{path} is {what}, not a file{advice}')
    if not os.access(path, os.R_OK):
        raise UserError(f'{path} may not be read{advice}')
    return path


def read_object(path: str, what: str) -> dict[str, Any]:
    """Return the JSON object of a file.

    Args:
        path: the path, as for `find`.
        what: what the file is, such as 'a config', for the error message.

    Raises:
        UserError: the file is missing or damaged.
    """
    path = find(path)
    try:
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
        if not isinstance(found, dict):
            raise ValueError('it is not a JSON object')
        return found
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as {what}: {error}.') from None


@contextlib.contextmanager
def replacing(path: str) -> Iterator[str]:
    """Give another path to write to, which gets this name only when it is complete.

    Processes that write the same file at once do not meet: the last one's remains.

    Args:
        path: the file to make or to replace.
    """
    directory, name = os.path.split(path)
    # Processes of two containers may have one number.
    writer = f'{os.uname().nodename}.{os.getpid()}'
    temporary = os.path.join(directory, f'.{name}.{writer}.tmp')
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
