"""Causal convolutions against the masked convolutions that they stand for."""


import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.layers import causal
from gm_jax.models.pixel_cnn import MaskedConv


def _conv(x, kernel, pad):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), pad, dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        precision='highest',
    )


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('strict', [True, False])
def test_three_parts_are_a_masked_convolution(channels, strict):
    """Catch mask A taken for B, groups of colours mixed up, and a shifted part."""
    layer = MaskedConv(6, 5, channels, strict)
    x = jax.random.normal(jax.random.key(0), (2, 6, 7, 9))
    params = layer.init(jax.random.key(1), x)['params']
    params['above']['bias'] = jnp.arange(6.0)
    # A 5 x 5 kernel: rows above, pixels to the left, the pixel under its mask.
    kernel = np.zeros((5, 5, 9, 6), np.float32)
    kernel[:2] = params['above']['kernel']
    kernel[2, :2] = params['left']['kernel'][0]
    if 'here' in params:
        before = np.repeat(range(channels), 9 // channels)[:, None]
        after = np.repeat(range(channels), 6 // channels)[None]
        mask = before < after if strict else before <= after
        kernel[2, 2] = params['here']['kernel'] * mask
    else:
        assert strict and channels == 1
    expected = np.asarray(_conv(x, kernel, ((2, 2), (2, 2)))) + np.arange(6.0)
    got = layer.apply({'params': params}, x)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_window():
    """Catch a cache that forgets the newest in place of the oldest."""
    rows = jnp.arange(6.0).reshape(1, 3, 2)
    got = causal.window(rows, jnp.array([[7.0, 8.0]]))
    np.testing.assert_array_equal(got, [[[2, 3], [4, 5], [7, 8]]])
