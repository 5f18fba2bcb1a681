"""The end of a run: evaluation on the test set, results, pictures and samples."""

import functools
import hashlib
import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from gm_jax import plotting
from gm_jax.data import pipeline
from gm_jax.data.image_set import Examples
from gm_jax.keys import Stream, stream
from gm_jax.training import (
    evaluate,
    parallel,
    processes,
    runs,
    settings,
    sizes,
    writers,
)
from gm_jax.training.contracts import ByExample, BySamples, Pictures
from gm_jax.training.progress import doing, reporter, say
from gm_jax.training.recorder import Note
from gm_jax.training.runs import Job
from gm_jax.training.train_state import TrainState

__all__ = ['choose_chunks', 'sample', 'SECONDS', 'SHARE', 'test']

# Characters of a file's name that say what made it; more are abridged.
_LONGEST = 120
# The final evaluation may take this long, or this share of the time of training.
SECONDS, SHARE = 600.0, 0.1


def test(job: Job, state: TrainState, note: Note) -> None:
    """Evaluate the whole test set; write pictures and then the results.

    Training writes results.json, --mode=eval a file of its own.
    """
    experiment = job.experiment
    started = time.monotonic()
    examples = evaluate.first(job.data.splits['test'], job.config.test_examples)
    allowed = max(SECONDS, SHARE * note.seconds)
    numbers = _test_numbers(job, state, examples, allowed)
    pictures: Pictures = {}
    if experiment.finish is not None:
        more, pictures = experiment.finish(parallel.local(state), say)
        numbers = {**numbers, **more}
    if not processes.is_primary():
        return
    if job.data.entropy is not None and 'nats_per_image' in numbers:
        numbers['entropy_nats'] = job.data.entropy  # what no model can get below
    seconds = note.seconds + time.monotonic() - started
    own = '' if job.run.mode == 'train' else _ending(job, int(state.step), 'eval')
    pictures = _save_pictures(job, state, pictures, own)
    if not own:
        writers.write_final(
            job.run.workdir, int(state.step), vars(job.config), numbers, pictures
        )
    path = job.path(f'results{own}.json')
    results = _results(job, state, numbers, seconds, len(examples))
    text = json.dumps(results, indent=2, allow_nan=False)
    writers.write_atomically(path, text + '\n')
    for name, value in numbers.items():
        if isinstance(value, (int, float, str)):
            say(f'  {name}: {value:.4f}' if isinstance(value, float)
                else f'  {name}: {value}')
    say(f'results in {path}')


def _test_numbers(
    job: Job, state: TrainState, examples: Examples, allowed: float
) -> dict[str, Any]:
    """Evaluate the test set, or samples against it, in some `allowed` seconds."""
    evaluation, config = job.experiment.evaluation, job.config
    if isinstance(evaluation, BySamples):
        draw = functools.partial(job.draw_samples, job.sample_many(), state)
        return evaluation.score(draw, examples, True)
    choose = functools.partial(choose_chunks, evaluation, allowed)
    return evaluation.summarize(evaluate.over_examples(
        parallel.eval_many(evaluation.test_step), state, examples,
        stream(job.noise_seed, Stream.EVAL), config.eval_batch, evaluation.test_chunks,
        _warning(reporter('images evaluated', len(examples)), len(examples), allowed),
        choose if evaluation.fewer_chunks else None,
    ))


def choose_chunks(evaluation: ByExample, allowed: float, each: float) -> int:
    """Return the most chunks that take `allowed` seconds, or the fewest there can be.

    Args:
        evaluation: what is evaluated.
        allowed: seconds.
        each: seconds that a chunk takes here; that of the primary process counts.
    """
    each = float(processes.from_primary(np.array(each, np.float32)))
    most, size = evaluation.test_chunks, evaluation.chunk_size
    choices = (most, *evaluation.fewer_chunks)
    num = next((n for n in choices if n * each <= allowed), choices[-1])
    if num < most:
        say(
            f'{num * size} samples of each image, which take about '
            f'{_duration(num * each)}: --test_samples={most * size} would take '
            f'{_duration(most * each)}.'
        )
    return num


def _warning(
    report: Callable[[float], None], total: int, allowed: float
) -> Callable[[float], None]:
    """Return `report` that also says, once, if all examples will take long."""
    beginning: list[tuple[float, float]] = []  # when the first were done, and how many
    told = False

    def telling(done: float) -> None:
        nonlocal told
        report(done)
        beginning.append((time.monotonic(), done))
        (then, before), (now, _) = beginning[0], beginning[-1]
        del beginning[1:]
        if not told and done > before:
            told = True
            seconds = (now - then) / (done - before) * total
            if seconds > allowed:
                say(
                    f'the evaluation of {total:,} images takes about '
                    f'{_duration(seconds)}: --test_examples=N evaluates the first N.'
                )

    return telling


def _duration(seconds: float) -> str:
    """Return seconds in words."""
    if seconds < 100:
        return f'{seconds:.0f} seconds'
    if seconds < 6000:
        return f'{seconds / 60:.0f} minutes'
    return f'{seconds / 3600:.0f} hours'


def _results(
    job: Job, state: TrainState, numbers: dict[str, Any], seconds: float,
    num_examples: int,
) -> dict[str, Any]:
    """Return the contents of results.json."""
    run, config, data = job.run, job.config, job.data
    return {
        'experiment': job.name,
        'dataset': data.name,
        'binarize': config.binarize,
        'split': 'test',
        'step': int(state.step),
        'checkpoint': run.checkpoint if run.mode == 'eval' else 'last',
        'best_checkpoint_chosen_on': runs.validation_split(data),
        'num_examples': num_examples,
        'num_parameters': sizes.count(state),
        'metrics': writers.without_nan(numbers),
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
    plotting.curves(log, job.picture('loss'), name=job.best_by, unit=unit)
    return pictures


def _ending(job: Job, step: int, *first: str) -> str:
    """Return what the name of a file ends on: what made it, such as '_eval_step=500'.

    Args:
        job: an evaluation or a sample.
        step: the step of the checkpoint.
        *first: what comes first.
    """
    config = job.config
    saved = settings.load(job.path('config.json'), type(config))
    parts = list(first)
    if step != saved.num_steps:
        parts.append(f'step={step}')
    if job.run.checkpoint != 'last':
        parts.append(job.run.checkpoint)
    if job.noise_seed != saved.seed and 'eval' in first:
        parts.append(f'seed={job.noise_seed}')
    for name, value in vars(config).items():
        if name not in ('dataset', 'data_dir') and value != getattr(saved, name):
            parts.append(f'{name}={os.path.basename(str(settings.text(value)))}')
    found = re.sub(r'[^\w.,=+-]', '-', '_'.join(parts))
    if len(found) > _LONGEST:
        digest = hashlib.sha256(found.encode()).hexdigest()[:8]
        found = f'{found[:_LONGEST]}_{digest}'
    return f'_{found}'


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
        with open(name + '.tmp', 'wb') as file:
            np.savez_compressed(file, **made)
        os.replace(name + '.tmp', name)
    grid = plotting.sample_grid(images, experiment.classes)
    for name in (f'generated{own}', 'generated'):
        plotting.save_png(job.picture(name), grid)
    say(f'{len(images)} samples in {seconds:.2f} s: {path}')
