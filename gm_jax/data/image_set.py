"""An image set: splits of examples that can be fetched by index, in memory or not."""

import concurrent.futures
import dataclasses
import difflib
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import chex
import numpy as np

from gm_jax.data import files
from gm_jax.errors import UserError

__all__ = [
    'alike', 'ArrayExamples', 'check_facts', 'check_same_images', 'class_number',
    'classes', 'description', 'digest', 'Examples', 'facts', 'FetchFn', 'ImageSet',
    'labels', 'num_bytes', 'read_all', 'read_facts', 'select', 'SPECS', 'spread',
    'StreamedExamples',
]

# Images read at a time when a whole split is read.
_CHUNK = 1024
# Images of a streamed split that its digest is made of.
_SAMPLED = 64
# The seed by which a part of a split is drawn.
_SEED = 0
# Names of classes in a sentence.
_SHOWN = 20

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


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
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

    def __repr__(self) -> str:
        """Return what it holds in a few words, not all pixels."""
        shape = 'x'.join(map(str, self.images.shape[1:]))
        return f'<{len(self)} images {shape} in memory>'

    def __len__(self) -> int:
        """Return N."""
        return len(self.images)

    def fetch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """Return copies of the rows `indices` [n]."""
        return {'image': self.images[indices], 'label': self.labels[indices]}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class StreamedExamples:
    """A split whose examples are read, and decoded, when they are fetched.

    Attributes:
        num_examples: N, the number of examples.
        fetch_fn: reads the examples at indices [n]; returns what `Examples.fetch` does.
        files: the names and sizes of the files, as text, for the digest.
        labels_fn: reads the labels [N] without the images, -1 where that takes too
            long; None: it always does.
        whole: a digest of all images, where they are in memory although a step reads
            them from here; '' where nobody has looked at all of them.
    """

    num_examples: int
    fetch_fn: FetchFn
    files: str = ''
    labels_fn: Callable[[], np.ndarray] | None = None
    whole: str = ''

    def __repr__(self) -> str:
        """Return what it holds in a few words, not the names of all files."""
        return f'<{len(self)} images, read when they are fetched>'

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
        class_names: the names of the labels 0, 1, ...; () if these have no other names.
    """

    name: str
    image_shape: tuple[int, int, int]
    num_values: int
    num_classes: int
    splits: Mapping[str, Examples]
    entropy: float | None = None
    binarize: str = 'none'
    class_names: tuple[str, ...] = ()


# The facts that a model is built from. A model that only generates needs no images.
_FACTS = (
    'name', 'image_shape', 'num_values', 'num_classes', 'entropy', 'binarize',
    'class_names',
)


def class_number(data: ImageSet, text: str, what: str = '--label') -> int:
    """Return the number of the class that a flag or an argument names.

    Args:
        data: the image set, which has labels.
        text: the name of the class, or else its number.
        what: the flag or the argument.

    Raises:
        UserError: there is no such class.
    """
    if text in data.class_names:
        return data.class_names.index(text)
    if re.fullmatch('[0-9]{1,9}', text) and int(text) < data.num_classes:
        return int(text)
    close = difflib.get_close_matches(text, data.class_names, n=1)
    known = ', '.join(data.class_names[:_SHOWN])
    if len(data.class_names) > _SHOWN:
        known += ', ...'
    raise UserError(
        f'{what}={text} is not a class of {data.name}: these are 0 to '
        f'{data.num_classes - 1}{f" ({known})" if known else ""}'
        f'{f"; did you mean {close[0]}?" if close else "."}'
    )


def classes(data: ImageSet) -> tuple[str, ...]:
    """Return the names of all classes; their numbers where they have no others."""
    return data.class_names or tuple(map(str, range(data.num_classes)))


class _Content(NamedTuple):
    """What tells the images of a split from others.

    Attributes:
        num_examples: N.
        digest: that of all images in memory, or of files and some images of a stream.
        whole: that of all images of a stream; '' where it is not known, as in what an
            older version wrote.
    """

    num_examples: int
    digest: str
    whole: str = ''

    def is_of(self, other: '_Content') -> bool:
        """Return whether both are of the same images, as far as is known."""
        same_whole = not (self.whole and other.whole) or self.whole == other.whole
        return self[:2] == other[:2] and same_whole


def _content(examples: Examples) -> _Content:
    whole = getattr(examples, 'whole', '')
    return _Content(len(examples), digest(examples), whole)


def facts(data: ImageSet) -> str:
    """Return what identifies a set, as JSON for `read_facts`: its facts and content.

    The content of a split is the number of its examples and a digest, so that it may
    move to another place and is known there.
    """
    found: dict[str, Any] = {name: getattr(data, name) for name in _FACTS}
    found['splits'] = {
        name: {key: x for key, x in _content(examples)._asdict().items() if x != ''}
        for name, examples in sorted(data.splits.items())
    }
    return json.dumps(found, indent=2) + '\n'


def alike(text: str) -> dict[str, str]:
    """Return what processes must agree on, by what a sentence calls it.

    The files may lie elsewhere on each host.

    Args:
        text: what `facts` returned.
    """
    data, contents = _parse_facts(text)
    found = {f'images whose {name} is': str(getattr(data, name)) for name in _FACTS}
    found['images whose name is'] = files.kind(data.name)
    for name, content in contents.items():
        digests = f'{content.digest[:8]} {content.whole[:8]}'.strip()
        found[f'a {name} split of'] = f'{content.num_examples} images, digest {digests}'
    return found


def check_same_images(path: str, data: ImageSet, what: str) -> None:
    """Check that the model of another run is one of the images of this set.

    The files may have moved, and either run may have held out validation images.

    Args:
        path: the file that has what `facts` returned for the other run.
        data: the set, with its splits.
        what: the start of a sentence about the other model: 'DIR holds a classifier'.

    Raises:
        UserError: it is a model of other images.
    """
    other, contents = _read_facts(path)
    seen, wanted = description(other), description(data)
    if seen != wanted:
        raise UserError(f'{what} of {seen}, not of {wanted}.')
    if 'test' in contents and 'test' in data.splits:
        if not contents['test'].is_of(_content(data.splits['test'])):
            raise UserError(
                f'{what} of other images: the test split of {data.name} is not the one '
                f'that it had.'
            )


def description(data: ImageSet) -> str:
    """Say what a model of these images expects: the set, the shape and the values."""
    return f'{files.kind(data.name)} {data.image_shape} with --binarize={data.binarize}'


def digest(examples: Examples) -> str:
    """Digest all images and labels in memory, or files and some images of a stream."""
    if isinstance(examples, ArrayExamples):
        found = {'image': examples.images, 'label': examples.labels}
        made = hashlib.sha256()
    else:
        num = min(_SAMPLED, len(examples))
        found = examples.fetch(np.arange(num) * len(examples) // num)
        made = hashlib.sha256(getattr(examples, 'files', '').encode(errors='replace'))
    for name in ('image', 'label'):
        made.update(np.ascontiguousarray(found[name]).data)
    return made.hexdigest()[:32]


def read_facts(path: str) -> ImageSet:
    """Read what `facts` wrote: an image set with no splits.

    Raises:
        UserError: the file is missing or damaged.
    """
    return _read_facts(path)[0]


def _read_facts(path: str) -> tuple[ImageSet, dict[str, _Content]]:
    try:
        with open(path, encoding='utf-8') as file:
            return _parse_facts(file.read())
    # What is not JSON of facts; Infinity overflows, and brackets can nest too deep.
    except (
        OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError,
        RecursionError,
    ) as error:
        reason = getattr(error, 'strerror', None) or repr(error)
        raise UserError(
            f"{path}, which describes the run's images, cannot be read: {reason}."
        ) from None


def _parse_facts(text: str) -> tuple[ImageSet, dict[str, _Content]]:
    """Return the set and the content of its splits, {} from an older version."""
    found = json.loads(text)
    splits = {
        str(name): _Content(
            int(split['num_examples']), str(split['digest']),
            str(split.get('whole', '')),
        )
        for name, split in found.get('splits', {}).items()
    }
    return ImageSet(**_checked(found), splits={}), splits


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return the facts, each of its type, or raise ValueError."""
    height, width, channels = (int(size) for size in found['image_shape'])
    values, classes = int(found['num_values']), int(found['num_classes'])
    entropy, names = found['entropy'], found.get('class_names', [])
    if min(height, width) < 1 or channels not in (1, 3):
        raise ValueError(f'images of {height} x {width} x {channels}')
    if not 2 <= values <= 256 or classes < 0:
        raise ValueError(f'{values} values and {classes} classes')
    good = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not good or len(names) not in (0, classes):
        raise ValueError(f'class_names that are not {classes} strings')
    return {
        'name': str(found['name']), 'image_shape': (height, width, channels),
        'num_values': values, 'num_classes': classes,
        'entropy': None if entropy is None else float(entropy),
        'binarize': str(found['binarize']), 'class_names': tuple(names),
    }


