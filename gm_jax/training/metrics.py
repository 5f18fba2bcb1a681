"""What a run tells: metrics.jsonl, TensorBoard events, lines or a progress bar."""

import dataclasses
import functools
import json
import math
import operator
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import tensorboardX
from rich import progress
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from gm_jax.training import distributed

# Dispatches that may wait on the device: enough to keep it busy, few enough that a
# run told to stop has only seconds of work to finish first.
MAX_IN_FLIGHT = 2


class NoWriter:
    """What a process has that is not to write; see Writer."""

    def write(self, *args: Any, **timing: float) -> None:
        """Writes nothing."""

    def sync(self) -> None:
        """Has nothing to put on the disk."""

    def close(self) -> None:
        """Has nothing to close."""


class Writer:
    """Appends to metrics.jsonl and to TensorBoard events of one work directory.

    metrics.jsonl has nothing of the clock in it, so that a run that was killed and
    went on leaves the same bytes as one that was not.
    """

    def __init__(self, workdir: str, first_step: int) -> None:
        """Opens the files; drops what a killed run wrote after `first_step`."""
        path = os.path.join(workdir, 'metrics.jsonl')
        _drop_after(path, first_step)
        self._file = open(path, 'a', encoding='utf-8')
        # No SummaryWriter: of a full disk only its thread would know. With that dead
        # and its queue full, the run waits forever; and what is left to be written
        # fails again as Python exits: tracebacks after the run's last sentence.
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
        self._events = tensorboardX.RecordWriter(os.path.join(workdir, name))
        self._event(first_step + 1, file_version='brain.Event:2')
        # With it TensorBoard drops the events of a killed run from this step on.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self._event(first_step + 1, session_log=start)

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        """Writes one line; `timing` goes to TensorBoard alone, `alarms` do not."""
        line = {'step': step, 'split': split, **without_nan(scalars)}
        if alarms:
            line['alarms'] = list(alarms)
        self._file.write(json.dumps(line) + '\n')
        self._file.flush()
        for name, value in {**scalars, **timing}.items():
            self._event(step, summary=summary.scalar(f'{split}/{name}', value))

    def _event(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._events.write(event.SerializeToString())

    def sync(self) -> None:
        """Puts all lines on the disk: before a checkpoint says they are there."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Closes both, also where the disk has no space for what is left."""
        try:
            self._file.close()
        finally:
            self._events.close()


def without_nan(numbers: Any) -> Any:
    """Returns numbers, nested in dicts and lists, as JSON can hold them.

    It has neither NaN nor infinity: null says that there was a number, and no good one.
    """
    if isinstance(numbers, Mapping):
        return {name: without_nan(value) for name, value in numbers.items()}
    if isinstance(numbers, (list, tuple)):
        return [without_nan(value) for value in numbers]
    bad = isinstance(numbers, float) and not math.isfinite(numbers)
    return None if bad else numbers


def _drop_after(path: str, step: int) -> None:
    if not os.path.exists(path):
        return
    kept = []
    with open(path, encoding='utf-8', errors='replace') as file:
        for line in file:
            try:
                if line.endswith('\n') and json.loads(line)['step'] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # a line that was being written when the run was killed
    write_atomically(path, ''.join(kept))


def reporter(what: str, total: int) -> Callable[[int], None]:
    """Returns a function that shows how many of `total` are done.

    By a bar on a terminal, by a line every ten seconds elsewhere.
    """
    bar, told = Progress(total, 0, what), time.monotonic()

    def report(done: int) -> None:
        nonlocal told
        bar.update(done)
        if not bar.shown and time.monotonic() - told > 10:
            told = time.monotonic()
            say(f'{what}: {done} of {total}')
        if done >= total:
            bar.close()

    return report


def write_atomically(path: str, text: str) -> None:
    """Writes a text file so that a reader sees the old one or the new one, whole."""
    with open(path + '.tmp', 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + '.tmp', path)


def say(*parts: Any) -> None:
    """Prints a line at once, also into a pipe; of several processes the first does."""
    if distributed.is_primary():
        print(*parts, flush=True)


class Progress:
    """Progress: a bar on a terminal, plain lines elsewhere."""

    def __init__(self, total: int, done: int, what: str = 'training') -> None:
        """Starts at `done` of `total` steps."""
        self._total = total
        self._bar = None
        self.shown = sys.stdout.isatty() and distributed.is_primary()  # as a bar
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

    def update(self, step: int, text: str = '', seconds_left: float = 0.0) -> None:
        """Moves to `step`; `text` (if any) is shown, or printed as a line."""
        if self._bar is not None:
            fields = {'text': text} if text else {}
            self._bar.update(self._task, completed=step, **fields)
        elif text:
            left = f'{int(seconds_left) // 60}:{int(seconds_left) % 60:02d} left'
            say(f'step {step}/{self._total}  {text}  {left}')

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.console.print(text, highlight=False)
        else:
            say(text)

    def close(self) -> None:
        """Leaves the bar on the screen as it is."""
        if self._bar is not None:
            self._bar.stop()


@dataclasses.dataclass
class Note:
    """The loop's own numbers, which every checkpoint keeps beside the state."""

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    count: int = 0  # steps in the sums: since the last line, but for skipped ones
    skipped: int = 0  # steps skipped since the last line
    run: int = 0  # steps skipped in a row up to now
    longest: int = 0  # and the most since the last line
    rollbacks: int = 0  # times the run went back after non-finite losses
    seconds: float = 0.0  # spent in training


class Skipped(NamedTuple):
    """Steps between two lines of metrics that were skipped for a non-finite loss."""

    longest: int  # the most in a row
    share: float  # of all of them


class Recorder:
    """Collects the metrics of training steps and tells them to files and the user."""

    def __init__(
        self,
        workdir: str,
        step: int,
        num_steps: int,
        batch_size: int,
        note: Note,
        alarms: Callable[[str, Mapping[str, float]], list[str]] | None = None,
    ) -> None:
        """Opens the files of `workdir` to go on from `step`.

        `alarms` is told the split and the metrics of each line and returns sentences on
        what is wrong.
        """
        self.note = note
        self._alarms = alarms or (lambda split, scalars: [])
        self._pending: list[tuple[int, dict[str, jax.Array]]] = []
        self._num_steps, self._batch_size = num_steps, batch_size
        primary = distributed.is_primary()
        self._writer = Writer(workdir, step) if primary else NoWriter()
        self._bar = Progress(num_steps, step)
        self._start = time.monotonic() - note.seconds
        self._clock, self._clock_step = time.monotonic(), step

    def add(self, step: int, num: int, values: dict[str, jax.Array]) -> None:
        """Takes the metrics [K] of a dispatch of `num` <= K steps, up to `step`."""
        self._pending.append((num, values))
        if len(self._pending) > MAX_IN_FLIGHT:
            jax.block_until_ready(self._pending[-1 - MAX_IN_FLIGHT][1])
        self._bar.update(step)

    def settle(self) -> Note:
        """Adds up what is pending; returns the note to keep with a checkpoint."""
        note = self.note
        # One addition after the other in float64: the same sum however the steps
        # were cut into dispatches.
        for num, values in self._pending:
            rows = np.stack([np.asarray(v, np.float64)[:num] for v in values.values()])
            finite = np.isfinite(rows).all(axis=0)
            for good in finite.tolist():
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
        self._writer.sync()
        return note

    def train_line(self, step: int, skipped_total: int) -> Skipped:
        """Writes the mean of each metric over the steps since the last line.

        Returns:
            What of these steps was skipped.
        """
        note = self.settle()
        count = note.count or math.nan  # all steps were skipped
        scalars = {name: value / count for name, value in note.sums.items()}
        skipped = Skipped(note.longest, note.skipped / (note.skipped + note.count))
        note.sums, note.count, note.skipped, note.longest = {}, 0, 0, 0
        now = time.monotonic()
        rate = (step - self._clock_step) * self._batch_size / (now - self._clock)
        self.restart_clock(step)
        line = dict(scalars, skipped_steps=skipped_total)
        alarms = self._alarms('train', scalars) if scalars else []
        self._writer.write(step, 'train', line, alarms, images_per_s=rate)
        left = (self._num_steps - step) * self._batch_size / rate
        losses = ''.join(
            f'{name} {value:.4f}  '
            for name, value in scalars.items() if name.endswith('loss')
        )
        self._bar.update(step, f'{losses}{rate:,.0f} images/s', left)
        self._ring(alarms)
        return skipped

    def eval_line(self, step: int, split: str, scalars: dict[str, float]) -> None:
        """Writes the result of an evaluation."""
        alarms = self._alarms(split, scalars)
        self._writer.write(step, split, scalars, alarms)
        values = '  '.join(f'{name} {value:.4f}' for name, value in scalars.items())
        self._bar.note(f'step {step}: {split} {values}')
        self._ring(alarms)

    def _ring(self, alarms: Sequence[str]) -> None:
        for sentence in alarms:
            self._bar.note(f'ALARM: {sentence}.')

    def restart_clock(self, step: int) -> None:
        """Measures the speed of training from here: after work that is not training."""
        self._clock, self._clock_step = time.monotonic(), step

    def close(self) -> None:
        """Closes files and bar."""
        self._bar.close()
        self._writer.close()
