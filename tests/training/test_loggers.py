"""A logger of the user's own: it learns all, and nothing that it does ends a run."""

import json
import os
import pathlib
import re
import shutil
import sys
import textwrap

import numpy as np
import pytest

from experiments import vae
from gm_jax.errors import UserError
from gm_jax.training import loggers
from tests.training import tiny

FLAGS = (
    '--hidden=8', '--latent_dims=2', '--batch_size=8', '--num_steps=20',
    '--log_every=10', '--eval_every=20', '--checkpoint_every=10', '--num_samples=4',
    '--test_samples=1', '--steps_per_dispatch=10', '--binarize=threshold',
    '--schedule=constant',
)
# Writes each call as a line of calls.jsonl; changes what it is given.
LOGGER = '''
    from __future__ import annotations

    import dataclasses
    import json
    import os


    @dataclasses.dataclass
    class Logger:
        path: str

        def call(self, *call):
            with open(self.path, 'a') as file:
                file.write(json.dumps(call) + '\\n')

        def write(self, step, split, scalars, alarms=(), **timing):
            self.call('write', step, split, scalars, list(alarms), sorted(timing))
            scalars.clear()

        def picture(self, step, name, image):
            self.call('picture', step, name, image.shape, str(image.dtype))
            image[:] = 0

        def final(self, step, numbers, pictures):
            shapes = {name: image.shape for name, image in pictures.items()}
            self.call('final', step, numbers, shapes)
            numbers.clear()
            pictures.clear()

        def sync(self):
            self.call('sync')

        def close(self):
            self.call('close')


    def make(workdir, settings, first_step):
        logger = Logger(os.path.join(os.path.dirname(__file__), 'calls.jsonl'))
        logger.call('make', workdir, settings, first_step)
        settings.clear()
        return logger
'''


@pytest.fixture(scope='module')
def runs(tmp_path_factory) -> pathlib.Path:
    """Return the parent of two work directories, and of the calls of a logger.

    `whole` was trained twice, the second time from step 20; `half` is what it was then.
    """
    parent = tmp_path_factory.mktemp('runs')
    path = parent / 'logger.py'
    path.write_text(textwrap.dedent(LOGGER))
    flags = [f'--workdir={parent / "whole"}', f'--logger={path}', *FLAGS]
    assert vae.main(flags) == 0
    shutil.copytree(parent / 'whole', parent / 'half')
    assert vae.main([*flags, '--num_steps=30']) == 0
    return parent


def test_every_line_setting_and_picture(runs):
    """Catch a line that metrics.jsonl has alone, and a resumed run that begins at 0."""
    lines = (runs / 'calls.jsonl').read_text().splitlines()
    calls = [json.loads(line) for line in lines]
    config = json.loads((runs / 'whole' / 'config.json').read_text())
    del config['module']
    starts = [call[1:] for call in calls if call[0] == 'make']
    assert starts == [
        [str(runs / 'whole'), {**config, 'num_steps': steps}, first]
        for steps, first in ((20, 0), (30, 20))
    ]
    lines = [
        {'step': step, 'split': split, **scalars}
        for _, step, split, scalars, *_ in (c for c in calls if c[0] == 'write')
    ]
    assert lines == tiny.metrics(runs / 'whole') and len(lines) == 5
    assert len({(line['step'], line['split']) for line in lines}) == 5  # for a pivot
    assert [c[5] for c in calls if c[0] == 'write'][:3] == [
        ['images_per_s'], ['images_per_s'], [],
    ]
    pictures = [call[1:] for call in calls if call[0] == 'picture']
    assert [p[:2] for p in pictures] == [[20, 'samples'], [30, 'samples']]
    assert all(len(p[2]) == 3 and p[3] == 'uint8' for p in pictures)
    names = [call[0] for call in calls]
    assert names[-2:] == ['final', 'close'] and names.count('close') == 2
    assert 'sync' in names
    step, numbers, shapes = calls[-2][1:]
    results = tiny.results(runs / 'whole')
    assert (step, numbers) == (30, results['metrics'])
    assert set(shapes) == {'manifold', 'reconstructions', 'traversals'}


