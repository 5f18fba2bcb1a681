"""Fractionally-strided convolutions against XLA's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.layers import upsample


def lax_conv_transpose(x, kernel, stride):
    """Apply JAX's own transposed convolution."""
    return jax.lax.conv_transpose(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


@pytest.mark.parametrize('size', [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize('stride', [1, 2, 3, 4])
def test_equals_lax(size, stride):
    """Catch what is off by one: the picture moves by a pixel, no more."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 2))
    kernel = jax.random.normal(jax.random.key(1), (size, size + 1, 2, 3))

    def loss(fn, *args):
        y = fn(*args, stride)
        return jnp.sum(jnp.sin(jnp.arange(y.size)).reshape(y.shape) * y), y

    (gradients, y), (expected_gradients, expected) = (
        jax.jit(jax.grad(loss, argnums=(1, 2), has_aux=True), static_argnums=0)(
            fn, x, kernel
        )
        for fn in (upsample.conv_transpose, lax_conv_transpose)
    )
    assert y.shape == (2, 3 * stride, 5 * stride, 3)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    for ours, theirs in zip(gradients, expected_gradients):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_gradient_of_a_gradient_equals_lax():
    """Catch a backward pass that is no function to differentiate, as penalties do."""
    x = jax.random.normal(jax.random.key(0), (2, 3, 5, 2))
    kernel = jax.random.normal(jax.random.key(1), (4, 4, 2, 3))

    def penalty(fn, x, kernel):
        slopes = jax.grad(lambda x: jnp.sum(jnp.tanh(fn(x, kernel, 2))))(x)
        return jnp.sum(slopes ** 2)

    ours, theirs = (
        jax.grad(penalty, argnums=(1, 2))(fn, x, kernel)
        for fn in (upsample.conv_transpose, lax_conv_transpose)
    )
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_module():
    """Catch a layer that grows by another factor than its stride."""
    layer = upsample.ConvTranspose(features=3, kernel_size=4)
    y, variables = layer.init_with_output(jax.random.key(0), jnp.ones((2, 3, 5, 4)))
    assert y.shape == (2, 6, 10, 3)
    assert jax.tree.map(jnp.shape, variables['params']) == {
        'kernel': (4, 4, 4, 3), 'bias': (3,)
    }
