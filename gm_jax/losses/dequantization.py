"""Dequantization of integer pixels: uniform noise fills the gaps between the values.

A density p of y = (x + u) / V, u uniform in [0, 1), bounds the probability of x:

    log P(x) = log int p((x + u) / V) V^-D du >= E_u[log p((x + u) / V)] - D log V

by Jensen's inequality, and the logarithm of the mean over many u approaches log P(x):

    y = dequantization.uniform(rng, x, num_values=256)
    log_px = dequantization.log_prob(flow_log_density(y), 784, num_values=256)  # [B]

References:
    Theis et al. 2016, A note on the evaluation of generative models, sec. 3.1.
    https://arxiv.org/abs/1511.01844
"""

import math

import chex
import jax

from gm_jax.keys import per_example

__all__ = ['log_prob', 'uniform']


def uniform(rng: jax.Array, x: jax.Array, *, num_values: int) -> jax.Array:
    """Compute y = (x + u) / V, u uniform in [0, 1).

    Args:
        rng: one key, or [B] keys, one per example.
        x: [B, ...] integers in [0, V).
        num_values: V.

    Returns:
        [B, ...] float32 in [0, 1].

    Raises:
        AssertionError: x is not integer or has no batch axis, or `rng` is neither one
            key nor [B] keys.
    """
    chex.assert_rank(x, set(range(1, 9)))
    chex.assert_type(x, int)
    rngs = per_example(rng, len(x))
    u = jax.vmap(lambda rng: jax.random.uniform(rng, x.shape[1:]))(rngs)
    return (x + u) / num_values


def log_prob(log_density: jax.Array, num_dims: int, *, num_values: int) -> jax.Array:
    """Compute log p(y) - D log V: on average over u, a lower bound on log P(x).

    Args:
        log_density: [B] log p(y) in nats, for y in [0, 1].
        num_dims: D, the number of values in an image: H * W * C.
        num_values: V.

    Returns:
        [B] in nats.

    Raises:
        AssertionError: log_density is not of rank 1.
    """
    chex.assert_rank(log_density, 1)
    return log_density - num_dims * math.log(num_values)
