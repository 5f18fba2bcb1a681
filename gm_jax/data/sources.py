"""The data sets that `--dataset` can name, and the function that loads them.

    digits                 the 8x8 digits embedded in scikit-learn, 17 values
    mnist, lfw, ...        a TFDS name: name[/config][:version], read from `data_dir`
    idx:DIR                files in MNIST's own format
    images:DIR             a folder of PNG and JPEG files; sub-folders are splits, if
                           they are called train, test and val, or labels
    npz:FILE               NumPy arrays
    synthetic:NAME         ising, checkers, grid25 (known true entropy); lorenz

Usage: `data = sources.load('mnist', data_dir='/data')`.
"""

import dataclasses
import math
import os
from collections.abc import Mapping

from gm_jax import memory
from gm_jax.data import binarize, folder, prepared, readers, synthetic
from gm_jax.data.binarize import WAYS
from gm_jax.data.image_set import (
    ArrayExamples,
    Examples,
    ImageSet,
    StreamedExamples,
    digest,
    labels,
    num_bytes,
    read_all,
    select,
)
from gm_jax.data.splits import hold_out
from gm_jax.errors import UserError

__all__ = ['load']


def load(
    spec: str,
    *,
    data_dir: str = '',
    image_size: int = 0,
    background: str = 'white',
    binarize: str = 'none',
    validation: bool = False,
    memory_limit: int = 2**30,
) -> ImageSet:
    """Load an image set, into memory if it fits.

    Args:
        spec: the name of the set; see the module's docstring.
        data_dir: the directory of prepared TFDS sets; empty for TFDS's own default.
        image_size: N, to resize the images of `images:` and TFDS sets to N x N (the
            shorter side to N, then a crop of the centre); 0 keeps their size.
        background: what transparent images of `images:` and TFDS sets are composited
            on: 'white', 'black' or '#rrggbb'.
        binarize: 'none', 'threshold', 'static' or 'dynamic' (by the training step).
        validation: whether a tenth of the training images, of each class a tenth,
            becomes the validation split.
        memory_limit: limit in bytes; the images of a larger set are read when fetched.

    Returns:
        The set. Its splits are `ArrayExamples` when they are in memory.

    Raises:
        UserError: there is no such set, it is damaged, or an argument does not fit it.
    """
    data = _open(spec, data_dir, image_size, background)
    data = dataclasses.replace(data, name=spec)
    if image_size and data.image_shape[:2] != (image_size, image_size):
        raise UserError(
            f'--image_size resizes images: folders and TFDS sets only: {spec} has '
            f'{data.image_shape[0]}x{data.image_shape[1]} images; leave the flag out.'
        )
    # Several images are read at a time, if only to digest the set.
    size = ' x '.join(map(str, data.image_shape))
    memory.check(f'images of {size} values', 64 * math.prod(data.image_shape))
    opened = data.splits
    data = _binarized(data, binarize)
    if num_bytes(data) <= memory_limit:
        kept: dict[str, Examples] = {
            name: _in_memory(split) for name, split in data.splits.items()
        }
    else:
        kept = {
            name: _streamed(split, opened[name]) for name, split in data.splits.items()
        }
    if validation:
        kept.update(_divided(kept, spec))
    return dataclasses.replace(data, splits=kept)


def _divided(splits: Mapping[str, Examples], spec: str) -> dict[str, Examples]:
    """Return the training and the validation split of a set without the latter."""
    if 'validation' in splits:
        raise UserError(
            f'{spec} has a validation split of its own: leave --validation out.'
        )
    train = splits['train']
    rows, held = hold_out(labels(train), f'the training split of {spec}')
    return {'train': select(train, rows), 'validation': select(train, held)}


def _open(spec: str, data_dir: str, image_size: int, background: str) -> ImageSet:
    kind, colon, rest = spec.partition(':')
    rest = os.path.expanduser(rest)
    if spec == 'digits':
        return readers.digits()
    if kind in ('idx', 'images', 'npz', 'synthetic') and not rest:
        raise UserError(f'--dataset={spec} lacks what comes after the colon.')
    if colon and kind == 'idx':
        return readers.idx(rest)
    if colon and kind == 'images':
        return folder.read(rest, image_size, background)
    if colon and kind == 'npz':
        return readers.npz(rest)
    if colon and kind == 'synthetic':
        return synthetic.make(rest)
    return prepared.read(spec, data_dir, image_size, background)


def _binarized(data: ImageSet, how: str) -> ImageSet:
    if how not in WAYS:
        raise UserError(f'--binarize={how} is not one of {", ".join(WAYS)}.')
    if how == 'none':
        return data
    if data.num_values == 2:
        raise UserError(
            f'{data.name} is binary already, so that --binarize={how} would change '
            f'nothing: pass --binarize=none.'
        )
    splits, num_values = dict(data.splits), data.num_values
    for name, split in data.splits.items():
        if how == 'threshold':
            splits[name] = binarize.threshold(split, num_values)
        elif how == 'static':
            splits[name] = binarize.static(split, num_values, name)
    if how != 'dynamic':
        num_values = 2
    # The entropy is that of the images as they were.
    return dataclasses.replace(
        data, splits=splits, num_values=num_values, binarize=how, entropy=None
    )


def _in_memory(examples: Examples) -> ArrayExamples:
    return examples if isinstance(examples, ArrayExamples) else read_all(examples)


def _streamed(examples: Examples, opened: Examples) -> StreamedExamples:
    """Return examples as a stream; `opened` are the same before they became bits."""
    if not isinstance(examples, StreamedExamples):
        examples = StreamedExamples(
            len(examples), examples.fetch, labels_fn=lambda: labels(opened)
        )
    if isinstance(opened, ArrayExamples):
        examples = dataclasses.replace(examples, whole=digest(opened))
    return examples
