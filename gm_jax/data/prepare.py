"""Write the sets that TFDS would prepare, from the original files, without TensorFlow.

The metadata are TFDS's own, and so is the order: records are sorted by a hash of the
split and of the place in the original file, so that example i is the same image as in
the set that TFDS writes. Only the bytes of a PNG file may differ, not its pixels.
"""

import contextlib
import errno
import fcntl
import functools
import gzip
import io
import itertools
import os
import shutil
import tarfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from gm_jax.data import originals, prepared, readers, tfds_writer
from gm_jax.data.files import NO_LOCKS
from gm_jax.data.originals import Original, Show
from gm_jax.errors import UserError

__all__ = ['original_files', 'prepare']

# What a split holds: for each feature a value per example, in the original order.
_Columns = Mapping[str, Sequence[Any] | np.ndarray]


class _Content(NamedTuple):
    splits: Mapping[str, _Columns]
    class_names: Mapping[str, list[str]]  # for each label, where the files name them


def original_files(name: str) -> list[Original]:
    """Return the original files of a set, as TFDS lists them.

    Args:
        name: one of `originals.SETS`.
    """
    return originals.listed(name.partition('/')[0], _builder(name).url_infos)


def _builder(name: str, data_dir: str = os.devnull) -> Any:
    """Return TFDS's builder of a set, which knows its files, features and version."""
    with prepared.silence():
        import tensorflow_datasets as tfds

        return tfds.builder(name, data_dir=data_dir, file_format='array_record')


def prepare(
    name: str,
    data_dir: str,
    *,
    from_dir: str = '',
    sources: Sequence[Original] = (),
    show: Show = lambda what, done, total: None,
) -> tuple[str, bool]:
    """Download a set, or find its files in a directory, and write it.

    The set appears at once when it is whole. Downloaded files are kept in
    `data_dir`/downloads.

    Args:
        name: one of `originals.SETS`.
        data_dir: the directory of prepared sets; empty for TFDS's own default.
        from_dir: the directory in which the original files lie; empty to download.
        sources: the original files; none for those that TFDS lists.
        show: is told what is being done, how much of it is done, and the whole.

    Returns:
        The directory of the set, and whether it was not there before.

    Raises:
        UserError: a file cannot be had, the disk cannot be written or is full, or what
            is there already is damaged.
    """
    root = prepared.root(data_dir)
    full_name = _builder(name).info.full_name
    target = os.path.join(root, full_name)
    if not os.path.exists(target):
        family = name.partition('/')[0]
        beside = os.path.join(root, f'{family}.incomplete')
        with _sentences(root), _alone(beside) as work:
            # Another process may have written it a moment ago.
            if not os.path.exists(target):
                files = sources or original_files(name)
                downloads = os.path.join(root, 'downloads', family)
                paths = (
                    originals.find(files, os.path.expanduser(from_dir)) if from_dir
                    else originals.download(files, downloads, show)
                )
                _write(_builder(name, work), _read(name, paths), show)
                _check(name, work)
                os.makedirs(os.path.dirname(target), exist_ok=True)
                os.rename(os.path.join(work, full_name), target)
                return target, True
    _check(name, root)
    return target, False


@contextlib.contextmanager
def _alone(directory: str) -> Iterator[str]:
    """Make an empty directory that no other process uses, and remove it afterwards.

    The kernel gives up the lock of a process that was killed; what that one has left
    is removed.
    """
    os.makedirs(directory, exist_ok=True)
    lock = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f'Another process is preparing this set in {directory}: wait for it.'
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
        try:
            for entry in os.scandir(directory):
                shutil.rmtree(entry.path)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
    finally:
        os.close(lock)


@contextlib.contextmanager
def _sentences(root: str) -> Iterator[None]:
    """Turn what the disk refuses into a sentence."""
    try:
        yield
    # array_record has a RuntimeError for everything.
    except (OSError, RuntimeError) as error:
        number = getattr(error, 'errno', None)
        if number in (errno.ENOSPC, errno.EDQUOT) or 'No space left' in str(error):
            raise UserError(
                f'There is no space left on the disk of {root}: make some, and the '
                f'same command goes on, or name another --data_dir.'
            ) from error
        if isinstance(error, OSError) and number is not None:
            raise UserError(
                f'{error.filename or root} cannot be written or read: '
                f'{error.strerror}. Check --data_dir.'
            ) from error
        raise


def _check(name: str, root: str) -> None:
    """Raise if the set in `root` cannot be read, or not all of it."""
    path = os.path.join(root, _builder(name).info.full_name)
    reason = 'it has no dataset_info.json.'
    if os.path.isfile(os.path.join(path, 'dataset_info.json')):
        try:
            prepared.read(f'{name}:{os.path.basename(path)}', root, image_size=0)
            return
        except UserError as error:
            reason = str(error)
    raise UserError(
        f'{path} is there but cannot be used: remove it, and the same command '
        f'prepares it again. What is wrong: {reason}'
    )


