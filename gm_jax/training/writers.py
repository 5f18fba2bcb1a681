"""Files that a run writes as it goes: metrics.jsonl and TensorBoard events.

TensorBoard overlays the curves of one tag in different directories. So a quantity has
the same name, its tag, in all of these, each with an event file of its own:

    train, validation, test  the lines of metrics of a split
    final                    the numbers of results.json, the last pictures and the
                             settings: a row of the HPARAMS tab

The work directory itself has an event file with the pictures of samples.
"""

import contextlib
import json
import math
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorboardX

# protobuf has its types in a package of its own.
from google.protobuf import message  # type: ignore[import-untyped]
from tensorboardX import summary
from tensorboardX.proto import event_pb2, summary_pb2

from gm_jax import plotting
from gm_jax.data import files

__all__ = ['Make', 'MetricWriter', 'without_nan', 'write_atomically', 'Writer']

_SPLITS = 'train', 'validation', 'test'


class MetricWriter(Protocol):
    """Where a training run writes its numbers and pictures, in the primary process.

    After a kill, and when training goes back to a checkpoint, the lines after that
    checkpoint come again: a line replaces an earlier one of its step and split.
    """

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        """Write one line of metrics.

        Args:
            step: the training step.
            split: 'train', 'validation' or 'test'.
            scalars: the numbers by name; docs/metrics.md explains them.
            alarms: a sentence for each thing that looks wrong.
            **timing: numbers that differ between equal runs, such as images_per_s.
        """

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture, uint8 [H, W, C]."""

    def final(
        self, step: int, numbers: Mapping[str, Any], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Write what the evaluation at the end has found.

        Args:
            step: the training step of the evaluated state.
            numbers: those under `metrics` of results.json: numbers, text and lists.
            pictures: the last pictures by name, uint8 [H, W, C] each.
        """

    def sync(self) -> None:
        """Put all lines in a safe place, before a checkpoint that relies on them."""

    def close(self) -> None:
        """Close the files, at the end or after an error."""


# Makes a writer from the work directory, the settings as config.json has them, and the
# step from which training goes on, 0 for a new run.
Make = Callable[[str, Mapping[str, Any], int], MetricWriter]


class Writer:
    """Appends to metrics.jsonl and to TensorBoard events of one work directory.

    metrics.jsonl holds no times, so that a killed and resumed run leaves the same bytes
    as an uninterrupted one.
    """

    def __init__(
        self, workdir: str, settings: Mapping[str, Any], first_step: int
    ) -> None:
        """Open the files; drop what a killed run wrote after `first_step`."""
        path = os.path.join(workdir, 'metrics.jsonl')
        _drop_after(path, first_step)
        self._workdir, self._first_step = workdir, first_step
        self._settings = settings
        self._file = open(path, 'a', encoding='utf-8')
        self._run = _Events(workdir, first_step)
        self._splits = {
            split: _Events(os.path.join(workdir, split), first_step)
            for split in _SPLITS if os.path.isdir(os.path.join(workdir, split))
        }

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
        if split not in self._splits:
            directory = os.path.join(self._workdir, split)
            self._splits[split] = _Events(directory, self._first_step)
        for name, value in {**scalars, **timing}.items():
            self._splits[split].scalar(step, name, value)

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        """Write a picture for TensorBoard."""
        self._run.picture(step, name, image)

    def final(
        self, step: int, numbers: Mapping[str, Any], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Write the settings, numbers that are scalars, and pictures for TensorBoard.

        They replace those of an earlier evaluation.
        """
        events = _Events(os.path.join(self._workdir, 'final'), -1)
        with contextlib.closing(events):
            for part in _hparams(self._settings):
                events.write(step, summary=part)
            for name, value in numbers.items():
                if isinstance(value, (int, float)):
                    events.scalar(step, name, value)
            for name, picture in pictures.items():
                events.picture(step, name, picture)
            events.sync()

    def sync(self) -> None:
        """Put all lines on the disk."""
        os.fsync(self._file.fileno())
        for events in (self._run, *self._splits.values()):
            events.sync()

    def close(self) -> None:
        """Close all files, even if the disk has no space for the rest of the lines."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            for events in (self._run, *self._splits.values()):
                stack.callback(events.close)


class _Events:
    """The TensorBoard events of one directory, in one file.

    SummaryWriter writes in a background thread. On a full disk that thread dies, the
    queue fills, the run blocks forever, and tracebacks appear at exit. So events are
    written here, synchronously.
    """

    def __init__(self, directory: str, last_step: int) -> None:
        """Open a new file; copy the events up to `last_step`, delete the old file."""
        os.makedirs(directory, exist_ok=True)
        # If a copy was interrupted, there are two files: the old one is complete.
        old = sorted(Path(directory).glob('events.out.tfevents.*'), key=_number)
        kept = list(_read(old[0], last_step)) if old else []
        number = _number(old[-1]) + 1 if old else 0
        name = f'events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{number}'
        self._file = tensorboardX.RecordWriter(os.path.join(directory, name))
        self.write(0, file_version='brain.Event:2')
        # A TensorBoard that has read the old file forgets it here.
        start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
        self.write(0, session_log=start)
        for event in kept:
            self._file.write(event.SerializeToString())
        if old:
            self.sync()
        for path in old:
            path.unlink()

    def write(self, step: int, **content: Any) -> None:
        event = event_pb2.Event(step=step, wall_time=time.time(), **content)
        self._file.write(event.SerializeToString())

    def scalar(self, step: int, name: str, value: float) -> None:
        # Not by tensorboardX, which warns of each NaN on the screen.
        number = summary_pb2.Summary.Value(tag=name, simple_value=float(value))
        self.write(step, summary=summary_pb2.Summary(value=[number]))

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        png = plotting.to_png(image)
        width, height = struct.unpack_from('>II', png, 16)
        picture = summary_pb2.Summary.Image(
            height=height, width=width, colorspace=image.shape[2],
            encoded_image_string=png,
        )
        value = summary_pb2.Summary.Value(tag=name, image=picture)
        self.write(step, summary=summary_pb2.Summary(value=[value]))

    def sync(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def _number(path: Path) -> int:
    """Return the number at the end of the name of an event file."""
    end = path.name.rpartition('.')[2]
    return int(end) if end.isdecimal() else -1


def _read(path: Path, last_step: int) -> Iterator[event_pb2.Event]:
    """Return the summaries of an event file up to a step.

    A record is its length in 8 bytes, a checksum of 4, the data, and a checksum of 4.
    The last one may be cut short, if the run was killed.
    """
    content, start = path.read_bytes(), 0
    while len(content) >= start + 12:
        size, = struct.unpack_from('<Q', content, start)
        end = start + 16 + size
        if end > len(content):
            return
        try:
            event = event_pb2.Event.FromString(content[start + 12:end - 4])
        except message.DecodeError:
            return
        if event.HasField('summary') and event.step <= last_step:
            yield event
        start = end


def _hparams(settings: Mapping[str, Any]) -> Sequence[summary_pb2.Summary]:
    """Return start and end of a session of the HPARAMS tab."""
    # Without the declaration of an experiment, which would be one for all runs beside
    # each other, TensorBoard finds the columns itself.
    return summary.hparams(settings, {})[1:]


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
    with files.replacing(path) as new, open(new, 'w', encoding='utf-8') as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
