"""The one exception that is shown to a user as a sentence, without a traceback."""

import difflib
from collections.abc import Iterable

__all__ = ['did_you_mean', 'UserError']

# The most characters of a sentence on the screen.
_MOST = 1000


class UserError(Exception):
    """A mistake that the user can correct: one clear sentence, exit status 2."""

    def __init__(self, sentence: str) -> None:
        """Take the sentence; what it quotes may have line breaks, or no end."""
        one_line = ' '.join(sentence.split())
        if len(one_line) > _MOST:
            one_line = f'{one_line[:_MOST - 200]} ... {one_line[-200:]}'
        super().__init__(''.join(
            c if c.isprintable() else c.encode('unicode_escape').decode()
            for c in one_line
        ))


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ': did you mean NAME?' for the name nearest to a word, '' without one."""
    names = {_plain(name): name for name in known}
    close = difflib.get_close_matches(_plain(word), names, n=1)
    return f': did you mean {names[close[0]]}?' if close else ''


def _plain(name: str) -> str:
    return name.lower().replace('_', '').replace('-', '')
