"""The squared error against float64 NumPy, its gradient, and wrong shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.losses import reconstruction


def _pair(dtype=np.float32):
    rng = np.random.default_rng(0)
    return rng.uniform(size=(2, 3, 4, 5, 2)).astype(dtype)


def test_squared_error_sums_the_pixels_of_each_example():
    """Catch a mean over pixels, a sum over the batch or a root."""
    x_hat, x = _pair()
    expected = np.array([
        np.linalg.norm((a.astype(np.float64) - b).ravel()) ** 2
        for a, b in zip(x, x_hat)
    ])
    for fn in (reconstruction.squared_error, jax.jit(reconstruction.squared_error)):
        np.testing.assert_allclose(fn(x_hat, x), expected, rtol=1e-6)


def test_squared_error_has_gradient_twice_the_difference():
    """Catch a factor 1/2, or a gradient that is cut off."""
    x_hat, x = _pair()
    grad = jax.grad(lambda a: reconstruction.squared_error(a, x).sum())(x_hat)
    np.testing.assert_allclose(grad, 2 * (x_hat - x), rtol=1e-6)


def test_squared_error_is_summed_in_float32():
    """Catch a sum in bfloat16, which stops growing at 256 terms of one."""
    x = jnp.ones((1, 1000), jnp.bfloat16)
    assert reconstruction.squared_error(jnp.zeros_like(x), x)[0] == 1000


@pytest.mark.parametrize(
    'shapes', [((3, 4), (3, 1)), ((3, 4), (4,)), ((3,), (3, 1)), ((), ())]
)
def test_squared_error_refuses_shapes_that_would_broadcast(shapes):
    """Catch [B, 1] against [B]: a matrix of errors of every pair."""
    with pytest.raises(AssertionError):
        reconstruction.squared_error(*map(jnp.zeros, shapes))
