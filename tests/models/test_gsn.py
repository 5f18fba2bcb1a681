"""The generative stochastic network against its equations, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.models.gsn import GSN


def _start(layers, num_dims=5, batch=3):
    """Return a model, random parameters, x, hidden layers and noise."""
    rng = np.random.default_rng(0)
    model = GSN(num_dims=num_dims, layers=layers)
    x = rng.random((batch, num_dims))
    hidden = tuple(jnp.asarray(rng.normal(size=(batch, n))) for n in layers)
    noise = tuple(
        (jnp.asarray(rng.normal(size=h.shape)), jnp.asarray(rng.normal(size=h.shape)))
        for h in hidden[1:]
    )
    params = model.init(jax.random.key(0), jnp.asarray(x), hidden)['params']
    params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape)), params)
    return model, params, jnp.asarray(x), hidden, noise


def test_an_update_is_that_of_the_paper():
    """Catch layers in another order, weights that are not tied, noise in h_1."""
    with jax.enable_x64(True):
        _check_update()


def _check_update():
    model, params, x, hidden, noise = _start((4, 6, 3))
    model = model.clone(dtype=jnp.float64)
    logits, new = model.apply({'params': params}, x, hidden, noise)
    p, x, (_, h2, _), noise = jax.tree.map(np.asarray, (params, x, hidden, noise))
    (n2, m2), (n3, m3) = noise
    h1 = np.tanh(x @ p['w1'] + h2 @ p['w2'].T + p['b1'])
    h3 = np.tanh(h2 @ p['w3'] + p['b3'] + n3) + m3
    h2 = np.tanh(h1 @ p['w2'] + h3 @ p['w3'].T + p['b2'] + n2) + m2
    for got, wanted in zip(new, (h1, h2, h3), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-12)
    np.testing.assert_allclose(logits, h1 @ p['w1'].T + p['b0'], rtol=1e-12)


def test_one_layer_remembers_nothing():
    """Catch a denoising autoencoder that is not a function of its input."""
    model, params, x, hidden, noise = _start((4,))
    assert noise == ()
    variables = {'params': params}
    logits, _ = model.apply(variables, x, hidden, noise)
    again, _ = model.apply(variables, x, model.start(3))
    np.testing.assert_array_equal(logits, again)
    h = model.apply(variables, x, method=GSN.encode)
    half = model.clone(dtype=jnp.bfloat16).apply(variables, x, method=GSN.encode)
    assert half.dtype == jnp.float32  # NumPy has no bfloat16
    decoded = model.apply(variables, h, method=GSN.decode)
    np.testing.assert_array_equal(decoded, logits)


def test_wrong_shapes():
    """Catch an image that is not flat."""
    model, params, x, hidden, _ = _start((4,))
    with pytest.raises(AssertionError):
        model.apply({'params': params}, x[:, :4], hidden)
