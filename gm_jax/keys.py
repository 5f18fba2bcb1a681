"""Derivation of all random keys of a run from its seed.

Keys form a tree. A key is either drawn from, once, or has children, never both; no two
children of a key are the same. There are two kinds of children, and one function for
each:

    derive(rng, Use.DROPOUT)      named after what the randomness is for
    fold_in_each(rng, index)      numbered: an example, a draw, a player

Names and numbers are apart, so a key may have children of both kinds. The seed has the
streams of a run as its children, a stream the steps, a step its examples:

    rng = stream(seed, Stream.TRAIN)
    rngs = example_rngs(rng, step, batch['index'])  # [B] keys
    x = binarize.integers(derive(rngs, Use.PIXELS), batch['image'], data)

So noise belongs to the example, and is the same on any number of devices. Nothing else
in a run calls `jax.random.key`, `split` or `fold_in`, but for `layers.dropout`, whose
layers are the numbered children of the key of an example.
"""

import enum

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    'check_keys', 'derive', 'example_rngs', 'fold_in_each', 'per_example', 'Stream',
    'stream', 'Use',
]

# The largest number of streams per attempt of a run; a rollback starts another attempt.
_STREAMS = 16
# The first number of a named child; numbered children are below it.
_NAMED = 2**31


class Stream(enum.IntEnum):
    """The uses of randomness in a run."""

    INIT = 0  # the initial parameters
    TRAIN = 1  # noise and dropout in training
    EVAL = 2  # evaluation, in training and at the end
    SAMPLE = 3  # generated images
    PROBE = 4  # classifiers that are trained on the features of an autoencoder
    PICTURES = 5  # pictures at the end
    FINISH = 6  # what an experiment computes once, after the evaluation
    SCORES = 7  # images that samples are compared with
    GIVEN = 8  # images that are given, in part, to a sampler


class Use(enum.IntEnum):
    """What a key is for, among the children of another."""

    WEIGHTS = 0  # initial parameters
    PIXELS = 1  # dynamic binarization
    DEQUANTIZATION = 2  # uniform noise added to integers
    DROPOUT = 3
    LATENT = 4  # z, or the first of its layers
    LATENT_2 = 5  # the second layer of z
    COMPONENT = 6  # a component of a mixture prior
    CATEGORY = 7  # a category from its prior
    NOISE = 8  # Gaussian noise added to an input
    ROWS = 9  # which images are taken
    DRAW = 10  # the uniform numbers that a sampler turns into values
    REAL = 11  # of two alike: for what comes from the data or the prior,
    FAKE = 12  # and for what a generator or an encoder makes
    POINT = 13  # a point between a real and a generated image
    OBSERVER = 14  # the weights of a network that sees what is given
    TRAINING_IMAGES = 15  # images of the training split, beside those of another
    CHAIN = 16  # the steps of a Markov chain,
    START = 17  # and where it starts
    PARTITION = 18  # an estimate of log Z,
    REVERSE = 19  # and its part that starts from samples
    CORRUPTION = 20  # values of an image that are replaced by coins


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


def derive(rng: jax.Array, *uses: Use) -> jax.Array:
    """Return the child that is named after a use; of [B] keys, those of each.

    Args:
        rng: one key, or [B] keys.
        *uses: names from the outer to the inner, such as Use.REAL, Use.DROPOUT.

    Returns:
        As many keys as rng.
    """
    for use in uses:
        rng = fold_in_each(rng, np.uint32(_NAMED + use))
    return rng


def fold_in_each(rng: jax.Array, index: jax.typing.ArrayLike) -> jax.Array:
    """Return numbered children: fold_in(rng, index).

    Args:
        rng: one key, or [B] keys.
        index: a number from 0 to 2^31 - 1, or [B] numbers.

    Returns:
        One key if both are single, else [B] keys.
    """
    in_axes = tuple(0 if jnp.ndim(a) else None for a in (rng, index))
    fold_in = jax.random.fold_in
    return fold_in(rng, index) if in_axes == (None, None) else jax.vmap(
        fold_in, in_axes
    )(rng, index)


def check_keys(rng: jax.Array, name: str = 'rng') -> None:
    """Raise AssertionError for what `jax.random.key` has not made.

    Args:
        rng: a key, or an array of keys.
        name: the caller's name of the argument, used in the error.
    """
    if not jnp.issubdtype(jnp.result_type(rng), jax.dtypes.prng_key):
        raise AssertionError(
            f'{name} must be made by jax.random.key: got '
            f'{jnp.result_type(rng)}{list(jnp.shape(rng))}'
        )


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
    check_keys(rng, name)
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
