"""Exponential linear units against jax.nn and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.layers import activations

X = np.array([-1e30, -100, -3, -0.5, -1e-3, 0, 1e-3, 0.5, 3, 100, 1e30], np.float32)


def test_elu_and_its_derivatives():
    """Catch half of the gradient at 0, a NaN far out, and a wrong side."""
    expected = np.where(X > 0, X, np.expm1(np.minimum(X, 0, dtype=np.float64)))
    np.testing.assert_allclose(activations.elu(X), expected, rtol=0, atol=1e-7)
    for order in (1, 2):
        derivative = activations.elu
        for _ in range(order):
            derivative = jax.grad(derivative)
        side = (1, 0)[order - 1]
        expected = np.where(X > 0, side, np.exp(np.minimum(X, 0, dtype=np.float64)))
        found = jax.vmap(derivative)(X)
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-30)


def test_elu_of_narrow_floats():
    """Catch small values that bfloat16 loses beside 1."""
    x = jnp.asarray([-1e-3, -5e-3, 2e-3], jnp.bfloat16)
    found = activations.elu(x)
    assert found.dtype == jnp.bfloat16
    expected = np.expm1(np.minimum(np.asarray(x, np.float64), 0))
    expected[2] = x[2]
    np.testing.assert_allclose(np.asarray(found, np.float64), expected, rtol=4e-3)


def test_concat_elu_has_both_signs():
    """Catch one sign twice, another axis, and a lost gradient at 0."""
    x = jnp.asarray(X).reshape(1, -1)
    found = activations.concat_elu(x)
    expected = np.concatenate([activations.elu(x), activations.elu(-x)], axis=-1)
    np.testing.assert_array_equal(found, expected)
    assert found[0, 5] == found[0, 16] == 0
    jacobian = jax.jacobian(activations.concat_elu)(jnp.zeros(1))
    np.testing.assert_array_equal(jacobian, [[1], [-1]])
