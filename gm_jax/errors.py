"""The one exception that is shown to a user as a sentence, without a traceback."""

__all__ = ['UserError']


class UserError(Exception):
    """A mistake that the user can correct: one clear sentence, exit status 2."""
