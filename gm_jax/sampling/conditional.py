"""Conditions: the part of an image that is given to networks that generate the rest.

    completion        the pixels outside a region
    colorization      the brightness of every pixel
    super_resolution  the means of blocks of pixels

Each task is a pure function from whole images to the condition of a network, a map
[B, H, W, E] in [-1, 1] at the size of the image. A network that is trained on these
maps and sampled given them has an exact p(x | given): log-probabilities count only the
values that are missing.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.layers.pixels import encode

__all__ = ['colorization', 'completion', 'LUMA', 'missing_region', 'super_resolution']

# The weights of red, green and blue in the brightness: ITU-R BT.601.
LUMA = np.array([0.299, 0.587, 0.114])


def missing_region(image_shape: tuple[int, int, int], region: str) -> np.ndarray:
    """Return [H, W] bool, true where an image is to be completed.

    Args:
        image_shape: H, W, C.
        region: 'bottom', 'top', 'left' or 'right' half of the image, or its 'center',
            half as high and half as wide.
    """
    height, width, _ = image_shape
    row, column = np.indices((height, width))
    inside = (abs(2 * row + 1 - height) < height / 2) & (
        abs(2 * column + 1 - width) < width / 2
    )
    return {
        'bottom': row >= height // 2, 'top': row < height // 2,
        'left': column < width // 2, 'right': column >= width // 2,
        'center': inside,
    }[region]


def completion(x: jax.Array, missing: np.ndarray, *, num_values: int) -> jax.Array:
    """Return the pixels that are not missing, and a mask that marks them.

    Args:
        x: [B, H, W, C] integers in [0, V).
        missing: [H, W] bool.
        num_values: V.

    Returns:
        [B, H, W, C + 1], with zeros where a pixel is missing.
    """
    chex.assert_rank(x, 4)
    chex.assert_shape(missing, x.shape[1:3])
    chex.assert_type(missing, bool)
    given = jnp.broadcast_to(~missing[None, ..., None], (*x.shape[:3], 1))
    given = given.astype(jnp.float32)
    return jnp.concatenate([encode(x, num_values) * given, given], axis=-1)


def colorization(x: jax.Array, *, num_values: int) -> jax.Array:
    """Return the brightness, sum_c w_c x_c rounded to an integer.

    Args:
        x: [B, H, W, 3] integers in [0, V).
        num_values: V.

    Returns:
        [B, H, W, 1].
    """
    chex.assert_shape(x, (None, None, None, 3))
    brightness = jnp.round(x @ jnp.asarray(LUMA, jnp.float32))
    return encode(brightness[..., None], num_values)


def super_resolution(x: jax.Array, factor: int, *, num_values: int) -> jax.Array:
    """Return the means of blocks, rounded to integers.

    Args:
        x: [B, H, W, C] integers in [0, V).
        factor: pixels per side of a block, which must divide H and W.
        num_values: V.

    Returns:
        [B, H, W, C], each mean at all pixels of its block.
    """
    chex.assert_rank(x, 4)
    batch, height, width, channels = x.shape
    chex.assert_is_divisible(height, factor)
    chex.assert_is_divisible(width, factor)
    rows, columns = height // factor, width // factor
    blocks = x.reshape(batch, rows, factor, columns, factor, channels)
    small = jnp.round(blocks.astype(jnp.float32).mean((2, 4)))
    large = jnp.repeat(jnp.repeat(small, factor, axis=1), factor, axis=2)
    return encode(large, num_values)
