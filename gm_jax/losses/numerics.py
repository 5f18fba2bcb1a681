"""Numerical functions that the losses share, to stay finite in float32."""

import math

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'bounded_exp', 'bounded_expm1', 'categorical_quantile', 'check_temperature',
    'flatten_events', 'log_sigmoid', 'softplus_parts', 'upcast',
]


def upcast(*arrays: jax.typing.ArrayLike) -> tuple[jax.Array, ...]:
    """Return the arrays in their common float type, at least float32.

    Sums over an image are too imprecise in bfloat16, whatever the network computes in.
    """
    dtype = jnp.promote_types(jnp.result_type(*arrays), jnp.float32)
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def flatten_events(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """Reshape [B, ...] to [B, D], before the arithmetic that ends in a sum over D.

    XLA on the CPU takes twenty times as long for a sum over axes of 28, 28 and 1, and
    for all the arithmetic that is fused into it, as for a sum over 784.
    """
    return tuple(a.reshape(a.shape[0], math.prod(a.shape[1:])) for a in arrays)


def check_temperature(temperature: jax.typing.ArrayLike) -> None:
    """Raise ValueError for a temperature that is not above 0, if it is known."""
    if isinstance(temperature, jax.core.Tracer):
        return
    if not np.all(np.asarray(temperature) > 0):
        raise ValueError(f'temperature must be positive, got {temperature}')


def softplus_parts(t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Compute max(t, 0) and log(1 + e^-|t|), whose sum is softplus(t), for finite t.

    With the linear part apart, a confident correct prediction keeps its relative
    precision. The two take half the time of jax.nn.softplus, whose logaddexp guards
    against infinities, which logits are not.
    """
    # At 0, where the logits of a zero-initialised layer are, jnp.maximum and jnp.abs
    # would give a wrong second derivative. Here both parts have the derivatives from
    # the left there, so that those of their sum, which is smooth, are exact.
    positive = jnp.where(t > 0, t, 0)
    return positive, jnp.log1p(jnp.exp(t - 2 * positive))  # -|t| = t - 2 max(t, 0)


def log_sigmoid(t: jax.Array) -> jax.Array:
    """Compute log s(t) = t - max(t, 0) - log(1 + e^-|t|), s sigmoid, for finite t."""
    positive, tail = softplus_parts(t)
    return t - positive - tail


def categorical_quantile(logits: jax.Array, u: jax.Array) -> jax.Array:
    """Compute |{v < V - 1: sum_(w <= v) softmax(l)[w] <= u}|.

    Args:
        logits: [..., V] unnormalised log-probabilities l.
        u: [...] in [0, 1).

    Returns:
        [...] int32 in [0, V).
    """
    # At [64, 256] on a CPU, as fast as a product with a triangular matrix, or faster.
    cumulative = jnp.cumsum(jax.nn.softmax(logits), axis=-1)
    # The sum may round to below 1: a u above it would draw the last value even if that
    # is impossible.
    cumulative = cumulative / cumulative[..., -1:]
    return jnp.sum(cumulative[..., :-1] <= u[..., None], axis=-1, dtype=jnp.int32)


def _limit(dtype: jnp.dtype) -> float:
    """Return where exp becomes linear: 62 in float32 leaves room to square and sum."""
    return 0.7 * math.log(float(jnp.finfo(dtype).max))


def bounded_exp(t: jax.Array) -> jax.Array:
    """Compute exp(t), continued by its tangent once it nears overflow.

    The tangent keeps value and gradient finite, and the sign of the gradient: a clipped
    exponential would have no gradient to bring a diverging log variance back.

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
