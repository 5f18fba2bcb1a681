"""Spectral normalisation: the largest singular value becomes 1."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.spectral import maybe_spectral


class _Net(nn.Module):
    @nn.compact
    def __call__(self, x, *, normalise=True, train=False):
        layer = maybe_spectral(normalise, train)(nn.Dense(4, use_bias=False))
        return layer(x)


def test_kernel_is_divided_by_its_norm():
    """Catch an estimate that is never improved, and a kernel that is left as it is."""
    net, x = _Net(), jnp.eye(6)
    variables = net.init(jax.random.key(0), x)
    variables = {**variables, 'params': jax.tree.map(lambda w: 7 * w,
                                                     variables['params'])}
    step = jax.jit(lambda v: net.apply(v, x, train=True, mutable=['batch_stats'])[1])
    for _ in range(100):
        variables = {**variables, **step(variables)}
    kernel, = jax.tree.leaves(variables['params'])
    expected = kernel / np.linalg.norm(kernel, 2)
    np.testing.assert_allclose(net.apply(variables, x), expected, rtol=1e-4, atol=1e-6)


def test_without_it_the_layer_is_as_it_was():
    """Catch a layer that is normalised though it is not to be."""
    net, x = _Net(), jnp.eye(6)
    variables = net.init(jax.random.key(0), x, normalise=False)
    kernel, = jax.tree.leaves(variables)
    np.testing.assert_array_equal(net.apply(variables, x, normalise=False), kernel)
