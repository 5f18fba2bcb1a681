"""Readers of the embedded digits, of NumPy archives and of files in MNIST's format."""

import difflib
import gzip
import io
import math
import os
import re
import zipfile
import zlib
from collections.abc import Callable

import numpy as np

from gm_jax.data import files
from gm_jax.data.image_set import ArrayExamples, ImageSet
from gm_jax.data.splits import hold_out, number_labels, proper_names, with_test
from gm_jax.errors import UserError

__all__ = ['digits', 'idx', 'npz', 'open_file', 'read_idx', 'read_npz']

# The seed of the shuffle by which the digits are split.
_DIGITS_SEED = 0
_DIGITS_TRAIN = 1500
# An idx file with larger images counts as damaged; more bytes are too many for memory.
_MAX_SIDE = 4096
_MAX_BYTES = 2**34
_DAMAGED = (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile)

_SPLITS = ('train', 'validation', 'test')
# [N, H, W, C] images and their [N] labels, if there are any.
_Arrays = tuple[np.ndarray, np.ndarray | None]


def digits() -> ImageSet:
    """Return scikit-learn's 1,797 digits, 8x8x1 with values 0 to 16.

    They are shuffled once, by the raw stream of Philox with a fixed seed, because
    neighbours are by the same writers. The first 1,500 are the training split and the
    last 297 the test split.

    Returns:
        The set, in memory.

    References:
        Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI.
    """
    from sklearn import datasets  # Takes a second, which other sets do not need.

    bunch = datasets.load_digits()
    bits = np.random.Philox(np.random.SeedSequence(_DIGITS_SEED))
    order = np.argsort(bits.random_raw(len(bunch.images)), kind='stable')
    images = bunch.images[order, :, :, None].astype(np.uint8)
    labels = bunch.target[order].astype(np.int32)
    return ImageSet(
        name='digits', image_shape=(8, 8, 1), num_values=17, num_classes=10,
        splits={
            'train': ArrayExamples(images[:_DIGITS_TRAIN], labels[:_DIGITS_TRAIN]),
            'test': ArrayExamples(images[_DIGITS_TRAIN:], labels[_DIGITS_TRAIN:]),
        },
    )


def idx(directory: str) -> ImageSet:
    """Read files in MNIST's format: images [N, H, W] and labels [N], big-endian sizes.

    They are named train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-... for the
    test split; each may be gzipped (.gz). Both files of labels may be absent.

    Args:
        directory: the directory of the files.

    Returns:
        The set, in memory.

    Raises:
        UserError: a file is missing, damaged or does not fit the others.
    """
    if not os.path.isdir(directory):
        raise UserError(f'There is no directory {directory}: check --dataset.')
    splits = {}
    for name, prefix in (('train', 'train'), ('test', 't10k')):
        path = _idx_path(directory, f'{prefix}-images-idx3-ubyte')
        if path is None:
            raise UserError(
                f'{directory} has no {prefix}-images-idx3-ubyte, plain or .gz.'
            )
        images = read_idx(path, rank=3)[..., None]
        path = _idx_path(directory, f'{prefix}-labels-idx1-ubyte')
        labels = None if path is None else read_idx(path, rank=1)
        splits[name] = images, labels
    return _image_set(directory, splits, num_values=None)


def _idx_path(directory: str, name: str) -> str | None:
    names = (name, name.replace('-idx', '.idx'))  # as mirrors spell it
    paths = [
        os.path.join(directory, each + ending) for each in names
        for ending in ('', '.gz')
    ]
    path = next(filter(os.path.exists, paths), None)
    return None if path is None else files.find(path, 'dataset')


def open_file(path: str) -> io.BufferedIOBase:
    """Open a file for its bytes, which are unpacked if its name ends in .gz."""
    if path.endswith('.gz'):
        return gzip.GzipFile(path, 'rb')
    return open(path, 'rb')


def read_idx(
    path: str, rank: int, opened: Callable[[str], io.BufferedIOBase] = open_file
) -> np.ndarray:
    """Read a file of bytes 0, 0, type (8: uint8), rank, big-endian sizes and values.

    Args:
        path: the file.
        rank: 3 for images [N, H, W], 1 for labels [N].
        opened: opens the file at `path`, if it does not lie in a directory.

    Raises:
        UserError: the file is damaged, or is none of this rank.
    """
    try:
        with opened(path) as file:
            head = file.read(4)
            if head != bytes((0, 0, 8, rank)):
                raise UserError(
                    f'{path} is not a file of {"images" if rank == 3 else "labels"} in '
                    f"MNIST's format: it starts with {head.hex(' ') or 'nothing'}."
                )
            sizes = file.read(4 * rank)
            if len(sizes) < 4 * rank:
                raise UserError(f'{path} is cut short: get it again.')
            shape = tuple(map(int, np.frombuffer(sizes, '>u4')))
            if not all(shape) or any(side > _MAX_SIDE for side in shape[1:]):
                raise UserError(
                    f'{path} claims the shape {shape}: it is damaged; get it again.'
                )
            count = math.prod(shape)
            if count > _MAX_BYTES:
                raise UserError(
                    f'{path} claims {count} values, more than can be held: write the '
                    f'set as a TFDS set or a folder of images to stream it.'
                )
            values = file.read(count + 1)
    except _DAMAGED as error:
        raise UserError(f'{path} is damaged: {error}. Get it again.') from None
    if len(values) != count:
        what = 'is cut short' if len(values) < count else 'goes on after its end'
        raise UserError(f'{path} {what}: it should hold {count} values; get it again.')
    return np.frombuffer(values, np.uint8).reshape(shape)


