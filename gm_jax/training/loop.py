"""The one loop: train, evaluate, sample, save; go on exactly where a run was killed.

An experiment is a NamedTuple of pure functions; it never sees files, devices, flags
or the clock. The loop never sees a model.
"""

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gm_jax import plotting
from gm_jax.data import image_set, sources
from gm_jax.errors import UserError
from gm_jax.training import checkpoints
from gm_jax.training import config as config_lib
from gm_jax.training import distributed, evaluate
from gm_jax.training import feed as feed_lib
from gm_jax.training import job as job_lib
from gm_jax.training import metrics, outcome, parallel
from gm_jax.training.config import Config, Run
from gm_jax.training.job import Experiment, Job
from gm_jax.training.metrics import Note, Recorder, say
from gm_jax.training.state import TrainState

# Steps skipped in a row for a non-finite loss (or half of those between two lines of
# metrics) before a run goes back to its last checkpoint, and how often it goes back
# before it gives up.
MAX_SKIPPED = 10
MAX_ROLLBACKS = 2


class Stopped(BaseException):
    """The run was told to stop: a sentence and the signal.

    Like KeyboardInterrupt no Exception, which a reader could take for a damaged file.
    """

    def __init__(self, message: str, number: int, *, agreed: bool = False) -> None:
        """Takes the sentence, the signal, and whether all processes stop with it."""
        super().__init__(message, number)
        self.agreed = agreed


class _Diverged(Exception):
    """Too many steps in a row were skipped."""


def main(
    argv: list[str],
    *,
    module: str,
    about: str,
    config_class: type[Config],
    presets: Mapping[str, Config],
    build: Callable[[Any, sources.ImageSet], Experiment],
) -> int:
    """Runs an experiment from the command line.

    Args:
        argv: the flags.
        module: the experiment's module, such as 'vae'.
        about: its docstring, for `--help`.
        config_class: its config.
        presets: its named configs.
        build: makes the experiment from a config and an image set.

    Returns:
        The exit status: 0, 2 for a mistake of the user, 1 for a run that diverged,
        128 plus the signal's number for one that was told to stop.
    """
    try:
        run, config = config_lib.parse(
            argv, config_class, presets=presets, module=module, about=about
        )
        with _handling(_leave), checkpoints.quiet_threads():
            distributed.initialize(
                run.coordinator_address, run.num_processes, run.process_id
            )
            try:
                start(run, config, module, build)
            except Stopped as stopped:
                if stopped.agreed:
                    distributed.part('stopped')
                raise
            distributed.part('done')
        return 0
    except UserError as error:
        message, status = str(error), 2
    except FloatingPointError as error:
        message, status = str(error), 1
    except Stopped as stopped:
        message, status = stopped.args[0], 128 + stopped.args[1]
    except KeyboardInterrupt:
        message, status = 'interrupted: the same command goes on.', 130
    except Exception as error:
        if not checkpoints.disk_is_full(error):
            if distributed.several():
                distributed.fail()
            raise
        message, status = (
            'there is no space left on the disk: make some, and the same command goes '
            'on from the last checkpoint.'
        ), 2
    print(f'{module}: {message}', file=sys.stderr)
    return distributed.leave(status)


def start(run: Run, config: Config, module: str, build: Callable) -> None:
    """Does what `run` says: trains, evaluates, samples."""
    if run.mode == 'sample':
        data = image_set.read_facts(_facts(run))
    else:
        data = sources.load(
            config.dataset, data_dir=config.data_dir, image_size=config.image_size,
            binarize=config.binarize,
        )
    experiment = build(config, data)
    if run.mode == 'sample' and experiment.sample is None:
        raise UserError('this model generates nothing: --mode=sample is not for it.')
    if run.mode == 'train':
        parallel.check_batch_size(config.batch_size)
        parallel.check_micro_batch(config.batch_size, experiment.micro_batch)
    _claim(run, config, data)
    manager = checkpoints.open_directory(run.workdir)
    state, note = _restore(run, config, experiment, manager)
    job = Job(run, config, data, experiment, manager)
    if run.mode == 'train':
        say(
            f'{module} on {data.name}: {job_lib.count_parameters(state):,} parameters, '
            f'{job_lib.devices()}, work directory {run.workdir}'
        )
        state, note = _train(job, state, note)
    if run.mode == 'sample':
        outcome.sample(job, state)
    else:
        outcome.test(job, state, note, module)
    say(f'pictures in {os.path.join(run.workdir, "samples")}')
    manager.close()


