"""Readers of the embedded digits, of NumPy archives and of files in MNIST's format."""

import gzip
import math
import os
import zipfile
import zlib

import numpy as np

from gm_jax.data.image_set import ArrayExamples, ImageSet, hold_out
from gm_jax.errors import UserError

__all__ = ['digits', 'idx', 'npz', 'read_npz']

# The seed of the shuffle by which the digits are split.
_DIGITS_SEED = 0
_DIGITS_TRAIN = 1500
# An idx file with larger images counts as damaged; more bytes are too many for memory.
_MAX_SIDE = 4096
_MAX_BYTES = 2**34
_DAMAGED = (OSError, ValueError, EOFError, zlib.error, zipfile.BadZipFile)

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
        images = _read_idx(path, rank=3)[..., None]
        path = _idx_path(directory, f'{prefix}-labels-idx1-ubyte')
        labels = None if path is None else _read_idx(path, rank=1)
        splits[name] = images, labels
    return _image_set(directory, splits, num_values=None)


def _idx_path(directory: str, name: str) -> str | None:
    paths = [os.path.join(directory, name + ending) for ending in ('', '.gz')]
    return next(filter(os.path.exists, paths), None)


def _read_idx(path: str, rank: int) -> np.ndarray:
    """Read a file of bytes 0, 0, type (8: uint8), rank, big-endian sizes and values."""
    try:
        with (gzip.open if path.endswith('.gz') else open)(path, 'rb') as file:
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

    Arrays 'train' and 'test' are the splits, with labels in 'train_labels' and
    'test_labels'. A single array of images, named 'train', 'images' or anything else,
    with labels in 'train_labels' or 'labels', is split: its last tenth is the test
    split. A scalar 'num_values' gives V; by default it is 2 where all values are 0 or
    1, booleans among them, and else 256.

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
    names = ('labels', 'train_labels', 'test_labels')
    labels = {name: arrays.pop(name) for name in names if name in arrays}
    both = 'train' in arrays and 'test' in arrays
    unused = set(labels) - (
        {'train_labels', 'test_labels'} if both else {'labels', 'train_labels'}
    )
    if unused:
        raise UserError(
            f'{path}: the labels {", ".join(sorted(unused))} belong to no images in '
            f'it: "labels" goes with one array, "train_labels" and "test_labels" with '
            f'two.'
        )
    if both:
        splits = {
            'train': (arrays['train'], labels.get('train_labels')),
            'test': (arrays['test'], labels.get('test_labels')),
        }
    elif len(arrays) == 1:
        (images,) = arrays.values()
        _check_images(path, images, num_values)
        splits = _split(path, images, labels.get('labels', labels.get('train_labels')))
    else:
        raise UserError(
            f'{path} holds {", ".join(sorted(arrays)) or "no images"}: name the arrays '
            f'"train" and "test", or give one array "images".'
        )
    for name, (images, _) in splits.items():
        _check_images(f'{path}, array of {name}', images, num_values)
    return _image_set(path, splits, num_values if given else None)


def read_npz(path: str, flag: str = 'dataset') -> dict[str, np.ndarray]:
    """Read all arrays of a NumPy archive, none of which may need pickle.

    Args:
        path: the file.
        flag: the flag that names the file, for the error message.

    Raises:
        UserError: the file is missing or damaged, or unpacks to more than 16 GiB.
    """
    if not os.path.isfile(path):
        raise UserError(f'There is no file {path}: check --{flag}.')
    if not zipfile.is_zipfile(path):
        raise UserError(f'{path} is not an .npz file, or is cut short: get it again.')
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


def _split(
    path: str, images: np.ndarray, labels: np.ndarray | None
) -> dict[str, _Arrays]:
    if labels is not None:
        _check_labels(path, images, labels)
    num = hold_out(len(images), path)
    if labels is None:
        return {'train': (images[:num], None), 'test': (images[num:], None)}
    return {'train': (images[:num], labels[:num]), 'test': (images[num:], labels[num:])}


def _check_labels(where: str, images: np.ndarray, labels: np.ndarray) -> None:
    if labels.ndim != 1 or labels.dtype.kind not in 'ui' or np.any(labels < 0):
        raise UserError(
            f'{where} has labels {labels.dtype} of shape {labels.shape}: they are '
            f'integers from 0, of shape [N].'
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
    where: str, splits: dict[str, _Arrays], num_values: int | None
) -> ImageSet:
    """Check that the splits and their labels fit each other.

    If nothing says how many values pixels have, they have 2 where none is above 1:
    bits that are taken for bytes would all be nearly black.
    """
    (train, train_labels), (test, test_labels) = splits['train'], splits['test']
    if train.shape[1:] != test.shape[1:]:
        raise UserError(
            f'{where}: the training images are {train.shape[1:]} but the test images '
            f'are {test.shape[1:]}.'
        )
    if (train_labels is None) != (test_labels is None):
        raise UserError(
            f'{where} has labels for one of train and test only: give both or none.'
        )
    num_classes = 0
    for name, (images, labels) in splits.items():
        if labels is not None:
            _check_labels(f'{where}, {name}', images, labels)
            num_classes = max(num_classes, int(labels.max()) + 1)
    examples = {name: _examples(*arrays) for name, arrays in splits.items()}
    if num_values is None:
        bits = all(split.images.max() <= 1 for split in examples.values())
        num_values = 2 if bits else 256
    return ImageSet(
        name=where, image_shape=examples['train'].images.shape[1:],
        num_values=num_values, num_classes=num_classes, splits=examples,
    )


def _examples(images: np.ndarray, labels: np.ndarray | None) -> ArrayExamples:
    if images.ndim == 3:
        images = images[..., None]
    if labels is None:
        labels = np.full(len(images), -1)
    return ArrayExamples(images.astype(np.uint8), labels.astype(np.int32))
