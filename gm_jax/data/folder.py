"""Image sets in a folder of PNG and JPEG files, with sub-folders as labels."""

import os
import re
import sys
from collections.abc import Callable
from typing import NoReturn

import numpy as np

from gm_jax.data import decoding
from gm_jax.data.image_set import ImageSet, StreamedExamples
from gm_jax.data.splits import (
    SPLIT_NAMES,
    hold_out,
    number_labels,
    proper_names,
    with_test,
)
from gm_jax.errors import UserError

__all__ = ['Entry', 'read']

# The path of a file, and the name of its label, '' without labels.
Entry = tuple[str, str]

# Names like those of splits, such as seg_train, test_set, val2017 and trainA.
_LIKE_SPLITS = re.compile(
    r'(?i:(?:.*[_\- ])?(train|test|val|dev)(?:ing|id|idation)?(?:[_\- ].*|\d+)?)[A-Z]?'
)
# How the names of pictures end that would be read, or refused, within a split.
_PICTURES = ('.png', '.jpg', '.jpeg', '.gif', '.webp', '.bmp', '.tif', '.tiff')


def read(directory: str, image_size: int, background: str) -> ImageSet:
    """Open a folder of images, which are decoded when they are fetched.

    Sub-folders called train, test and validation (or training, testing, val, valid or
    dev) are the splits, with no other folders or pictures beside them. Without test,
    the validation split is tested on; with neither, `splits.hold_out` says which images
    are. Files in sub-folders (of the split) are labelled with the sub-folder's name,
    and labels are numbered in the order of their names. Hidden files are ignored; any
    other file in a split that is not an image is an error. Links are followed, to each
    folder once. Images are grey if all files are, and RGB otherwise. If some are
    transparent, a line on the screen says how many.

    Args:
        directory: the folder.
        image_size: N, to resize images to N x N; 0 if they have one size already.
        background: the colour behind what is transparent: white, black or #rrggbb.

    Returns:
        The set; nothing is decoded yet.

    Raises:
        UserError: the folder is missing or has too few images, or its splits, labels or
            files are not as described above.
    """
    if not os.path.isdir(directory):
        raise UserError(f'There is no directory {directory}: check --dataset.')
    parts = _split_folders(directory) or {'train': directory}
    seen: set[tuple[int, int]] = set()
    entries = with_test(
        {name: _scan(part, seen) for name, part in parts.items()}, directory
    )
    classes, labels = _classes(directory, entries)
    if 'test' not in entries:
        whole, numbers = entries['train'], labels['train']
        for name, rows in zip(('train', 'test'), hold_out(numbers, directory)):
            entries[name] = [whole[row] for row in rows]
            labels[name] = numbers[rows]
    paths = [path for split in entries.values() for path, _ in split]
    headers = [decoding.read_header(path) for path in paths]
    shape = _common_shape(paths, headers, image_size)
    _tell_transparent(headers, background)
    colour = decoding.background_colour(background)

    def decode(path: str) -> np.ndarray:
        return decoding.decode_file(path, shape, image_size, colour)

    return ImageSet(
        name=os.path.basename(os.path.normpath(directory)),
        image_shape=shape, num_values=256, num_classes=len(classes),
        class_names=proper_names(classes),
        splits={
            name: _examples(
                directory, [path for path, _ in split], labels[name], shape, decode
            )
            for name, split in entries.items()
        },
    )


def _split_folders(directory: str) -> dict[str, str]:
    """Return the folders of the splits, or {} if no sub-folder is called like one."""
    found: dict[str, str] = {}
    others = []
    try:
        names = sorted(os.listdir(directory))
    except OSError as error:
        _fail(error)
    for name in names:
        path = os.path.join(directory, name)
        split = SPLIT_NAMES.get(name.lower()) if os.path.isdir(path) else None
        if split in found:
            raise UserError(
                f'{found[split]} and {path} are both the {split} split: have one.'
            )
        if split:
            found[split] = path
        elif not name.startswith('.'):
            others.append(path)
    for path in others if found else []:
        name, split = os.path.basename(path), next(iter(found.values()))
        if os.path.isdir(path) or name.lower().endswith(_PICTURES):
            raise UserError(
                f'{split} is a split by its name, but {path} beside it belongs to no '
                f'split: move it into one or elsewhere, or, if the two are labels, '
                f'rename {split}.'
            )
    if found and 'train' not in found:
        raise UserError(
            f'{next(iter(found.values()))} is there but not its counterpart: have a '
            f'folder train beside it, or no folder called like a split.'
        )
    if not found:
        _check_labels(list(filter(os.path.isdir, others)))
    return found


