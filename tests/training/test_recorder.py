"""What a run tells: the same bytes after a kill, lines where there is no terminal."""

import contextlib
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tensorboardX import record_writer
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from gm_jax.data import files
from gm_jax.training import progress, writers
from gm_jax.training.recorder import Note, Recorder
from gm_jax.training.writers import Writer


def _write(workdir, first_step, steps) -> None:
    workdir.mkdir(exist_ok=True)
    writer = Writer(str(workdir), {}, first_step)
    for step in steps:
        writer.write(step, 'train', {'loss': step / 3}, images_per_s=1.5)
    writer.sync()
    writer.close()


@pytest.mark.parametrize('tail', [
    '', '{"step": 30, "spl', '{"step": 20, "split": "train"}', '17\n', '\0\0\0\0\0',
    '\n', '{"split": "train"}\n', '{"step": 30, "split": "train"}\n',
])
def test_going_on_leaves_the_bytes_of_a_run_that_was_not_stopped(tmp_path, tail):
    """Catch a half-written line that stays, and lines after the checkpoint."""
    _write(tmp_path / 'whole', 0, [10, 20, 30, 40])
    _write(tmp_path / 'killed', 0, [10, 20])
    path = tmp_path / 'killed' / 'metrics.jsonl'
    with open(path, 'a', encoding='utf-8') as file:
        file.write(tail)
    _write(tmp_path / 'killed', 20, [30, 40])
    assert path.read_bytes() == (tmp_path / 'whole' / 'metrics.jsonl').read_bytes()


def test_timing_is_not_in_the_file_and_nan_is_null(tmp_path):
    """Catch what makes two runs differ, and what no JSON reader takes."""
    writer = Writer(str(tmp_path), {}, 0)
    writer.write(1, 'test', {'loss': float('nan'), 'kl': np.inf, 'x': 0.5}, rate=3.0)
    writer.close()
    text = (tmp_path / 'metrics.jsonl').read_text()
    assert text == (
        '{"step": 1, "split": "test", "loss": null, "kl": null, "x": 0.5}\n'
    )


needs_dev_full = pytest.mark.skipif(
    not os.path.exists('/dev/full'), reason='/dev/full is of Linux'
)


def _events(workdir) -> list[event_pb2.Event]:
    path, = workdir.glob('events.out.tfevents.*')
    content, events = path.read_bytes(), []
    while content:
        size, = struct.unpack('<Q', content[:8])  # and a checksum of 4 bytes
        events.append(event_pb2.Event.FromString(content[12:12 + size]))
        content = content[16 + size:]
    return events


def test_events_for_tensorboard(tmp_path):
    """Catch events that only the end of a run writes, and no word of going on."""
    writer = Writer(str(tmp_path), {}, 20)
    writer.write(30, 'train', {'loss': 0.5}, ['an alarm'], images_per_s=3.0)
    writer.sync()
    version, start, *events = _events(tmp_path / 'train')
    writer.close()
    assert version.file_version == 'brain.Event:2'
    assert start.session_log.status == event_pb2.SessionLog.START and start.step == 0
    assert _values_of(events) == [(30, 'loss', 0.5), (30, 'images_per_s', 3.0)]
    assert all(event.wall_time > 1e9 for event in (version, start, *events))


def _values_of(events):
    """Return (step, tag, value) of each summary; the size of a picture is its value."""
    found = []
    for event in events:
        for value in event.summary.value:
            number = value.simple_value
            if value.HasField('image'):
                number = value.image.height, value.image.width
            found.append((event.step, value.tag, number))
    return found


