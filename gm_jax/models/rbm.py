"""Restricted Boltzmann machine: one layer of hidden units.

Smolensky 1986; Hinton 2002, Training Products of Experts by Minimizing Contrastive
Divergence. The machine itself is `gm_jax.losses.energy.RBM`.
"""

import jax
import jax.numpy as jnp

from gm_jax.losses.energy import RBM

__all__ = ['init', 'SCALE']

SCALE = 0.01  # standard deviation of the first weights


def init(rng: jax.Array, visible_bias: jax.Array, num_hidden: int) -> RBM:
    """Make a machine whose visible units are nearly independent.

    W_ij ~ N(0, 0.01^2), c = 0.

    Args:
        rng: one key.
        visible_bias: [D] b; the log-odds of the data's means are a good choice.
        num_hidden: H.

    Returns:
        The machine, in float32.
    """
    shape = len(visible_bias), num_hidden
    weights = SCALE * jax.random.normal(rng, shape, jnp.float32)
    return RBM(weights, visible_bias, jnp.zeros(num_hidden))
