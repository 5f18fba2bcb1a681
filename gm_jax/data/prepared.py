"""Sets that TFDS has prepared as array_record files, read without TensorFlow.

A prepared directory, `DATA_DIR/NAME[/CONFIG]/VERSION`, describes itself, so any such
directory can be read, whether or not TFDS knows how to build the set. If a set has no
test split, its validation split is used, or else a tenth of its training split that
`splits.hold_out` draws: by class if the labels can be read first, which means to read
the files, so they are for splits of up to a gigabyte only. In a larger one a tenth of
all images is nearly a tenth of each class anyway.
"""

import contextlib
import dataclasses
import fnmatch
import glob
import importlib.util
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from gm_jax.data import decoding, hints
from gm_jax.data.image_set import (
    SPECS,
    Examples,
    ImageSet,
    StreamedExamples,
    labels,
    select,
)
from gm_jax.data.originals import SETS
from gm_jax.data.splits import SPLIT_NAMES, hold_out, proper_names, with_test
from gm_jax.errors import UserError, did_you_mean

__all__ = ['read', 'root', 'silence']

# Sets whose 8-bit pixels take fewer than 256 values.
_NUM_VALUES = {'binarized_mnist': 2}

# Bytes of files that are read for their labels before anything else.
_MAX_LABEL_BYTES = 2**30
# Records that are read at a time for their labels.
_CHUNK = 1024

_NAME = re.compile(r'(?P<name>\w+)(/(?P<config>[\w.+-]+))?(:(?P<version>[\d.*]+))?')


def read(
    spec: str, data_dir: str, image_size: int, background: str = 'white'
) -> ImageSet:
    """Open a prepared set; if it is missing, prepare it with TensorFlow if installed.

    Args:
        spec: the set as TFDS spells it: name[/config][:version].
        data_dir: the directory of prepared sets; empty for TFDS's own default.
        image_size: N, to resize images to N x N; 0 keeps their size.
        background: the colour behind what is transparent: white, black or #rrggbb.

    Returns:
        The set; nothing is read into memory yet.

    Raises:
        UserError: the set is missing and cannot be prepared, or is damaged, or has
            images that do not fit.
    """
    match = _NAME.fullmatch(spec)
    if not match:
        guess = hints.for_path(spec) or f': give one of {", ".join(SPECS)}.'
        raise UserError(f'--dataset={spec} is not a set{guess}')
    with silence():
        import tensorflow_datasets as tfds
    where = root(data_dir)
    directory = _find(where, **match.groupdict())
    if directory is None:
        _prepare(tfds, where, spec, match['name'])
        directory = _find(where, **match.groupdict())
    if directory is None:
        raise UserError(f'TFDS prepared {spec}, but it is not in {where}.')
    return _image_set(tfds, directory, image_size, background)


def root(data_dir: str) -> str:
    """Return the directory of prepared sets; TFDS's own default if `data_dir` is ''."""
    return os.path.expanduser(data_dir or os.environ.get(
        'TFDS_DATA_DIR', os.path.join('~', 'tensorflow_datasets')
    ))


def _find(
    root: str, name: str, config: str | None, version: str | None
) -> str | None:
    """Return the directory of the newest matching version, or None."""
    base = os.path.join(root, name, *([config] if config else []))
    found = _versions(base, version)
    if not found and config is None:
        configs = sorted(
            os.path.basename(path)
            for path in glob.glob(os.path.join(glob.escape(base), '*'))
            if _versions(path, version)
        )
        if len(configs) > 1:
            raise UserError(
                f'{base} holds several configs: choose one of '
                f'{", ".join(f"--dataset={name}/{each}" for each in configs)}.'
            )
        found = _versions(os.path.join(base, *configs), version) if configs else []
    return found[-1] if found else None


def _versions(base: str, version: str | None) -> list[str]:
    """Return the prepared directories `base/X.Y.Z` that match, the newest last."""
    names = [
        os.path.basename(os.path.dirname(path))
        for path in glob.glob(os.path.join(glob.escape(base), '*', 'dataset_info.json'))
    ]
    names = fnmatch.filter(names, version or '*')
    names = [name for name in names if re.fullmatch(r'\d+\.\d+\.\d+', name)]
    names.sort(key=lambda name: tuple(map(int, name.split('.'))))
    return [os.path.join(base, name) for name in names]