def _facts(run: Run) -> str:
    return os.path.join(run.workdir, 'data.json')


def _claim(run: Run, config: Config, data: sources.ImageSet) -> None:
    """Writes config.json and data.json, or checks that the run there is the same."""
    path = os.path.join(run.workdir, 'config.json')
    if os.path.exists(path):
        changes = config_lib.changed(
            config_lib.load(path, type(config)), config, run.mode
        )
        if changes:
            raise UserError(
                f'{run.workdir} holds another run: {"; ".join(changes)}. Choose '
                f'another --workdir, or pass the old settings to go on with it.'
            )
    if os.path.exists(_facts(run)):
        image_set.check_facts(_facts(run), data)
    distributed.barrier('checked')
    if not distributed.is_primary():
        return
    try:
        os.makedirs(os.path.join(run.workdir, 'samples'), exist_ok=True)
        if run.mode == 'train':
            metrics.write_atomically(path, config_lib.to_json(config))
            metrics.write_atomically(_facts(run), image_set.facts(data))
    except OSError as error:
        raise UserError(f'{run.workdir} cannot be written: {error}.') from None


def _restore(
    run: Run, config: Config, experiment: Experiment, manager: Any
) -> tuple[TrainState, Note]:
    state = experiment.init(job_lib.stream(config.seed, job_lib.INIT))
    which = 'last' if run.mode == 'train' else run.checkpoint
    found = checkpoints.restore(manager, state, which)
    if found is None:
        if run.mode != 'train':
            raise UserError(f'{run.workdir} has no checkpoint yet: train there first.')
        return parallel.replicate(state), Note()
    if distributed.is_primary():
        for warning in found.warnings:
            print(f'WARNING: {warning}; the one before it is used.', file=sys.stderr)
    if found.warnings and run.mode == 'train':
        checkpoints.set_aside_after(manager, found.step)
    return parallel.replicate(found.state), Note(**found.note)


def _train(job: Job, state: TrainState, note: Note) -> tuple[TrainState, Note]:
    """Trains to the last step; goes back to a checkpoint where training diverges."""
    step = int(state.step)
    if step == job.config.num_steps:
        say(f'trained already, to step {step}.')
    elif step:
        say(f'going on from step {step} of {job.config.num_steps}.')
    while int(state.step) < job.config.num_steps:
        try:
            return _train_from(job, state, note)
        except _Diverged as diverged:
            if note.rollbacks >= MAX_ROLLBACKS:
                raise FloatingPointError(
                    f'{diverged}, again after going back {note.rollbacks} times. Try a '
                    f'lower --learning_rate, --grad_clip or --warmup_steps.'
                ) from None
            rollbacks = note.rollbacks + 1
            state, note = _restore(job.run, job.config, job.experiment, job.manager)
            # Other noise and another order of examples: the same ones would only lead
            # to the same place.
            note.rollbacks = rollbacks
            say(f'WARNING: {diverged}: back to step {int(state.step)}.')
    return state, note


