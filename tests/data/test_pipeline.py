"""The order of examples is a pure function; every example is seen exactly once."""

import threading
import time

import numpy as np
import pytest

from gm_jax.data import pipeline
from gm_jax.data.image_set import ArrayExamples, StreamedExamples


def make_examples(num: int) -> ArrayExamples:
    """Return a set in which example i is a 1x1 image of i, labelled i."""
    values = np.arange(num)
    return ArrayExamples(
        values.astype(np.uint8).reshape(-1, 1, 1, 1), values.astype(np.int32)
    )


def make_streamed(num: int) -> StreamedExamples:
    """Return the same set, read as it is fetched."""
    return StreamedExamples(num, make_examples(num).fetch)


@pytest.mark.parametrize('num_examples,batch_size', [(10, 3), (7, 7), (5, 12), (6, 1)])
def test_every_example_comes_once_an_epoch(num_examples, batch_size):
    """Catch an example lost or doubled where a batch straddles two epochs."""
    steps = 4 * num_examples
    stream = np.concatenate([
        pipeline.example_order(3, step, batch_size, num_examples)
        for step in range(steps)
    ])
    epochs = stream[:steps * batch_size // num_examples * num_examples]
    for epoch in epochs.reshape(-1, num_examples):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(num_examples))


def test_order_depends_on_seed_and_epoch_only():
    """Catch hidden state, the same order each epoch, and a seed that is ignored."""
    def epoch(seed, number):
        return pipeline.example_order(seed, number, 100, 100).tolist()

    first = epoch(0, 0)
    orders = [epoch(seed, number) for seed in (0, 1) for number in (0, 1)]
    assert len(set(map(tuple, orders))) == 4
    # Sums such as seed + epoch would make these two the same.
    assert epoch(0, 1) != epoch(1, 0)
    # A run that went back has a seed from 2^32 on.
    assert epoch(2**32, 0) not in [epoch(0, number) for number in range(3)]
    assert epoch(0, 0) == first


def test_order_is_the_same_in_every_version():
    """Catch a change of generator, which would change what a resumed run sees."""
    assert pipeline.example_order(0, 0, 8, 8).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


def test_steps_at_once_are_the_steps_one_by_one():
    """Catch an order that depends on how many steps are dispatched together."""
    many = pipeline.example_order(1, 5, 4, 10, num_steps=7)
    assert many.shape == (7, 4) and many.dtype == np.int64
    for row, step in zip(many, range(5, 12)):
        np.testing.assert_array_equal(row, pipeline.example_order(1, step, 4, 10))