def test_a_failed_run_is_the_run(runs, tmp_path, capfd):
    """Catch an error that ends training, and an argument of Python that is dropped."""
    logger, other = _Logger('picture'), runs / 'half'
    assert vae.main([f'--workdir={tmp_path}', *FLAGS], logger=lambda *_: logger) == 0
    assert logger.calls[-1] == 'picture' and logger.calls.count('write') == 3
    assert capfd.readouterr().err.count('WARNING: the logger has failed') == 1
    # That of the other run has emptied all that it was given.
    for name in ('metrics.jsonl', 'samples/samples_00000020.png', 'config.json'):
        assert (tmp_path / name).read_bytes() == (other / name).read_bytes()
    numbers = [tiny.results(path)['metrics'] for path in (tmp_path, other)]
    assert numbers[0] == numbers[1]
    assert tiny.differences(tmp_path, other) == ['results.json']  # the command


class _Logger:
    """Fails where it is told to."""

    def __init__(self, *failing: str) -> None:
        self.calls: list[str] = []
        self._failing = failing

    def _call(self, name):
        self.calls.append(name)
        if name in self._failing:
            raise OSError(28, 'No space left\non device.')

    def write(self, step, split, scalars, alarms=(), **timing):
        self._call('write')

    def picture(self, step, name, image):
        self._call('picture')

    def final(self, step, numbers, pictures):
        self._call('final')

    def sync(self):
        self._call('sync')

    def close(self):
        self._call('close')


METHODS = 'write', 'picture', 'sync', 'final', 'close'


@pytest.mark.parametrize('failing', METHODS)
def test_a_failure_is_told_once(failing, capsys):
    """Catch an error that passes, and one that is told at every line."""
    logger = _Logger(failing)
    with loggers.opened(lambda *_: logger, 'DIR', {}, 0) as (opened,):
        for step in (1, 2):
            opened.write(step, 'train', {'loss': 1.0}, images_per_s=2.0)
        opened.picture(2, 'samples', np.zeros((1, 1, 1), np.uint8))
        opened.sync()
        opened.final(2, {}, {})
    calls = ['write', *METHODS]
    assert logger.calls == calls[:calls.index(failing) + 1]
    warning = capsys.readouterr().err
    assert warning.startswith(f'WARNING: the logger has failed in {failing!r} and is ')
    assert "OSError: [Errno 28] No space left on device (test_loggers.py, " in warning
    assert warning.count('\n') == 1


def test_a_logger_cannot_exit(tmp_path, capsys):
    """Catch sys.exit() in a logger, or in its module, that ends a run as if done."""
    logger = _Logger()
    logger._call = lambda name: sys.exit(0)
    with loggers.opened(lambda *_: logger, 'DIR', {}, 0) as (opened,):
        opened.sync()
    assert "failed in 'sync' and is not called again" in capsys.readouterr().err
    path = tmp_path / 'script.py'
    path.write_text('import sys; sys.exit(0)')
    with pytest.raises(UserError, match='script.py cannot be imported: SystemExit'):
        loggers.find(str(path))
    assert str(path) not in sys.modules
    with pytest.raises(UserError, match='the logger cannot start: SystemExit'):
        with loggers.opened(lambda *_: sys.exit(1), 'DIR', {}, 0):
            pass


def test_only_one_process_has_a_logger(monkeypatch):
    """Catch a line of each process."""
    monkeypatch.setattr(loggers.processes, 'is_primary', lambda: False)
    with loggers.opened(pytest.fail, 'DIR', {}, 0) as opened:
        assert opened == ()


def test_being_told_to_stop_is_no_failure():
    """Catch a logger in which Ctrl-C is lost."""
    logger = _Logger()
    with pytest.raises(KeyboardInterrupt):
        with loggers.opened(lambda *_: logger, 'DIR', {}, 0) as (opened,):
            logger._call = lambda name: (_ for _ in ()).throw(KeyboardInterrupt)
            opened.sync()