def check_facts(path: str, now: str) -> None:
    """Check that a run still has the images that it began with.

    Args:
        path: the file that has what `facts` returned then.
        now: what `facts` returns now.

    Raises:
        UserError: another fact, or another content of a split.
    """
    (old, contents), (new, found) = _read_facts(path), _parse_facts(now)
    for name in _FACTS:
        was, is_now = getattr(old, name), getattr(new, name)
        if name == 'name':
            was, is_now = files.kind(was), files.kind(is_now)
        if name == 'class_names' and not was:
            continue  # an older version did not write them
        if name == 'entropy' and is_now is None:
            continue  # that of an older version was of the grey levels
        if was != is_now:
            raise _changed(new, f'its {name} was {was} and is now {is_now}')
    if not (contents and found):  # sampling reads none
        return
    for name in sorted(set(contents) | set(found)):
        if name not in contents or name not in found:
            which = 'new' if name in found else 'gone'
            raise _changed(new, f'its {name} split is {which}')
        was, is_now = contents[name], found[name]
        if was.num_examples != is_now.num_examples:
            raise _changed(
                new, f'its {name} split had {was.num_examples} images and now has '
                f'{is_now.num_examples}'
            )
        if not was.is_of(is_now):
            raise _changed(
                new, f'the images or labels of its {name} split are others'
            )