def _prepare(tfds: Any, root: str, spec: str, name: str) -> None:
    """Download and write a set that TFDS knows; this needs TensorFlow."""
    missing = f'No prepared TFDS set {spec} in {root}'
    with silence():
        builders = tfds.list_builders(with_community_datasets=False)
    if name not in builders:
        guess = hints.for_path(spec) or did_you_mean(name, ['digits', *builders])
        raise UserError(
            f'{missing}, and TFDS knows none of this name'
            f'{guess or ": check --dataset and --data_dir."}'
        )
    if importlib.util.find_spec('tensorflow') is None:
        whole, _, version = spec.partition(':')
        if whole in SETS and fnmatch.fnmatch(
            str(tfds.builder_cls(name).VERSION), version or '*'
        ):
            raise UserError(
                f'{missing} (a directory {name} with a version in it). To download and '
                f'prepare it: gm-jax prepare {whole} --data_dir={shlex.quote(root)}'
            )
        raise UserError(
            f"{missing} (a directory {name} with a version in it). Reading a set needs "
            f"no TensorFlow but preparing one does: pip install 'gm_jax[tensorflow]', "
            f"then tfds build {spec} --data_dir={root} --file_format=array_record."
        )
    print(f'{missing}: preparing it there with TensorFlow.', file=sys.stderr)
    try:
        builder = tfds.builder(spec, data_dir=root, file_format='array_record')
        builder.download_and_prepare()
    # A download can fail in as many ways as there are sets.
    except Exception as error:
        raise UserError(
            f'TFDS could not prepare {spec} in {root}: {type(error).__name__}: {error}'
        ) from error


def _image_set(
    tfds: Any, directory: str, image_size: int, background: str
) -> ImageSet:
    try:
        with silence():
            builder = tfds.builder_from_directory(directory)
            features = dict(builder.info.features.items())
            file_format = builder.info.file_format
    # TFDS raises errors of any type for a damaged dataset_info.json or features.json.
    except Exception as error:
        raise UserError(
            f'{directory} is not a readable TFDS set: {str(error).rstrip(".")}. '
            f'Prepare it again.'
        ) from error
    if file_format is None or file_format.value != 'array_record':
        raise UserError(
            f'{directory} is not prepared as array_record: prepare the set in another '
            f'--data_dir with gm-jax prepare, or tfds build '
            f'--file_format=array_record.'
        )
    shape = _image_shape(tfds, features, directory, image_size)
    label = features.get('label')
    num_classes, names = 0, []
    if isinstance(label, tfds.features.ClassLabel) and label.num_classes:
        num_classes, names = label.num_classes, label.names

    colour = decoding.background_colour(background)

    def decode(data: bytes, where: str) -> np.ndarray:
        return decoding.decode(data, shape, image_size, where, colour)

    splits = {
        split: _open_split(tfds, builder, name, decode, shape, bool(num_classes))
        for split, name in _split_names(builder, directory).items()
    }
    # The labels of a competition's test images are secret: -1 stands for them.
    bare = [
        name for name, split in splits.items()
        if num_classes and split.fetch(np.zeros(1, np.int64))['label'][0] < 0
    ]
    which = f'the {" and the ".join(bare)} split of {builder.info.full_name}'
    if bare == ['test'] and 'validation' in splits:
        print(
            f'NOTE: {which} has no labels: the validation split is the test set.',
            file=sys.stderr,
        )
        del splits['test']
    elif bare:
        print(
            f'NOTE: {which} has no labels: the set counts as one without labels.',
            file=sys.stderr,
        )
        num_classes, names = 0, []
    if num_classes:
        splits = {
            name: _with_labels(split, num_classes, f'{directory}, split {name}')
            for name, split in splits.items()
        }
    return ImageSet(
        name=builder.info.full_name,
        image_shape=shape,
        num_values=_NUM_VALUES.get(builder.name, 256),
        num_classes=num_classes,
        class_names=proper_names(names),
        splits=_held_out(with_test(splits, directory), directory),
    )


def _split_names(builder: Any, directory: str) -> dict[str, str]:
    """Return what the set calls its splits; those without examples are left out."""
    found: dict[str, str] = {}
    known = builder.info.splits
    for name in sorted(known, key=lambda name: name not in SPLIT_NAMES.values()):
        split = SPLIT_NAMES.get(name.lower())
        if split is not None and known[name].num_examples:
            found.setdefault(split, name)
    if 'train' not in found:
        raise UserError(
            f'{directory} has no split "train" with images, only: '
            f'{", ".join(sorted(known))}.'
        )
    return {name: found[name] for name in ('train', 'validation', 'test')
            if name in found}