BROKEN = '''
    class Half:
        def __init__(self, *args): pass
        def write(self, step, split, scalars, alarms=(), **timing): pass
        def picture(self, step, name, image): pass
        def sync(self): pass
        def close(self): pass

    class Narrow(Half):
        def write(self, step, split, scalars): pass
        def final(self, step, numbers, pictures): pass

    def half(workdir, settings, first_step):
        return Half()

    def login(workdir, settings, first_step):
        raise PermissionError('no key')

    def nothing(workdir, settings, first_step):
        pass

    number = 3
'''


@pytest.mark.parametrize('spec, sentence', [
    ('no_such_module', "No module named 'no_such_module'"),
    ('no_such_module:make', "No module named 'no_such_module'"),
    ('no_such_file.py', 'there is no file no_such_file.py'),
    ('FILE', "has no function 'make'"),
    ('FILE:', 'cannot be imported'),
    ('FILE:halb', "has no function 'halb': did you mean half?"),
    ('FILE:number', "'number' of FILE is not a function"),
    ('FILE:Half', "the logger has no method 'final': it needs write, picture, final"),
    ('FILE:half', "the logger has no method 'final': it needs write, picture, final"),
    ('FILE:nothing', "the logger has no method 'write'"),
    ('FILE:Narrow', "the method 'write' of the logger does not take its arguments"),
    ('FILE:login', 'the logger cannot start: PermissionError: no key (broken.py, line'),
    ('BAD', 'cannot be imported: ZeroDivisionError: division by zero (bad.py'),
    ('TORN', 'cannot be imported: SyntaxError:'),
    ('json:dumps', 'the logger cannot start: TypeError:'),
    (':', 'cannot be imported'),
])
def test_mistakes_are_a_sentence_before_any_work(
    tmp_path, capfd, monkeypatch, spec, sentence
):
    """Catch a traceback, a run without its logger, and a directory that is made."""
    for name, text in (('broken', BROKEN), ('bad', '1 / 0'), ('torn', 'def (')):
        (tmp_path / f'{name}.py').write_text(textwrap.dedent(text))
    monkeypatch.chdir(tmp_path)
    for word, path in (('FILE', 'broken.py'), ('BAD', 'bad.py'), ('TORN', 'torn.py')):
        spec, sentence = spec.replace(word, path), sentence.replace(word, path)
    assert vae.main(['--workdir=run', *FLAGS, f'--logger={spec}']) == 2
    error = capfd.readouterr().err
    assert sentence in error and error.count('\n') == 1
    assert not os.path.exists('run')


def test_only_training_has_lines(tmp_path, capfd):
    """Catch a logger that is taken and never called."""
    argv = [f'--workdir={tmp_path}', '--mode=eval']
    (tmp_path / 'config.json').write_text('{}')
    assert vae.main(argv, logger=lambda *_: _Logger()) == 2
    assert 'a logger is for --mode=train' in capfd.readouterr().err


def test_the_message_of_a_missing_logger_is_short():
    """Catch the page of a server in a sentence."""
    def make(*_):
        raise RuntimeError('<html>\x1b' + 'x' * 10_000)

    with pytest.raises(UserError) as caught:
        with loggers.opened(make, 'DIR', {}, 0):
            pass
    assert len(str(caught.value)) < 1200 and str(caught.value).isprintable()


def test_the_example_of_the_documentation(tmp_path, capsys):
    """Catch an example that is refused."""
    text = pathlib.Path(__file__).parents[2].joinpath('docs', 'metrics.md').read_text()
    example, = re.findall(r'```python\n(class Logger.*?)```', text, re.S)
    (tmp_path / 'example.py').write_text(example)
    make = loggers.find(f'{tmp_path / "example.py"}:make')
    with loggers.opened(make, 'DIR', {}, 0) as (opened,):
        opened.write(1, 'train', {'loss': 2.0}, ['an alarm'], images_per_s=3.0)
        opened.final(1, {'nats_per_image': 4.0}, {})
    assert capsys.readouterr() == (
        "1 train {'loss': 2.0} an alarm\n{'nats_per_image': 4.0}\n", ''
    )
