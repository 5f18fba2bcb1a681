"""Reconstruction losses: the distance of a reconstruction from its input.

    loss = reconstruction.squared_error(x_hat, x).mean()
"""

import chex
import jax
import jax.numpy as jnp

from gm_jax.losses import numerics

__all__ = ['squared_error']


def squared_error(x_hat: jax.Array, x: jax.Array) -> jax.Array:
    """Compute ||x - x_hat||^2 = sum_i (x_i - x_hat_i)^2, the L2 loss of autoencoders.

    Args:
        x_hat: [B, ...] reconstructions.
        x: [B, ...] inputs.

    Returns:
        [B] in squared units of a pixel, at least float32.

    Raises:
        AssertionError: the shapes differ, or there is no batch axis.

    Examples:
        >>> print(squared_error(jnp.array([[0.0, 1.0]]), jnp.array([[1.0, 3.0]])))
        [5.]

    References:
        Hinton and Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural
        Networks, Science 313.
    """
    chex.assert_rank(x_hat, set(range(1, 9)))
    chex.assert_equal_shape([x_hat, x])
    x_hat, x = numerics.flatten_events(*numerics.upcast(x_hat, x))
    return jnp.sum((x - x_hat) ** 2, axis=1)
