"""Shifted convolutions against XLA's own, and by rows and pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.layers import shifted
from gm_jax.layers.activations import concat_elu

B, H, W, F, G = 2, 5, 6, 3, 4


def _image(seed=0):
    return jax.random.normal(jax.random.key(seed), (B, H, W, F))


def _weights(module, *args):
    """Return the variables with a bias that is not zero."""
    variables = module.init(jax.random.key(2), *args)
    bias = variables['params']['bias']
    return {'params': variables['params'] | {'bias': bias + 0.5}}


@pytest.mark.parametrize('size, centred, stride', [
    ((2, 3), True, 1), ((2, 2), False, 1), ((1, 3), True, 1), ((2, 1), False, 1),
    ((2, 3), True, 2), ((2, 2), False, 2),
])
def test_is_the_convolution_of_a_padded_image(size, centred, stride):
    """Catch a shift, and a row or pixel that is another function."""
    conv, x = shifted.ShiftedConv(G, size, centred, stride), _image()
    variables = _weights(conv, x)
    kernel, bias = (variables['params'][name] for name in ('kernel', 'bias'))
    side = size[1] // 2
    columns = (side, side) if centred else (size[1] - 1, 0)
    expected = np.asarray(jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), ((size[0] - 1, 0), columns),
        dimension_numbers=('NHWC', 'HWIO', 'NHWC'), precision='highest',
    ) + bias[None, None, None])
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(conv.apply(variables, x), expected, **close)
    padded = jnp.pad(x, ((0, 0), (size[0] - 1, 0), (0, 0), (0, 0)))
    for r in range(0, H, stride):
        rows = padded[:, r:r + size[0]]
        got = conv.apply(variables, rows, method='row')
        np.testing.assert_allclose(got, expected[:, r // stride], **close)
        if centred:
            continue
        above = bias[None, None] + jnp.zeros((B, got.shape[1], G))
        if size[0] > 1:
            above = conv.apply(variables, rows[:, :-1], method='above')
        row = jnp.pad(x[:, r], ((0, 0), (size[1] - 1, 0), (0, 0)))
        for w in range(0, W, stride):
            got = conv.apply(
                variables, row[:, w:w + size[1]], above[:, w // stride], method='pixel'
            )
            want = expected[:, r // stride, w // stride]
            np.testing.assert_allclose(got, want, **close)


@pytest.mark.parametrize('centred', [False, True])
def test_upsample_is_a_transposed_convolution(centred):
    """Catch a kernel that is mirrored or a column off, in any face."""
    layer, x = shifted.Upsample(G, centred), _image()
    variables = _weights(layer, x)
    kernel = variables['params']['kernel']
    expected = np.zeros((B, 2 * H, 2 * W + 2, G))
    for i, j in np.ndindex(kernel.shape[:2]):
        shift = 0 if centred else 1  # its first column is then column 0
        columns = slice(j + shift, j + shift + 2 * W, 2)
        expected[:, i::2, columns] += np.asarray(x @ kernel[i, j])
    expected = expected[:, :, 1:-1] + 0.5
    close = dict(rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.apply(variables, x), expected, **close)
    for r in range(2 * H):
        got = layer.apply(variables, x[:, r // 2], jnp.int32(r % 2), method='row')
        np.testing.assert_allclose(got, expected[:, r], **close)
    if not centred:
        for r, w in np.ndindex(2 * H, 2 * W):
            got = layer.apply(
                variables, x[:, r // 2, w // 2], r % 2, w % 2, method='pixel'
            )
            np.testing.assert_allclose(got, expected[:, r, w], **close)


def test_nin_adds_up_its_parts():
    """Catch a bias that is added twice."""
    layer, inputs = shifted.Nin(G, 2), (_image(), _image(1))
    variables = _weights(layer, *inputs)
    kernel = np.asarray(variables['params']['kernel'])
    expected = 0.5 + sum(
        np.asarray(concat_elu(x)) @ k for x, k in zip(inputs, kernel)
    )
    np.testing.assert_allclose(
        layer.apply(variables, *inputs), expected, rtol=1e-4, atol=1e-5
    )


def test_shifts():
    """Catch a shift in the other direction."""
    x = np.asarray(_image())
    np.testing.assert_array_equal(shifted.shift_down(x)[:, 1:], x[:, :-1])
    np.testing.assert_array_equal(shifted.shift_right(x)[:, :, 1:], x[:, :, :-1])
    assert not np.any(shifted.shift_down(x)[:, 0])
    assert not np.any(shifted.shift_right(x)[:, :, 0])
