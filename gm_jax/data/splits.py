"""The splits of an image set: their names, and which images are tested on."""

from collections.abc import Iterable, Mapping
from typing import TypeVar

import numpy as np

from gm_jax.errors import UserError

__all__ = ['SPLIT_NAMES', 'hold_out', 'number_labels', 'proper_names', 'with_test']

# What splits are called in folders and in sets of TFDS, in lower case.
SPLIT_NAMES = {
    'train': 'train', 'training': 'train', 'test': 'test', 'testing': 'test',
    'validation': 'validation', 'valid': 'validation', 'val': 'validation',
    'dev': 'validation',
}

# The seed of the shuffle by which images are held out.
_SEED = 0

SplitT = TypeVar('SplitT')


def with_test(splits: Mapping[str, SplitT], where: str) -> dict[str, SplitT]:
    """Use the validation split for testing if a set has no test split.

    Args:
        splits: some of 'train', 'validation' and 'test', whatever a split is.
        where: the name of the set, for the error message.

    Returns:
        The splits, of which only 'train' is left to be divided by `hold_out` if there
        is neither of the two others.

    Raises:
        UserError: there is no training split.
    """
    found = dict(splits)
    if 'train' not in found:
        others = f', only {" and ".join(sorted(found))}' if found else ''
        raise UserError(
            f'{where} has no split "train"{others}: a model needs images to train on.'
        )
    if 'test' not in found and 'validation' in found:
        found['test'] = found.pop('validation')
    return found


def hold_out(labels: np.ndarray, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Hold a tenth of the training images out, as a split that a set lacks.

    They are drawn by the raw stream of Philox with a fixed seed, which is the same in
    all versions of NumPy. It is a tenth of each class too, up to one image, and never
    all images of a class. The draw goes by the place of an image in the set: with one
    more image it is another one, which a run that is resumed notices by the digests of
    its splits.

    Args:
        labels: [N] integers; all the same, such as -1, for images without labels.
        where: the name of the set, for the error message.

    Returns:
        (training rows [N - M], held out rows [M]), each ascending. M is a tenth of the
        images of classes of at least two images, rounded down, and at least 1.

    Raises:
        UserError: no class has two images.
    """
    bits = np.random.Philox(np.random.SeedSequence(_SEED))
    order = np.lexsort((bits.random_raw(len(labels)), labels))
    _, number, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    order = order[sizes[number[order]] > 1]
    if not len(order):
        raise UserError(
            f'{where} has {len(labels)} image(s)'
            f'{", each of another class" if len(labels) > 1 else ""}: at least 2 are '
            f'needed, one to train and one to hold out.'
        )
    # Every tenth in the order of the classes is a tenth of each.
    held = np.sort(order[9::10] if len(order) >= 10 else order[-1:])
    return np.delete(np.arange(len(labels)), held), held


def number_labels(
    labels: Mapping[str, np.ndarray], where: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Give the labels of the training split numbers from 0, in their order.

    Args:
        labels: [N] integers or strings for each split, 'train' among them.
        where: the name of the set, for the error message.

    Returns:
        ([K] the labels of the classes, {split: [N] int32 numbers in [0, K)}).

    Raises:
        UserError: another split has a label that the training split lacks.
    """
    found = np.unique(labels['train'])
    for name, those in labels.items():
        unknown = np.setdiff1d(those, found)
        if len(unknown):
            raise UserError(
                f'{where} has {name} images of the label {unknown[0]} but no training '
                f'images of it.'
            )
    return found, {
        name: np.searchsorted(found, those).astype(np.int32)
        for name, those in labels.items()
    }


def proper_names(names: Iterable[object]) -> tuple[str, ...]:
    """Return the names of classes as strings, but () if they are 0, 1, ... anyway."""
    found = tuple(map(str, names))
    return () if found == tuple(map(str, range(len(found)))) else found
