"""Several minibatches a step."""

import dataclasses

import jax
import numpy as np
import pytest

from gm_jax.data import pipeline, sources
from gm_jax.training import dispatch, settings

CONFIG = settings.Config(
    num_steps=10, batch_size=16, log_every=3, eval_every=100, checkpoint_every=100
)


class _OnDisk:
    """A split that is not known to be in memory."""

    def __init__(self, examples):
        self._examples = examples

    def __len__(self):
        return len(self._examples)

    def fetch(self, rows):
        return self._examples.fetch(rows)


def test_copies_of_a_large_set(monkeypatch):
    """Catch a set in memory that each device of a CPU copies into the same memory."""
    train = sources.load('digits').splits['train']
    nbytes, copies = train.images.nbytes, jax.local_device_count()
    for limit, kept in ((copies * nbytes, True), (copies * nbytes - 1, False)):
        monkeypatch.setattr(dispatch, '_RESIDENT', limit)
        feed = dispatch.make_feed(CONFIG, train, 5, 0, 1)
        feed.dispatches.close()
        assert bool(feed.resident) == kept


@pytest.mark.parametrize('per_dispatch', [1, 4])
def test_minibatches_of_a_step_follow_each_other(per_dispatch):
    """Catch a minibatch that comes twice, and devices that mix minibatches."""
    train = sources.load('digits').splits['train']
    config = dataclasses.replace(CONFIG, num_steps=8)
    rows, images = (
        dispatch.make_feed(
            config, examples, 5, 2, per_dispatch, minibatches=3
        ).dispatches
        for examples in (train, _OnDisk(train))
    )
    order = pipeline.example_order(5, 0, 16, len(train), num_steps=24)
    step = 2
    for (num, batches), (other, streamed) in zip(rows, images):
        assert num == other
        assert batches['row'].shape == (8, per_dispatch, 3, 2)
        assert streamed['image'].shape[:4] == (8, per_dispatch, 3, 2)
        for i in range(num):
            for m in range(3):
                expected = order[3 * (step + i) + m]
                np.testing.assert_array_equal(batches['row'][:, i, m].ravel(), expected)
                np.testing.assert_array_equal(
                    batches['index'][:, i, m].ravel(), np.arange(16)
                )
                np.testing.assert_array_equal(
                    streamed['image'][:, i, m].reshape(16, 8, 8, 1),
                    train.images[expected],
                )
        step += num
    assert step == 8
