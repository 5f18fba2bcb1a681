"""Ways to binarize grey images; the choice changes what a likelihood means.

Grey images in [0, V) become binary by a threshold at V / 2, by one fixed draw from
Bernoulli(x / (V - 1)) per image of the set ('static'), or by a fresh draw each time
that an image is used ('dynamic', done by the training step).
"""

import zlib

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data.image_set import (
    Examples,
    FetchFn,
    ImageSet,
    StreamedExamples,
    labels,
)
from gm_jax.keys import per_example

__all__ = [
    'binarize_dynamic', 'integers', 'num_values', 'static', 'threshold',
    'to_unit_range', 'WAYS',
]

# The values of `--binarize`.
WAYS = ('none', 'static', 'dynamic', 'threshold')


def num_values(data: ImageSet) -> int:
    """Return V, the number of values of a pixel as a model of `data` sees it."""
    return 2 if data.binarize == 'dynamic' else data.num_values


def integers(
    rng: jax.Array, image: jax.Array | np.ndarray, data: ImageSet
) -> jax.Array:
    """Return the pixels that a model of `data` sees, as integers.

    Args:
        rng: one key, or [B] keys; used only for dynamic binarization.
        image: [B, H, W, C] images as `data` holds them.
        data: the image set.

    Returns:
        [B, H, W, C] int32 in [0, `num_values(data)`).
    """
    if data.binarize == 'dynamic':
        return binarize_dynamic(rng, image, data.num_values)
    return jnp.asarray(image, jnp.int32)


def to_unit_range(
    rng: jax.Array, image: jax.Array | np.ndarray, data: ImageSet
) -> jax.Array:
    """Return the pixels that a model of `data` sees, in [0, 1].

    Args:
        rng: one key, or [B] keys; used only for dynamic binarization.
        image: [B, H, W, C] images as `data` holds them.
        data: the image set.

    Returns:
        [B, H, W, C] float32.
    """
    x = integers(rng, image, data).astype(jnp.float32)
    return x / (num_values(data) - 1)


def binarize_dynamic(
    rng: jax.Array, image: jax.Array | np.ndarray, num_values: int
) -> jax.Array:
    """Draw b ~ Bernoulli(x / (V - 1)) for every pixel.

    Args:
        rng: one key, or [B] keys, one per image.
        image: [B, H, W, C] integers x in [0, V).
        num_values: V.

    Returns:
        [B, H, W, C] int32, 0 or 1.

    Raises:
        AssertionError: `image` is not of rank 4, or `rng` is neither of the two.

    References:
        Burda et al. 2016, Importance Weighted Autoencoders, sec. 5.
        https://arxiv.org/abs/1509.00519
    """
    chex.assert_rank(image, 4)
    # Flat, because XLA on the CPU vectorises the last axis: for grey images, 1 channel.
    probability = image.reshape(len(image), -1).astype(jnp.float32) / (num_values - 1)
    drawn = jax.vmap(jax.random.bernoulli)(per_example(rng, len(image)), probability)
    return drawn.astype(jnp.int32).reshape(image.shape)


def threshold(examples: Examples, num_values: int) -> StreamedExamples:
    """Binarize the examples by a threshold: b = [x >= V / 2].

    Args:
        examples: N examples with values in [0, V).
        num_values: V.

    Returns:
        N examples with values 0 and 1.
    """

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = examples.fetch(indices)
        # Doubled, because half of an odd V is not an integer.
        high = 2 * batch['image'].astype(np.int32) >= num_values
        return {**batch, 'image': high.astype(np.uint8)}

    return _of(examples, fetch)


def static(examples: Examples, num_values: int, split: str) -> StreamedExamples:
    """Binarize the examples by one fixed draw b ~ Bernoulli(x / (V - 1)) per pixel.

    The draw depends only on the split's name, the image's index in the split and the
    pixel's position in the image, so it is the same for any order of reading.

    Args:
        examples: N examples with values in [0, V).
        num_values: V.
        split: the split's name.

    Returns:
        N examples with values 0 and 1.
    """
    key = zlib.crc32(split.encode())

    def fetch(indices: np.ndarray) -> dict[str, np.ndarray]:
        batch = examples.fetch(indices)
        image = batch['image']
        bits = np.empty(image.shape, np.uint64)
        for row, index in zip(bits, indices):
            philox = np.random.Philox(key=key, counter=[0, int(index), 0, 0])
            row[...] = philox.random_raw(row.size).reshape(row.shape)
        # The top 53 bits, so that u is uniform on [0, 1) exactly.
        u = (bits >> np.uint64(11)) * 2.0**-53
        return {**batch, 'image': (u < image / (num_values - 1)).astype(np.uint8)}

    return _of(examples, fetch)


def _of(examples: Examples, fetch: FetchFn) -> StreamedExamples:
    """Return the same examples with images that `fetch` makes of theirs."""
    return StreamedExamples(
        len(examples), fetch, getattr(examples, 'files', ''), lambda: labels(examples)
    )
