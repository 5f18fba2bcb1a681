"""The functions of an experiment as pure functions of variables."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gm_jax.keys import fold_in_each, per_example
from gm_jax.training.contracts import ByExample, Experiment, Sample
from gm_jax.training.train_state import of_variables

__all__ = ['functions', 'Functions', 'Variables']

# Variables of a model: 'params' and the other collections.
Variables = dict[str, Any]


class Functions(NamedTuple):
    """Pure functions of a trained model, for jit, grad, vmap and pmap.

    Those that the model does not have are None. Images x are [B, H, W, C] integers, as
    the image set has them.

    Attributes:
        log_prob: (variables, rng, x, label=None, chunk=0, index=None) -> [B] nats:
            log p(x), or the estimate of it that one chunk of samples gives. What all
            images share, such as log Z, is in variables['shared']. index [B] is the
            place of each image in a larger set, which keys its noise.
        sample: (variables, rngs [B], index=None) -> uint8 [B, H, W, C]; index [B]
            chooses the class where these are drawn in turn.
        encode: (variables, rng, x, index=None) -> codes [B, Z]; index as above.
        decode: (variables, z [B, Z]) -> uint8 [B, H, W, C].
        embed: (variables, rng, x, index=None) -> features [B, F].
    """

    log_prob: Callable[..., jax.Array] | None
    sample: Callable[..., jax.Array] | None
    encode: Callable[..., jax.Array] | None
    decode: Callable[..., jax.Array] | None
    embed: Callable[..., jax.Array] | None


def functions(e: Experiment) -> Functions:
    """Return the functions of an experiment as functions of variables."""
    encode, decode, embed, _ = e.codes
    evaluation = e.evaluation
    has_log_prob = isinstance(evaluation, ByExample) and evaluation.log_prob
    return Functions(
        log_prob=functools.partial(_pure_log_prob, e) if has_log_prob else None,
        sample=functools.partial(_pure_sample, e.sample) if e.sample else None,
        encode=functools.partial(_pure_of_images, encode) if encode else None,
        decode=functools.partial(_pure_decode, decode) if decode else None,
        embed=functools.partial(_pure_of_images, embed) if embed else None,
    )


def _pure_log_prob(
    e: Experiment, variables: Variables, rng: jax.Array, x: jax.Array,
    label: jax.Array | None = None, chunk: int | jax.Array = 0,
    index: jax.Array | None = None,
) -> jax.Array:
    evaluation = e.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    if evaluation.shared is not None and 'shared' not in variables:
        raise ValueError(
            "variables have no 'shared', which the final evaluation of a run computes: "
            'run.log_prob(x) computes it where there was none.'
        )
    index = jnp.arange(len(x), dtype=jnp.int32) if index is None else index
    batch = {
        'image': x, 'index': index, 'chunk': jnp.full_like(index, chunk),
        'label': jnp.full_like(index, -1) if label is None else label,
    }
    arrays = evaluation.test_step(of_variables(variables), batch, rng)
    return arrays[evaluation.log_prob]


def _pure_sample(
    sample: Sample, variables: Variables, rngs: jax.Array,
    index: jax.Array | None = None,
) -> jax.Array:
    rngs = per_example(rngs, None, 'rngs')
    index = jnp.arange(len(rngs), dtype=jnp.int32) if index is None else index
    return sample(of_variables(variables), rngs, index)


def _pure_of_images(
    function: Callable[..., jax.Array], variables: Variables, rng: jax.Array,
    x: jax.Array, index: jax.Array | None = None,
) -> jax.Array:
    rngs = fold_in_each(rng, jnp.arange(len(x)) if index is None else index)
    return function(of_variables(variables), x, rngs)


def _pure_decode(
    decode: Callable[..., jax.Array], variables: Variables, z: jax.Array
) -> jax.Array:
    return decode(of_variables(variables), z)
