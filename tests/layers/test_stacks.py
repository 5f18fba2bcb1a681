"""Sizes, rearrangements, and BatchNorm over all devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gm_jax.layers import stacks


@pytest.mark.parametrize('shape, expected', [
    ((8, 8), (2, 2)), ((7, 5), (2, 2)), ((1, 9), (1, 3)), ((28, 28), (7, 7)),
])
def test_convolutions_halve_and_double(shape, expected):
    """Catch sizes that are rounded down, and pictures cropped to another size."""
    down = stacks.ConvStack((3, 4), nn.relu)
    h, _ = down.init_with_output(jax.random.key(0), jnp.ones((2, *shape, 1)))
    assert h.shape == (2, *expected, 4)
    up = stacks.UpConvStack((3, 4), shape, 5, nn.relu)
    x, variables = up.init_with_output(jax.random.key(0), jnp.ones((2, 6)))
    assert x.shape == (2, *shape, 5)
    kernel = variables['params']['Dense_0']['kernel']
    assert kernel.shape == (6, np.prod(expected) * 4)


def test_every_output_pixel_sees_the_latent():
    """Catch rows or columns that the cropping leaves constant."""
    up = stacks.UpConvStack((3, 4), (7, 5), 1, jnp.tanh)
    z = jax.random.normal(jax.random.key(1), (6, 4))
    x, _ = up.init_with_output(jax.random.key(0), z)
    assert np.ptp(x, axis=0).min() > 1e-4


def _stack(kind, **kwargs):
    if kind == 'dense':
        return stacks.DenseStack((6, 4), nn.relu, **kwargs), (5,)
    if kind == 'conv':
        return stacks.ConvStack((3, 4), nn.relu, **kwargs), (6, 5, 2)
    return stacks.UpConvStack((3, 4), (6, 5), 2, nn.relu, **kwargs), (5,)


@pytest.mark.parametrize('kind', ['dense', 'conv', 'up'])
def test_batch_norm_is_over_all_devices(kind):
    """Catch moments of a device's part, and variances averaged without the means."""
    stack, shape = _stack(kind, batch_norm=True, dropout=0.2)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, *shape)) + np.arange(8).reshape(8, *[1] * len(shape))
    x, rngs = jnp.asarray(x, jnp.float32), jax.random.split(jax.random.key(2), 8)
    variables = jax.jit(lambda x: stack.init(jax.random.key(0), x))(x)

    @functools.partial(jax.jit, static_argnames='axis_name')
    def apply(x, rngs, axis_name):
        return stack.apply(
            variables, x, train=True, dropout_rng=rngs, axis_name=axis_name,
            mutable=['batch_stats'],
        )

    whole, stats = apply(x, rngs, None)
    spread = jax.jit(jax.vmap(lambda *parts: apply(*parts, 'i'), axis_name='i'))
    parts, others = spread(x.reshape(4, 2, *shape), rngs.reshape(4, 2))
    np.testing.assert_allclose(
        parts.reshape(whole.shape), whole, rtol=1e-3, atol=1e-4
    )
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(stats)):
        np.testing.assert_allclose(a, np.broadcast_to(b, a.shape), rtol=1e-3, atol=1e-5)
    before = jax.tree.leaves(variables['batch_stats'])
    for a, b in zip(jax.tree.leaves(stats), before):
        assert not np.allclose(a, b)


@pytest.mark.parametrize('kind', ['dense', 'conv', 'up'])
def test_evaluation_treats_each_example_alone(kind):
    """Catch moments of the batch, or dropout, in evaluation."""
    stack, shape = _stack(kind, batch_norm=True, dropout=0.5)
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    y, variables = stack.init_with_output(jax.random.key(0), x)
    rngs = jax.random.split(jax.random.key(2), 4)
    again = stack.apply(variables, x, train=False, dropout_rng=rngs, axis_name=None)
    np.testing.assert_array_equal(again, y)
    alone = stack.apply(variables, x[1:2])
    np.testing.assert_allclose(alone, y[1:2], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('kind', ['dense', 'conv', 'up'])
def test_bfloat16_computes_in_it_and_keeps_float32(kind):
    """Catch a cast that is lost on the way, and rounded parameters or moments."""
    stack, shape = _stack(kind, batch_norm=True, dtype=jnp.bfloat16)
    x = jax.random.normal(jax.random.key(1), (4, *shape))
    y, variables = stack.init_with_output(jax.random.key(0), x)
    assert y.dtype == jnp.bfloat16
    assert {a.dtype for a in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
