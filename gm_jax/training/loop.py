"""The training loop: train, evaluate, sample, save, and resume exactly after a kill.

An experiment is a NamedTuple of pure functions. The loop never sees a model.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from gm_jax import plotting
from gm_jax.data import image_set, sources
from gm_jax.data.image_set import Examples, ImageSet
from gm_jax.errors import UserError
from gm_jax.keys import Stream, stream
from gm_jax.training import (
    checkpoints,
    dispatch,
    evaluate,
    exporting,
    fits,
    loggers,
    optimizer,
    outcome,
    parallel,
    pretrained,
    processes,
    runs,
    settings,
    signals,
    sizes,
    train_state,
    version,
    workdir,
)
from gm_jax.training.contracts import (
    ByExample,
    BySamples,
    Experiment,
    SampleMany,
    Score,
)
from gm_jax.training.flags import Run
from gm_jax.training.progress import doing, reporter, say
from gm_jax.training.recorder import MAX_IN_FLIGHT, Note, Recorder
from gm_jax.training.runs import Job
from gm_jax.training.settings import ConfigT
from gm_jax.training.signals import Stopped
from gm_jax.training.train_state import TrainState
from gm_jax.training.writers import MetricWriter, Writer

__all__ = ['MAX_ROLLBACKS', 'MAX_SKIPPED', 'MOST_EVALUATED', 'start']

# Steps skipped in a row for a non-finite loss (or half of the steps between two lines
# of metrics) before a run goes back to its last checkpoint, and how often it goes back
# before it gives up.
MAX_SKIPPED = 10
MAX_ROLLBACKS = 2
# An evaluation during training takes examples from all over a split, this many or as
# many as were trained on since the last one.
MOST_EVALUATED = 10_000


class _Diverged(Exception):
    """Too many steps in a row were skipped."""


def start(
    run: Run, config: ConfigT, name: str,
    build: Callable[[ConfigT, ImageSet], Experiment],
) -> None:
    """Train, evaluate or sample, as `run` asks."""
    if run.mode != 'train' and exporting.is_exported(run.workdir):
        checkpoint = exporting.checkpoint_of(run.workdir, run.checkpoint)
        run = dataclasses.replace(run, checkpoint=checkpoint)
    if processes.several():
        processes.check_alike({
            '--mode': run.mode, '--checkpoint': run.checkpoint,
            'number of devices': str(jax.local_device_count()),
            **settings.alike(config),
            # That of the noise, of an evaluation.
            '--seed': str(config.seed if run.seed is None else run.seed),
            'code of the version': version.fingerprint(),
        })
    if run.mode == 'sample':
        data = image_set.read_facts(workdir.facts_path(run.workdir))
    else:
        data = sources.load(
            config.dataset, data_dir=config.data_dir, image_size=config.image_size,
            background=config.background, binarize=config.binarize,
            validation=config.validation,
        )
    facts = image_set.facts(data)
    processes.check_alike(image_set.alike(facts))
    experiment = build(config, data)
    if run.mode == 'sample' and experiment.sample is None:
        raise UserError(f'--mode=sample: {experiment.no_sample}')
    if run.mode == 'train':
        parallel.check_batch_size(config.batch_size)
        parallel.check_micro_batch(config.batch_size, experiment.micro_batch)
    init = parallel.init(experiment.init)
    shapes = jax.eval_shape(init, stream(config.seed, Stream.INIT))
    fits.check(config, data, experiment, shapes, run.mode)
    if run.mode == 'train' and not checkpoints.last_step(run.workdir):
        if config.begin_with:
            experiment = experiment._replace(pretrained=functools.partial(
                pretrained.beginning, config, name, build, shapes
            ))
        experiment = pretrained.read(experiment)
    sample = experiment.sample
    sampler = None if sample is None else parallel.sample_many(sample)
    with workdir.claimed(run, config, facts) as made:
        _act(
            Job(name, run, config, data, experiment, init, sampler),
            functools.partial(sizes.advice, config, data, build), made,
        )


def _act(job: Job, advice: Callable[[], str], made: bool) -> None:
    """Do what the run asks, in a directory that is claimed.

    `advice` says how the model would be smaller, `made` whether the directory is new.
    """
    run, beginning = job.run, _restore(job)
    if run.mode == 'train':
        say(
            f'{job.name} on {job.data.name}: {sizes.count(beginning.shapes):,} '
            f'parameters, {runs.devices()}, work directory {run.workdir}'
        )
        if job.config.begin_with and not beginning.step:
            say(f'  begins with the parameters of {job.config.begin_with}')
        if _is_finished(job, beginning):
            say(f'finished: {job.path("results.json")} has its results. To evaluate it '
                f'again, or another checkpoint, add --mode=eval.')
            return
        if sizes.count(beginning.shapes) > sizes.MANY:
            say(f'  {advice()}')
        # The writers drop the lines of a run that was killed before a checkpoint.
        begun = workdir.has_begun(run.workdir)
        try:
            with loggers.opened(
                run.logger, run.workdir, job.settings, beginning.step
            ) as others:
                _train_and_test(job, beginning, others)
        except (Exception, signals.Stopped, KeyboardInterrupt):
            if not begun:
                workdir.withdraw(run.workdir, made=made)
            raise
    elif beginning.state is None:
        raise UserError(f'{run.workdir} has no checkpoint yet: train there first.')
    elif run.mode == 'sample':
        outcome.sample(job, beginning.state)
    else:
        outcome.test(job, beginning.state, beginning.note)
    say(f'pictures in {job.path("samples")}')


def _is_finished(job: Job, beginning: '_Beginning') -> bool:
    step = beginning.step
    return step == job.config.num_steps and workdir.is_finished(job.run.workdir, step)


class _Beginning(NamedTuple):
    """What a run resumes from.

    Attributes:
        shapes: a state whose leaves are jax.ShapeDtypeStruct.
        state: the state of a checkpoint, on the devices; None if there is none yet.
        note: the note of that checkpoint.
    """

    shapes: TrainState
    state: TrainState | None
    note: Note

    @property
    def step(self) -> int:
        """The step of the state, 0 before the first."""
        return 0 if self.state is None else int(self.state.step)


def _restore(job: Job) -> _Beginning:
    """Read the checkpoint from which the run resumes, if there is one."""
    run = job.run
    # A checkpoint is read into shapes: no parameters are initialised for it.
    shapes = jax.eval_shape(job.init, stream(job.config.seed, Stream.INIT))
    if exporting.is_exported(run.workdir):
        return _Beginning(shapes, _exported(run.workdir, shapes), Note())
    which = 'last' if run.mode == 'train' else run.checkpoint
    found = checkpoints.restore(run.workdir, shapes, which)
    if found is None:
        return _Beginning(shapes, None, Note())
    if processes.is_primary():
        for warning in found.warnings:
            print(f'WARNING: {warning}; the one before it is used.', file=sys.stderr)
    if found.unusable and run.mode == 'train':
        checkpoints.set_aside(run.workdir, found.unusable)
    return _Beginning(shapes, parallel.replicate(found.state), Note(**found.note))


def _exported(path: str, shapes: TrainState) -> TrainState:
    """Return the state of an exported model, which can only be evaluated."""
    variables, step = exporting.read(path, shapes.eval_variables)
    state = train_state.of_variables(variables)
    return parallel.replicate(state.replace(step=step))


def _train_and_test(
    job: Job, beginning: _Beginning, others: Sequence[MetricWriter]
) -> None:
    """Train to the last step, going back if training diverges, and evaluate."""
    last = job.config.num_steps
    if beginning.step == last:
        say(f'already trained to step {last}.')
    elif beginning.step:
        say(f'resuming from step {beginning.step} of {last}.')
    while True:
        with contextlib.ExitStack() as files:
            writers = list(others)
            if processes.is_primary():
                own = Writer(job.run.workdir, job.settings, beginning.step)
                files.enter_context(contextlib.closing(own))
                writers.insert(0, own)
            state, note = beginning.state, beginning.note
            try:
                if state is None or beginning.step < last:
                    state, note = _train_from(job, beginning, writers)
            except _Diverged as diverged:
                beginning = _go_back(job, beginning, diverged)
                continue
            if job.run.checkpoint == 'best':
                del state  # its memory may be needed
                state = _best(job, beginning.shapes)
            outcome.test(job, state, note, writers)
            return


def _best(job: Job, shapes: TrainState) -> TrainState:
    """Return the best checkpoint of a run that has ended.

    Raises:
        UserError: it cannot be read, or no evaluation has had a finite loss.
    """
    found = checkpoints.restore(job.run.workdir, shapes, 'best')
    assert found is not None  # the last step has been saved
    return parallel.replicate(found.state)


def _go_back(job: Job, beginning: _Beginning, diverged: _Diverged) -> _Beginning:
    """Return the last checkpoint, for another attempt."""
    rollbacks = beginning.note.rollbacks
    if rollbacks >= MAX_ROLLBACKS:
        raise FloatingPointError(
            f'{diverged}, again after going back {rollbacks} times. In a new '
            f'--workdir, try a lower --learning_rate, a --grad_clip, or more '
            f'--warmup_steps.'
        ) from None
    beginning = _restore(job)
    # With other noise and another order of examples: with the same ones training would
    # diverge again.
    beginning.note.rollbacks = rollbacks + 1
    say(f'WARNING: {diverged}: back to step {beginning.step}.')
    return beginning


class _Evaluator(NamedTuple):
    """The compiled functions of an evaluation during training.

    Attributes:
        scalars: evaluates a state: means over the examples of a split, or scores of
            samples.
        sample_many: the sampler; None for a model that generates nothing.
    """

    scalars: Callable[[TrainState, Examples], dict[str, float]]
    sample_many: SampleMany | None


def _evaluator(job: Job) -> _Evaluator:
    evaluation = job.experiment.evaluation
    if isinstance(evaluation, BySamples):
        score = functools.partial(_score, job, evaluation.score, job.sample_many())
        return _Evaluator(score, job.sampler)
    return _Evaluator(
        functools.partial(
            _means, job, evaluation, parallel.eval_many(evaluation.eval_step)
        ),
        job.sampler,
    )


def _score(
    job: Job, score: Score, sample_many: SampleMany, state: TrainState,
    examples: Examples,
) -> dict[str, float]:
    draw = functools.partial(job.draw_samples, sample_many, state)
    return score(draw, examples, False)


def _means(
    job: Job, evaluation: ByExample, eval_many: parallel.EvalMany, state: TrainState,
    examples: Examples,
) -> dict[str, float]:
    rng = stream(job.config.seed, Stream.EVAL)
    shared = evaluate.shared(evaluation, state, rng, final=False)
    arrays = evaluate.over_examples(
        eval_many, evaluate.with_shared(state, shared), examples, rng,
        job.config.eval_batch, report=reporter('images evaluated', len(examples)),
    )
    return {
        name: float(np.mean(values[:, 0], dtype=np.float64))
        for name, values in arrays.items()
    }


def _train_from(
    job: Job, beginning: _Beginning, writers: Sequence[MetricWriter]
) -> tuple[TrainState, Note]:
    """Train from a checkpoint, or from the first state, to the last step.

    Raises:
        _Diverged: too many steps were skipped.
        Stopped: a process was told to stop; a checkpoint has been written.
    """
    config, experiment, note = job.config, job.experiment, beginning.note
    state, step = beginning.state, beginning.step
    per_dispatch = dispatch.steps_per_dispatch(config, experiment.single_steps)
    train_many = parallel.train_many(experiment.train_step, per_dispatch)
    evaluator = _evaluator(job)
    rng = stream(config.seed, Stream.TRAIN, rollbacks=note.rollbacks)
    # Seeds of users are below 2^32, so no other run has this order.
    feed = dispatch.make_feed(
        config, job.data.splits['train'], config.seed + 2**32 * note.rollbacks, step,
        per_dispatch, experiment.minibatches,
    )
    with contextlib.closing(feed.dispatches):
        dispatches: Iterator[dispatch.Dispatch] = feed.dispatches
        # Compiled before the clock of the first line starts.
        if state is None:
            first = next(dispatches)
            arguments = feed.resident, first.batches, first.num, rng
            state = _first_state(job, beginning.shapes, train_many, *arguments)
            dispatches = itertools.chain([first], dispatches)
        elif step < config.num_steps and not processes.several():
            first = next(dispatches)
            with doing('compiling the training step'):
                train_many.compile(state, feed.resident, first.batches, first.num, rng)
            dispatches = itertools.chain([first], dispatches)
        recorder = Recorder(
            writers, step, config.num_steps,
            config.batch_size * max(experiment.minibatches, 1), note,
            experiment.alarms, learning_rate=optimizer.learning_rate(config),
            loss_unit=experiment.loss_unit,
        )
        stop = parallel.Agreement(MAX_IN_FLIGHT)
        with contextlib.closing(recorder), signals.noting() as received:
            for num, batches in dispatches:
                state, values = train_many(state, feed.resident, batches, num, rng)
                step += int(num)
                recorder.add(step, int(num), values)
                try:
                    loss = _write(job, evaluator, recorder, step, state)
                except _Diverged:
                    if not processes.all_agree(not received):
                        raise _stopped(job, received) from None
                    raise
                stopping = stop.ask(bool(received))
                if loss is not None or stopping or step % config.checkpoint_every == 0:
                    _save(job, step, state, recorder.settle(), loss)
                if stopping:
                    raise _stopped(job, received)
            # A signal that arrived after the last `ask` whose answer was read.
            if not processes.all_agree(not received):
                raise _stopped(job, received)
    return state, note


def _first_state(
    job: Job, shapes: TrainState, train_many: parallel.TrainMany, *arguments: Any
) -> TrainState:
    """Make the first state while the training step compiles: each takes seconds.

    JAX cannot compile for shapes when there are several processes; then the step
    compiles when it is first called.

    Args:
        job: the run.
        shapes: the shapes of a state.
        train_many: the training step.
        *arguments: the arguments of the training step after the state.
    """
    rng = stream(job.config.seed, Stream.INIT)

    def make() -> TrainState:
        state = job.init(rng)
        if job.experiment.pretrained is not None:
            state = train_state.begin_with(state, job.experiment.pretrained())
        return parallel.replicate(state)

    if processes.several():
        with doing('compiling the initialisation'):
            return make()
    with (
        doing('compiling the initialisation and the training step'),
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        compiled = pool.submit(
            train_many.compile, parallel.replicated(shapes), *arguments
        )
        state = make()
        compiled.result()
        return state


def _write(
    job: Job, evaluator: _Evaluator, recorder: Recorder, step: int, state: TrainState
) -> float | None:
    """Write the lines of metrics that are due; return the loss of an evaluation."""
    last = step == job.config.num_steps
    if last or step % job.config.log_every == 0:
        _write_line(recorder, step, state)
    if last or step % job.config.eval_every == 0:
        return _evaluate(job, evaluator, state, step, recorder)
    return None


def _write_line(recorder: Recorder, step: int, state: TrainState) -> None:
    """Write a line of metrics; raise _Diverged if too many steps were skipped."""
    skipped = recorder.train_line(step, int(state.skipped_total))
    if skipped.longest >= MAX_SKIPPED or skipped.share > 0.5:
        raise _Diverged(
            f'the loss was not finite in {skipped.longest} steps in a row, '
            f'{skipped.share:.0%} of all, before step {step}'
        )


def _stopped(job: Job, received: list[int]) -> Stopped:
    saved, last = checkpoints.last_step(job.run.workdir), job.config.num_steps
    where = 'told to stop before the first checkpoint: the same command begins anew.'
    if saved:
        where = (
            f'told to stop: saved at step {saved} of {last}. The same command resumes '
            f'from there.'
        )
    return Stopped(
        where, (*received, signal.SIGTERM)[0], agreed=True,
    )


def _save(
    job: Job, step: int, state: TrainState, note: Note, loss: float | None
) -> None:
    # A run must not go back to a state in the middle of skipped steps. After the last
    # step no run goes back.
    if not int(state.skipped) or step == job.config.num_steps:
        best = math.inf if note.best_loss is None else note.best_loss
        if loss is not None and loss < best:
            note.best_loss, note.best_step = loss, step
        checkpoints.save(job.run.workdir, step, state, dataclasses.asdict(note))


def _evaluate(
    job: Job, evaluator: _Evaluator, state: TrainState, step: int, recorder: Recorder
) -> float:
    """Write the line of an evaluation and a picture of samples; return the loss."""
    split = runs.validation_split(job.data)
    # So that it takes no longer than the training before it.
    most = max(MOST_EVALUATED, job.config.eval_every * job.config.batch_size)
    examples = evaluate.some(job.data.splits[split], most)
    scalars = evaluator.scalars(state, examples)
    recorder.eval_line(step, split, scalars)
    if evaluator.sample_many is not None:
        images = job.draw_samples(evaluator.sample_many, state, job.config.num_samples)
        if processes.is_primary():
            grid = plotting.sample_grid(images, job.experiment.classes)
            plotting.save_png(job.picture(f'samples_{step:08d}'), grid)
            recorder.picture(step, 'samples', grid)
    recorder.restart_clock(step)
    return scalars[job.best_by]
