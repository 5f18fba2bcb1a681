"""How long the defaults of every experiment train and evaluate, by image set.

Each pair is measured in a process of its own on a few steps, batches and samples, and
extrapolated to the numbers of the defaults. All cores work as one device: the models
for which a command divides them train faster than these seconds say. Rows are written
as they are measured, and pairs that are in the file already are not measured again; one
that fails is told and left out, and one that takes too long says what it lacks:

    python -m benchmarks.times --data_dir=DIR
    python -m benchmarks.times --data_dir=DIR --names=vae --datasets=digits,mnist

Seconds of a row, compilation and reading left out:

    train_seconds        the steps of training
    validation_seconds   the evaluations during training, each with its samples
    test_seconds         the final evaluation, without what follows
    finish_seconds       what an experiment measures after that, such as classifiers
"""

import argparse
import dataclasses
import functools
import importlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks import machine, rows
from experiments import NAMES
from gm_jax.data import sources
from gm_jax.data.image_set import ArrayExamples, Examples, ImageSet
from gm_jax.keys import Stream, stream
from gm_jax.training import evaluate, loop, pace, parallel, patience, sizes
from gm_jax.training.contracts import BySamples, Experiment
from gm_jax.training.settings import Config
from gm_jax.training.train_state import TrainState

DATASETS = ('digits', 'binarized_mnist', 'mnist', 'fashion_mnist', 'cifar10_jpeg')
# Images of each split that are read.
_READ = 2_048
# A last score of more than N F^2 of these, N samples of F pixels, is measured on fewer
# samples.
_SCORE_COST, _SCORED = 10**10, 2_500
# Seconds for which the steps of training are measured.
_MEASURED = 5.0
# Steps of the classifiers at the end that are measured.
_PROBE_STEPS = 20


