"""The end of a run: evaluation on the test set, results, pictures and samples."""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from gm_jax import plotting
from gm_jax.data import files, pipeline
from gm_jax.data.image_set import Examples
from gm_jax.errors import UserError
from gm_jax.keys import Stream, stream
from gm_jax.training import (
    evaluate,
    parallel,
    patience,
    processes,
    report,
    runs,
    settings,
    sizes,
)
from gm_jax.training.contracts import BySamples, Pictures
from gm_jax.training.progress import doing, reporter, say
from gm_jax.training.recorder import Note
from gm_jax.training.runs import Job
from gm_jax.training.train_state import TrainState
from gm_jax.training.writers import MetricWriter, without_nan, write_atomically

__all__ = ['sample', 'test']

# Bytes of a file's name that say what made it; more are abridged.
_LONGEST = 120


def test(
    job: Job, state: TrainState, note: Note, writers: Sequence[MetricWriter] = ()
) -> None:
    """Evaluate the whole test set; write pictures and then the results.

    Training writes results.json, --mode=eval a file of its own.

    Args:
        job: the run.
        state: the state that is evaluated.
        note: the note of its checkpoint; after training, of the last one.
        writers: those of training.
    """
    experiment = job.experiment
    started = time.monotonic()
    examples = evaluate.some(job.data.splits['test'], job.config.test_examples)
    allowed = patience.allowed(note.seconds)
    numbers, num_lost = _test_numbers(job, state, examples, allowed)
    pictures: Pictures = {}
    if num_lost:
        say(
            f'WARNING: {num_lost} of the {len(examples)} test images have numbers that '
            f'are not finite: what is measured after them is left out.'
        )
    elif experiment.finish is not None:
        more, pictures = experiment.finish(
            parallel.local(state), job.noise_seed, say
        )
        numbers = {**numbers, **more}
    if not processes.is_primary():
        return
    if job.data.entropy is not None and 'nats_per_image' in numbers and (
        not experiment.conditional
    ):
        numbers['entropy_nats'] = job.data.entropy  # what no model can get below
    seconds = note.seconds + time.monotonic() - started
    own = '' if job.run.mode == 'train' else _ending(job, int(state.step), 'eval')
    pictures = _save_pictures(job, state, pictures, own)
    for writer in writers:
        writer.final(int(state.step), numbers, pictures)
    path = job.path(f'results{own}.json')
    # Samples are compared with some of the images.
    num_examples = numbers.get('num_real', len(examples))
    results = _results(job, state, numbers, seconds, num_examples)
    text = json.dumps(results, indent=2, allow_nan=False)
    if not own:  # before results.json, which says that the run has ended
        report.write(job.run.workdir, results)
    write_atomically(path, text + '\n')
    for name, value in numbers.items():
        if isinstance(value, (int, float, str)):
            say(f'  {name}: {value:.4f}' if isinstance(value, float)
                else f'  {name}: {value}')
        elif name.endswith('_bracket'):
            say(f'  {name}: [{", ".join(f"{end:.4f}" for end in value)}]')
    for sentence in numbers.get('alarms', ()):
        say(f'ALARM: {sentence}.')
    say(f'results in {path}' + ('' if own else ', and all on one page in report.html'))


def _test_numbers(
    job: Job, state: TrainState, examples: Examples, allowed: float
) -> tuple[dict[str, Any], int]:
    """Evaluate the test set, or samples against it, in some `allowed` seconds.

    Returns:
        The numbers, and how many images have one that is not finite.
    """
    evaluation, config = job.experiment.evaluation, job.config
    if isinstance(evaluation, BySamples):
        draw = functools.partial(job.draw_samples, job.sample_many(), state)
        return evaluation.score(draw, examples, True), 0
    choose = functools.partial(patience.choose_chunks, evaluation, allowed)
    rng = stream(job.noise_seed, Stream.EVAL)
    shared = evaluate.shared(evaluation, state, rng, final=True)
    arrays = evaluate.over_examples(
        parallel.eval_many(evaluation.test_step), evaluate.with_shared(state, shared),
        examples, rng, config.eval_batch, evaluation.test_chunks,
        patience.warning(
            reporter('images evaluated', len(examples)), len(examples), allowed
        ),
        choose if evaluation.fewer_chunks else None,
    )
    scalars = {name: np.array(x) for name, x in shared.items()}
    finite = np.ones(len(examples), bool)
    for values in arrays.values():
        finite &= np.isfinite(values).reshape(len(examples), -1).all(axis=1)
    num_lost = int((~finite).sum())
    return {**evaluation.summarize({**arrays, **scalars}), **shared}, num_lost