def _changed(data: ImageSet, how: str) -> UserError:
    return UserError(
        f'{data.name} has changed since the run began: {how}. Put the old data back, '
        f'or train in a new --workdir.'
    )


def num_bytes(data: ImageSet) -> int:
    """Return the bytes that the images of all splits take in memory."""
    return sum(map(len, data.splits.values())) * int(np.prod(data.image_shape))


def labels(examples: Examples) -> np.ndarray:
    """Return the labels of all examples [N], -1 where they are not known in advance."""
    if isinstance(examples, ArrayExamples):
        return examples.labels
    if isinstance(examples, StreamedExamples) and examples.labels_fn is not None:
        return examples.labels_fn()
    return np.full(len(examples), -1)


def spread(total: int, most: int) -> np.ndarray:
    """Return the rows of at most `most` examples from all over a split, ascending.

    The split is cut into as many equal parts, and a row is drawn from each, always the
    same: the first rows may all be of one class, as files are in the order of their
    names, and so may every tenth, where the classes take turns.

    Args:
        total: N, how many examples there are.
        most: the number of rows, if there are as many.
    """
    num = min(most, total)
    ends = np.arange(num + 1) * total // max(num, 1)
    bits = np.random.Philox(np.random.SeedSequence(_SEED)).random_raw(num)
    return ends[:-1] + (bits % np.diff(ends).astype(np.uint64)).astype(np.int64)


def select(examples: Examples, rows: np.ndarray) -> Examples:
    """Return some of the examples, of the same kind.

    Args:
        examples: N examples.
        rows: [M] integers in [0, N).

    Returns:
        M examples; those of a stream are still read when they are fetched.
    """
    if isinstance(examples, ArrayExamples):
        return ArrayExamples(examples.images[rows], examples.labels[rows])
    return StreamedExamples(
        len(rows), lambda indices: examples.fetch(rows[indices]),
        getattr(examples, 'files', ''), lambda: labels(examples)[rows],
        getattr(examples, 'whole', ''),
    )


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
