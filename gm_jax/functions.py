"""The functions of an experiment as pure functions of variables."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp

from gm_jax.data.image_set import ImageSet
from gm_jax.keys import check_keys, fold_in_each, per_example
from gm_jax.training.contracts import ByExample, Experiment, Sample
from gm_jax.training.settings import Config
from gm_jax.training.train_state import of_variables

__all__ = ['functions', 'Functions', 'Variables']

# Variables of a model: 'params' and the other collections.
Variables = dict[str, Any]


class Functions(NamedTuple):
    """Pure functions of a trained model, for jit, grad, vmap and pmap.

    Those that the model does not have are None. Images x are [B, H, W, C] integers, as
    the image set has them; other types and shapes raise ValueError, and so do those of
    labels, indices and codes, and no images at all.

    Attributes:
        log_prob: (variables, rng, x, label=None, chunk=0, index=None) -> [B] nats:
            log p(x), or the estimate of it that one chunk of samples gives; NaN for an
            image with a value, or of a class, that there is not. A class-conditional
            model needs the classes, label [B]; others take none. What all images share,
            such as log Z, is in variables['shared'] and does not follow the parameters:
            with it there is no gradient, and `grad` raises ValueError. index [B] is
            the place of each image in a larger set, which keys its noise.
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


def functions(e: Experiment, data: ImageSet, config: Config) -> Functions:
    """Return the functions of an experiment as functions of variables.

    Args:
        e: the experiment.
        data: the facts of its image set.
        config: its settings.
    """
    classes = data.num_classes if getattr(config, 'class_conditional', False) else 0
    encode, decode, embed, size = e.codes
    evaluation, shape = e.evaluation, data.image_shape
    has_log_prob = isinstance(evaluation, ByExample) and evaluation.log_prob
    return Functions(
        log_prob=functools.partial(
            _pure_log_prob, e, data, classes
        ) if has_log_prob else None,
        sample=functools.partial(_pure_sample, e.sample) if e.sample else None,
        encode=functools.partial(_pure_of_images, encode, shape) if encode else None,
        decode=functools.partial(_pure_decode, decode, size) if decode else None,
        embed=functools.partial(_pure_of_images, embed, shape) if embed else None,
    )


def _pure_log_prob(
    e: Experiment, data: ImageSet, num_classes: int, variables: Variables,
    rng: jax.Array, x: jax.Array, label: jax.Array | None = None,
    chunk: int | jax.Array = 0, index: jax.Array | None = None,
) -> jax.Array:
    evaluation = e.evaluation
    if not isinstance(evaluation, ByExample):
        raise ValueError('the model has no likelihood')
    check_keys(rng)
    x = _images(x, data.image_shape)
    label = _labels(label, num_classes, len(x))
    if evaluation.shared is not None and 'shared' not in variables:
        raise ValueError(
            "variables have no 'shared', which the final evaluation of a run computes: "
            'run.log_prob(x) computes it where there was none.'
        )
    index = _index(index, len(x))
    batch = {
        'image': x, 'index': index, 'chunk': jnp.full_like(index, chunk),
        'label': label,
    }
    arrays = evaluation.test_step(of_variables(variables), batch, rng)
    log_px = arrays[evaluation.log_prob]
    if evaluation.shared is not None:
        log_px = _without_gradient(log_px)
    values = x.astype(jnp.int32)
    known = jnp.all((values >= 0) & (values < data.num_values), axis=(1, 2, 3))
    if num_classes:
        known &= (batch['label'] >= 0) & (batch['label'] < num_classes)
    return jnp.where(known, log_px, jnp.nan)


@jax.custom_jvp
def _without_gradient(log_px: jax.Array) -> jax.Array:
    return log_px


@_without_gradient.defjvp
def _refuse(primals: Any, tangents: Any) -> NoReturn:
    raise ValueError(
        "log_prob uses variables['shared'], such as log Z, which does not follow the "
        'parameters: it has no gradient. A Boltzmann machine is trained by '
        '`gm_jax.losses.energy.contrastive_divergence`.'
    )


def _images(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return x; raise ValueError for another shape, and for images in [0, 1]."""
    x = jnp.asarray(x)
    if not (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_):
        raise ValueError(
            f'x is {x.dtype}, the model takes integers, as the image set has them.'
        )
    if x.ndim != 4 or x.shape[1:] != shape:
        wanted = ', '.join(map(str, shape))
        raise ValueError(f'x is {list(x.shape)}, the model takes [B, {wanted}].')
    return x


def _labels(label: jax.Array | None, num_classes: int, num: int) -> jax.Array:
    """Return the classes [B]; -1 without any. Raise ValueError for others."""
    if (label is not None) != (num_classes > 0):
        needs = 'pass label, [B] classes' if num_classes else 'leave out label'
        kind = 'is' if num_classes else 'is not'
        raise ValueError(f'the model {kind} class-conditional: {needs}.')
    if label is None:
        return jnp.full(num, -1, jnp.int32)
    label = jnp.asarray(label)
    if label.shape != (num,) or not jnp.issubdtype(label.dtype, jnp.integer):
        raise ValueError(
            f'label is {label.dtype}{list(label.shape)}, it must be integers [{num}].'
        )
    return label


def _index(index: jax.Array | None, num: int) -> jax.Array:
    """Return the places of examples [B], by default 0 to B - 1.

    Raise ValueError for others than integers, and for no example.
    """
    if not num:
        raise ValueError('there is no example: B must be at least 1.')
    if index is None:
        return jnp.arange(num, dtype=jnp.int32)
    index = jnp.asarray(index)
    if index.shape != (num,) or not jnp.issubdtype(index.dtype, jnp.integer):
        raise ValueError(
            f'index is {index.dtype}{list(index.shape)}, it must be integers [{num}].'
        )
    return index


def _pure_sample(
    sample: Sample, variables: Variables, rngs: jax.Array,
    index: jax.Array | None = None,
) -> jax.Array:
    rngs = per_example(rngs, None, 'rngs')
    index = _index(index, len(rngs))
    return sample(of_variables(variables), rngs, index)


def _pure_of_images(
    function: Callable[..., jax.Array], shape: tuple[int, ...], variables: Variables,
    rng: jax.Array, x: jax.Array, index: jax.Array | None = None,
) -> jax.Array:
    check_keys(rng)
    x = _images(x, shape)
    rngs = fold_in_each(rng, _index(index, len(x)))
    return function(of_variables(variables), x, rngs)


def _pure_decode(
    decode: Callable[..., jax.Array], size: int, variables: Variables, z: jax.Array
) -> jax.Array:
    if jnp.ndim(z) != 2 or jnp.shape(z)[1] != size:
        raise ValueError(f'z is {list(jnp.shape(z))}, the model takes [B, {size}].')
    return decode(of_variables(variables), z)