def measure(name: str, dataset: str, data_dir: str) -> Iterator[dict[str, Any]]:
    """Yield the fields of a row, those that are measured first first."""
    command = importlib.import_module(f'experiments.{name}').main
    config = command.config_class(dataset=dataset, data_dir=data_dir)
    data = sources.load(dataset, data_dir=data_dir, memory_limit=0)
    lengths = {split: len(examples) for split, examples in data.splits.items()}
    splits = {split: _in_memory(examples) for split, examples in data.splits.items()}
    data = dataclasses.replace(data, splits=splits)
    experiment = command.build(config, data)
    state = parallel.replicate(
        parallel.init(experiment.init)(stream(config.seed, Stream.INIT))
    )
    yield {
        'image_shape': list(data.image_shape), 'num_parameters': sizes.count(state),
        'num_steps': config.num_steps, 'batch_size': config.batch_size,
    }
    state, step, measured = pace.measure(
        experiment, config, data, state, _MEASURED
    )
    train = step * config.num_steps
    yield {'train_seconds': _round(train), 'measured_steps': measured}
    yield from _test(experiment, config, data, lengths['test'], state, train)
    split = 'validation' if 'validation' in splits else 'test'
    num = min(
        lengths[split], max(loop.MOST_EVALUATED, config.eval_every * config.batch_size)
    )
    times = -(-config.num_steps // config.eval_every)
    each = _validate(experiment, config, splits[split], num, state)
    if experiment.sample is not None:
        each += _seconds_to_draw(experiment, config, state, config.num_samples)
    yield {'validations': times, 'validation_seconds': _round(times * each)}
    if experiment.finish is not None:
        seconds = _finish(command.build, experiment, config, data, state)
        yield {'finish_seconds': _round(seconds)}


def _in_memory(examples: Examples) -> ArrayExamples:
    found = examples.fetch(np.arange(min(_READ, len(examples))))
    return ArrayExamples(found['image'], found['label'])


def _round(seconds: float) -> float:
    return float(f'{seconds:.3g}')


def _seconds(function: Callable[[], Any]) -> float:
    """Return the seconds of a second call, since the first one compiles."""
    jax.block_until_ready(function())
    started = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - started


def _test(
    experiment: Experiment, config: Config, data: ImageSet, num_test: int,
    state: TrainState, train_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Yield the time of the final evaluation of `num_test` images."""
    evaluation, examples = experiment.evaluation, data.splits['test']
    if isinstance(evaluation, BySamples):
        num = min(num_test, getattr(config, 'score_samples'))
        seconds = _score(experiment, examples, num, True)
        seconds += _seconds_to_draw(experiment, config, state, num)
        yield {'num_samples': num, 'test_seconds': _round(seconds)}
        return
    each = _by_batch(evaluation.test_step, config, examples, num_test, state)
    allowed = patience.allowed(train_seconds)
    chunks = evaluation.test_chunks
    if evaluation.fewer_chunks:
        chunks = patience.choose_chunks(evaluation, allowed, each)
        yield {'num_samples': chunks * evaluation.chunk_size}
    yield {'test_seconds': _round(chunks * each)}


def _validate(
    experiment: Experiment, config: Config, examples: Examples, num: int,
    state: TrainState,
) -> float:
    """Return the seconds of an evaluation of `num` images during training."""
    evaluation = experiment.evaluation
    if not isinstance(evaluation, BySamples):
        return _by_batch(evaluation.eval_step, config, examples, num, state)
    num = min(num, getattr(config, 'score_samples'))
    return _score(experiment, examples, num, False) + _seconds_to_draw(
        experiment, config, state, num
    )


def _by_batch(
    step: Any, config: Config, examples: Examples, num: int, state: TrainState
) -> float:
    """Return the seconds that a function of a batch takes for `num` examples."""
    compiled, rng = parallel.eval_many(step), stream(config.seed, Stream.EVAL)
    some = evaluate.some(examples, config.eval_batch)

    def one() -> Any:
        return evaluate.over_examples(compiled, state, some, rng, config.eval_batch)

    return _seconds(one) * -(-num // config.eval_batch)


def _score(
    experiment: Experiment, examples: Examples, num: int, last: bool
) -> float:
    """Return the seconds to score `num` samples, which are random images.

    From fewer samples the time is taken to grow like their square, an upper bound.
    """
    found = examples.fetch(np.arange(len(examples)))['image']
    few = num
    if last and num * found[0].size**2 > _SCORE_COST:
        few = min(num, _SCORED)
    rng = np.random.default_rng(0)
    real, fake = (
        rng.integers(0, int(found.max()) + 1, (few, *found.shape[1:]), dtype=np.uint8)
        for _ in range(2)
    )
    evaluation = experiment.evaluation
    assert isinstance(evaluation, BySamples)
    started = time.perf_counter()
    evaluation.score(
        lambda num: fake[:num], ArrayExamples(real, np.zeros(few, np.int32)), last
    )
    return (time.perf_counter() - started) * (num / few)**2


def _seconds_to_draw(
    experiment: Experiment, config: Config, state: TrainState, num: int
) -> float:
    """Return the seconds that `num` samples take."""
    assert experiment.sample is not None
    compiled = parallel.sample_many(experiment.sample)
    rng = stream(config.seed, Stream.SAMPLE)
    seconds = _seconds(
        lambda: evaluate.samples(compiled, state, 1, rng, config.batch_size)
    )
    return seconds * -(-num // config.batch_size)


def _finish(
    build: Any, experiment: Experiment, config: Config, data: ImageSet,
    state: TrainState,
) -> float:
    """Return the seconds of `Experiment.finish`, compilation included."""

    def seconds(experiment: Experiment) -> float:
        assert experiment.finish is not None
        started = time.perf_counter()
        experiment.finish(parallel.local(state), 0, lambda *parts: None)
        return time.perf_counter() - started

    steps = getattr(config, 'probe_steps', 0)
    if not steps:
        return seconds(experiment)
    shorter: list[dict[str, Any]] = [
        {'probe_steps': num} for num in (_PROBE_STEPS, 3 * _PROBE_STEPS)
    ]
    few, more = (
        seconds(build(dataclasses.replace(config, **few), data)) for few in shorter
    )
    per_step = max(0.0, more - few) / (2 * _PROBE_STEPS)
    return more + per_step * (steps - 3 * _PROBE_STEPS)


def _command(argv: Sequence[str], data_dir: str) -> str:
    """Return the command without the place of the data, which is of one machine."""
    flags = [arg.replace(data_dir, 'DIR') if data_dir else arg for arg in argv]
    return shlex.join(['python', '-m', 'benchmarks.times', *flags])


def _row(
    experiment: str, dataset: str, data_dir: str, limit: float
) -> dict[str, Any]:
    """Measure a pair in a process of its own, for `limit` seconds at most.

    Raises:
        RuntimeError: it has failed.
    """
    command = [
        sys.executable, '-m', 'benchmarks.times', f'--names={experiment}',
        f'--datasets={dataset}', f'--data_dir={data_dir}', '--here',
    ]
    row: dict[str, Any] = {}
    late = ''
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            late = f'not measured within {limit:.0f} seconds: all that is missing here'
    for line in out.splitlines():
        if line.startswith('{'):
            row |= json.loads(line)
    if late:
        row['error'] = [late]
    elif process.returncode:
        raise RuntimeError(err.strip().splitlines()[-1])
    row['load_average'] = round(os.getloadavg()[0], 1)  # over the last minute
    return row


def main(argv: list[str]) -> int:
    """Measure what is not in the file yet, and write the rows; return the status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--names', default=','.join(NAMES))
    parser.add_argument('--datasets', default=','.join(DATASETS))
    parser.add_argument('--data_dir', default='', help='where the TFDS sets are')
    parser.add_argument('--out', default='results/default_times.json')
    parser.add_argument(
        '--limit', type=float, default=180.0, help='seconds for each row at most'
    )
    parser.add_argument('--here', action='store_true', help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.here:
        for fields in measure(args.names, args.datasets, args.data_dir):
            print(json.dumps(fields), flush=True)
        return 0
    common = {
        'device': machine.cpu_name(), 'python': platform.python_version(),
        'jax': importlib.metadata.version('jax'),
        'command': _command(argv, args.data_dir),
    }
    keys = []
    for name in rows.chosen(parser, '--names', args.names, NAMES):
        sets = args.datasets.split(',')
        if name == 'time_series' and sets == list(DATASETS):  # it takes no images
            sets = ['synthetic:lorenz']
        keys += [{'experiment': name, 'dataset': dataset} for dataset in sets]
    row = functools.partial(_row, data_dir=args.data_dir, limit=args.limit)
    return bool(rows.fill(args.out, keys, row, common))


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
