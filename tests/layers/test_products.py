"""Products and convolutions against XLA's own, in values and in derivatives."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.layers import products
from gm_jax.layers.products import Part


def _conv(x, kernel, pad, stride=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pad, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
    )


def _with_gradients(function, *args):
    """Return the value and the gradients along one cotangent."""
    y, pull = jax.vjp(function, *args)
    return y, *pull(jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape))


def _random(*shape):
    rng = np.random.default_rng(sum(shape))
    return jnp.asarray(rng.normal(size=shape), jnp.float32)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('size, pad', [
    ((1, 1), ((0, 0), (0, 0))), ((2, 3), ((2, 0), (1, 1))), ((1, 4), ((0, 0), (4, 0))),
    ((3, 2), ((0, 0), (2, 0))), ((2, 3), ((2, -1), (1, 1))),
    ((1, 2), ((0, 0), (2, -1))),
])
def test_correlate_is_a_convolution(size, pad, stride):
    """Catch a tap, a pad or a stride that is one off, in values and gradients."""
    x, kernel = _random(2, 7, 6, 3), _random(*size, 3, 5)

    @functools.partial(jax.jit, static_argnums=0)
    def results(fn):
        return _with_gradients(lambda x, k: fn(x, k, pad, stride), x, kernel)

    for got, expected in zip(results(products.correlate), results(_conv)):
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('rows', [1, 2])  # 5 taps, one product; and 9
def test_a_sum_of_correlations_is_the_sum_of_convolutions(rows):
    """Catch taps and kernels in different orders, and a part with another pad."""
    side = 2 * rows + 1
    pads = (
        ((rows, -1), (rows, rows)), ((0, 0), (rows, -1)), ((0, 0), (0, 0)),
    )
    kernels = (
        _random(rows, side, 3, 5), _random(1, rows, 3, 5), _random(1, 1, 3, 5),
    )
    x = _random(2, 7, 6, 3)

    def ours(x, *kernels):
        return products.correlate_sum(x, [Part(*p) for p in zip(kernels, pads)])

    def expected(x, *kernels):
        return sum(_conv(x, *part) for part in zip(kernels, pads))

    for got, wanted in zip(
        _with_gradients(jax.jit(ours), x, *kernels),
        _with_gradients(jax.jit(expected), x, *kernels),
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('shape', [(6, 4), (4, 6)])  # transposed first, and not
def test_product_is_a_matrix_product(shape):
    """Catch a kernel that stays transposed; derivatives of both modes, and of vmap."""
    x, kernel = _random(9, 2, shape[0]), _random(*shape)
    np.testing.assert_allclose(
        products.product(x, kernel), x @ kernel, rtol=1e-5, atol=1e-5
    )
    for derivative in (jax.jacrev, jax.jacfwd):
        got, wanted = (
            derivative(f, 1)(x, kernel) for f in (products.product, jnp.matmul)
        )
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
    many = jnp.stack([kernel, 2 * kernel])
    got = jax.vmap(products.product, (None, 0))(x, many)
    np.testing.assert_allclose(
        got, jnp.stack([x @ kernel, 2 * x @ kernel]), rtol=1e-5, atol=1e-5
    )
