"""Input scaling, neighbourhood slices and subsampling of images.

Pure functions of arrays, shared by the models and the samplers.
"""

from typing import TypeVar

import chex
import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'as_map', 'encode', 'join', 'left_of', 'quarters', 'row_of_map', 'rows_above',
    'to_uint8', 'unit_interval',
]

Array = TypeVar('Array', jax.Array, np.ndarray)


def encode(x: jax.Array, num_values: int) -> jax.Array:
    """Scale integers in [0, V) to [-1, 1], so that no value is the zero of padding."""
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return 2 * x.astype(dtype) / (num_values - 1) - 1


def unit_interval(x: jax.Array, num_values: int) -> jax.Array:
    """Scale integers in [0, V) to [0, 1]: bits stay 0 and 1."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32)) / (num_values - 1)


def to_uint8(x: jax.Array) -> jax.Array:
    """Scale [0, 1] to the levels 0 to 255."""
    return jnp.round(255 * x).astype(jnp.uint8)


def quarters(x: Array) -> list[Array]:
    """Split [B, 2H, 2W, ...] into four [B, H, W, ...] by the parity of the position.

    The order is: every second pixel, those to its right, below and diagonally below.
    """
    return [x[:, r::2, w::2] for r in (0, 1) for w in (0, 1)]


def join(parts: list[jax.Array]) -> jax.Array:
    """Undo `quarters`."""
    even, odd = (jnp.stack(parts[n:n + 2], axis=3) for n in (0, 2))
    x = jnp.stack([even, odd], axis=2)  # [B, H, 2, W, 2, ...]
    batch, height, _, width, _ = x.shape[:5]
    return x.reshape(batch, 2 * height, 2 * width, *x.shape[5:])


def as_map(h: jax.Array | None) -> jax.Array | None:
    """Reshape a condition [B, E] to [B, 1, 1, E], which broadcasts as a map."""
    if h is None:
        return None
    chex.assert_rank(h, {2, 4})
    return h[:, None, None] if h.ndim == 2 else h


def row_of_map(h: jax.Array | None, r: jax.Array) -> jax.Array | None:
    """Return row r of a condition: [B, W, E] for a map, else [B, 1, E]."""
    if h is None:
        return None
    chex.assert_rank(h, {2, 4})
    if h.ndim == 2:
        return h[:, None]
    return jax.lax.dynamic_index_in_dim(h, r, axis=1, keepdims=False)


def rows_above(x: jax.Array, r: jax.Array, num: int) -> jax.Array:
    """Return rows r - num ... r - 1 of [B, H, W, F], zeros above the image."""
    padded = jnp.pad(x, ((0, 0), (num, 0), (0, 0), (0, 0)))
    return jax.lax.dynamic_slice_in_dim(padded, r, num, axis=1)


def left_of(x: jax.Array, w: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
    """Return pixels w - num ... w - 1 of a row [B, W, F], and pixel w."""
    padded = jnp.pad(x, ((0, 0), (num, 0), (0, 0)))
    pixels = jax.lax.dynamic_slice_in_dim(padded, w, num + 1, axis=1)
    return pixels[:, :num], pixels[:, num]
