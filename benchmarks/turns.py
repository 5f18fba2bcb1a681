"""Times two loops in turns, on a machine that is quiet."""

import os
import pathlib
import statistics
import time
from collections.abc import Callable

__all__ = ['alone', 'Busy', 'compare', 'Runner', 'timed']

Runner = Callable[[int], None]  # runs this many steps and waits for them


class Busy(Exception):
    """Other processes use so much of the machine that times say nothing."""


def _busy_seconds() -> float:
    """Return the CPU seconds that all processes have used since boot."""
    ticks = [int(x) for x in pathlib.Path('/proc/stat').read_text().split()[1:9]]
    idle, waiting = ticks[3:5]
    return (sum(ticks) - idle - waiting) / os.sysconf('SC_CLK_TCK')


def timed(run: Runner, num_steps: int) -> tuple[float, float]:
    """Time `num_steps` steps, and measure the CPU that others use meanwhile.

    Args:
        run: the loop to time.
        num_steps: steps to run.

    Returns:
        (seconds, the share of all cores' time that other processes used).
    """
    busy, own, start = _busy_seconds(), time.process_time(), time.perf_counter()
    run(num_steps)
    seconds = time.perf_counter() - start
    others = _busy_seconds() - busy - (time.process_time() - own)
    return seconds, min(max(others / seconds / (os.cpu_count() or 1), 0.0), 1.0)


def alone(run: Runner, *, turns: int, num_steps: int, max_load: float) -> float:
    """Time one loop.

    Args:
        run: the loop.
        turns: how many quiet turns to time.
        num_steps: steps per turn.
        max_load: the share of the cores that others may use in a quiet turn.

    Returns:
        The median over the quiet turns, in seconds per step.

    Raises:
        Busy: more than `turns` turns were not quiet.
    """
    quiet: list[float] = []
    for _ in range(2 * turns + 1):
        seconds, load = timed(run, num_steps)
        if load <= max_load:
            quiet.append(seconds / num_steps)
        if len(quiet) == turns:
            return statistics.median(quiet)
    raise Busy(f'only {len(quiet)} of {2 * turns + 1} turns were quiet')


def compare(
    ours: Runner, theirs: Runner, *, turns: int, num_steps: int, max_load: float,
) -> dict[str, float | int | list[float]]:
    """Time two loops in turns, alternating which one goes first.

    Taking turns does not cancel the load of other processes: one busy core slows
    PyTorch, whose threads wait for each other after every operation, many times more
    than it slows XLA, and would flatter gm_jax. So only quiet turns count.

    Args:
        ours: the loop to report.
        theirs: the loop to compare with.
        turns: how many quiet turns to time.
        num_steps: steps per turn.
        max_load: the share of the cores that others may use in a quiet turn.

    Returns:
        Medians over the quiet turns, `seconds` and `torch_seconds` per step; their
        `ratio`, the median of the turns' ratios, with the least and the greatest of
        them; and how many turns were not quiet.

    Raises:
        Busy: more than `turns` turns were not quiet.
    """
    quiet: list[tuple[float, float]] = []
    loads: list[float] = []
    while len(quiet) < turns and len(loads) - len(quiet) <= turns:
        order = (ours, theirs) if len(loads) % 2 else (theirs, ours)
        times = {run: timed(run, num_steps) for run in order}
        loads.append(max(load for _, load in times.values()))
        if loads[-1] <= max_load:
            quiet.append((times[ours][0], times[theirs][0]))
    if len(quiet) < turns:
        raise Busy(
            f'other processes used {statistics.median(loads):.0%} of the CPU: only '
            f'{len(quiet)} of {len(loads)} turns were quiet'
        )
    seconds, torch_seconds = map(statistics.median, zip(*quiet, strict=True))
    ratios = [b / a for a, b in quiet]
    return {
        'seconds': seconds / num_steps,
        'torch_seconds': torch_seconds / num_steps,
        'ratio': round(statistics.median(ratios), 2),
        'ratio_range': [round(min(ratios), 2), round(max(ratios), 2)],
        'turns': turns,
        'turns_not_quiet': len(loads) - len(quiet),
    }
