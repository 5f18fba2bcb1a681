"""The end of a run: the test set evaluated, results and pictures, samples."""

import functools
import json
import os
import time
from typing import Any

import numpy as np

from gm_jax import plotting
from gm_jax.data import pipeline
from gm_jax.training import distributed, evaluate
from gm_jax.training import job as job_lib
from gm_jax.training import metrics, parallel
from gm_jax.training.job import Job
from gm_jax.training.metrics import Note, say
from gm_jax.training.state import TrainState


def test(job: Job, state: TrainState, note: Note, module: str) -> None:
    """Evaluates the whole test set and writes results.json and pictures."""
    run, config, data, experiment = job.run, job.config, job.data, job.experiment
    path = os.path.join(run.workdir, 'results.json')
    step, rng = int(state.step), job_lib.stream(config.seed, job_lib.EVAL)
    started = time.monotonic()
    examples = data.splits['test']
    numbers, pictures = _test_numbers(job, state), {}
    if experiment.finish is not None:
        more, pictures = experiment.finish(parallel.local(state), say)
        numbers = {**numbers, **more}
    if not distributed.is_primary():
        return
    if data.entropy is not None and 'nats_per_image' in numbers:
        numbers['entropy_nats'] = data.entropy  # what no model can get below
    results = {
        'experiment': module,
        'dataset': data.name,
        'binarize': config.binarize,
        'split': 'test',
        'step': step,
        'checkpoint': run.checkpoint if run.mode == 'eval' else 'last',
        'num_examples': len(examples),
        'num_parameters': job_lib.count_parameters(state),
        'metrics': metrics.without_nan(numbers),
        'seed': config.seed,
        'wall_seconds': round(note.seconds + time.monotonic() - started, 1),
        'devices': job_lib.devices(),
        'command': run.command,
    }
    text = json.dumps(results, indent=2, allow_nan=False)
    metrics.write_atomically(path, text + '\n')
    for name, value in numbers.items():
        if isinstance(value, (int, float, str)):
            say(f'  {name}: {value:.4f}' if isinstance(value, float)
                else f'  {name}: {value}')
    if experiment.pictures is not None:
        first = next(iter(pipeline.eval_batches(examples, min(len(examples), 100))))
        drawn = experiment.pictures(parallel.local(state), first, rng)
        pictures = {**pictures, **drawn}
    for name, picture in pictures.items():
        plotting.save_png(job.picture(name), picture)
    log = os.path.join(run.workdir, 'metrics.jsonl')
    # What chooses the best checkpoint; of a set of samples it is no loss of training.
    label = 'score of samples, 0 is best' if experiment.score is not None else ''
    plotting.curves(log, job.picture('loss'), label=label)
    say(f'results in {path}')


def _test_numbers(job: Job, state: TrainState) -> dict[str, Any]:
    """Evaluates the whole test set, or samples against it."""
    experiment, config = job.experiment, job.config
    examples = job.data.splits['test']
    if experiment.score is not None:
        sample_many = parallel.sample_many(experiment.sample)
        draw = functools.partial(job.draw_samples, sample_many, state)
        numbers = experiment.score(draw, examples, True)
        return {name: value for name, value in numbers.items() if name != 'loss'}
    return experiment.summarize(evaluate.over_examples(
        parallel.eval_many(experiment.test_step), state, examples,
        job_lib.stream(config.seed, job_lib.EVAL),
        config.eval_batch_size or config.batch_size,
        experiment.test_chunks, metrics.reporter('images evaluated', len(examples)),
    ))


def sample(job: Job, state: TrainState) -> None:
    """Writes samples.npz and a grid of the samples."""
    experiment = job.experiment
    if experiment.host_sampler is not None:
        sample_many = experiment.host_sampler()
        warm_up = functools.partial(sample_many, warm_up=True)
    else:
        sample_many = warm_up = parallel.sample_many(experiment.sample)
    job.draw_samples(warm_up, state, 1)  # compiles, which is not timed
    started = time.monotonic()
    images = job.draw_samples(sample_many, state, job.config.num_samples)
    seconds = time.monotonic() - started
    if not distributed.is_primary():
        return
    plotting.save_png(job.picture('generated'), plotting.image_grid(images))
    path = os.path.join(job.run.workdir, 'samples.npz')
    with open(path + '.tmp', 'wb') as file:
        np.savez_compressed(
            file, images=images, seconds=seconds, sampler=job.experiment.sampler
        )
    os.replace(path + '.tmp', path)
    say(f'{len(images)} samples in {seconds:.2f} s: {path}')
