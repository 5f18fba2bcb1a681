"""Signals: none is lost, and none is taken for an error."""

import concurrent.futures
import gc
import signal

import pytest

from experiments import vae
from gm_jax.training import evaluate, signals

pytestmark = pytest.mark.usefixtures('heeded_signals')
TINY = ('--num_steps=1', '--hidden=4', '--latent_dims=2', '--test_samples=1',
        '--num_samples=4')


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_swallowed_signal_is_found_again(number):
    """Catch a stop that was raised where Python drops exceptions."""
    with signals.ending():
        signals.check()
        try:
            signal.raise_signal(number)
        except signals.Stopped:
            pass
        with pytest.raises(signals.Stopped) as stopped:
            signals.check()
    assert stopped.value.args[1] == number
    signals.check()


def test_training_notes_the_first_and_ends_at_the_second(capfd):
    """Catch a first signal that loses the steps, and a second one that is ignored.

    The first one is acknowledged before the step has ended.
    """
    with signals.ending(), signals.noting() as received:
        signal.raise_signal(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert capfd.readouterr().err.startswith('stopping: finishing this step and')
        signals.check()  # the loop stops by itself
        with pytest.raises(signals.Stopped):
            signal.raise_signal(signal.SIGTERM)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP])
def test_evaluation_ends_although_the_exception_was_lost(
    number, tmp_path, monkeypatch, capfd
):
    """Catch an evaluation of hours that goes on after SIGTERM."""
    assert vae.main([f'--workdir={tmp_path}', *TINY]) == 0
    over_examples = evaluate.over_examples

    def told(*args):
        def callback(phase, info):
            gc.callbacks.remove(callback)
            signal.raise_signal(number)

        gc.callbacks.append(callback)  # Python drops what a callback raises
        gc.collect()
        return over_examples(*args)

    monkeypatch.setattr(evaluate, 'over_examples', told)
    capfd.readouterr()
    assert vae.main([f'--workdir={tmp_path}', '--mode=eval']) == 128 + number
    error = capfd.readouterr().err
    assert 'told to stop' in error and error.count('\n') == 1


def test_a_run_in_a_thread(tmp_path):
    """Catch a traceback outside the main thread, which is the one that gets signals."""
    before = {number: signal.getsignal(number) for number in signals._NUMBERS}
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        assert threads.submit(vae.main, [f'--workdir={tmp_path}', *TINY]).result() == 0
    assert {number: signal.getsignal(number) for number in before} == before


def test_nohup_is_respected(tmp_path, monkeypatch):
    """Catch a run that nohup does not protect."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals.ending():
            signal.raise_signal(signal.SIGHUP)
            signals.check()
    finally:
        signal.signal(signal.SIGHUP, before)
