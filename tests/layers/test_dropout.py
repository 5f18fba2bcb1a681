"""Masks that belong to the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from gm_jax.layers.dropout import Dropout


class _Layers(nn.Module):
    """Layers of dropout side by side: `apply` itself has an argument `rngs`."""

    rate: float = 0.3
    num: int = 1

    @nn.compact
    def __call__(self, x, keys):
        return [Dropout(self.rate)(x, rng=keys) for _ in range(self.num)]


def _drop(x, rngs, rate=0.3):
    return np.asarray(_Layers(rate).apply({}, x, rngs)[0])


def _rngs(num):
    return jax.random.split(jax.random.key(0), num)


def test_share_and_scale():
    """Catch rate and 1 - rate exchanged, and a mean that is not kept."""
    x = jnp.full((200, 100), 3.0)
    y = _drop(x, _rngs(200))
    np.testing.assert_allclose(y[y != 0], 3 / 0.7, rtol=1e-6)
    # 5 standard errors of 20,000 draws.
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / 20_000)


def test_mask_belongs_to_the_example():
    """Catch masks that depend on the batch, and so on the number of devices."""
    x, rngs = jnp.ones((8, 50)), _rngs(8)
    y = _drop(x, rngs)
    np.testing.assert_array_equal(_drop(x[2:4], rngs[2:4]), y[2:4])
    spread = jax.pmap(lambda x, rngs: _Layers().apply({}, x, rngs)[0])
    parts = spread(x.reshape(8, 1, 50), rngs.reshape(8, 1))
    np.testing.assert_array_equal(parts.reshape(8, 50), y)
    assert len(np.unique(y, axis=0)) == 8


def test_rows_and_layers_differ():
    """Catch one mask for all samples of an example, or for all layers."""
    y = _drop(jnp.ones((6, 50)), _rngs(2))
    assert len(np.unique(y, axis=0)) == 6
    np.testing.assert_array_equal(_drop(jnp.ones((3, 50)), _rngs(2)[:1]), y[:3])
    one, other = _Layers(num=2).apply({}, jnp.ones((2, 50)), _rngs(2))
    assert not np.array_equal(one, other)


def test_nothing_is_dropped_in_evaluation():
    """Catch dropout that stays on, and NaN passed on by a product with the mask."""
    x = jnp.ones((4, 5))
    np.testing.assert_array_equal(_drop(x, None), x)
    np.testing.assert_array_equal(_drop(x, _rngs(4), rate=0.0), x)
    with pytest.raises(AssertionError):
        _drop(x, _rngs(3))


def test_gradient_is_zero_where_dropped():
    """Catch a mask that is not the same backwards."""
    def total(x):
        return _Layers().apply({}, x, _rngs(4))[0].sum()

    y = _drop(jnp.ones((4, 20)), _rngs(4))
    np.testing.assert_allclose(jax.grad(total)(jnp.ones((4, 20))), y, rtol=1e-6)
