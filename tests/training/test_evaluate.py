"""Every example once, every image with its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.data import sources
from gm_jax.data.image_set import StreamedExamples
from gm_jax.keys import fold_in_each
from gm_jax.training import evaluate, parallel, patience
from gm_jax.training.contracts import ByExample


@pytest.mark.parametrize('batch_size', [1, 7, 13, 64])
def test_every_example_counts_once_in_order(batch_size):
    """Catch padding that is kept, a lost last batch, and parts out of order."""
    images = np.arange(13, dtype=np.uint8).reshape(13, 1, 1, 1)
    examples = sources.ArrayExamples(images, np.arange(13, dtype=np.int32))

    def step(state, batch, rng):
        pixel = batch['image'][:, 0, 0, 0] + state
        return {
            'pixel': pixel,
            'chunk': batch['chunk'],
            'both': jnp.stack([batch['index'], batch['chunk']], axis=1),
        }

    done = []
    arrays = evaluate.over_examples(
        parallel.eval_many(step), np.float32(0.5), examples, jax.random.key(0),
        batch_size, num_chunks=3, report=done.append,
    )
    expected = np.tile(np.arange(13)[:, None], (1, 3))
    np.testing.assert_array_equal(arrays['pixel'], expected + 0.5)
    np.testing.assert_array_equal(arrays['chunk'], [[0, 1, 2]] * 13)
    # Arrays an example: their mean over the chunks.
    np.testing.assert_array_equal(arrays['both'][:, 0], expected[:, 0])
    np.testing.assert_array_equal(arrays['both'][:, 1], 1)
    # After every chunk, as one batch of many chunks may take minutes.
    assert done[-1] == 13 and done == sorted(set(done))
    devices = jax.device_count()
    assert len(done) == 3 * -(-13 // (-(-batch_size // devices) * devices))


@pytest.mark.parametrize('fits, chosen', [(0.0, 1), (3.5, 3), (100.0, 6)])
def test_as_many_chunks_as_fit(fits, chosen, monkeypatch, capsys):
    """Catch an evaluation of a day, and a chunk that depends on how many there are."""
    images = np.arange(13, dtype=np.uint8).reshape(13, 1, 1, 1)
    examples = sources.ArrayExamples(images, np.zeros(13, np.int32))

    def step(state, batch, rng):
        keys = fold_in_each(fold_in_each(rng, batch['index']), batch['chunk'])
        return {'noise': jax.vmap(jax.random.uniform)(keys)}

    # Each call takes a second, by a clock that is read before and after the second.
    clock = iter(range(1000))
    monkeypatch.setattr(evaluate.time, 'monotonic', lambda: next(clock))
    by_example = ByExample(step, step, dict, 6, (3, 1), chunk_size=5)
    seconds = []

    def choose(each):
        seconds.append(each)
        return patience.choose_chunks(by_example, fits, each / seconds[0])

    compiled, rng = parallel.eval_many(step), jax.random.key(0)
    all_chunks = evaluate.over_examples(compiled, (), examples, rng, 8, num_chunks=6)
    done = []
    found = evaluate.over_examples(
        compiled, (), examples, rng, 8, 6, done.append, choose
    )
    np.testing.assert_array_equal(found['noise'], all_chunks['noise'][:, :chosen])
    assert seconds == [2]  # batches, of a second each
    assert done[-1] == 13 and done == sorted(done)
    told = capsys.readouterr().out
    assert ('--test_samples=30' in told) == (chosen < 6)
    assert (f'{5 * chosen} samples' in told) == (chosen < 6)


def test_processes_choose_alike(monkeypatch):
    """Catch processes that wait for each other: each has a clock of its own."""
    of_primary = []
    monkeypatch.setattr(
        patience.processes, 'from_primary',
        lambda array: (of_primary.append(array) or of_primary)[0],
    )
    by_example = ByExample(None, None, dict, 200, (100, 1), chunk_size=5)
    for allowed, each in ((700.0, 3.5), (700.1, 3.5), (699.0, 3.6)):
        assert patience.choose_chunks(by_example, allowed, each) == 200
    assert len(of_primary) == 3


def test_a_long_evaluation_is_announced(capsys):
    """Catch hours without a word of how many they are, and a word at every batch."""
    for allowed in (0.0, 1e9):
        done = []
        report = patience.warning(done.append, 1234, allowed)
        for number in (10, 20, 30):
            report(number)
        assert done == [10, 20, 30]
        told = capsys.readouterr().out
        assert told.count('--test_examples=N') == told.count('1,234') == (allowed == 0)


@pytest.mark.parametrize('num, expected', [
    (0, [0, 1, 2, 3, 4]), (4, [0, 1, 2, 4]), (9, [0, 1, 2, 3, 4])
])
def test_some_examples(num, expected):
    """Catch a set that is cut where all of it is asked for, and one class of many."""
    images = np.arange(5, dtype=np.uint8).reshape(5, 1, 1, 1)
    held = sources.ArrayExamples(images, np.arange(5, dtype=np.int32))
    for examples in (held, StreamedExamples(5, held.fetch)):
        few = evaluate.some(examples, num)
        assert len(few) == len(expected) and type(few) is type(examples)
        found = few.fetch(np.arange(len(expected)))
        np.testing.assert_array_equal(found['label'], expected)


def test_image_does_not_depend_on_how_many_or_on_the_batch():
    """Catch keys that are split by their number, and padding that is returned."""
    def sample(state, rngs, index):
        return jax.vmap(lambda rng: jax.random.uniform(rng, (2, 2, 1)))(rngs)

    compiled, rng = parallel.sample_many(sample), jax.random.key(1)
    images = evaluate.samples(compiled, (), 21, rng, 64)
    assert images.shape == (21, 2, 2, 1)
    for num, batch_size in ((21, 8), (3, 64), (20, 5)):
        other = evaluate.samples(compiled, (), num, rng, batch_size)
        np.testing.assert_array_equal(other, images[:num])
