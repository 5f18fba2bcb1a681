"""Test nats of a mixture of trained models, whose weights the validation split chooses.

A set that has no validation split leaves the weights equal.

    python -m benchmarks.mixture --runs=DIR,DIR --data_dir=DIR --out=FILE.json
    python -m benchmarks.mixture --runs=DIR,DIR --checkpoint=best
"""

import argparse
import json
import os
import shlex
import sys
import time
from typing import Any

import numpy as np

import gm_jax
from benchmarks import rows
from benchmarks.machine import device_name
from gm_jax.data import image_set, sources
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import likelihood, mixture
from gm_jax.trained import Run
from gm_jax.training.contracts import ByExample


def main(argv: list[str]) -> None:
    """Evaluate the models and their mixture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--runs', required=True, help='models, with commas between')
    parser.add_argument('--data_dir', default='')
    parser.add_argument(
        '--checkpoint', default='last', choices=('last', 'best'), help='of each run'
    )
    parser.add_argument(
        '--examples', type=int, default=10**9, help='at most so many of the test split'
    )
    parser.add_argument(
        '--fit_examples', type=int, default=10**9, help='the same of the validation'
    )
    parser.add_argument('--out', default='', help='JSON file to write')
    args = parser.parse_args(argv)
    if min(args.examples, args.fit_examples) < 1:
        parser.error('--examples and --fit_examples must be at least 1')
    started = time.time()
    try:
        paths = args.runs.split(',')
        runs = [gm_jax.load(path, checkpoint=args.checkpoint) for path in paths]
        check(paths, runs)
        data = images(paths, runs, os.path.expanduser(args.data_dir))
        found = evaluate(runs, data, args.examples, args.fit_examples)
    except UserError as error:
        parser.error(str(error))
    row = {
        **found,
        'models': [run.results.get('command', '') for run in runs],
        'command': shlex.join(['python', '-m', 'benchmarks.mixture', *argv]),
        'hours': (time.time() - started) / 3600, 'machine': device_name(),
    }
    print(json.dumps(row, indent=2))
    if args.out:
        rows.write(args.out, [row])


def check(paths: list[str], runs: list[Run]) -> None:
    """Check that each model has a density of whole images, and a number of its own.

    Raises:
        UserError: a model has none.
    """
    for path, run in zip(paths, runs, strict=True):
        evaluation = run.experiment.evaluation
        if not isinstance(evaluation, ByExample) or not run.estimator:
            raise UserError(f'{path} has no likelihood.')
        of_classes = getattr(run.config, 'class_conditional', False)
        if run.experiment.conditional or of_classes:
            raise UserError(
                f'{path} has the likelihood of an image given a part of it or its '
                f'class, which is no density of the images to mix.'
            )
        if not run.results:
            raise UserError(
                f'{path} has no numbers of its checkpoint at step {run.step}: '
                f'evaluate it, or pass --checkpoint=best if they are of that one.'
            )


def images(paths: list[str], runs: list[Run], data_dir: str) -> ImageSet:
    """Load the images that all models are of.

    Raises:
        UserError: the models are of different images, or each draws its own bits.
    """
    first = runs[0]
    kinds = {image_set.description(run.data) for run in runs}
    if len(kinds) > 1:
        raise UserError(f'models of different images: {"; ".join(sorted(kinds))}.')
    if first.data.binarize == 'dynamic':
        raise UserError(
            'with --binarize=dynamic each run is evaluated on bits of its own, so that '
            'their likelihoods cannot be mixed.'
        )
    data = sources.load(
        first.config.dataset, data_dir=data_dir, image_size=first.config.image_size,
        background=first.config.background, binarize=first.config.binarize,
        validation=first.config.validation,
    )
    for path in paths:
        image_set.check_same_images(
            os.path.join(os.path.expanduser(path), 'data.json'), data,
            f'{path} holds a model',
        )
    return data


def evaluate(
    runs: list[Run], data: ImageSet, most: int, most_fitted: int
) -> dict[str, Any]:
    """Return the numbers of a row of results.

    Args:
        runs: models that `check` and `images` have passed.
        data: their images.
        most: how many test images there may be.
        most_fitted: the same of the validation split.
    """
    first = runs[0]

    def log_px(split: str, most: int) -> np.ndarray:
        examples = data.splits[split]
        images = examples.fetch(image_set.spread(len(examples), most))['image']
        return np.stack([run.log_prob(images) for run in runs])

    weights, chosen = np.full(len(runs), 1 / len(runs)), {}
    if 'validation' in data.splits:
        each = log_px('validation', most_fitted)
        weights = mixture.fit(each)
        chosen = {
            'validation_nats': -float(mixture.log_prob(each, weights).mean()),
            'validation_nats_of_each': (-each.mean(axis=1)).tolist(),
        }
    num_dims = int(np.prod(first.data.image_shape))
    estimators = ', '.join(sorted({run.estimator for run in runs}))
    each = log_px('test', most)
    mixed = mixture.log_prob(each, weights)
    return {
        'dataset': first.data.name, 'binarize': first.data.binarize, 'split': 'test',
        'num_examples': len(mixed), 'seed': first.config.seed,
        'step': max(run.step for run in runs),
        'metrics': {
            **likelihood.report(mixed, num_dims, estimators),
            'mixture_weights': weights.tolist(),
            'nats_of_each': (-each.mean(axis=1)).tolist(), **chosen,
        },
    }


if __name__ == '__main__':
    main(sys.argv[1:])
