"""Three samplers, one image: on networks with random weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.losses import likelihoods
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.sampling import autoregressive
from tests.models import densities

BATCH = 3


def _setup(name, image_shape, num_values, dtype=jnp.float32):
    """Return (sampler, sweep, x, known) of a model: an image, half of it known."""
    model = densities.make(name, image_shape, num_values, scale=2.0, dtype=dtype)
    rngs = jax.random.split(jax.random.key(2), BATCH)
    uniform = autoregressive.noise(rngs, image_shape, model.num_noise)
    sampler = jax.jit(lambda x, known: autoregressive.incremental(
        model.network, model.quantile, uniform, x, known, order=model.order
    ))
    sweep = jax.jit(lambda x: model.quantile(model.params(x), x, uniform))
    rng, shape = np.random.default_rng(3), (BATCH, *image_shape)
    return (
        sampler, sweep, rng.integers(0, num_values, shape, np.int32),
        rng.random(shape) < 0.5, model.order,
    )


@pytest.mark.parametrize('image_shape, num_values', [
    ((8, 8, 1), 2), ((8, 8, 3), 2), ((3, 5, 3), 256),
    pytest.param((8, 8, 1), 256, marks=pytest.mark.long),
])
@pytest.mark.parametrize('name', densities.NAMES)
def test_same_integers(name, image_shape, num_values):
    """Catch noise that depends on the order of calls, and any error of a cache."""
    with jax.enable_x64(True):
        sampler, sweep, x, given, order = _setup(
            name, image_shape, num_values, jnp.float64
        )
        for known in (np.zeros_like(given), given):
            expected = autoregressive.ancestral(sweep, x, known, order=order)
            np.testing.assert_array_equal(sampler(x, known), expected)
            for guess in (np.where(known, x, 0), np.where(known, x, num_values - 1)):
                solved, sweeps = autoregressive.fixed_point(sweep, guess, known)
                np.testing.assert_array_equal(solved, expected)
                assert sweeps <= np.prod(image_shape) + 1
            np.testing.assert_array_equal(expected[known], x[known])
            assert len(np.unique(expected[~known])) > min(num_values, 3) - 1


@pytest.mark.long
@pytest.mark.parametrize('name, channels, num_values', [
    # MADE's direct weights for 256 values would be 3072 x 3072 x 256.
    ('made', 1, 2), ('nade', 3, 256), ('pixel_cnn', 3, 256),
    ('gated_pixel_cnn', 3, 256), ('pixel_cnn_pp', 3, 256),
])
def test_same_integers_at_the_size_of_cifar(name, channels, num_values):
    """Catch what only many rows show: a state that drifts, a parity that slips."""
    shape = (32, 32, channels)
    with jax.enable_x64(True):
        sampler, sweep, x, known, _ = _setup(name, shape, num_values, jnp.float64)
        expected, sweeps = autoregressive.fixed_point(sweep, x, known)
        assert sweeps < np.prod(shape) + 1
        np.testing.assert_array_equal(sampler(x, known), expected)


def test_an_image_does_not_depend_on_the_others():
    """Catch noise that is drawn for the whole batch at once."""
    model = densities.make('gated_pixel_cnn', (4, 4, 1), 4)
    rngs = jax.random.split(jax.random.key(2), BATCH)
    uniform = autoregressive.noise(rngs, (4, 4, 1), 1)
    nothing = jnp.zeros((BATCH, 4, 4, 1), jnp.int32)
    sample = jax.jit(functools.partial(
        autoregressive.incremental, model.network, model.quantile
    ))
    together = sample(uniform, nothing, nothing > 0)
    alone = sample(uniform[1:2], nothing[1:2], nothing[1:2] > 0)
    np.testing.assert_array_equal(together[1:2], alone)
    np.testing.assert_array_equal(
        autoregressive.noise(rngs[1:2], (4, 4, 1), 1), uniform[1:2]
    )


def test_samples_have_the_probabilities_of_the_model():
    """Catch a biased quantile: all 16 images of 2 x 2, by a chi-square test."""
    model = GatedPixelCNN(
        (2, 2, 1), 2, features=4, num_layers=1, first_kernel=3, kernel_sizes=(3,)
    )
    images = np.stack(np.unravel_index(np.arange(16), (2, 2, 2, 2)), axis=-1)
    images = jnp.asarray(images.reshape(16, 2, 2, 1), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), images)
    variables = jax.tree.map(lambda a: 4 * a, variables)
    log_px = likelihoods.bernoulli_log_prob(model.apply(variables, images), images)
    num = 20_000
    uniform = autoregressive.noise(
        jax.random.split(jax.random.key(1), num), (2, 2, 1), 1
    )
    network = autoregressive.Network(
        **{name: functools.partial(model.apply, variables, method=name)
           for name in ('start', 'row', 'pixel')}
    )
    x = jax.jit(lambda u: autoregressive.incremental(
        network, lambda logits, x, u: likelihoods.bernoulli_quantile(logits, u), u,
        jnp.zeros(u.shape, jnp.int32), jnp.zeros(u.shape, bool),
    ))(uniform)
    counts = np.bincount(np.asarray(x).reshape(num, 4) @ [8, 4, 2, 1], minlength=16)
    expected = num * np.exp(np.asarray(log_px, np.float64))
    # 15 degrees of freedom: above 44 with probability 1e-4.
    assert ((counts - expected) ** 2 / expected).sum() < 44


def test_ancestral_reports_every_value():
    """Catch a progress bar that stops at what is known, or short of the end."""
    x, known, told = np.zeros((1, 2, 2, 1), np.int32), np.zeros((1, 2, 2, 1), bool), []
    known[0, 1] = True
    autoregressive.ancestral(lambda x: x, x, known, report=told.append)
    assert told == [1, 2, 3, 4]


def test_fixed_point_of_a_function_that_is_not_causal():
    """Catch an endless loop where there is no fixed point."""
    x = np.zeros((1, 2, 2, 1), np.int32)
    with pytest.raises(ValueError, match='not causal'):
        autoregressive.fixed_point(lambda x: 1 - x, x, x > 0)


def test_order():
    """Catch values that are generated in another order than the model's."""
    order = np.array([2, 0, 3, 1])
    x = np.zeros((1, 2, 2, 1), np.int32)
    # Each value counts the values before it.
    rank = np.argsort(order)
    sweep = lambda x: (  # noqa: E731
        (x.reshape(-1)[None] > 0) & (rank[None] < rank[:, None])
    ).sum(1).reshape(x.shape) + 1
    got = autoregressive.ancestral(sweep, x, x > 0, order=order)
    np.testing.assert_array_equal(got.ravel(), rank + 1)
    network = autoregressive.Network(
        start=lambda size: ((), jnp.zeros((size, 1), int), ()),
        pixel=lambda left, context, x, r, w: (left + 1, left + 1, ()),
    )
    got = autoregressive.incremental(
        network, lambda params, x, u: params, jnp.zeros((1, 2, 2, 1)), jnp.asarray(x),
        jnp.asarray(x > 0), order=order,
    )
    np.testing.assert_array_equal(got.ravel(), rank + 1)