def _check_labels(folders: list[str]) -> None:
    """Raise UserError for splits that would be taken for labels."""
    found = [_LIKE_SPLITS.fullmatch(os.path.basename(path)) for path in folders]
    kinds = {match[1].lower() for match in found if match}
    if all(found) and 'train' in kinds and len(kinds) > 1:
        raise UserError(
            f'{" and ".join(folders)} would be labels, and look like splits: call them '
            f'train, validation and test or, if they are labels, something else.'
        )
    if len(folders) != 1:
        return
    try:
        below = [entry for entry in os.scandir(folders[0]) if entry.is_dir()]
    except OSError as error:
        _fail(error)
    splits = {
        SPLIT_NAMES.get(entry.name.lower()) for entry in below
        if not entry.name.startswith('.')
    }
    if 'train' in splits and None not in splits:
        raise UserError(
            f'{folders[0]} would be the only label, and holds splits: pass '
            f'--dataset=images:{folders[0]}'
        )


def _scan(directory: str, seen: set[tuple[int, int]]) -> list[Entry]:
    """Return all files below a directory, in the order of their paths.

    Links are followed, but each directory is read only once: they may go in circles.

    Args:
        directory: the directory.
        seen: the devices and inodes of directories that are left out; those that are
            read here are added.
    """
    entries, starts = [], [directory]
    for start in starts:
        # Links to directories are not followed here: each becomes a start of its own,
        # after all directories that are there themselves.
        for parent, folders, names in os.walk(start, onerror=_fail):
            status = os.stat(parent)
            folders[:] = sorted(name for name in folders if not name.startswith('.'))
            if (status.st_dev, status.st_ino) in seen:
                folders.clear()
                continue
            seen.add((status.st_dev, status.st_ino))
            paths = [os.path.join(parent, name) for name in folders]
            starts += filter(os.path.islink, paths)
            below = os.path.relpath(parent, directory)
            label = '' if below == os.curdir else below.split(os.sep)[0]
            entries += [
                (os.path.join(parent, name), label)
                for name in names if not name.startswith('.')
            ]
    for path, _ in entries:
        if not os.path.isfile(path):
            raise UserError(
                f'{path} is a pipe, a device or a link to nothing: move it elsewhere.'
            )
    if not entries:
        raise UserError(
            f'{directory} holds no images, or only folders that were read elsewhere.'
        )
    return sorted(entries)


def _fail(error: OSError) -> NoReturn:
    raise UserError(f'{error.filename} cannot be read: {error.strerror}.')


def _classes(
    directory: str, entries: dict[str, list[Entry]]
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Return the names of the labels and, by split, their numbers (-1: none)."""
    labels = {
        name: np.array([label for _, label in split]) for name, split in entries.items()
    }
    if not any(split.any() for split in labels.values()):
        return [], {
            name: np.full(len(split), -1, np.int32) for name, split in labels.items()
        }
    for split in entries.values():
        path = next((path for path, label in split if not label), None)
        if path is not None:
            raise UserError(
                f'{path} has no label, and others have, by the sub-folders that they '
                f'lie in: move it into one.'
            )
    found, numbers = number_labels(labels, directory)
    return found.tolist(), numbers


def _common_shape(
    paths: list[str], headers: list[decoding.Header], image_size: int
) -> tuple[int, int, int]:
    first = headers[0]
    for path, header in zip(paths, headers):
        if not image_size and header[:2] != first[:2]:
            raise UserError(
                f'{path} is {header.height}x{header.width} but {paths[0]} is '
                f'{first.height}x{first.width}: pass --image_size to resize all images '
                f'to one size.'
            )
    height, width = (image_size, image_size) if image_size else first[:2]
    return height, width, max(header.num_channels for header in headers)


def _tell_transparent(headers: list[decoding.Header], background: str) -> None:
    num = sum(header.transparent for header in headers)
    if num:
        print(
            f'{num} of {len(headers)} images are transparent, or can be: composited on '
            f'{background} (--background).', file=sys.stderr,
        )


def _examples(
    directory: str, paths: list[str], labels: np.ndarray, shape: tuple[int, int, int],
    decode: Callable[[str], np.ndarray],
) -> StreamedExamples:
    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        images = np.empty((len(indices), *shape), np.uint8)
        for out, index in zip(images, indices):
            out[...] = decode(paths[index])
        return {'image': images, 'label': labels[indices]}

    files = '\n'.join(
        f'{os.path.relpath(path, directory)} {os.path.getsize(path)}' for path in paths
    )
    return StreamedExamples(len(paths), fetch, files, lambda: labels)