def test_order_far_from_the_start():
    """Catch 32-bit positions, and a cost that grows with the step."""
    step = 2**40
    positions = [step * 128 + place for place in range(128)]
    expected = [
        pipeline.example_order(0, position // 50, 50, 50)[position % 50]
        for position in positions
    ]
    order = pipeline.example_order(0, step, 128, 50)
    np.testing.assert_array_equal(order, expected)


@pytest.mark.parametrize('make', [make_examples, make_streamed])
def test_stream_follows_the_order_from_any_step(make):
    """Catch threads that change the order, and a resumed stream that starts over."""
    stream = pipeline.stream_batches(
        make(50), seed=2, first_step=9, batch_size=8, num_threads=3, prefetch=2
    )
    for step in range(9, 29):
        batch = next(stream)
        order = pipeline.example_order(2, step, 8, 50)
        np.testing.assert_array_equal(batch['label'], order)
        np.testing.assert_array_equal(batch['image'].ravel(), order)
        np.testing.assert_array_equal(batch['index'], np.arange(8))
        assert batch['index'].dtype == np.int32
    stream.close()


def test_processes_share_each_batch():
    """Catch processes that read the same slice, or number their noise alike."""
    streams = [
        pipeline.stream_batches(
            make_streamed(50), seed=2, first_step=0, batch_size=8, process_index=i,
            process_count=4,
        ) for i in range(4)
    ]
    for step in range(10):
        parts = [next(stream) for stream in streams]
        joined = {
            key: np.concatenate([part[key] for part in parts]) for key in parts[0]
        }
        order = pipeline.example_order(2, step, 8, 50)
        np.testing.assert_array_equal(joined['label'], order)
        np.testing.assert_array_equal(joined['index'], np.arange(8))
    for stream in streams:
        stream.close()
    with pytest.raises(ValueError, match='8 cannot be shared by 3'):
        pipeline.stream_batches(
            make_streamed(50), seed=0, first_step=0, batch_size=8, process_count=3
        )


def test_reading_ahead_is_bounded_and_ends():
    """Catch a queue without a bound, and threads that read on after close()."""
    reads = []

    def fetch(indices):
        reads.append(len(indices))
        return make_examples(50).fetch(indices)

    stream = pipeline.stream_batches(
        StreamedExamples(50, fetch), seed=0, first_step=0, batch_size=4, num_threads=2,
        prefetch=3,
    )
    for _ in range(5):
        next(stream)
    time.sleep(0.3)
    assert len(reads) <= 5 + 3 + 2
    stream.close()
    done = len(reads)
    time.sleep(0.3)
    assert len(reads) <= done + 2
    with pytest.raises(StopIteration):
        next(stream)


def test_an_error_while_reading_reaches_the_caller():
    """Catch a damaged image that ends, stops or hangs the stream in silence."""
    def fetch(indices):
        raise OSError('damaged')

    stream = pipeline.stream_batches(
        StreamedExamples(50, fetch), seed=0, first_step=0, batch_size=4
    )
    with pytest.raises(OSError, match='damaged'):
        next(stream)


@pytest.mark.parametrize('make', [make_examples, make_streamed])
@pytest.mark.parametrize('num_examples,batch_size', [(10, 4), (8, 4), (3, 8), (1, 1)])
def test_evaluation_counts_every_example_once(make, num_examples, batch_size):
    """Catch a last batch that is dropped, or padding that is counted."""
    seen = []
    for batch in pipeline.eval_batches(make(num_examples), batch_size):
        assert {len(value) for value in batch.values()} == {batch_size}
        np.testing.assert_array_equal(batch['label'], batch['index'])
        seen += batch['label'].tolist()
    # Padding repeats example 0.
    assert seen[:num_examples] == list(range(num_examples))
    assert not any(seen[num_examples:]) and len(seen) - num_examples < batch_size


def test_evaluation_is_shared_by_processes():
    """Catch processes that evaluate the same images, or different numbers of them."""
    parts = [
        list(pipeline.eval_batches(make_streamed(10), 4, i, 2)) for i in range(2)
    ]
    assert [len(part) for part in parts] == [3, 3]
    for place, batches in enumerate(zip(*parts)):
        index = np.concatenate([batch['index'] for batch in batches])
        expected = np.arange(4 * place, 4 * place + 4)
        np.testing.assert_array_equal(index, np.where(expected < 10, expected, 0))
    with pytest.raises(ValueError, match='4 cannot be shared by 3'):
        pipeline.eval_batches(make_streamed(10), 4, 0, 3)


def test_threads_end_with_evaluation():
    """Catch one pool of threads leaked for each evaluation of a run."""
    before = threading.active_count()
    for _ in range(3):
        list(pipeline.eval_batches(make_streamed(10), 4))
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert threading.active_count() <= before


def test_order_of_many_epochs_takes_no_longer_than_the_epochs():
    """Catch a large batch of a small set that takes the square of its epochs."""
    order = pipeline.example_order(3, 2, 100_000, 7)
    assert order.shape == (100_000,)
    parts = [pipeline.example_order(3, s, 1, 7) for s in range(200_000, 200_014)]
    np.testing.assert_array_equal(order[:14], np.concatenate(parts))