def _train_from(job: Job, state: TrainState, note: Note) -> tuple[TrainState, Note]:
    config, step = job.config, int(state.step)
    per_dispatch = feed_lib.steps_per_dispatch(config, job.experiment.convolutional)
    train_many = parallel.train_many(job.experiment.train_step, per_dispatch)
    sample_many = parallel.sample_many(job.experiment.sample)
    evaluate_state = _evaluator(job, sample_many)
    rng = job_lib.stream(config.seed, job_lib.TRAIN + 16 * note.rollbacks)
    # Seeds are below 2^32, so this is no other run's order.
    resident, feed = feed_lib.make_feed(
        config, job.data.splits['train'], config.seed + 2**32 * note.rollbacks, step,
        per_dispatch, job.experiment.minibatches,
    )
    recorder = Recorder(
        job.run.workdir, step, config.num_steps, config.batch_size, note,
        job.experiment.alarms,
    )
    stop = parallel.Agreement(metrics.MAX_IN_FLIGHT)
    with _signals() as received:
        try:
            for num, batches in feed:
                state, values = train_many(state, resident, batches, num, rng)
                step += int(num)
                recorder.add(step, int(num), values)
                last, loss = step == config.num_steps, None
                if last or step % config.log_every == 0:
                    skipped = recorder.train_line(step, int(state.skipped_total))
                    if skipped.longest >= MAX_SKIPPED or skipped.share > 0.5:
                        raise _Diverged(
                            f'the loss was not finite in {skipped.longest} steps in a '
                            f'row, {skipped.share:.0%} of all, before step {step}'
                        )
                if last or step % config.eval_every == 0:
                    scalars = evaluate_state(state)
                    loss = scalars['loss']
                    recorder.eval_line(step, _eval_split(job.data), scalars)
                    _save_samples(job, sample_many, state, step)
                    recorder.restart_clock(step)
                due = last or loss is not None or step % config.checkpoint_every == 0
                stopping = stop.ask(bool(received))
                if due or stopping:
                    _save(job, step, state, recorder.settle(), loss)
                if stopping:
                    raise _stopped(job, received)
            # One who was told after the last question but for the late answers.
            if not distributed.all_agree(not received):
                raise _stopped(job, received)
        finally:
            feed.close()
            recorder.close()
    return state, note


def _stopped(job: Job, received: list[int]) -> Stopped:
    saved, last = checkpoints.last_step(job.manager), job.config.num_steps
    return Stopped(
        f'told to stop: saved at step {saved} of {last}. The same command goes on from '
        f'there.', (*received, signal.SIGTERM)[0], agreed=True,
    )


def _save(
    job: Job, step: int, state: TrainState, note: Note, loss: float | None
) -> None:
    # A state in the middle of skipped steps is not one to go back to; from the last
    # step nobody goes back.
    if not int(state.skipped) or step == job.config.num_steps:
        best = loss if loss is not None and np.isfinite(loss) else None
        checkpoints.save(job.manager, step, state, dataclasses.asdict(note), loss=best)


def _eval_split(data: sources.ImageSet) -> str:
    """Returns what is evaluated in training, and chooses the best checkpoint."""
    return 'validation' if 'validation' in data.splits else 'test'


def _evaluator(
    job: Job, sample_many: Callable
) -> Callable[[TrainState], dict[str, float]]:
    """Returns what evaluates a state in training: a function of the state."""
    examples, score = job.data.splits[_eval_split(job.data)], job.experiment.score
    if score is not None:
        return lambda state: score(
            functools.partial(job.draw_samples, sample_many, state), examples, False
        )
    eval_many = parallel.eval_many(job.experiment.eval_step)

    def by_example(state: TrainState) -> dict[str, float]:
        arrays = evaluate.over_examples(
            eval_many, state, examples, job_lib.stream(job.config.seed, job_lib.EVAL),
            job.config.eval_batch_size or job.config.batch_size,
        )
        return {
            name: float(np.mean(values[:, 0], dtype=np.float64))
            for name, values in arrays.items()
        }

    return by_example


def _save_samples(
    job: Job, sample_many: Callable, state: TrainState, step: int
) -> None:
    if job.experiment.sample is not None:
        images = job.draw_samples(sample_many, state, job.config.num_samples)
        if distributed.is_primary():
            path = job.picture(f'samples_{step:08d}')
            plotting.save_png(path, plotting.image_grid(images))


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, to save before leaving; a second one leaves."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, _leave)

    with _handling(note):
        yield received


def _leave(number: int, frame: Any) -> None:
    raise Stopped(
        'told to stop: the same command goes on from the last checkpoint.', number
    )


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None]) -> Iterator[None]:
    old = {n: signal.signal(n, handler) for n in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, before in old.items():
            signal.signal(number, before)