def _with_labels(
    split: StreamedExamples, num_classes: int, where: str
) -> StreamedExamples:
    """Return the examples of a split whose labels are checked: all have a class."""
    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        found = split.fetch(indices)
        wrong = (found['label'] < 0) | (found['label'] >= num_classes)
        if np.any(wrong):
            row = int(np.argmax(wrong))
            raise UserError(
                f'{where}, image {indices[row]} has the label {found["label"][row]}, '
                f'and classes are 0 to {num_classes - 1}: prepare the set again, '
                f'without the images that have no class.'
            )
        return found

    return dataclasses.replace(split, fetch_fn=fetch)


def _image_shape(
    tfds: Any, features: dict[str, Any], directory: str, image_size: int
) -> tuple[int, int, int]:
    image = features.get('image')
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
        types = (
            f'{name} ({np.dtype(kind.np_dtype).name})' if kind.np_dtype else name
            for name, kind in sorted(features.items())
        )
        raise UserError(
            f'{directory} has no 8-bit feature "image", only: {", ".join(types)}.'
        )
    height, width, num_channels = image.shape
    if num_channels not in (1, 3):
        raise UserError(
            f'{directory} has images of {num_channels} channels, not 1 or 3.'
        )
    if image_size:
        return image_size, image_size, num_channels
    if height is None or width is None:
        raise UserError(
            f'{directory} has images of different sizes: pass --image_size to resize '
            f'them to one.'
        )
    return height, width, num_channels


def _open_split(
    tfds: Any, builder: Any, name: str, decode: Callable[[bytes, str], np.ndarray],
    shape: tuple[int, int, int], labelled: bool,
) -> StreamedExamples:
    where = f'{builder.data_path}, split {name}'
    num_values = _NUM_VALUES.get(builder.name, 256)
    skip = {'image': tfds.decode.SkipDecoding()}
    _check_shards(builder.info.splits[name])
    try:
        with silence():
            source = builder.as_data_source(name, decoders=skip)
            num_examples = len(source)
    # array_record raises a bare Exception or ValueError, whatever is wrong.
    except Exception as error:
        raise _damaged(where, error) from error
    if not num_examples:
        raise UserError(f'{where} is empty: prepare the set again.')

    def read_records(indices: np.ndarray) -> list[dict[str, Any]]:
        try:
            return source.__getitems__(indices.tolist())
        except Exception as error:
            raise _damaged(where, error) from error

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        records = read_records(indices)
        images = np.empty((len(records), *shape), np.uint8)
        for out, index, record in zip(images, indices, records):
            out[...] = decode(record['image'], f'{where}, image {index}')
        if np.max(images, initial=0) >= num_values:
            raise UserError(
                f'{where} has values up to {np.max(images)}; those of {builder.name} '
                f'are 0 ... {num_values - 1}: prepare the set again.'
            )
        labels = [record['label'] if labelled else -1 for record in records]
        return {'image': images, 'label': np.array(labels, np.int32)}

    sizes = {
        os.path.basename(path): os.path.getsize(path)
        for path in builder.info.splits[name].filepaths
    }

    def read_labels() -> np.ndarray:
        if not labelled or sum(sizes.values()) > _MAX_LABEL_BYTES:
            return np.full(num_examples, -1)
        parts = np.array_split(np.arange(num_examples), -(-num_examples // _CHUNK))
        return np.array([
            record['label'] for part in parts for record in read_records(part)
        ])

    files = '\n'.join(f'{file} {size}' for file, size in sizes.items())
    return StreamedExamples(num_examples, fetch, files, read_labels)


def _check_shards(split: Any) -> None:
    """Compare the files with the metadata: a truncated file reads as empty records."""
    from array_record.python import array_record_module

    for path, length in zip(split.filepaths, split.shard_lengths):
        if not os.path.exists(path):
            raise UserError(f'{path} is missing: prepare the set again.')
        try:
            reader = array_record_module.ArrayRecordReader(os.fspath(path))
            found = reader.num_records()
            reader.close()
        # array_record raises whatever error its C++ code reports.
        except Exception as error:
            raise _damaged(os.fspath(path), error) from error
        if found != length:
            raise UserError(
                f'{path} holds {found} images, not {length}: it is cut short; prepare '
                f'the set again.'
            )


def _damaged(where: str, error: Exception) -> UserError:
    reason = str(error).rstrip('.') or 'it is cut short or damaged'
    return UserError(f'{where} cannot be read: {reason}. Prepare the set again.')


def _held_out(
    splits: Mapping[str, Examples], directory: str
) -> dict[str, Examples]:
    """Return the examples of each split; if there is no test split, hold one out."""
    examples = dict(splits)
    if 'test' not in splits:
        whole = splits['train']
        for name, rows in zip(('train', 'test'), hold_out(labels(whole), directory)):
            examples[name] = select(whole, rows)
    return examples


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide the warnings of TFDS, which a user can do nothing about."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
