"""Image sets in a folder of PNG and JPEG files, with sub-folders as labels."""

import hashlib
import os

import numpy as np

from gm_jax.data import decoding
from gm_jax.data.image_set import ImageSet, StreamedExamples, hold_out
from gm_jax.errors import UserError

__all__ = ['Entry', 'read']

# The path of a file, and the name of its label, '' without labels.
Entry = tuple[str, str]


def read(directory: str, image_size: int) -> ImageSet:
    """Open a folder of images, which are decoded when they are fetched.

    Sub-folders `train` and `test` are the splits, if there are both. Otherwise the
    tenth of the files whose paths have the lowest hashes is the test split. Files in
    sub-folders (of the split) are labelled with the sub-folder's name, and labels are
    numbered in the order of their names. Hidden files are ignored; any other file that
    is not an image is an error. Images are grey if all files are, and RGB otherwise.

    Args:
        directory: the folder.
        image_size: N, to resize images to N x N; 0 if they have one size already.

    Returns:
        The set; nothing is decoded yet.

    Raises:
        UserError: the folder is missing or has too few images, or its splits, labels or
            files are not as described above.
    """
    if not os.path.isdir(directory):
        raise UserError(f'There is no directory {directory}: check --dataset.')
    parts = [os.path.join(directory, name) for name in ('train', 'test')]
    present = [part for part in parts if os.path.isdir(part)]
    if len(present) == 1:
        raise UserError(
            f'{present[0]} is there but not its counterpart: have both train and test '
            f'in {directory}, or neither.'
        )
    if present:
        entries = {
            name: _scan(part) for name, part in zip(('train', 'test'), parts)
        }
    else:
        found = _scan(directory)
        num_train = hold_out(len(found), directory)
        # By hash, so that an added file moves at most one other to another split.
        found.sort(key=lambda entry: _hash(directory, entry[0]), reverse=True)
        entries = {
            'train': sorted(found[:num_train]), 'test': sorted(found[num_train:])
        }
    classes = _classes(directory, entries)
    paths = [path for split in entries.values() for path, _ in split]
    shape = _common_shape(paths, image_size)
    return ImageSet(
        name=os.path.basename(os.path.normpath(directory)),
        image_shape=shape, num_values=256, num_classes=len(classes),
        splits={
            name: _examples(directory, split, classes, shape, image_size)
            for name, split in entries.items()
        },
    )


def _scan(directory: str) -> list[Entry]:
    """Return all files below a directory, in the order of their paths."""
    entries = []
    for parent, folders, names in os.walk(directory, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith('.')]
        below = os.path.relpath(parent, directory)
        label = '' if below == os.curdir else below.split(os.sep)[0]
        entries += [
            (os.path.join(parent, name), label)
            for name in names if not name.startswith('.')
        ]
    if not entries:
        raise UserError(f'{directory} holds no images.')
    return sorted(entries)


def _hash(directory: str, path: str) -> str:
    relative = os.path.relpath(path, directory).replace(os.sep, '/')
    return hashlib.sha256(relative.encode(errors='surrogateescape')).hexdigest()


def _classes(directory: str, entries: dict[str, list[Entry]]) -> list[str]:
    """Return the names of the labels, or [] if there are none."""
    labels = {name: {label for _, label in split} for name, split in entries.items()}
    every = set().union(*labels.values())
    if every == {''}:
        return []
    if '' in every:
        path = next(p for split in entries.values() for p, label in split if not label)
        raise UserError(
            f'{path} lies beside sub-folders, which are labels: move it into one.'
        )
    unknown = sorted(labels['test'] - labels['train'])
    if unknown:
        raise UserError(
            f'{directory} has test images of the label {unknown[0]} but no training '
            f'images of it.'
        )
    return sorted(every)


def _common_shape(paths: list[str], image_size: int) -> tuple[int, int, int]:
    first, num_channels = decoding.read_header(paths[0]), 1
    for path in paths:
        header = decoding.read_header(path)
        num_channels = max(num_channels, header.num_channels)
        if not image_size and header[:2] != first[:2]:
            raise UserError(
                f'{path} is {header.height}x{header.width} but {paths[0]} is '
                f'{first.height}x{first.width}: pass --image_size to resize all images '
                f'to one size.'
            )
    height, width = (image_size, image_size) if image_size else first[:2]
    return height, width, num_channels


def _examples(
    directory: str, entries: list[Entry], classes: list[str],
    shape: tuple[int, int, int], image_size: int,
) -> StreamedExamples:
    paths = [path for path, _ in entries]
    number = {label: place for place, label in enumerate(classes)}
    labels = np.array([number.get(label, -1) for _, label in entries], np.int32)

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(indices), *shape), np.uint8)
        for out, index in zip(images, indices):
            out[...] = decoding.decode_file(paths[index], shape, image_size)
        return {'image': images, 'label': labels[indices]}

    files = '\n'.join(
        f'{os.path.relpath(path, directory)} {os.path.getsize(path)}' for path in paths
    )
    return StreamedExamples(len(paths), fetch, files)
