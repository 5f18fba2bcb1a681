"""Dequantization of integer pixels: uniform noise fills the gaps between the values.

A density p of y = (x + u) / V, u uniform in [0, 1), bounds the probability of x:

    log P(x) = log int p((x + u) / V) V^-D du >= E_u[log p((x + u) / V)] - D log V

by Jensen's inequality, and the logarithm of the mean over many u approaches log P(x):

    y = dequantization.uniform(rng, x, num_values=256)
    log_px = dequantization.log_prob(flow_log_density(y), 784, num_values=256)  # [B]

Noise v from a distribution q(v|x) that is learned makes the bound tighter, since
uniform noise requires a density that is flat within each cell:

    log P(x) >= E_q[log p((x + v) / V) - log q(v|x)] - D log V

    y, log_q = dequantization.variational(rng, x, flow, num_values=256)
    log_w = dequantization.log_prob(flow_log_density(y) - log_q, 784, num_values=256)

References:
    Theis et al. 2016, A note on the evaluation of generative models, sec. 3.1.
    https://arxiv.org/abs/1511.01844
    Ho et al. 2019, Flow++: Improving Flow-Based Generative Models with Variational
    Dequantization and Architecture Design, sec. 3.1. https://arxiv.org/abs/1902.00275
"""

import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import per_example
from gm_jax.losses.numerics import upcast

__all__ = ['log_prob', 'uniform', 'variational']


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

    Examples:
        >>> import jax.numpy as jnp
        >>> x = jnp.arange(256)[None]
        >>> y = uniform(jax.random.key(0), x, num_values=256)
        >>> print(bool((jnp.floor(256 * y) == x).all()))
        True
    """
    return (x + _draw(rng, x)) / num_values


def variational(
    rng: jax.Array,
    x: jax.Array,
    flow: Callable[[jax.Array], tuple[jax.Array, jax.Array]],
    *,
    num_values: int,
) -> tuple[jax.Array, jax.Array]:
    """Compute y = (x + f(u)) / V, u uniform in [0, 1), and log q(f(u)|x).

    Args:
        rng: one key, or [B] keys, one per example.
        x: [B, ...] integers in [0, V).
        flow: f: u [B, ...] -> v [B, ...] in [0, 1] and log |det dv / du| [B]; it may
            depend on x.
        num_values: V.

    Returns:
        y [B, ...] in [0, 1], and log q = -log |det dv / du| [B] in nats.

    Raises:
        AssertionError: as `uniform`, or flow returns other shapes.

    Examples:
        Without a flow it is `uniform`:

        >>> import jax.numpy as jnp
        >>> x = jnp.arange(256)[None]
        >>> y, log_q = variational(
        ...     jax.random.key(0), x, lambda u: (u, jnp.zeros(len(u))), num_values=256
        ... )
        >>> same = y == uniform(jax.random.key(0), x, num_values=256)
        >>> print(bool(same.all()), abs(log_q))
        True [0.]
    """
    u = _draw(rng, x)
    v, log_det = flow(u)
    chex.assert_equal_shape([u, v])
    chex.assert_shape(log_det, (len(x),))
    return (x + v) / num_values, -log_det


def _draw(rng: jax.Array, x: jax.Array) -> jax.Array:
    """Draw u uniform in [0, 1) of the shape of x, by the key of each example."""
    chex.assert_rank(x, set(range(1, 9)))
    chex.assert_type(x, int)
    rngs = per_example(rng, len(x))
    return jax.vmap(lambda rng: jax.random.uniform(rng, x.shape[1:], jnp.float32))(rngs)


def log_prob(log_density: jax.Array, num_dims: int, *, num_values: int) -> jax.Array:
    """Compute log p(y) - D log V: on average over u, a lower bound on log P(x).

    Args:
        log_density: [B] log p(y) in nats, for y in [0, 1].
        num_dims: D, the number of values in an image: H * W * C.
        num_values: V.

    Returns:
        [B] in nats, at least float32.

    Raises:
        AssertionError: log_density is not of rank 1.

    Examples:
        A flat density of 784 values takes 8 bits for each:

        >>> import jax.numpy as jnp
        >>> nats = log_prob(jnp.zeros(1), 784, num_values=256)
        >>> print(nats / (784 * jnp.log(2)))
        [-8.]
    """
    chex.assert_rank(log_density, 1)
    log_density, = upcast(log_density)
    return log_density - num_dims * math.log(num_values)