def test_one_quantity_has_one_name_for_tensorboard(tmp_path):
    """Catch a split in the name, which would put each curve in a chart of its own."""
    chosen = {'hidden': '3,4', 'rate': 0.5, 'name': 'x'}
    writer = Writer(str(tmp_path), chosen, 0)
    writer.write(1, 'train', {'loss': 3.0})
    writer.write(1, 'validation', {'loss': 2.0})
    for loss in (5.0, 1.0):  # the second evaluation replaces the first
        numbers = {'loss': loss, 'estimator': 'exact', 'kl_nats_per_unit': [1.0]}
        picture = np.zeros((200, 400, 3), np.uint8)
        writer.final(1, numbers, {'curve': picture})
    writer.close()
    for split, loss in (('train', 3.0), ('validation', 2.0)):
        assert _values_of(_events(tmp_path / split)) == [(1, 'loss', loss)]
    start, _, *final = [
        event for event in _events(tmp_path / 'final') if event.HasField('summary')
    ]
    assert _values_of(final) == [(1, 'loss', 1.0), (1, 'curve', (200, 400))]
    settings, = start.summary.value
    assert settings.metadata.plugin_data.plugin_name == 'hparams'
    content = plugin_hparams_pb2.HParamsPluginData.FromString(
        settings.metadata.plugin_data.content
    )
    assert {
        name: getattr(value, value.WhichOneof('kind'))
        for name, value in content.session_start_info.hparams.items()
    } == chosen


@pytest.mark.parametrize('cut', [0, 3, 30])
def test_going_on_leaves_no_event_twice(tmp_path, cut):
    """Catch pictures of steps after the checkpoint, and a last event cut in two."""
    def run(first_step, steps):
        writer = Writer(str(tmp_path), {}, first_step)
        for step in steps:
            writer.write(step, 'train', {'loss': step})
            writer.picture(step, 'samples', np.full((8, 8, 1), step, np.uint8))
        writer.close()

    run(0, (1, 2, 3))
    for directory in (tmp_path, tmp_path / 'train'):
        path, = directory.glob('events.out.tfevents.*')
        path.write_bytes(path.read_bytes()[:-cut or None])
    run(2, (3, 4))
    run(4, ())
    losses = _values_of(_events(tmp_path / 'train'))
    assert losses == [(step, 'loss', step) for step in (1, 2, 3, 4)]
    pictures = _values_of(_events(tmp_path))
    assert [picture[:2] for picture in pictures] == [
        (step, 'samples') for step in (1, 2, 3, 4)
    ]


def test_a_copy_that_was_interrupted_is_made_again(tmp_path):
    """Catch the loss of all events before the last checkpoint."""
    _write(tmp_path, 0, [10, 20])
    half = tmp_path / 'train' / 'events.out.tfevents.1.host.1'
    half.write_bytes(b'')
    _write(tmp_path, 20, [30])
    steps = [step for step, tag, _ in _values_of(_events(tmp_path / 'train'))
             if tag == 'loss']
    assert steps == [10, 20, 30]


@needs_dev_full
def test_full_disk_is_told_to_the_run(tmp_path, monkeypatch):
    """Catch a thread that alone learns of it, and that the run then waits for."""
    full = open('/dev/full', 'wb')
    other = open('/dev/full', 'wb')
    files = {'train': full}
    monkeypatch.setattr(
        record_writer, 'open_file', lambda path: files.get(Path(path).parts[-2], other)
    )
    threads = threading.enumerate()
    writer = Writer(str(tmp_path), {}, 0)
    assert threading.enumerate() == threads
    with pytest.raises(OSError, match='No space left'):
        for step in range(1000):
            writer.write(step, 'train', {'loss': 0.5})
    with pytest.raises(OSError, match='No space left'):
        writer.sync()
    with pytest.raises(OSError, match='No space left'):
        writer.close()
    assert full.closed and other.closed


@needs_dev_full
def test_full_disk_is_the_last_that_is_told(tmp_path):
    """Catch what a library still tries to write, in vain, as Python exits."""
    program = (
        'import sys; from tensorboardX import record_writer; '
        'record_writer.open_file = lambda path: open("/dev/full", "wb"); '
        'from gm_jax.training.writers import Writer; '
        'writer = Writer(sys.argv[1], {}, 0); writer.write(1, "train", {"loss": 0.5}); '
        'writer.close()'
    )
    done = subprocess.run(
        [sys.executable, '-c', program, str(tmp_path)],
        capture_output=True, text=True, timeout=300,
    )
    assert done.stderr.count('Traceback') == 1  # the error that the loop is to catch
    assert done.stderr.endswith('\nOSError: [Errno 28] No space left on device\n')


