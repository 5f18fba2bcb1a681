"""Collects the metrics of training steps and reports them to files and the user."""

import dataclasses
import functools
import math
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gm_jax.training.contracts import Alarms
from gm_jax.training.progress import Progress
from gm_jax.training.train_state import Metrics
from gm_jax.training.writers import MetricWriter

__all__ = ['MAX_IN_FLIGHT', 'Note', 'Recorder', 'Skipped']

# Dispatches that may wait on the device: enough to keep it busy, few enough that a
# run told to stop has only seconds of work to finish first.
MAX_IN_FLIGHT = 2


@dataclasses.dataclass
class Note:
    """The loop's own numbers, which every checkpoint keeps beside the state.

    Attributes:
        sums: sum of each metric over the steps since the last line, without skipped
            ones.
        count: steps added to `sums`.
        skipped: steps skipped since the last line.
        run: steps skipped in a row up to now.
        longest: the most steps skipped in a row since the last line.
        rollbacks: times the run went back after losses that were not finite.
        seconds: time spent in training.
        best_loss: the lowest loss of an evaluation; None before the first.
        best_step: its step, that of the best checkpoint.
    """

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    count: int = 0
    skipped: int = 0
    run: int = 0
    longest: int = 0
    rollbacks: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    best_step: int | None = None


class Skipped(NamedTuple):
    """Steps between two lines of metrics that were skipped for a non-finite loss.

    Attributes:
        longest: the most steps skipped in a row.
        share: the share of steps that were skipped.
    """

    longest: int
    share: float


class Recorder:
    """Adds up metrics; writes a line of means at each interval."""

    def __init__(
        self,
        writers: Sequence[MetricWriter],
        step: int,
        num_steps: int,
        per_step: int,
        note: Note,
        alarms: Alarms | None = None,
        *,
        learning_rate: Callable[[int], Any] | None = None,
        loss_unit: str = '',
    ) -> None:
        """Begin at `step`.

        Args:
            writers: where lines and pictures go; they stay open.
            step: the step from which the run goes on.
            num_steps: the last step.
            per_step: examples of a step, in all of its minibatches.
            note: the note of the checkpoint.
            alarms: called with the split and the metrics of each line.
            learning_rate: the learning rate of the update after a number of steps.
            loss_unit: the unit of the loss, shown beside it.
        """
        self.note = note
        self._alarms: Alarms = alarms or (lambda split, scalars: [])
        self._pending: list[tuple[int, Metrics]] = []
        self._learning_rate, self._loss_unit = learning_rate, loss_unit
        self._num_steps, self._per_step = num_steps, per_step
        self._writers = writers
        self._bar = Progress(num_steps, step)
        self._start = time.monotonic() - note.seconds
        self._clock, self._clock_step = time.monotonic(), step

    def add(self, step: int, num: int, values: Metrics) -> None:
        """Add the metrics [K] of a dispatch of `num` <= K steps that ends at `step`."""
        self._pending.append((num, values))
        if len(self._pending) > MAX_IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - MAX_IN_FLIGHT][1])
        self._bar.update(step)

    def settle(self) -> Note:
        """Add up what is pending; return the note to keep with a checkpoint."""
        note = self.note
        # One addition after the other in float64: the sum does not depend on how the
        # steps were split into dispatches.
        for num, values in self._pending:
            rows = np.stack([np.asarray(v, np.float64)[:num] for v in values.values()])
            finite = np.all(np.isfinite(rows), axis=0)
            for good in finite:
                note.run = 0 if good else note.run + 1
                note.longest = max(note.longest, note.run)
            rows = rows[:, finite]
            note.skipped += num - rows.shape[1]
            for name, row in zip(values, rows.tolist()):
                note.sums[name] = functools.reduce(
                    operator.add, row, note.sums.get(name, 0.0)
                )
            note.count += rows.shape[1]
        self._pending.clear()
        note.seconds = time.monotonic() - self._start
        for writer in self._writers:
            writer.sync()
        return note

    def train_line(self, step: int, skipped_total: int) -> Skipped:
        """Write the mean of each metric over the steps since the last line.

        Returns:
            The steps among these that were skipped.
        """
        note = self.settle()
        count = note.count or math.nan  # all steps were skipped
        scalars = {name: value / count for name, value in note.sums.items()}
        skipped = Skipped(note.longest, note.skipped / (note.skipped + note.count))
        note.sums, note.count, note.skipped, note.longest = {}, 0, 0, 0
        now = time.monotonic()
        rate = (step - self._clock_step) * self._per_step / (now - self._clock)
        self.restart_clock(step)
        line = dict(scalars, skipped_steps=skipped_total)
        if self._learning_rate is not None:  # of the last update
            # Steps that are skipped do not count in the schedule.
            updates = max(step - skipped_total, 1)
            line['learning_rate'] = float(self._learning_rate(updates - 1))
        alarms = self._alarms('train', scalars) if scalars else []
        for writer in self._writers:
            writer.write(step, 'train', line, alarms, images_per_s=rate)
        left = (self._num_steps - step) * self._per_step / rate
        losses = ''.join(
            self._told(name, value) + '  '
            for name, value in scalars.items() if name.endswith('loss')
        )
        self._bar.update(step, f'{losses}{rate:,.0f} images/s', left)
        self._ring(alarms)
        return skipped

    def eval_line(self, step: int, split: str, scalars: Mapping[str, float]) -> None:
        """Write the result of an evaluation."""
        alarms = self._alarms(split, scalars)
        for writer in self._writers:
            writer.write(step, split, scalars, alarms)
        values = '  '.join(self._told(*number) for number in scalars.items())
        self._bar.note(f'step {step}: {split} {values}')
        self._ring(alarms)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, C]."""
        for writer in self._writers:
            writer.picture(step, name, image)

    def _told(self, name: str, value: float) -> str:
        unit = f' {self._loss_unit}' if name == 'loss' and self._loss_unit else ''
        return f'{name} {value:.4f}{unit}'

    def _ring(self, alarms: Sequence[str]) -> None:
        for sentence in alarms:
            self._bar.note(f'ALARM: {sentence}.')

    def restart_clock(self, step: int) -> None:
        """Measure the training speed from here on, after work that is not training."""
        self._clock, self._clock_step = time.monotonic(), step

    def close(self) -> None:
        """Leave the bar on the screen."""
        self._bar.close()
