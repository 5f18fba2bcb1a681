"""What training does when losses are not finite, or when nothing can be saved."""

import errno
import signal

import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.serialization import type_handlers

from experiments import vae
from gm_jax.training import checkpoints, loop
from gm_jax.training.recorder import Recorder
from tests.training import tiny


def _plant(monkeypatch, is_bad) -> list[int]:
    """Make the loss NaN where is_bad(attempt, step); return the attempts' starts."""
    starts = []
    train_from, objective = loop._train_from, vae.objective

    def counted(job, beginning, writers):
        starts.append(beginning.step)
        return train_from(job, beginning, writers)

    def planted(config, terms, step, axis_name):
        loss, values = objective(config, terms, step, axis_name)
        return jnp.where(is_bad(len(starts), step), jnp.nan, loss), values

    monkeypatch.setattr(loop, '_train_from', counted)
    monkeypatch.setattr(vae, 'objective', planted)
    return starts


def test_non_finite_losses_are_skipped_then_left_behind(tmp_path, monkeypatch, capfd):
    """Catch a NaN that reaches the parameters or the metrics, or is not counted."""
    starts = _plant(
        monkeypatch, lambda attempt, step: (step == 7) | ((step >= 20) & (attempt == 1))
    )
    assert vae.main([f'--workdir={tmp_path}', *tiny.PLAIN]) == 0
    assert starts == [0, 20]
    assert 'WARNING: the loss was not finite in 10 steps' in capfd.readouterr().out
    lines = tiny.metrics(tmp_path)
    assert [line['step'] for line in lines] == [10, 20, 30, 40, 40]
    assert [line.get('skipped_steps') for line in lines] == [1, 1, 1, 1, None]
    # The mean of the nine good steps, not NaN and not diluted to 9/10.
    losses = [line['loss'] for line in lines]
    assert np.isfinite(losses).all() and abs(losses[0] / losses[1] - 1) < 0.05
    arrays = tiny.final_arrays(tmp_path)
    assert all(np.isfinite(x).all() for x in arrays.values())
    assert arrays['skipped_total'] == 1 and arrays['skipped'] == 0


@pytest.mark.parametrize('is_bad', [
    lambda attempt, step: step >= 20,
    lambda attempt, step: (step >= 20) & (step % 5 > 1),  # never ten in a row
])
def test_run_that_keeps_diverging_ends(tmp_path, monkeypatch, capfd, is_bad):
    """Catch an endless skip, an endless going back, and a traceback."""
    starts = _plant(monkeypatch, is_bad)
    assert vae.main([f'--workdir={tmp_path}', *tiny.PLAIN]) == 1
    assert starts == [0] + [20] * loop.MAX_ROLLBACKS
    error = capfd.readouterr().err
    assert error.startswith('vae: the loss was not finite') and error.count('\n') == 1
    assert '--learning_rate' in error
    assert not (tmp_path / 'results.json').exists()
    assert np.isfinite(tiny.final_arrays(tmp_path)['params/output/kernel']).all()


def test_a_stop_when_training_diverges(tmp_path, monkeypatch, capfd):
    """Catch a signal that is forgotten when the run goes back."""
    starts = _plant(monkeypatch, lambda attempt, step: step >= 20)
    train_line = Recorder.train_line

    def told(self, step, total):
        if step == 30:  # too late for the question whether to stop
            signal.raise_signal(signal.SIGTERM)
        return train_line(self, step, total)

    monkeypatch.setattr(Recorder, 'train_line', told)
    argv = [f'--workdir={tmp_path}', *tiny.PLAIN]
    assert vae.main(argv) == 128 + signal.SIGTERM
    assert 'told to stop: saved at step 20 of 40' in capfd.readouterr().err
    assert starts == [0]


def test_a_stop_before_the_first_checkpoint(tmp_path, monkeypatch, capfd):
    """Catch a checkpoint that is promised and is not there."""
    _plant(monkeypatch, lambda attempt, step: step >= 0)
    train_line = Recorder.train_line

    def told(*args):
        signal.raise_signal(signal.SIGTERM)
        return train_line(*args)

    monkeypatch.setattr(Recorder, 'train_line', told)
    argv = [f'--workdir={tmp_path}', *tiny.PLAIN]
    assert vae.main(argv) == 128 + signal.SIGTERM
    assert 'before the first checkpoint' in capfd.readouterr().err


def test_a_stop_before_the_first_step_leaves_nothing(tmp_path, monkeypatch):
    """Catch a directory that holds another run, of which nothing has happened."""
    def stop(*args):
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop, '_first_state', stop)
    workdir = tmp_path / 'run'
    argv = [f'--workdir={workdir}', *tiny.PLAIN]
    assert vae.main(argv) == 128 + signal.SIGTERM
    assert not workdir.exists()
    # A directory that was there before stays.
    workdir.mkdir()
    assert vae.main(argv) == 128 + signal.SIGTERM
    assert workdir.exists() and not list(workdir.iterdir())


def test_full_disk_is_a_sentence(tmp_path, monkeypatch, capfd):
    """Catch a traceback where the user has to make space, and a swallowed error.

    tests.faults.full_disk fills a real one.
    """
    def fail(*args, **kwargs):
        try:
            raise OSError(errno.ENOSPC, 'No space left on device')
        except OSError:
            raise RuntimeError('in a thread') from None

    argv = [f'--workdir={tmp_path}', *tiny.FLAGS]
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, 'save', fail)
        assert vae.main(argv) == 2
    assert 'no space left on the disk' in capfd.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints, 'save', lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            vae.main(argv)


def test_too_many_files_are_a_sentence(tmp_path, monkeypatch, capfd):
    """Catch a traceback where a mounted bucket does not rename a directory."""
    def fail(*args, **kwargs):
        raise OSError(errno.EMFILE, 'Too many open files')

    monkeypatch.setattr(checkpoints, 'save', fail)
    assert vae.main([f'--workdir={tmp_path}', *tiny.FLAGS]) == 2
    error = capfd.readouterr().err
    assert '--rename-dir-limit' in error and error.count('\n') == 1


def test_a_save_that_fails_ends_the_run(tmp_path, monkeypatch, capfd):
    """Catch training that goes on without a checkpoint."""
    write = type_handlers.NumpyHandler._background_serialize

    async def fail(*args, **kwargs):
        await write(*args, **kwargs)
        raise OSError(errno.ENOSPC, 'No space left on device')

    monkeypatch.setattr(type_handlers.NumpyHandler, '_background_serialize', fail)
    assert vae.main([f'--workdir={tmp_path}', *tiny.FLAGS]) == 2
    assert 'no space left on the disk' in capfd.readouterr().err
    # The first save is due at step 12, the next at 18.
    assert tiny.metrics(tmp_path)[-1]['step'] == 12
