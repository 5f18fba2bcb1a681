"""Files that a run writes as it goes: metrics.jsonl and TensorBoard events."""

import json
import math
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import tensorboardX
from tensorboardX import summary
from tensorboardX.proto import event_pb2

__all__ = ['MetricWriter', 'NoWriter', 'without_nan', 'write_atomically', 'Writer']


class MetricWriter(Protocol):
    """A writer of lines of metrics."""

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        """Write one line of a step; `timing` differs between equal runs."""

    def sync(self) -> None:
        """Put all lines on the disk, before a checkpoint that relies on them."""

    def close(self) -> None:
        """Close the files."""


class NoWriter:
    """The writer of a process that does not write."""

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        """Write nothing."""

    def sync(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class Writer:
    """Appends to metrics.jsonl and to TensorBoard events of one work directory.

    metrics.jsonl holds no times, so that a killed and resumed run leaves the same bytes
    as an uninterrupted one.
    """

    def __init__(self, workdir: str, first_step: int) -> None:
        """Open the files; drop what a killed run wrote after `first_step`."""
        path = os.path.join(workdir, 'metrics.jsonl')
        _drop_after(path, first_step)
        self._file = open(path, 'a', encoding='utf-8')
        # SummaryWriter writes in a background thread. On a full disk that thread dies,
        # the queue fills, the run blocks forever, and tracebacks appear at exit. So
        # events are written here, synchronously.
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}'
        self._events = tensorboardX.RecordWriter(os.path.join(workdir, name))
        self._event(first_step + 1, file_version='brain.Event:2')
        # This makes TensorBoard drop the events of a killed run from this step on.
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
        """Write one line; `timing` goes to TensorBoard alone, `alarms` do not."""
        line: dict[str, Any] = {'step': step, 'split': split, **without_nan(scalars)}
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
        """Put all lines on the disk."""
        os.fsync(self._file.fileno())
        self._events.flush()

    def close(self) -> None:
        """Close both files, even if the disk has no space for the rest of the lines."""
        try:
            self._file.close()
        finally:
            self._events.close()


def without_nan(numbers: Any) -> Any:
    """Return numbers, nested in dicts and lists, as JSON can hold them.

    JSON has neither NaN nor infinity: null stands for a number that was not finite.
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


def write_atomically(path: str, text: str) -> None:
    """Write a text file so that a reader sees the whole old or the whole new text."""
    with open(path + '.tmp', 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(path + '.tmp', path)
