"""What a run shows on the screen: sentences, and a progress bar on a terminal."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from rich import progress, status

from gm_jax.training import processes, screen, signals

__all__ = ['closed', 'doing', 'Progress', 'reporter', 'say']


def say(*parts: Any) -> None:
    """Print a line at once, also into a pipe, if this is the primary process."""
    if processes.is_primary():
        print(*parts, flush=True)


# The bar that is on the screen, if any; there is only one screen. Another thread may
# have opened it.
_on_screen: list[progress.Progress] = []
_of_thread = threading.local()  # .bars: those of `_on_screen` that this thread opened


def _shown() -> progress.Progress | None:
    """Return the bar that is on the screen, if any."""
    return next(iter(_on_screen[-1:]), None)


@contextlib.contextmanager
def doing(what: str) -> Iterator[None]:
    """Show what takes long, such as 'compiling the sampler', until it is over.

    On a terminal the text is in the bar or, if there is no bar, beside a spinner;
    elsewhere it is printed as a line.
    """
    if not processes.is_primary():
        yield
    elif bar := _shown():
        task = bar.tasks[-1]
        before = task.fields['text']
        bar.update(task.id, text=what, refresh=True)
        try:
            yield
        finally:
            bar.update(task.id, text=before)
    elif screen.has_bars():
        with status.Status(what):
            yield
    else:
        say(what)
        yield


class Progress:
    """Progress: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, done: int, what: str = 'training') -> None:
        """Start at `done` of `total` steps."""
        self._total = total
        self._bar: progress.Progress | None = None
        self.shown = screen.has_bars() and processes.is_primary()  # as a bar
        if self.shown:
            self._bar = progress.Progress(
                progress.TextColumn('{task.description}'),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn('{task.fields[text]}'),
                progress.TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(
                what, total=total, completed=done, text=''
            )
            self._bar.start()
            _on_screen.append(self._bar)
            _opened().append(self._bar)

    def update(self, step: float, text: str = '', seconds_left: float = 0.0) -> None:
        """Move to `step`; `text` (if any) is shown, or printed as a line."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)
            if text:
                self._bar.update(self._task, text=text)
        elif text:
            say(f'step {step}/{self._total}  {text}  {_clock(seconds_left)} left')

    def note(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            say(text)

    def close(self) -> None:
        """Leave the bar on the screen as it is."""
        if self._bar is not None:
            _close(self._bar)
            self._bar = None


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Close the bars that an error or Ctrl-C leaves open, where Python goes on."""
    num = len(_opened())
    try:
        yield
    finally:
        for bar in _opened()[num:]:
            _close(bar)


def _opened() -> list[progress.Progress]:
    """Return the bars on the screen that this thread has opened."""
    if not hasattr(_of_thread, 'bars'):
        _of_thread.bars = []
    bars: list[progress.Progress] = _of_thread.bars
    return bars


def _close(bar: progress.Progress) -> None:
    bar.stop()
    for bars in (_on_screen, _opened()):
        if bar in bars:
            bars.remove(bar)


def _clock(seconds: float) -> str:
    return f'{int(seconds) // 60}:{int(seconds) % 60:02d}'


def reporter(what: str, total: int) -> Callable[[float], None]:
    """Return a function that shows how many of `total` are done.

    It shows a bar on a terminal or, if there is one already, a text beside it, and
    elsewhere prints a line every ten seconds. The number done need not be whole.
    """
    if shown := _shown():
        return _beside_the_bar(shown, what, total)
    bar, last_line = Progress(total, 0, what), time.monotonic()
    first: tuple[float, float] | None = None  # when it was reported, and what

    def report(done: float) -> None:
        nonlocal first, last_line
        signals.check()
        bar.update(done)
        now = time.monotonic()
        first = first or (now, done)  # the time before has compilation in it
        if not bar.shown and now - last_line > 10:
            last_line = now
            left = ''
            if done > first[1]:
                seconds = (now - first[0]) / (done - first[1]) * (total - done)
                left = f'  {_clock(seconds)} left'
            say(f'{what}: {int(done)} of {total}{left}')
        if done >= total:
            bar.close()

    return report


def _beside_the_bar(
    bar: progress.Progress, what: str, total: int
) -> Callable[[float], None]:
    """Return a function that shows in a bar on the screen how many are done."""
    task = bar.tasks[-1]
    before = task.fields['text']

    def report(done: float) -> None:
        signals.check()
        text = f'{what}: {int(done)} of {total}' if done < total else before
        bar.update(task.id, text=text)

    return report
