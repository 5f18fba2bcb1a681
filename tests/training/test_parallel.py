"""The same numbers on any number of devices and in dispatches of any length."""

import dataclasses
import functools

import chex
import jax
import numpy as np
import pytest

from experiments import vae
from gm_jax.data import pipeline, sources
from gm_jax.errors import UserError
from gm_jax.training import parallel

BATCH_SIZE = 16
CONFIG = vae.Config(
    hidden=(16,), latent_dims=(3,), binarize='dynamic', batch_norm=True, dropout=0.2,
    ema=0.9, grad_clip=5.0, k=2, free_bits=0.05, num_steps=50,
)
CONV = dataclasses.replace(CONFIG, network='conv', hidden=(4, 8), k=1)


@functools.cache
def _digits() -> sources.ImageSet:
    data = sources.load('digits', binarize='dynamic')
    train = data.splits['train']
    few = sources.ArrayExamples(train.images[:100], train.labels[:100])
    return dataclasses.replace(data, splits={**data.splits, 'train': few})


def _start(config):
    experiment = vae.build(config, _digits())
    return experiment.train_step, experiment.init(jax.random.key(1))


def _rows(num_steps):
    return pipeline.example_order(0, 0, BATCH_SIZE, 100, num_steps=num_steps)


def _on_one_device(config, num_steps):
    """Run the step without an axis, each batch whole."""
    train_step, state = _start(config)
    step, losses = jax.jit(train_step), []
    for row in _rows(num_steps):
        batch = _digits().splits['train'].fetch(row)
        batch['index'] = np.arange(BATCH_SIZE, dtype=np.int32)
        state, metrics = step(state, batch, jax.random.key(2))
        losses.append(metrics['loss'])
    return state, np.array(losses)


def _on_all_devices(config, dispatches, per_dispatch):
    """Run dispatches of the given numbers of steps, the data on the devices."""
    train_step, state = _start(config)
    train = _digits().splits['train']
    data = parallel.replicate({'image': train.images, 'label': train.labels})
    many = parallel.train_many(train_step, per_dispatch)
    state, losses, done = parallel.replicate(state), [], 0
    rows = _rows(sum(dispatches) + per_dispatch).astype(np.int32)
    for num in dispatches:
        row = rows[done:done + per_dispatch]
        index = np.broadcast_to(np.arange(BATCH_SIZE, dtype=np.int32), row.shape)
        batches = parallel.split({'row': row, 'index': index}, axis=1)
        state, metrics = many(state, data, batches, np.int32(num), jax.random.key(2))
        losses.extend(np.asarray(metrics['loss'])[:num])
        done += num
    return jax.device_get(state), np.array(losses)


@pytest.mark.parametrize(
    'config, num_steps, per_dispatch',
    [pytest.param(CONFIG, 50, 10, marks=pytest.mark.long), (CONV, 10, 1)],
)
def test_one_and_eight_devices_agree(config, num_steps, per_dispatch):
    """Catch noise, dropout or BatchNorm's moments that belong to a device.

    Also a loss, a gradient or free bits averaged over the devices' parts wrongly.
    """
    assert jax.device_count() == 8
    one, losses = _on_one_device(config, num_steps)
    dispatches = [per_dispatch] * (num_steps // per_dispatch)
    many, others = _on_all_devices(config, dispatches, per_dispatch)
    assert losses[-1] < losses[0]
    np.testing.assert_allclose(others, losses, rtol=1e-5)
    assert int(many.step) == int(one.step) == num_steps
    chex.assert_trees_all_close(many.model_state, one.model_state, atol=1e-3)
    chex.assert_trees_all_close(many.ema_params, one.ema_params, atol=1e-3)


def test_dispatches_of_any_length_give_the_same_bits():
    """Catch a step that is run twice, left out, or given another step's batch."""
    state, losses = _on_all_devices(CONFIG, [5, 5], 5)
    for dispatches in ([1] * 10, [3, 5, 2]):
        other, others = _on_all_devices(CONFIG, dispatches, 5)
        np.testing.assert_array_equal(others, losses)
        # Leaves: each state has an optimizer of its own, which trees compare.
        chex.assert_trees_all_equal(jax.tree.leaves(other), jax.tree.leaves(state))
    # Without a loop the program is another one, which may round in another way.
    other, others = _on_all_devices(CONFIG, [1] * 10, 1)
    np.testing.assert_allclose(others, losses, rtol=1e-5)


def test_split_gives_each_device_consecutive_examples_and_join_undoes_it():
    """Catch axes that are exchanged, which a reshape alone does not notice."""
    x = np.arange(16 * 3).reshape(16, 3)
    parts = parallel.split({'x': x})['x']
    for device in range(8):
        np.testing.assert_array_equal(parts[device], x[2 * device:2 * device + 2])
    np.testing.assert_array_equal(parallel.join(parts), x)
    steps = np.stack([x, x + 100, x + 200])
    parts = parallel.split(steps, axis=1)
    assert parts.shape == (8, 3, 2, 3)
    for device in range(8):
        np.testing.assert_array_equal(parts[device], steps[:, 2 * device:][:, :2])


def test_image_has_the_key_of_its_place():
    """Catch images that depend on the device or on how many there are."""
    def sample(state, rngs, index):
        return jax.vmap(jax.random.uniform)(rngs) + state

    rng = jax.random.key(3)
    indices = parallel.split(np.arange(32, 48, dtype=np.int32))
    images = parallel.join(parallel.sample_many(sample)(np.float32(2), indices, rng))
    for place, image in zip(range(32, 48), images):
        assert image == jax.random.uniform(jax.random.fold_in(rng, place)) + 2


def test_batch_that_the_devices_do_not_divide():
    """Catch a mistake that would end in a reshape's traceback."""
    parallel.check_batch_size(24)
    with pytest.raises(UserError, match=r'--batch_size=12 .* 8 devices: .* of 8\.'):
        parallel.check_batch_size(12)
