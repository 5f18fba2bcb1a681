r"""Deep Boltzmann machine of two hidden layers.

Salakhutdinov and Hinton 2009, Deep Boltzmann Machines.
https://proceedings.mlr.press/v5/salakhutdinov09a.html

    E(v, h1, h2) = -b.v - c1.h1 - c2.h2 - v.W1 h1 - h1.W2 h2

Neither v and h2 nor the units within a layer are connected, so the machine is an RBM
between u = (v, h2) and h1: Gibbs sampling, the free energy F(u) and the partition
function are those of `as_rbm`. What remains is h2 given v. For any probabilities q of
h2 as independent bits,

    log p(v) >= -F(v, q) + entropy(q) - log Z

where F(v, q) contains the best distribution of h1 that is independent of h2. The bound
is tight if h1 and h2 are independent bits given v, and q is p(h2|v).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gm_jax.losses import energy
from gm_jax.losses.energy import RBM
from gm_jax.models.rbm import SCALE

__all__ = ['as_rbm', 'DBM', 'infer', 'init']


class DBM(NamedTuple):
    """A deep Boltzmann machine; see the module.

    Attributes:
        weights1: [D, H1] W1.
        weights2: [H1, H2] W2.
        visible_bias: [D] b.
        hidden1_bias: [H1] c1.
        hidden2_bias: [H2] c2.
    """

    weights1: jax.Array
    weights2: jax.Array
    visible_bias: jax.Array
    hidden1_bias: jax.Array
    hidden2_bias: jax.Array


def init(
    rng: jax.Array, visible_bias: jax.Array, num_hidden1: int, num_hidden2: int
) -> DBM:
    """Make a machine whose units are nearly independent.

    Args:
        rng: one key.
        visible_bias: [D] b; the log-odds of the data's means are a good choice.
        num_hidden1: H1.
        num_hidden2: H2.

    Returns:
        The machine, in float32.
    """
    num = len(visible_bias)
    shape = num + num_hidden2, num_hidden1
    weights = SCALE * jax.random.normal(rng, shape, jnp.float32)
    return DBM(
        weights[:num], weights[num:].T, visible_bias, jnp.zeros(num_hidden1),
        jnp.zeros(num_hidden2),
    )


def as_rbm(dbm: DBM) -> RBM:
    """Return the machine as an RBM of the visible units (v, h2) and the hidden h1."""
    return RBM(
        jnp.concatenate([dbm.weights1, dbm.weights2.T]),
        jnp.concatenate([dbm.visible_bias, dbm.hidden2_bias]), dbm.hidden1_bias,
    )


def infer(dbm: DBM, v: jax.Array, num_steps: int) -> tuple[jax.Array, jax.Array]:
    """Approximate p(h1, h2|v) by mean field: independent units, one layer at a time.

        q1 = s(c1 + v W1 + q2 W2^T)      q2 = s(c2 + q1 W2)      s the sigmoid

    starts from q1 = s(c1 + 2 v W1). Each update is coordinate ascent on the bound on
    log p(v).

    Args:
        dbm: the machine.
        v: [B, D] bits.
        num_steps: how often both layers are updated.

    Returns:
        (v, q2) [B, D + H2], q2 the probabilities of h2, and its entropy [B] in nats.

    References:
        Salakhutdinov and Hinton 2009, Deep Boltzmann Machines, sec. 2.2.
    """
    zeros = jnp.zeros_like(dbm.hidden1_bias)
    from_v = energy.hidden_logits(RBM(dbm.weights1, dbm.visible_bias, zeros), v)
    upper = RBM(dbm.weights2, dbm.hidden1_bias, dbm.hidden2_bias)

    def up(logits1: jax.Array) -> jax.Array:
        return energy.hidden_logits(upper, jax.nn.sigmoid(logits1))

    def step(_: jax.Array, logits2: jax.Array) -> jax.Array:
        down = energy.visible_logits(upper, jax.nn.sigmoid(logits2))
        return up(from_v + down)

    # The input from below is doubled at first, as there is none yet from above.
    first = up(2 * from_v + dbm.hidden1_bias[None])
    logits2 = jax.lax.fori_loop(0, num_steps, step, first)
    q = jax.nn.sigmoid(logits2)
    entropy = jnp.sum(energy.softplus(logits2) - q * logits2, axis=1)
    return jnp.concatenate([v.astype(q.dtype), q], axis=1), entropy
