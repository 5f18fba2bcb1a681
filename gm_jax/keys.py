"""Derivation of all random keys of a run from its seed.

A run has one seed. Each use of randomness in it has its own stream, and within a stream
each example has its own key:

    rng = stream(seed, Stream.TRAIN)
    rngs = example_rngs(rng, step, batch['index'])  # [B] keys
    pixel_rngs, dropout_rngs = split_each(rngs, 2)

So noise belongs to the example, and is the same on any number of devices.
"""

import enum

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'example_rngs', 'fold_in_each', 'per_example', 'split_each', 'Stream', 'stream',
]

# The largest number of streams per attempt of a run; a rollback starts another attempt.
_STREAMS = 16


class Stream(enum.IntEnum):
    """The uses of randomness in a run."""

    INIT = 0  # the initial parameters
    TRAIN = 1  # noise and dropout in training
    EVAL = 2  # evaluation, in training and at the end
    SAMPLE = 3  # generated images
    PROBE = 4  # classifiers that are trained on the features of an autoencoder


def stream(seed: int, use: Stream, *, rollbacks: int = 0) -> jax.Array:
    """Return the key of one use of randomness in a run.

    Args:
        seed: the seed of the run.
        use: what the randomness is for.
        rollbacks: how often the run went back to a checkpoint after losses that were
            not finite; each attempt has its own noise.
    """
    return jax.random.fold_in(jax.random.key(seed), use + _STREAMS * rollbacks)


def example_rngs(rng: jax.Array, step: jax.Array, index: jax.Array) -> jax.Array:
    """Derive one key per example: fold_in(fold_in(rng, step), index).

    Args:
        rng: the key of a stream.
        step: [] int32, the training step.
        index: [B] position of each example in the global batch, or in the data set.

    Returns:
        [B] keys.
    """
    return fold_in_each(jax.random.fold_in(rng, step), index)


def fold_in_each(rng: jax.Array, index: jax.Array | np.ndarray) -> jax.Array:
    """Return the keys fold_in(rng, i) for each i in index [B]."""
    return jax.vmap(jax.random.fold_in, (None, 0))(rng, index)


def split_each(rngs: jax.Array, num: int) -> jax.Array:
    """Split each of [B] keys into `num`: [num, B] keys."""
    return jax.vmap(lambda rng: jax.random.split(rng, num), out_axes=1)(rngs)


def per_example(rng: jax.Array, batch: int | None, name: str = 'rng') -> jax.Array:
    """Return one key per example, from one key or from one key per example.

    Every public function that draws random numbers takes either one key per example,
    which makes the result independent of the rest of the batch, or a single key.

    Args:
        rng: [B] keys; or one key, from which example i gets fold_in(rng, i).
        batch: B; None: the number of keys.
        name: the caller's name of the argument, used in the error.

    Returns:
        [B] keys.

    Raises:
        AssertionError: `rng` is neither [B] keys nor one key with a given B.
    """
    if not jnp.issubdtype(jnp.result_type(rng), jax.dtypes.prng_key):
        raise AssertionError(
            f'{name} must be made by jax.random.key: got '
            f'{jnp.result_type(rng)}{list(jnp.shape(rng))}'
        )
    shape = rng.shape
    if shape == () and batch is not None:
        return fold_in_each(rng, jnp.arange(batch))
    if len(shape) != 1 or batch not in (None, shape[0]):
        count = '[B]' if batch is None else f'[{batch}]'
        single = 'one key with the number of examples' if batch is None else 'one key'
        raise AssertionError(
            f'{name} must be {single}, or one key per example, {count}: got keys of '
            f'shape {list(shape)}'
        )
    return rng