def test_half_written_file_is_never_seen(tmp_path, monkeypatch):
    """Catch writing in place."""
    path = tmp_path / 'config.json'
    writers.write_atomically(str(path), 'old')

    def fail(number):
        raise OSError('no space left')

    monkeypatch.setattr(writers.os, 'fsync', fail)
    with pytest.raises(OSError):
        writers.write_atomically(str(path), 'new')
    assert path.read_text() == 'old'
    assert list(tmp_path.iterdir()) == [path]


def test_processes_may_write_the_same_file_at_once(tmp_path, monkeypatch):
    """Catch samples drawn side by side that end with a traceback."""
    path = str(tmp_path / 'samples.npz')
    with files.replacing(path) as first:
        monkeypatch.setattr(files.os, 'getpid', lambda: -1)
        Path(first).write_text('the first')
        writers.write_atomically(path, 'the second')
    assert Path(path).read_text() == 'the first'
    assert os.listdir(tmp_path) == ['samples.npz']


@contextlib.contextmanager
def _recorder(workdir, note=None, step=0, **kwargs) -> Iterator[Recorder]:
    workdir.mkdir(exist_ok=True)
    with contextlib.closing(Writer(str(workdir), {}, step)) as writer:
        recorder = Recorder([writer], step, 100, 8, note or Note(), **kwargs)
        with contextlib.closing(recorder):
            yield recorder


def _values(*losses) -> dict[str, np.ndarray]:
    return {'loss': np.array(losses, np.float32)}


def test_means_do_not_depend_on_the_dispatches(tmp_path):
    """Catch padding that counts, and sums in another order."""
    losses = np.random.default_rng(0).normal(size=20).astype(np.float32)
    with _recorder(tmp_path / 'one') as one:
        one.add(20, 20, _values(*losses, 7, 7, 7))
        one.train_line(20, 0)
    # Cut in three, and carried over a checkpoint's JSON in between.
    with _recorder(tmp_path / 'many') as many:
        many.add(3, 3, _values(*losses[:3], 7))
        many.add(8, 5, _values(*losses[3:8]))
        note = json.loads(json.dumps(vars(many.settle())))
    with _recorder(tmp_path / 'many', Note(**note), 8) as many:
        many.add(20, 12, _values(*losses[8:]))
        many.train_line(20, 0)
    lines = [
        (tmp_path / name / 'metrics.jsonl').read_text() for name in ('one', 'many')
    ]
    assert lines[0] == lines[1]
    line = json.loads(lines[0])
    np.testing.assert_allclose(line['loss'], losses.mean(dtype=np.float64))


def test_skipped_steps_are_left_out_of_the_mean(tmp_path):
    """Catch one NaN that hides a hundred good steps, and a division by zero."""
    with _recorder(tmp_path, learning_rate=float) as recorder:
        recorder.add(4, 4, _values(1, np.nan, 3, np.inf))
        assert recorder.train_line(4, 2) == (1, 0.5)
        recorder.add(6, 2, _values(np.nan, np.nan))
        assert recorder.train_line(6, 4) == (3, 1.0)  # in a row across the line
        recorder.add(7, 1, _values(5))
        assert recorder.train_line(7, 4) == (0, 0.0)
    text = (tmp_path / 'metrics.jsonl').read_text().splitlines()
    lines = [json.loads(line, parse_constant=pytest.fail) for line in text]
    assert [line['loss'] for line in lines] == [2, None, 5]
    assert [line['skipped_steps'] for line in lines] == [2, 4, 4]
    # That of the last update, which is one of three in seven steps.
    assert [line['learning_rate'] for line in lines] == [1, 1, 2]


