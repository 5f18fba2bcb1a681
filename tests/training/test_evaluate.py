"""Every example once, every image with its own key."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.data import sources
from gm_jax.training import evaluate, parallel


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
    assert done[-1] == 13 and done == sorted(done)


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
