"""How long the final evaluation may take: by default no longer than anybody waits."""

import time
from collections.abc import Callable

import numpy as np

from gm_jax.training import processes
from gm_jax.training.contracts import ByExample
from gm_jax.training.progress import say

__all__ = ['allowed', 'choose_chunks', 'warning']

# The evaluation may take this long, or this share of the time of training.
_SECONDS, _SHARE = 600.0, 0.1


def allowed(train_seconds: float) -> float:
    """Return how many seconds the evaluation of a model may take.

    Args:
        train_seconds: the time of its training.
    """
    return max(_SECONDS, _SHARE * train_seconds)


def choose_chunks(evaluation: ByExample, allowed: float, each: float) -> int:
    """Return the most chunks that take `allowed` seconds, or the fewest there can be.

    Args:
        evaluation: what is evaluated.
        allowed: seconds, by the clock of this process.
        each: seconds that a chunk takes, by the same clock.

    Returns:
        The number, the same in all processes: the clock of the primary one counts.
    """
    measured = processes.from_primary(np.array([allowed, each], np.float32))
    allowed, each = measured.tolist()
    most, size = evaluation.test_chunks, evaluation.chunk_size
    choices = (most, *evaluation.fewer_chunks)
    num = next((n for n in choices if n * each <= allowed), choices[-1])
    if num < most:
        say(
            f'{num * size} samples of each image, which take about '
            f'{_duration(num * each)}: --test_samples={most * size} would take '
            f'{_duration(most * each)}.'
        )
    return num


def warning(
    report: Callable[[float], None], total: int, allowed: float
) -> Callable[[float], None]:
    """Return `report` that also says, once, if all examples will take long."""
    beginning: list[tuple[float, float]] = []  # when the first were done, and how many
    told = False

    def telling(done: float) -> None:
        nonlocal told
        report(done)
        beginning.append((time.monotonic(), done))
        (then, before), (now, _) = beginning[0], beginning[-1]
        del beginning[1:]
        if not told and done > before:
            told = True
            seconds = (now - then) / (done - before) * total
            if seconds > allowed:
                say(
                    f'the evaluation of {total:,} images takes about '
                    f'{_duration(seconds)}: --test_examples=N evaluates N of them.'
                )

    return telling


def _duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 100:
        return f'{seconds:.0f} seconds'
    if seconds < 6000:
        return f'{seconds / 60:.0f} minutes'
    return f'{seconds / 3600:.0f} hours'
