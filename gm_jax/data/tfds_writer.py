"""Write a prepared TFDS set, array_record files and metadata, without TensorFlow."""

import itertools
import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

__all__ = ['example', 'write', 'write_split']

_FEATURE = 'tensorflow_datasets.core.features'


def write(
    directory: str,
    name: str,
    splits: Mapping[str, Iterable[tuple[np.ndarray, np.ndarray]]],
    *,
    image_shape: tuple[int | None, int | None, int],
    num_classes: int,
    shard_size: int = 2**17,
    version: str = '1.0.0',
) -> str:
    """Write the set to `directory`/`name`/`version`.

    Args:
        directory: the data_dir from which to read it later.
        name: the name of the set.
        splits: for each split its parts: images uint8 [n, H, W, C] and labels [n].
        image_shape: (H, W, C); None for a size that differs between images.
        num_classes: the number of labels; 0 leaves the labels out.
        shard_size: images per file.
        version: the version, X.Y.Z.

    Returns:
        The directory of the version.
    """
    path = os.path.join(directory, name, version)
    os.makedirs(path, exist_ok=True)
    infos = [
        _split_info(split, *write_split(
            path, name, split, _records(parts, num_classes),
            itertools.repeat(shard_size),
        ))
        for split, parts in splits.items()
    ]
    _write_metadata(path, name, version, infos, image_shape, num_classes)
    return path


def _records(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], num_classes: int
) -> Iterator[bytes]:
    for images, labels in parts:
        for image, label in zip(images, labels):
            label_too = {'label': int(label)} if num_classes else {}
            yield example({'image': _png(image), **label_too})


def write_split(
    path: str, name: str, split: str, records: Iterable[bytes], sizes: Iterable[int]
) -> tuple[list[int], int]:
    """Write the files of a split.

    Args:
        path: the directory of the version.
        name: the name of the set, without its config.
        split: the name of the split.
        records: its serialized examples, in the order in which they will be read.
        sizes: how many records each file takes; the last may get fewer.

    Returns:
        The number of records of each file, and the bytes of all records.
    """
    from array_record.python import array_record_module

    records = iter(records)
    lengths: list[int] = []
    num_bytes = 0
    for size in sizes:
        first = list(itertools.islice(records, 1))
        if not first:
            break
        # One record per group, because records are read in any order; uncompressed,
        # because PNG does not compress further.
        writer = array_record_module.ArrayRecordWriter(
            os.path.join(path, f'{split}-{len(lengths)}.tmp'),
            'group_size:1,uncompressed',
        )
        lengths.append(0)
        for record in itertools.chain(first, itertools.islice(records, size - 1)):
            writer.write(record)
            lengths[-1] += 1
            num_bytes += len(record)
        writer.close()
    # The names contain the number of files, which is known only now.
    for place in range(len(lengths)):
        target = f'{name}-{split}.array_record-{place:05d}-of-{len(lengths):05d}'
        os.rename(
            os.path.join(path, f'{split}-{place}.tmp'), os.path.join(path, target)
        )
    return lengths, num_bytes


def _split_info(split: str, lengths: list[int], num_bytes: int) -> dict:
    """Return the entry of a split in dataset_info.json."""
    return {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': split,
        'numBytes': str(num_bytes),
        'shardLengths': [str(length) for length in lengths],
    }


def _write_metadata(
    path: str, name: str, version: str, infos: list[dict],
    image_shape: tuple[int | None, int | None, int], num_classes: int,
) -> None:
    info = {
        'name': name, 'version': version, 'moduleName': 'gm_jax.data.tfds_writer',
        'fileFormat': 'array_record', 'splits': infos,
    }
    dimensions = [str(-1 if side is None else side) for side in image_shape]
    features = {'image': {
        'pythonClassName': f'{_FEATURE}.image_feature.Image',
        'image': {
            'shape': {'dimensions': dimensions}, 'dtype': 'uint8',
            'encodingFormat': 'png',
        },
    }}
    if num_classes:
        features['label'] = {
            'pythonClassName': f'{_FEATURE}.class_label_feature.ClassLabel',
            'classLabel': {'numClasses': str(num_classes)},
        }
    tree = {
        'pythonClassName': f'{_FEATURE}.features_dict.FeaturesDict',
        'featuresDict': {'features': features},
    }
    for file_name, content in (('dataset_info', info), ('features', tree)):
        with open(os.path.join(path, f'{file_name}.json'), 'w') as file:
            json.dump(content, file, indent=2)


def example(features: Mapping[str, bytes | int]) -> bytes:
    """Serialize a tf.train.Example by hand: nested messages of (field, length, bytes).

    Args:
        features: the bytes or the integer of each feature.
    """
    return _field(1, b''.join(
        _entry(key.encode(), _field(1, _field(1, value)) if isinstance(value, bytes)
               else _field(3, _field(1, _varint(value))))
        for key, value in features.items()
    ))


def _png(image: np.ndarray) -> bytes:
    """Encode by hand, far faster than Pillow: rows unfiltered, Huffman codes only."""
    height, width, num_channels = image.shape
    rows = np.zeros((height, 1 + width * num_channels), np.uint8)
    rows[:, 1:] = image.reshape(height, -1)
    deflate = zlib.compressobj(1, strategy=zlib.Z_HUFFMAN_ONLY)
    colour = {1: 0, 3: 2}[num_channels]
    head = struct.pack('>IIBBBBB', width, height, 8, colour, 0, 0, 0)
    data = deflate.compress(rows.tobytes()) + deflate.flush()
    chunks = ((b'IHDR', head), (b'IDAT', data), (b'IEND', b''))
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(body)) + kind + body
        + struct.pack('>I', zlib.crc32(kind + body))
        for kind, body in chunks
    )


def _entry(key: bytes, feature: bytes) -> bytes:
    return _field(1, _field(1, key) + _field(2, feature))


def _field(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def _varint(value: int) -> bytes:
    parts = bytearray()
    value &= 2**64 - 1  # below 0: its two's complement
    while value > 127:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes((*parts, value))