def _results(
    job: Job, state: TrainState, numbers: dict[str, Any], seconds: float,
    num_examples: int,
) -> dict[str, Any]:
    """Return the contents of results.json."""
    run, config, data = job.run, job.config, job.data
    trained = {}
    if run.mode == 'train' and run.checkpoint == 'best':
        trained = {'trained_steps': config.num_steps}  # `step` may be an earlier one
    return {
        'experiment': job.name,
        'dataset': data.name,
        'binarize': config.binarize,
        'split': 'test',
        'step': int(state.step),
        **trained,
        'checkpoint': run.checkpoint,
        'best_checkpoint_chosen_on': runs.validation_split(data),
        'num_examples': num_examples,
        'num_parameters': sizes.count(state),
        'metrics': without_nan(numbers),
        'seed': config.seed,
        'noise_seed': job.noise_seed,
        'wall_seconds': round(seconds, 1),
        'devices': runs.devices(),
        'command': run.command,
    }


def _save_pictures(
    job: Job, state: TrainState, pictures: Pictures, own: str
) -> Pictures:
    """Save these pictures, those of the experiment, and the curve of the loss.

    Their names end on `own`.

    Returns:
        The pictures without the curve.
    """
    examples, experiment = job.data.splits['test'], job.experiment
    if experiment.pictures is not None:
        first = next(pipeline.eval_batches(examples, min(len(examples), 100)))
        with doing('drawing the pictures'):
            drawn = experiment.pictures(
                parallel.local(state), first, stream(job.noise_seed, Stream.PICTURES)
            )
        pictures = {**pictures, **drawn}
    for name, picture in pictures.items():
        plotting.save_png(job.picture(name + own), picture)
    if own:
        return pictures  # training has drawn its curve
    log = os.path.join(job.run.workdir, 'metrics.jsonl')
    # The curve shows what selects the best checkpoint: the loss, or a score of samples.
    unit = experiment.loss_unit
    if job.best_by != 'loss':
        unit = 'squared units of the features, 0 is best'
    try:
        plotting.curves(log, job.picture('loss'), name=job.best_by, unit=unit)
    except UserError as error:  # somebody has edited the file
        say(f'WARNING: there is no curve of the loss: {error}')
    return pictures


def _ending(job: Job, step: int, first: str) -> str:
    """Return what the name of a file ends on: what made it, such as '_eval_step=500'.

    Args:
        job: an evaluation or a sample.
        step: the step of the checkpoint.
        first: what comes first.
    """
    config = job.config
    saved = settings.load(job.path('config.json'), type(config))
    parts = [first, f'step={step}']
    if job.run.checkpoint != 'last':
        parts.append(job.run.checkpoint)
    if job.noise_seed != saved.seed and first == 'eval':
        parts.append(f'seed={job.noise_seed}')
    for name, value in vars(config).items():
        if name not in ('dataset', 'data_dir') and value != getattr(saved, name):
            parts.append(f'{name}={_in_a_name(str(settings.text(value)))}')
    found = '_'.join(parts)
    if len(os.fsencode(found)) > _LONGEST:
        start = os.fsencode(found)[:_LONGEST].decode(errors='ignore')
        found = f'{start}_{_digest(found)}'
    return f'_{found}'


def _in_a_name(value: str) -> str:
    """Return a value as part of a file's name, other for each other value."""
    shown = re.sub(r'[^\w.,=+-]', '-', os.path.basename(value))
    return shown if shown == value else f'{shown}-{_digest(value)}'


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors='surrogateescape')).hexdigest()[:8]


def sample(job: Job, state: TrainState) -> None:
    """Write samples and a grid of them, whose names say what made them.

    samples.npz and generated.png are those that were made last.
    """
    experiment = job.experiment
    if experiment.host_sampler is not None:
        sample_many, warm_up = experiment.host_sampler()
    else:
        sample_many = warm_up = job.sample_many()
    job.draw_samples(warm_up, state, 1)  # compiles, which is not timed
    started = time.monotonic()
    images = job.draw_samples(sample_many, state, job.config.num_samples)
    seconds = time.monotonic() - started
    if not processes.is_primary():
        return
    own = _ending(job, int(state.step), f'seed={job.noise_seed}')
    given: dict[str, np.ndarray] = {}
    if experiment.given is not None:
        given = experiment.given(np.arange(len(images)))
    made: dict[str, Any] = {
        'images': images, 'seconds': seconds, 'sampler': experiment.sampler, **given,
        'classes': np.array(experiment.classes, str),
        'seed': job.noise_seed, 'step': int(state.step), 'command': job.run.command,
    }
    path = job.path(f'samples{own}.npz')
    for name in (path, job.path('samples.npz')):
        with files.replacing(name) as new, open(new, 'wb') as file:
            np.savez_compressed(file, **made)
    grid = plotting.sample_grid(images, experiment.classes)
    for name in (f'generated{own}', 'generated'):
        plotting.save_png(job.picture(name), grid)
    say(f'{len(images)} samples in {seconds:.2f} s: {path}')
