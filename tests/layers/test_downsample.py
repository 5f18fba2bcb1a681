"""The strided convolution against that of XLA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gm_jax.layers import downsample


@pytest.mark.parametrize('size', [2, 3, 4, 5])
def test_equals_the_convolution_of_xla(size):
    """Catch a kernel that is not flipped, and a padding on the wrong side."""
    x = jax.random.normal(jax.random.key(0), (2, 8, 6, 3))
    layers = [
        nn.Conv(4, (size, size), (2, 2), conv_general_dilated=conv)
        for conv in (downsample.conv, None)
    ]
    variables = layers[0].init(jax.random.key(1), x)
    assert jax.tree.structure(variables) == jax.tree.structure(
        layers[1].init(jax.random.key(1), x)
    )

    def penalty(layer, variables, x):
        """Return a function of the gradient, and of the value."""
        def score(x):
            return jnp.sum(jnp.sin(layer.apply(variables, x)))

        value, slope = jax.value_and_grad(score)(x)
        return value + jnp.sum(jnp.cos(slope))

    found, expected = (
        jax.jit(jax.grad(penalty, (1, 2)), static_argnums=0)(layer, variables, x)
        for layer in layers
    )
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_refusals():
    """Catch a convolution that is not what was asked for."""
    x, kernel = jnp.zeros((1, 5, 4, 1)), jnp.zeros((2, 2, 1, 1))
    with pytest.raises(AssertionError):
        downsample.conv(x, kernel, (2, 2), 'SAME')
    with pytest.raises(AssertionError):
        downsample.conv(x[:, :4], kernel, (2, 2), 'VALID')
    with pytest.raises(AssertionError):
        downsample.conv(x[:, :4], kernel, (2, 2), 'SAME', rhs_dilation=(2, 2))
