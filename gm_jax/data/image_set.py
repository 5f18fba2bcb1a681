"""An image set: splits of examples that can be fetched by index, in memory or not."""

import concurrent.futures
import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from typing import Protocol

import chex
import numpy as np

from gm_jax.errors import UserError

__all__ = [
    'ArrayExamples', 'check_facts', 'Examples', 'facts', 'FetchFn', 'hold_out',
    'ImageSet', 'num_bytes', 'read_all', 'read_facts', 'SPECS', 'StreamedExamples',
]

# Images read at a time when a whole split is read.
_CHUNK = 1024

FetchFn = Callable[[np.ndarray], dict[str, np.ndarray]]


class Examples(Protocol):
    """One split: a fixed number of images with labels, in a fixed order."""

    def __len__(self) -> int:
        """Return N, the number of examples."""
        ...

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return 'image' uint8 [n, H, W, C] and 'label' int32 [n] for `indices` [n]."""
        ...


# How a data set can be named; see `sources`.
SPECS = (
    'digits', 'a TFDS name such as mnist', 'idx:DIR', 'images:DIR', 'npz:FILE',
    'synthetic:NAME',
)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayExamples:
    """A split in memory.

    Attributes:
        images: [N, H, W, C] uint8.
        labels: [N] int32, -1 where the set has none.
    """

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        """Raise AssertionError for arrays of the wrong rank, length or type."""
        chex.assert_rank([self.images, self.labels], [4, 1])
        chex.assert_equal_shape_prefix([self.images, self.labels], 1)
        chex.assert_type([self.images, self.labels], [np.uint8, np.int32])

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return copies of the rows `indices` [n]."""
        return {'image': self.images[indices], 'label': self.labels[indices]}


@dataclasses.dataclass(frozen=True, eq=False)
class StreamedExamples:
    """A split whose examples are read, and decoded, when they are fetched.

    Attributes:
        num_examples: N, the number of examples.
        fetch_fn: reads the examples at indices [n]; returns what `Examples.fetch` does.
    """

    num_examples: int
    fetch_fn: FetchFn

    def __len__(self) -> int:
        """Return N."""
        return self.num_examples

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return the examples at `indices` [n]."""
        return self.fetch_fn(indices)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageSet:
    """Images of one shape with values in [0, V), in splits 'train' and 'test'.

    Attributes:
        name: the name of the set, such as 'mnist'.
        image_shape: (H, W, C).
        num_values: V.
        num_classes: the number of labels, 0 for a set without labels.
        splits: 'train', 'test' and perhaps 'validation'; {} if only facts are known.
        entropy: the true entropy in nats per image; None if it is not known.
        binarize: how the images were binarized; with 'dynamic' they are still grey, and
            the training step draws the pixels.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_values: int
    num_classes: int
    splits: Mapping[str, Examples]
    entropy: float | None = None
    binarize: str = 'none'


# The facts that a model is built from. A model that only generates needs no images.
_FACTS = ('name', 'image_shape', 'num_values', 'num_classes', 'entropy', 'binarize')


def facts(data: ImageSet) -> str:
    """Return everything except the images, as JSON for `read_facts`."""
    return json.dumps({name: getattr(data, name) for name in _FACTS}, indent=2) + '\n'


def read_facts(path: str) -> ImageSet:
    """Read what `facts` wrote: an image set with no splits.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        with open(path, encoding='utf-8') as file:
            found = json.load(file)
        shape = tuple(int(size) for size in found['image_shape'])
        found = {**{name: found[name] for name in _FACTS}, 'image_shape': shape}
        return ImageSet(**found, splits={})
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, 'strerror', None) or repr(error)
        raise UserError(
            f"{path}, which describes the run's images, cannot be read: {reason}."
        ) from None


def check_facts(path: str, data: ImageSet) -> None:
    """Raise UserError if `data` is not the set that `path` was written for."""
    old = read_facts(path)
    for name in _FACTS:
        was, now = getattr(old, name), getattr(data, name)
        if was != now:
            raise UserError(
                f'{data.name} has changed since the run began: its {name} was {was} '
                f'and is now {now}. Put the old data back, or train in a new --workdir.'
            )


def num_bytes(data: ImageSet) -> int:
    """Return the bytes that the images of all splits take in memory."""
    return sum(map(len, data.splits.values())) * int(np.prod(data.image_shape))


def read_all(examples: Examples) -> ArrayExamples:
    """Read a whole split into memory, with one thread per processor.

    Args:
        examples: N examples.

    Returns:
        The same N examples.
    """
    starts = range(0, len(examples), _CHUNK)
    rows = [np.arange(i, min(i + _CHUNK, len(examples))) for i in starts]
    first = examples.fetch(np.arange(1))['image']
    images = np.empty((len(examples), *first.shape[1:]), np.uint8)
    labels = np.empty(len(examples), np.int32)
    # Images are written in place: concatenating the parts would take twice the memory.
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        for row, part in zip(rows, pool.map(examples.fetch, rows)):
            images[row], labels[row] = part['image'], part['label']
    return ArrayExamples(images, labels)


def hold_out(num_examples: int, where: str) -> int:
    """Return how many leading examples to train on (90 %) if there is no test split.

    Args:
        num_examples: N, the number of examples of the set.
        where: the name of the set, for the error message.

    Raises:
        UserError: there are fewer than two examples.
    """
    if num_examples < 2:
        raise UserError(
            f'{where} has {num_examples} image(s): at least 2 are needed, one to train '
            f'and one to test.'
        )
    return num_examples - max(1, num_examples // 10)