def _read(name: str, paths: Mapping[str, str]) -> _Content:
    family, _, config = name.partition('/')
    if family == 'emnist':
        return _emnist(paths, config)
    if family == 'binarized_mnist':
        return _binarized_mnist(paths)
    if family == 'cifar10':
        return _cifar(
            paths['cifar-10-binary.tar.gz'],
            {'train': [f'data_batch_{i}.bin' for i in range(1, 6)],
             'test': ['test_batch.bin']},
            {'label': 'batches.meta.txt'},
        )
    if family == 'cifar100':
        return _cifar(
            paths['cifar-100-binary.tar.gz'],
            {'train': ['train.bin'], 'test': ['test.bin']},
            {'coarse_label': 'coarse_label_names.txt', 'label': 'fine_label_names.txt'},
        )
    return _mnist(paths)


def _mnist(paths: Mapping[str, str]) -> _Content:
    return _Content({
        split: {
            'image': readers.read_idx(paths[f'{prefix}-images-idx3-ubyte.gz'], 3),
            'label': readers.read_idx(paths[f'{prefix}-labels-idx1-ubyte.gz'], 1),
        }
        for split, prefix in (('train', 'train'), ('test', 't10k'))
    }, {})


def _emnist(paths: Mapping[str, str], config: str) -> _Content:
    """Read the gzipped idx files in a zip file."""
    with zipfile.ZipFile(paths['gzip.zip']) as archive:
        def opened(member: str) -> io.BufferedIOBase:
            return gzip.GzipFile(fileobj=archive.open(member))

        def read(split: str, kind: str, rank: int) -> np.ndarray:
            member = f'gzip/emnist-{config}-{split}-{kind}-idx{rank}-ubyte.gz'
            return readers.read_idx(member, rank, opened)

        return _Content({
            split: {
                'image': read(split, 'images', 3), 'label': read(split, 'labels', 1),
            }
            for split in ('train', 'test')
        }, {})


def _binarized_mnist(paths: Mapping[str, str]) -> _Content:
    """Read lines of 784 digits 0 and 1, with one character after each."""
    splits = {}
    for split, part in (('train', 'train'), ('validation', 'valid'), ('test', 'test')):
        text = np.fromfile(paths[f'binarized_mnist_{part}.amat'], np.uint8)
        splits[split] = {'image': text.reshape(-1, 28, 28, 2)[..., 0] - ord('0')}
    return _Content(splits, {})


def _cifar(
    path: str, split_files: Mapping[str, list[str]], name_files: Mapping[str, str]
) -> _Content:
    """Read a tar file of records: the labels, then the image as three planes.

    Args:
        path: the tar file.
        split_files: the files of each split, in their order.
        name_files: for each label, in the order of a record, the names of its classes.
    """
    wanted = {*itertools.chain(*split_files.values()), *name_files.values()}
    found = {}
    with tarfile.open(path) as archive:
        for member in archive:
            base = os.path.basename(member.name)
            file = archive.extractfile(member) if base in wanted else None
            if file is not None:
                found[base] = file.read()
    splits: dict[str, _Columns] = {}
    for split, files in split_files.items():
        joined = np.frombuffer(b''.join(found[file] for file in files), np.uint8)
        records = joined.reshape(-1, len(name_files) + 3 * 32 * 32)
        planes = records[:, len(name_files):].reshape(-1, 3, 32, 32)
        splits[split] = {
            'id': [f'{split}_{i:05d}'.encode() for i in range(len(records))],
            'image': planes.transpose(0, 2, 3, 1),
            **{label: records[:, i] for i, label in enumerate(name_files)},
        }
    return _Content(splits, {
        label: found[file].decode().split() for label, file in name_files.items()
    })


def _write(builder: Any, content: _Content, show: Show) -> None:
    """Write the records and the metadata to the directory of the builder."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.utils import shard_utils

    path = os.fspath(builder.data_path)
    os.makedirs(path)
    infos = []
    for split, columns in content.splits.items():
        records = _records(split, columns, functools.partial(show, f'writing {split}'))
        num = len(records)
        num_shards = shard_utils.ShardConfig().get_number_shards(
            sum(map(len, records)), num
        )
        ends = shard_utils.get_shard_boundaries(num, num_shards)
        lengths, num_bytes = tfds_writer.write_split(
            path, builder.name, split, records, np.diff([0, *ends]).tolist()
        )
        infos.append(tfds.core.SplitInfo(
            name=split, shard_lengths=lengths, num_bytes=num_bytes
        ))
    for label, names in content.class_names.items():
        builder.info.features[label].names = names
    builder.info.set_splits(tfds.core.splits.SplitDict(infos))
    builder.info.write_to_directory(path)


def _records(split: str, columns: _Columns, show: Any) -> list[bytes]:
    """Return the serialized examples of a split in TFDS's order."""
    from tensorflow_datasets.core import hashing

    num = len(columns['image'])
    records = []
    for done, i in enumerate(sorted(range(num), key=hashing.Hasher(split).hash_key)):
        features = {
            key: value if isinstance(value, bytes) else int(value)
            for key, value in ((key, column[i]) for key, column in columns.items())
            if key != 'image'
        }
        records.append(tfds_writer.example(
            {'image': _png(columns['image'][i]), **features}
        ))
        if done % 1000 == 999 or done == num - 1:
            show(done + 1, num)
    return records


def _png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, 'PNG')
    return buffer.getvalue()
