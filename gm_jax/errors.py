"""The one exception that is shown to a user as a sentence, without a traceback."""

import difflib
from collections.abc import Iterable

__all__ = ['did_you_mean', 'UserError']


class UserError(Exception):
    """A mistake that the user can correct: one clear sentence, exit status 2."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ': did you mean NAME?' for the name nearest to a word, '' without one."""
    names = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(word), names, n=1)
    return f': did you mean {names[close[0]]}?' if close else ''


def _plain(name: str) -> str:
    return name.lower().replace('_', '').replace('-', '')
