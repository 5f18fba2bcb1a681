"""The examples of each step as pure functions of (seed, step): no state to save.

Step s takes the positions s B ... s B + B - 1 of an endless stream. Position p lies in
epoch p // N. Each epoch is its own permutation of the N examples, drawn from
(seed, epoch): every example comes exactly once per epoch, and a batch may straddle two
epochs.

A batch is a dict of 'image' [B, H, W, C] in [0, V), 'label' int32 [B] and 'index' int32
[B]. Noise is keyed by 'index', which is the position in the global batch in training
and the position in the set in evaluation.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable, Generator

import numpy as np

from gm_jax.data.image_set import ArrayExamples, Examples, ImageSet

__all__ = ['Batch', 'eval_batches', 'example_order', 'first_images', 'stream_batches']

Batch = dict[str, np.ndarray]


def example_order(
    seed: int,
    step: int,
    batch_size: int,
    num_examples: int,
    *,
    num_steps: int | None = None,
) -> np.ndarray:
    """Return the examples of step s: permutation[p // N][p % N], p = sB ... sB + B - 1.

    Args:
        seed: the seed of the order.
        step: s, from 0.
        batch_size: B, over all processes.
        num_examples: N.
        num_steps: K, to return the examples of steps s ... s + K - 1 at once.

    Returns:
        [B] int64, or [K, B] with `num_steps`.
    """
    count = batch_size * (1 if num_steps is None else num_steps)
    order = np.empty(count, np.int64)
    epoch, place = divmod(step * batch_size, num_examples)
    done = 0
    while done < count:
        part = _permutation(seed, epoch, num_examples)[place:place + count - done]
        order[done:done + len(part)] = part
        done, epoch, place = done + len(part), epoch + 1, 0
    return order if num_steps is None else order.reshape(num_steps, batch_size)


# A batch can straddle two epochs.
@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    # NumPy keeps the raw stream of a bit generator the same in all versions, but not
    # Generator.permutation. A SeedSequence has words of 32 bits and adds zeros: that of
    # (2^32, 0) has the words 0, 1, 0, as (0, 1) does.
    high, low = divmod(seed, 2**32)
    bits = np.random.Philox(np.random.SeedSequence((low, epoch, high)))
    return np.argsort(bits.random_raw(num_examples), kind='stable')


def first_images(data: ImageSet, most: int) -> np.ndarray:
    """Return up to `most` training images: the first ones in the order of seed 0.

    Args:
        data: the image set.
        most: the greatest number of images.

    Returns:
        uint8 [n, H, W, C]; zeros with n = most if the set has only its facts.
    """
    if 'train' not in data.splits:
        return np.zeros((most, *data.image_shape), np.uint8)
    train = data.splits['train']
    rows = example_order(0, 0, min(len(train), most), len(train))
    return train.fetch(np.sort(rows))['image']


def stream_batches(
    examples: Examples,
    *,
    seed: int,
    first_step: int,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
    num_threads: int = 4,
    prefetch: int = 16,
) -> Generator[Batch, None, None]:
    """Return an endless generator of training batches, in the order of `example_order`.

    Grain's threads read ahead and hold at most `prefetch` batches.

    Args:
        examples: the training split.
        seed: the seed of the order.
        first_step: the step of the first batch.
        batch_size: B, over all processes.
        process_index: which contiguous slice of each batch this process reads.
        process_count: the number of processes, which must divide B.
        num_threads: threads that read and decode.
        prefetch: batches read ahead.

    Returns:
        A generator of batches of B / process_count examples; its threads stop when it
        is closed.

    Raises:
        ValueError: `process_count` does not divide the batch size.
    """
    part = _slice(batch_size, process_index, process_count)
    index = np.arange(batch_size, dtype=np.int32)[part]

    def read(place: int) -> Batch:
        order = example_order(seed, first_step + place, batch_size, len(examples))
        return {**examples.fetch(order[part]), 'index': index.copy()}

    return _read_ahead(_Reads(read, sys.maxsize), num_threads, prefetch)


def eval_batches(
    examples: Examples,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[Batch, None, None]:
    """Return a generator of batches with every example exactly once, in order.

    Args:
        examples: the split, N examples.
        batch_size: B, over all processes.
        process_index: which contiguous slice of each batch this process reads.
        process_count: the number of processes, which must divide B.

    Returns:
        A generator of batches of B / process_count examples, all of the same size;
        padding repeats example 0.

    Raises:
        ValueError: `process_count` does not divide the batch size.
    """
    part = _slice(batch_size, process_index, process_count)

    def read(place: int) -> Batch:
        index = place * batch_size + np.arange(batch_size)[part]
        index = np.where(index < len(examples), index, 0)
        return {**examples.fetch(index), 'index': index.astype(np.int32)}

    reads = _Reads(read, -(-len(examples) // batch_size))
    if isinstance(examples, ArrayExamples):
        return (read(place) for place in range(len(reads)))
    return _read_ahead(reads, num_threads=4, prefetch=16)


@dataclasses.dataclass(frozen=True)
class _Reads:
    """The batches as a data source for Grain: an object with a length and items."""

    read: Callable[[int], Batch]
    num_batches: int

    def __len__(self) -> int:
        return self.num_batches

    def __getitem__(self, place: int) -> Batch:
        return self.read(place)


def _read_ahead(
    reads: _Reads, num_threads: int, prefetch: int
) -> Generator[Batch, None, None]:
    import grain  # Takes a second, which a set in memory does not need.

    options = grain.ReadOptions(num_threads, prefetch)
    batches = iter(grain.MapDataset.source(reads).to_iter_dataset(options))
    try:
        yield from batches
    finally:
        batches.close()


def _slice(batch_size: int, process_index: int, process_count: int) -> slice:
    if batch_size % process_count:
        raise ValueError(
            f'A batch of {batch_size} cannot be shared by {process_count} processes.'
        )
    size = batch_size // process_count
    return slice(process_index * size, (process_index + 1) * size)
