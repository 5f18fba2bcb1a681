"""The networks of the VAE: shapes, types, and what depends on what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.models.vae import VAE, Gaussian

SHAPE = (7, 5, 3)


def _start(**kwargs):
    model = VAE(
        image_shape=SHAPE, num_values=6, **({'hidden': (8,), 'hidden2': (6,)} | kwargs)
    )
    x = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
    return model, jax.jit(model.init)(jax.random.key(1), x), x


@pytest.mark.parametrize('network', ['mlp', 'conv'])
@pytest.mark.parametrize('likelihood', ['bernoulli', 'categorical', 'gaussian'])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_parameters_of_each_distribution(network, likelihood, dtype):
    """Catch odd sizes, missing channels, and logits rounded to eight bits."""
    model, variables, x = _start(
        network=network, likelihood=likelihood, dtype=dtype, hidden=(8, 4)
    )
    q = model.apply(variables, x, method=VAE.encode)
    assert isinstance(q, Gaussian) and q.mean.shape == q.logvar.shape == (4, 20)
    p = model.apply(variables, q.mean, method=VAE.decode)
    if likelihood == 'gaussian':
        assert p.mean.shape == p.logvar.shape == (4, *SHAPE)
        assert not np.allclose(p.mean, p.logvar)
    else:
        assert p.shape == (4, *SHAPE) + (6,) * (likelihood == 'categorical')
    leaves = jax.tree.leaves((q, p, variables))
    assert {a.dtype for a in leaves} == {jnp.dtype('float32')}


@pytest.mark.parametrize('network', ['mlp', 'conv'])
def test_each_example_alone(network):
    """Catch a reshape that mixes examples or pixels of different examples."""
    model, variables, x = _start(network=network, latent_dims=(3, 2))
    q = model.apply(variables, x, method=VAE.encode)
    logits = model.apply(variables, q.mean, method=VAE.decode)
    for i in range(4):
        one = model.apply(variables, x[i:i + 1], method=VAE.encode)
        np.testing.assert_allclose(one.mean, q.mean[i:i + 1], rtol=1e-3, atol=1e-5)
        alone = model.apply(variables, q.mean[i:i + 1], method=VAE.decode)
        np.testing.assert_allclose(alone, logits[i:i + 1], rtol=1e-3, atol=1e-5)
    assert np.ptp(logits, axis=0).max() > 1e-3


def test_two_layers():
    """Catch sizes of the layers exchanged, and a network used for another."""
    model, variables, x = _start(latent_dims=(3, 2), hidden=(9, 8), hidden2=(7, 6))
    z1 = model.apply(variables, x, method=VAE.encode).mean
    q2 = model.apply(variables, z1, method=VAE.encode2)
    p1 = model.apply(variables, q2.mean, method=VAE.decode2)
    assert (z1.shape, q2.mean.shape, p1.mean.shape) == ((4, 3), (4, 2), (4, 3))
    shapes = jax.tree.map(lambda a: a.shape, variables['params'])
    kernels = {
        name: [layer['kernel'] for layer in shapes[name].values()]
        for name in ('encoder', 'encoder2', 'decoder2', 'decoder')
    }
    assert kernels == {
        'encoder': [(105, 9), (9, 8)], 'encoder2': [(3, 7), (7, 6)],
        'decoder2': [(2, 6), (6, 7)], 'decoder': [(3, 8), (8, 9)],
    }


def test_dropout_and_batch_norm_are_for_training():
    """Catch a mode that does not reach every network."""
    model, variables, x = _start(latent_dims=(3, 2), batch_norm=True, dropout=0.5)
    rngs = jax.random.split(jax.random.key(2), 4)
    quiet = model.apply(variables, x, dropout_rng=rngs)
    np.testing.assert_array_equal(quiet, model.apply(variables, x))
    logits, updated = model.apply(
        variables, x, train=True, dropout_rng=rngs, mutable=['batch_stats']
    )
    assert not np.allclose(logits, quiet)
    stats = updated['batch_stats']
    assert set(stats) == {'encoder', 'encoder2', 'decoder', 'decoder2'}
    for new, old in zip(
        jax.tree.leaves(stats), jax.tree.leaves(variables['batch_stats'])
    ):
        assert not np.allclose(new, old)
