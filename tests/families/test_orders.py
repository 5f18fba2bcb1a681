"""A model of the reversed order is the model of raster order on turned images."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import gated_pixel_cnn, pixel_cnn, pixel_cnn_pp, pixel_rnn, time_series
from gm_jax.data import image_set
from gm_jax.errors import UserError
from gm_jax.families.orders import turn

NARROW = {'features': 6, 'head': 6, 'first_kernel': 3}


def _data(image_shape, num_values):
    return image_set.ImageSet(
        name='none', image_shape=image_shape, num_values=num_values, num_classes=0,
        splits={},
    )


def _network(model, variables):
    """Return (x, h) -> the parameters of every pixel."""
    return jax.jit(
        lambda x, h: model.apply(variables, x, h, rngs=None, step=0, chunk=0)
    )


@pytest.mark.parametrize('module, settings', [
    (pixel_cnn, {'num_blocks': 1, **NARROW}),
    (gated_pixel_cnn, {'num_layers': 1, **NARROW}),
    (pixel_cnn_pp, {'features': 6, 'num_levels': 1, 'num_mixtures': 2}),
    (pixel_rnn, {'num_layers': 1, **NARROW}),
])
def test_density_is_that_of_turned_images(module, settings):
    """Catch images, a map of conditions or parameters that are not turned."""
    rng, data = np.random.default_rng(0), _data((3, 2, 3), 4)
    raster, reversed_ = (
        module.make_model(module.Config(order=order, **settings), data)
        for order in ('raster', 'reversed')
    )
    x = jnp.asarray(rng.integers(0, 4, (2, 3, 2, 3)))
    h = jnp.asarray(rng.normal(size=(2, 3, 2, 6)), jnp.float32)
    if module is pixel_cnn:  # its h is one vector per image
        h = h[:, 0, 0]
    turned = turn(h) if h.ndim == 4 else h
    variables = raster.init(jax.random.key(0), turn(x), turned)
    jax.tree.map(
        np.testing.assert_array_equal, variables,
        reversed_.init(jax.random.key(0), x, h),
    )
    expected = _network(raster, variables)(turn(x), turned)
    found = _network(reversed_, variables)(x, h)
    np.testing.assert_allclose(
        reversed_.distribution.log_prob(found, x),
        raster.distribution.log_prob(expected, turn(x)), rtol=1e-6,
    )
    assert reversed_.order[:4].tolist() == [15, 16, 17, 12]  # red, green, blue, red


def test_each_pixel_depends_on_those_after_it():
    """Catch a density that does not sum to one, or of another order than it says."""
    data = _data((2, 2, 1), 2)
    config = pixel_rnn.Config(order='reversed', num_layers=1, **NARROW)
    model = pixel_rnn.make_model(config, data)
    x = np.array(list(itertools.product(range(2), repeat=4)), np.int32)
    images = x.reshape(16, 2, 2, 1)
    variables = model.init(jax.random.key(0), jnp.asarray(images), None)
    # Away from where training starts, where the logits are all zero.
    variables = jax.tree.map(lambda a: a + 0.3, variables)
    logits = _network(model, variables)(images, None)
    log_px = np.asarray(model.distribution.log_prob(logits, images), np.float64)
    np.testing.assert_allclose(np.exp(log_px).sum(), 1, rtol=1e-6)
    logits = np.asarray(logits).reshape(16, 4)
    for place, i in enumerate(model.order):
        past = x[:, model.order[:place]]
        for j in range(16):
            same = (past == past[j]).all(axis=1)
            np.testing.assert_array_equal(logits[same, i], logits[j, i])
        assert len(np.unique(logits[:, i])) > place


def test_time_runs_forward():
    """Catch forecasts by a network that has seen the future."""
    config = time_series.Config(order='reversed', horizon=2)
    with pytest.raises(UserError, match='from the past'):
        time_series.build(config, _data((1, 8, 1), 256))
