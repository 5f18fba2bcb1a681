"""Weight normalisation changes the parameters, not the function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gm_jax.layers import shifted, weight_norm
from gm_jax.models.pixel_cnn_pp import PixelCNNpp


class _Stack(nn.Module):
    """Three layers whose outputs are kept."""

    @nn.compact
    def __call__(self, x):
        for i, scale in enumerate((1.0, 0.1)):
            x = shifted.ShiftedConv(5, (2, 3), True, scale=scale, name=f'conv{i}')(x)
            self.sow('intermediates', 'out', x)
            x = jnp.tanh(10 * x) + x.shape[-1]  # any function between them
        x = nn.Dense(4, name='dense')(x)
        self.sow('intermediates', 'out', x)
        return nn.Dense(2, use_bias=False, name='bare')(x)


def _initialised():
    x = 3 + 2 * jax.random.normal(jax.random.key(1), (6, 5, 4, 3))
    params = weight_norm.directions(jax.random.key(0), _Stack(), x)
    return weight_norm.data_dependent_init(_Stack(), params, x), params, x


def test_outputs_of_the_first_batch():
    """Catch a layer that was set by what came before the layers under it were."""
    params, _, x = _initialised()
    _, kept = _Stack().apply({'params': params}, x, mutable='intermediates')
    for out, scale in zip(kept['intermediates']['out'], (1.0, 0.1, 1.0)):
        out = np.asarray(out).reshape(-1, out.shape[-1])
        np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
        np.testing.assert_allclose(out.std(0), scale, rtol=1e-4)


def test_outputs_that_are_constant():
    """Catch a division by the rounding of a variance of 0."""
    x = jnp.full((6, 5, 4, 3), 2.0).at[..., 0].set(
        jax.random.normal(jax.random.key(1), (6, 5, 4))
    )
    layer = nn.Dense(2)
    params = {'kernel': jnp.eye(3, 2), 'bias': jnp.ones(2)}  # one varies, one does not
    found = weight_norm.data_dependent_init(layer, params, x)
    y = layer.apply({'params': found}, x)
    np.testing.assert_allclose(np.std(y, (0, 1, 2)), [1, 0], atol=1e-5)
    np.testing.assert_allclose(np.mean(y, (0, 1, 2)), [0, 0], atol=1e-5)
    np.testing.assert_array_equal(found['kernel'][1], [0, 1])


@pytest.mark.parametrize('shape, num_levels', [((1, 6, 1), 2), ((4, 4, 1), 3)])
def test_pixel_cnn_pp_of_one_row(shape, num_levels):
    """Catch weights of 1e5, with which the first step diverges."""
    model = PixelCNNpp(shape, features=4, num_resnets=1, num_levels=num_levels)
    x = np.random.default_rng(0).integers(0, 256, (16, *shape))
    params = weight_norm.directions(jax.random.key(0), model, x)
    params = jax.jit(
        lambda params, x: weight_norm.data_dependent_init(model, params, x)
    )(params, x)
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(params)) < 100


def test_only_layers_with_a_bias_change():
    """Catch a change of what is no weight-normalised layer."""
    params, before, _ = _initialised()
    np.testing.assert_array_equal(params['bare']['kernel'], before['bare']['kernel'])
    assert not np.allclose(params['dense']['kernel'], before['dense']['kernel'])


def test_merge_inverts_split():
    """Catch a norm over the wrong axes, and a length that is not the kernel's."""
    params, _, _ = _initialised()
    parts = weight_norm.split(params)
    assert set(parts['conv0']) == {'v', 'g', 'bias'} and 'kernel' in parts['bare']
    kernel = np.asarray(params['conv0']['kernel']).reshape(-1, 5)
    np.testing.assert_allclose(parts['conv0']['g'], np.sqrt((kernel ** 2).sum(0)),
                               rtol=1e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        weight_norm.merge(parts), params,
    )


def test_the_size_of_a_direction_does_not_matter():
    """Catch a merge that does not divide by the norm."""
    params, _, _ = _initialised()
    parts = weight_norm.split(params)
    longer = parts | {'dense': parts['dense'] | {'v': 3 * parts['dense']['v']}}
    np.testing.assert_allclose(
        weight_norm.merge(longer)['dense']['kernel'], params['dense']['kernel'],
        rtol=1e-5, atol=1e-7,
    )


def test_pixel_cnn_pp_starts_normalised():
    """Catch a layer of the model that the initialisation does not reach."""
    model = PixelCNNpp((8, 6, 1), features=8, num_resnets=1, num_levels=2)
    x = np.random.default_rng(0).integers(0, 256, (16, 8, 6, 1))
    params = weight_norm.directions(jax.random.key(0), model, x)
    params = jax.jit(
        lambda params, x: weight_norm.data_dependent_init(model, params, x)
    )(params, x)
    mixture = jax.jit(model.apply)({'params': params}, x)
    out = np.concatenate([np.asarray(a).reshape(-1, 10) for a in mixture[:3]], axis=1)
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(out.std(0), 1, rtol=1e-3)
