"""What the losses share to stay finite in float32."""

import math

import jax
import jax.numpy as jnp


def upcast(*arrays: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
    """Return the arrays in their common float type, at least float32.

    Sums over an image lose too much in bfloat16, whatever the network computes in.
    """
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def flatten_events(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape [B, ...] to [B, D], before the arithmetic that ends in a sum over D.

    XLA on the CPU takes twenty times as long for a sum over axes of 28, 28 and 1, and
    for all the arithmetic that it fuses into it, as for one over 784.
    """
    return tuple(a.reshape(a.shape[0], -1) for a in arrays)


def _limit(dtype: jnp.dtype) -> float:
    """Return where exp goes linear: 62 in float32 leaves room to square and sum."""
    return 0.7 * math.log(float(jnp.finfo(dtype).max))


def bounded_exp(t: jax.Array) -> jax.Array:
    """Compute exp(t), continued by its tangent once it nears overflow.

    The tangent keeps value and gradient finite, and the gradient's sign: a clipped
    exponential would have none to bring a runaway log variance back.

    Args:
      t: floating point, any shape.

    Returns:
      exp(t) up to t = 62 in float32 (497 in float64), linear from there.
    """
    limit = _limit(t.dtype)
    return jnp.exp(jnp.minimum(t, limit)) * (1 + jnp.maximum(t - limit, 0))


def bounded_expm1(t: jax.Array) -> jax.Array:
    """Compute bounded_exp(t) - 1, exact to rounding near t = 0 too."""
    limit = _limit(t.dtype)
    bounded = jnp.expm1(jnp.minimum(t, limit))
    return bounded + math.exp(limit) * jnp.maximum(t - limit, 0)