def test_plain_lines_where_there_is_no_terminal(tmp_path, capsys):
    """Catch control characters in a log file, and silence."""
    with _recorder(tmp_path) as recorder:
        recorder.add(50, 2, _values(1, 2))
        assert capsys.readouterr().out == ''
        recorder.train_line(50, 0)
        recorder.eval_line(50, 'test', {'loss': 2.5})
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and '\x1b' not in ''.join(lines)
    assert lines[0].startswith('step 50/100  loss 1.5000  ')
    assert lines[0].endswith(' left') and 'images/s' in lines[0]
    assert lines[1] == 'step 50: test loss 2.5000'


def test_a_terminal_without_a_cursor_gets_lines(monkeypatch, capsys):
    """Catch a bar that is drawn only when it is closed."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'dumb')
    with progress.doing('compiling'):
        progress.Progress(100, 20).update(60, 'loss 1.0', 3.0)
    lines = capsys.readouterr().out.splitlines()
    assert lines == ['compiling', 'step 60/100  loss 1.0  0:03 left']


def test_bar_on_a_terminal(monkeypatch, capsys):
    """Catch a bar that fails where no other test has a terminal."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')
    bar = progress.Progress(100, 20)
    bar.update(60, 'loss 1.0', 3.0)
    bar.note('a sentence')
    bar.close()
    out = capsys.readouterr().out
    assert 'a sentence' in out and '60/100' in out and 'loss 1.0' in out


def test_what_takes_long_is_told(monkeypatch, capsys):
    """Catch a screen that stands still, or a bar that goes on telling what is over."""
    with progress.doing('compiling the sampler'):
        pass
    assert capsys.readouterr().out == 'compiling the sampler\n'
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    with progress.doing('compiling the sampler'):
        pass
    bar = progress.Progress(100, 20)
    bar.update(30, 'loss 1.0')
    with progress.doing('compiling the evaluation'):
        bar.note('a note')
    bar.update(40)
    bar.close()
    told = capsys.readouterr().out
    assert told.rindex('loss 1.0') > told.index('compiling the evaluation')
    with progress.doing('compiling the sampler'):  # there is no bar any more
        pass


def test_reporter_prints_a_line_every_ten_seconds(monkeypatch, capsys):
    """Catch hours of silence in a log file, and a line for each of 784 values."""
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: next(clock))
    report = progress.reporter('values drawn', 9)
    for done in range(1, 10):
        report(done)
    lines = capsys.readouterr().out.splitlines()
    assert lines and all(line.startswith('values drawn: ') for line in lines)
    assert 1 < len(lines) < 9
    # The first value is done at 4 s, compilation included; each takes 4 s, or 8 s where
    # a line is printed, since the clock moves whenever it is read.
    assert lines[-1].endswith(' left')


def test_reporter_is_a_bar_on_a_terminal(monkeypatch, capsys):
    """Catch a bar without its name, and one that is left running."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')
    report = progress.reporter('values drawn', 3)
    for done in range(1, 4):
        report(done)
    out = capsys.readouterr().out
    assert 'values drawn' in out and '3/3' in out


def test_threads_close_their_own_bars(monkeypatch, capsys):
    """Catch a thread that closes the bar of another, which then fails."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')

    def other():
        with progress.closed():
            progress.reporter('of another thread', 2)(1)

    with progress.closed():
        bar = progress.Progress(10, 0)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert progress._on_screen == [bar._bar]
        bar.close()
        bar = progress.Progress(10, 0)
    assert not progress._on_screen
    bar.close()  # it is closed already


def test_reporter_leaves_the_bar_of_training(monkeypatch, capsys):
    """Catch a second bar, which rich refuses, and a text that stays."""
    monkeypatch.setattr(sys.stdout, 'isatty', lambda: True)
    monkeypatch.setenv('TERM', 'xterm')
    bar = progress.Progress(10, 0)
    bar.update(5, 'loss 1.0')
    report, shown = progress.reporter('images evaluated', 3), []
    for done in (1.5, 3):
        report(done)
        shown.append(progress._on_screen[-1].tasks[-1].fields['text'])
    bar.close()
    assert shown == ['images evaluated: 1 of 3', 'loss 1.0']