def npz(path: str) -> ImageSet:
    """Read a NumPy archive of uint8 (or integer 0 ... V - 1) [N, H, W, C] or [N, H, W].

    Arrays 'train', 'test' and 'validation' are the splits, with labels in
    'train_labels' and so on. Without 'test', the validation split is tested on. A
    single array of images, named 'train', 'images' or anything else, with labels in
    'train_labels' or 'labels', is divided by `splits.hold_out`. A scalar 'num_values'
    gives V; by default it is 2 where all values are 0 or 1, booleans among them, and
    else 256. Strings 'class_names' [K] name the labels 0 ... K - 1.

    Args:
        path: the file, written by numpy.savez or numpy.savez_compressed.

    Returns:
        The set, in memory.

    Raises:
        UserError: the file is missing, damaged or holds something else.
    """
    arrays = read_npz(path)
    given = 'num_values' in arrays
    values = arrays.pop('num_values', np.array(256))
    if values.ndim or values.dtype.kind not in 'ui':
        raise UserError(f'{path}: num_values is not a single integer.')
    num_values = int(values)
    if not 2 <= num_values <= 256:
        raise UserError(f'{path}: num_values is {num_values}, not in 2 ... 256.')
    names = arrays.pop('class_names', None)
    splits = _named_splits(path, arrays)
    for name, (images, _) in splits.items():
        _check_images(f'{path}, array of {name}', images, num_values)
    return _image_set(path, splits, num_values if given else None, names)


def _named_splits(path: str, arrays: dict[str, np.ndarray]) -> dict[str, _Arrays]:
    """Return the splits of an archive; a single array of images is 'train'."""
    rest = dict(arrays)
    if not any(name in rest for name in _SPLITS):
        others = [name for name in rest if not name.endswith('labels')]
        if 'images' not in rest and len(others) != 1:
            raise UserError(
                f'{path} holds {", ".join(sorted(rest)) or "no images"}: name the '
                f'arrays "train" and "test", or give one array "images".'
            )
        rest['train'] = rest.pop('images' if 'images' in rest else others[0])
    if sum(name in rest for name in _SPLITS) == 1 and 'train_labels' not in rest:
        rest |= {'train_labels': rest.pop('labels')} if 'labels' in rest else {}
    splits = {
        name: (rest.pop(name), rest.pop(f'{name}_labels', None))
        for name in _SPLITS if name in rest
    }
    if rest:
        raise _unread(path, sorted(rest))
    return splits


def _unread(path: str, names: list[str]) -> UserError:
    labels = [f'{split}_labels' for split in _SPLITS]
    unused = [name for name in names if name in ('labels', *labels)]
    if unused:
        return UserError(
            f'{path}: the labels {", ".join(unused)} belong to no images in it: '
            f'"labels" goes with one array, "train_labels" and "test_labels" with two.'
        )
    if 'images' in names:
        return UserError(
            f'{path}: nothing reads the array "images" beside one called like a split: '
            f'name it "train", "validation" or "test", or take it out.'
        )
    known = [*_SPLITS, *labels, 'images', 'labels', 'num_values', 'class_names']
    # Another common name of the split.
    full = re.sub('^val(id)?(?=_|$)', 'validation', names[0].lower())
    close = difflib.get_close_matches(full, known, n=1, cutoff=0.85)
    guess = f'did you mean "{close[0]}"?' if close else (
        f'take it out, or name it one of {", ".join(known)}.'
    )
    return UserError(f'{path}: nothing reads the array "{names[0]}": {guess}')


def read_npz(path: str, flag: str = 'dataset') -> dict[str, np.ndarray]:
    """Read all arrays of a NumPy archive, none of which may need pickle.

    Args:
        path: the file.
        flag: the flag that names the file, for the error message.

    Raises:
        UserError: the file is missing or damaged, or unpacks to more than 16 GiB.
    """
    path = files.find(path, flag)
    if not zipfile.is_zipfile(path):
        raise UserError(
            f'{path} is not an .npz file, as numpy.savez writes it, or is cut short: '
            f'get it again.'
        )
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size <= _MAX_BYTES:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {name: archive[name] for name in archive.files}
            # NumPy returns a member that is not an .npy file as its bytes.
            if not all(isinstance(x, np.ndarray) for x in arrays.values()):
                raise ValueError('it holds files that are not arrays')
            return arrays
    # A damaged file makes these readers raise errors of many types, as fuzzing found.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f'{path} is not a readable .npz file of plain arrays: {reason}.'
        ) from None
    raise UserError(
        f'{path} claims {size} bytes, more than can be held: write the set as a TFDS '
        f'set or a folder of images to stream it.'
    )


