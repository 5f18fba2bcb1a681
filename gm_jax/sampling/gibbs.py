"""Block Gibbs sampling of restricted Boltzmann machines.

One step draws all hidden units given the visible ones, then all visible units given the
hidden ones. Both layers together have the machine's distribution as their limit:

    v = gibbs(rng, rbm, v, num_steps=1000)
"""

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import fold_in_each, per_example
from gm_jax.losses import energy
from gm_jax.losses.energy import RBM

__all__ = ['gibbs', 'uniforms']


def gibbs(
    rng: jax.Array, rbm: RBM, v: jax.Array, num_steps: int | jax.Array, *,
    known: jax.Array | None = None,
) -> jax.Array:
    """Take Gibbs steps: h ~ p(h|v), then v ~ p(v|h).

        p(h_j = 1|v) = s(c_j + (v W)_j)      p(v_i = 1|h) = s(b_i + (W h)_i)

    with s the sigmoid.

    Args:
        rng: one key, or [B] keys, one per chain.
        rbm: the machine.
        v: [B, D] bits, where the chains start.
        num_steps: how many steps; 0 returns v.
        known: [B, D], or [1, D] for all chains: bool, true for values of v that are
            kept, so that the others have the limit p(unknown | known). None: none are
            kept.

    Returns:
        [B, D] bits in the type of v.

    Raises:
        AssertionError: the shapes do not fit, or `rng` is neither of the two.

    References:
        Hinton 2012, A Practical Guide to Training Restricted Boltzmann Machines, sec.
        2.
    """
    chex.assert_rank(v, 2)
    if known is not None:
        chex.assert_shape(known, ({1, len(v)}, v.shape[1]))
    rngs, num_hidden = per_example(rng, len(v)), len(rbm.hidden_bias)

    def step(number: jax.Array, v: jax.Array) -> jax.Array:
        u = uniforms(fold_in_each(rngs, number), sum(rbm.weights.shape))
        probability = jax.nn.sigmoid(energy.hidden_logits(rbm, v))
        h = (u[:, :num_hidden] < probability).astype(probability.dtype)
        logits = energy.visible_logits(rbm, h)
        drawn = (u[:, num_hidden:] < jax.nn.sigmoid(logits)).astype(v.dtype)
        return drawn if known is None else jnp.where(known, v, drawn)

    end: jax.Array = jax.lax.fori_loop(0, num_steps, step, v)
    return end


def uniforms(rngs: jax.Array, num: int) -> jax.Array:
    """Draw uniform numbers in [0, 1).

    Args:
        rngs: [B] keys, one per row.
        num: how many numbers a row has.

    Returns:
        [B, num] float32.
    """
    return jax.vmap(lambda rng: jax.random.uniform(rng, (num,), jnp.float32))(rngs)
