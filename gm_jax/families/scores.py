"""Scores that compare the samples of a generator with images.

They compare features: those of a classifier or of Inception, or the pixels. A score is
named after its features and comes with the numbers of images and of samples.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, pipeline, synthetic
from gm_jax.data.image_set import Examples, ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import (
    alarms,
    frechet,
    kernel_distance,
    modes,
    neighbours,
    precision_recall,
)
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.training.contracts import Draw

__all__ = [
    'as_seen', 'careful_scores', 'check_splits', 'distance_name', 'Features',
    'find_alarms', 'nearest_images', 'PIXELS', 'pixels', 'score',
]

# More pixels than this are averaged over blocks: with as many samples a Frechet
# distance would take minutes.
_MOST_PIXELS = 4096
# At most this many training images, and values of them, are searched for the nearest.
_SEARCHED, _SEARCHED_VALUES = 60_000, 2**26
# The fewest images that samples can be compared with.
_LEAST = 5
# During training a Frechet distance, whose cost is about that of N F^2, is one of fewer
# samples where there are many features: it must not take longer than training.
_QUICK, _QUICK_COST = 1_000, 10**10


class Features(NamedTuple):
    """The features by which samples and images are compared.

    Attributes:
        name: the first part of the names of scores.
        compute: uint8 [N, H, W, C] -> [N, F].
        weights: the digest of the weights of a network; '' without one.
    """

    name: str
    compute: Callable[[np.ndarray], np.ndarray]
    weights: str = ''

    @property
    def judge(self) -> str:
        """What the results call them: scores are comparable if it is the same."""
        return f'{self.name} {self.weights}'.strip()


def distance_name(features: Features) -> str:
    """Return the name of the Frechet distance of some features."""
    return f'{features.name}_frechet_distance'


def pixels(images: np.ndarray) -> np.ndarray:
    """Return uint8 images [N, H, W, C] as [N, F] float32 in [0, 1].

    Images that are too large are reduced by taking the means of 2x2 blocks, repeatedly,
    while their sides are even.
    """
    x = images.astype(np.float32) / 255
    while x[0].size > _MOST_PIXELS and not (x.shape[1] % 2 or x.shape[2] % 2):
        x = (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
    return x.reshape(len(x), -1)


PIXELS = Features('pixel', pixels)


def as_seen(
    examples: Examples, rows: np.ndarray, data: ImageSet, *, train: bool = False
) -> np.ndarray:
    """Return the images of some rows as a model sees them, with levels 0 to 255.

    Dynamically binarized pixels are drawn with one key per row.

    Args:
        examples: a split of the image set.
        rows: [N] the rows to return.
        data: the image set.
        train: whether it is the training split, whose rows have keys of their own.

    Returns:
        [N, H, W, C] uint8.
    """
    images = examples.fetch(rows)['image']
    if data.binarize == 'dynamic':
        # Of one seed, so that all runs compare their samples with the same images.
        rng = stream(0, Stream.SCORES)
        rng = derive(rng, Use.TRAINING_IMAGES) if train else rng
        rngs = fold_in_each(rng, rows.astype(np.int32))
        images = np.asarray(
            binarize.integers(derive(rngs, Use.PIXELS), images, data)
        )
    return plotting.to_uint8(images, num_values=binarize.num_values(data))


def check_splits(data: ImageSet, test_examples: int = 0) -> None:
    """Raise UserError for splits that are too small to be compared with samples.

    Args:
        data: the image set.
        test_examples: the setting; 0: all.
    """
    if data.splits and 0 < test_examples < _LEAST:
        raise UserError(
            f'--test_examples={test_examples} is too few: {_LEAST} images are needed '
            f'to score samples.'
        )
    for name, examples in data.splits.items():
        if len(examples) < _LEAST:
            raise UserError(
                f'the {name} split of {data.name} has {len(examples)} images: {_LEAST} '
                f'are needed to score samples.'
            )


def score(
    draw: Draw,
    examples: Examples,
    last: bool,
    *,
    most: int,
    data: ImageSet,
    features: Features,
) -> dict[str, Any]:
    """Compare samples with the same number of images, a fixed random choice.

    Args:
        draw: n -> [n, H, W, C] uint8.
        examples: a split of the image set.
        last: whether to compute also the numbers that take long, and to compare
            `most` samples however many features they have.
        most: the largest number of samples, and of images.
        data: the image set.
        features: the features to compare.

    Returns:
        The Frechet distance of the features, under `distance_name`, how many samples
        and images were compared, and their diversity. If the modes are known, also how
        many are covered. With `last`, also the kernel distance, precision, recall,
        density and coverage, and as 'judged_by' what the features are.
    """
    num = min(most, len(examples))
    rows = pipeline.example_order(0, 0, num, len(examples))
    if not last:
        size = features.compute(as_seen(examples, rows[:2], data)).shape[1]
        num = min(num, max(_QUICK, _QUICK_COST // size**2))
        rows = rows[:num]
    fake = draw(num)
    real_features = features.compute(as_seen(examples, np.sort(rows), data))
    fake_features = features.compute(fake)
    distance = frechet.frechet_distance(real_features, fake_features)
    numbers: dict[str, Any] = {
        distance_name(features): distance,
        'num_real': num, 'num_fake': num,
        **alarms.diversity(real_features, fake_features),
    }
    if last:
        numbers |= careful_scores(features.name, real_features, fake_features)
        numbers['judged_by'] = features.judge
    known = synthetic.modes(data)
    if known is not None:
        points = fake.reshape(num, -1).astype(np.float64)
        numbers |= modes.mode_coverage(points, known.centres, known.std)
    return numbers


def careful_scores(
    name: str, real: np.ndarray, fake: np.ndarray
) -> dict[str, float]:
    """Return the kernel distance, and precision and recall, of features [N, F]."""
    num = min(len(real), len(fake))
    mean, error = kernel_distance.kernel_distance(
        real, fake, num_subsets=max(2, min(10, num // 4))
    )
    return {
        f'{name}_kernel_distance': mean,
        f'{name}_kernel_distance_standard_error': error,
        **precision_recall.precision_recall(real, fake),
    }


def nearest_images(
    samples: np.ndarray, data: ImageSet, features: Features
) -> np.ndarray:
    """Draw samples above their nearest training images, as the lecture does.

    Args:
        samples: [N, H, W, C] uint8.
        data: the image set; only a part of a large one is searched.
        features: those by which images are compared, besides pixels.

    Returns:
        [H', W', C] uint8: the samples, the nearest by pixels, the nearest by features.
    """
    train = data.splits['train']
    most = min(_SEARCHED, _SEARCHED_VALUES // samples[0].size, len(train))
    images = as_seen(
        train, np.sort(pipeline.example_order(0, 0, most, len(train))), data,
        train=True,
    )
    rows, by = {'samples': samples}, {'pixels': PIXELS.compute}
    if features is not PIXELS:
        by['features'] = features.compute
    for name, compute in by.items():
        index, _ = neighbours.nearest(compute(samples), compute(images))
        rows[f'nearest by {name}'] = images[index[:, 0]]
    return plotting.labelled_rows(np.stack(list(rows.values())), list(rows))


def find_alarms(
    split: str,
    metrics: dict[str, float],
    *,
    saturated_below: float,
    data: ImageSet,
) -> list[str]:
    """Return the alarms of a line of metrics of an adversarial run, as sentences.

    Args:
        split: the split of the line: 'train' for metrics of the game, any other for
            those of `score`.
        metrics: the metrics of the line.
        saturated_below: see `alarms.of_training`.
        data: the image set.
    """
    if split == 'train':
        return alarms.of_training(metrics, saturated_below=saturated_below)
    known = synthetic.modes(data)
    return alarms.of_samples(metrics, num_modes=len(known.centres) if known else 0)