def _check_labels(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    whole = labels.ndim == 1 and labels.dtype.kind in 'ui'
    if not whole or not 0 <= labels.min(initial=0) <= labels.max(initial=0) < 2**63:
        raise UserError(
            f'{where} has labels {labels.dtype} of shape {labels.shape}: they are '
            f'integers from 0 to 2^63 - 1, of shape [N].'
        )
    if len(labels) != len(images):
        raise UserError(
            f'{where} has {len(labels)} labels for {len(images)} images: give one each.'
        )


def _check_images(where: str, images: np.ndarray, num_values: int) -> None:
    good_shape = images.ndim == 3 or (images.ndim == 4 and images.shape[3] in (1, 3))
    if not good_shape or not images.size:
        raise UserError(
            f'{where} has the shape {images.shape}: images are [N, H, W], [N, H, W, 1] '
            f'or [N, H, W, 3].'
        )
    if images.dtype.kind not in 'uib':
        raise UserError(
            f'{where} is {images.dtype}: store integers 0 ... {num_values - 1}.'
        )
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= num_values:
        raise UserError(
            f'{where} has values from {low} to {high}, not in 0 ... {num_values - 1}.'
        )


def _image_set(
    where: str, splits: dict[str, _Arrays], num_values: int | None,
    names: np.ndarray | None = None,
) -> ImageSet:
    """Check that the splits and their labels fit each other, and hold out a test split.

    If nothing says how many values pixels have, they have 2 where none is above 1:
    bits that are taken for bytes would all be nearly black.
    """
    splits = with_test(splits, where)
    _check_fit(where, splits)
    class_names, numbers = _classes(where, splits, names)
    examples = {
        name: _examples(images, numbers.get(name))
        for name, (images, _) in splits.items()
    }
    if num_values is None:
        most = {name: split.images.max() for name, split in examples.items()}
        num_values = 2 if max(most.values()) <= 1 else 256
        bits = [name for name, value in most.items() if value == 1]
        if num_values > 2 and bits:
            raise UserError(
                f'{where}: the {" and ".join(bits)} images have values of 0 and 1, and '
                f'the others more: store all as 0 ... 255 (an npz may say num_values).'
            )
    if 'test' not in examples:
        whole = examples['train']
        examples = {
            name: ArrayExamples(whole.images[rows], whole.labels[rows])
            for name, rows in zip(('train', 'test'), hold_out(whole.labels, where))
        }
    return ImageSet(
        name=where, image_shape=examples['train'].images.shape[1:],
        num_values=num_values, num_classes=len(class_names), splits=examples,
        class_names=proper_names(class_names),
    )


def _check_fit(where: str, splits: dict[str, _Arrays]) -> None:
    train, train_labels = splits['train']
    for name, (images, labels) in splits.items():
        if images.shape[1:] != train.shape[1:]:
            raise UserError(
                f'{where}: the training images are {train.shape[1:]} but the {name} '
                f'images are {images.shape[1:]}.'
            )
        if (labels is None) != (train_labels is None):
            raise UserError(
                f'{where} has labels for one of train and {name} only: give both or '
                f'none.'
            )
        if labels is not None:
            _check_labels(f'{where}, {name}', images, labels)


def _classes(
    where: str, splits: dict[str, _Arrays], names: np.ndarray | None
) -> tuple[tuple[str, ...], dict[str, np.ndarray]]:
    """Return the names of the classes and, by split, the numbers of the labels.

    Without names, the labels that the training split has are numbered from 0, and their
    names are what they were.
    """
    labels = {
        name: found.astype(np.int64)
        for name, (_, found) in splits.items() if found is not None
    }
    if names is None:
        if not labels:
            return (), {}
        found, numbers = number_labels(labels, where)
        return tuple(map(str, found)), numbers
    if not labels or names.ndim != 1 or names.dtype.kind != 'U':
        raise UserError(
            f'{where}: class_names must be strings of shape [K] that name the labels '
            f'0 ... K - 1.'
        )
    number_labels(labels, where)
    most = int(np.max(labels['train']))
    if most >= len(names) or len(set(names.tolist())) < len(names):
        raise UserError(
            f'{where} has {len(set(names.tolist()))} different class_names: labels up '
            f'to {most} need {most + 1} at least, all different.'
        )
    return tuple(names.tolist()), {
        name: found.astype(np.int32) for name, found in labels.items()
    }


def _examples(images: np.ndarray, labels: np.ndarray | None) -> ArrayExamples:
    if images.ndim == 3:
        images = images[..., None]
    if labels is None:
        labels = np.full(len(images), -1, np.int32)
    return ArrayExamples(images.astype(np.uint8), labels)
