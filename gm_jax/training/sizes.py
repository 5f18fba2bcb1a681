"""The number of parameters of a model, and the settings that would make it smaller."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax

from gm_jax.data import files
from gm_jax.data.image_set import ImageSet
from gm_jax.keys import Stream, stream
from gm_jax.training import settings
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import Config, ConfigT
from gm_jax.training.train_state import TrainState

__all__ = ['advice', 'count', 'MANY']

# A model with more parameters than this is slow on a CPU, and its checkpoints are
# large: a state holds about four numbers per parameter.
MANY = 50_000_000
# A setting is advised if it leaves at most this share of the parameters.
_SHARE = 0.8


def count(state: TrainState) -> int:
    """Return the number of trained parameters; the leaves may be shapes."""
    return sum(x.size for x in jax.tree.leaves(state.params))


def advice(
    config: ConfigT, data: ImageSet, build: Callable[[ConfigT, ImageSet], Experiment]
) -> str:
    """Say by which settings a model would have fewer parameters.

    Each setting is tried by itself: sizes are halved, and choices replaced by each
    other. Nothing is computed but shapes.

    Args:
        config: the settings of a model that is large.
        data: the image set.
        build: makes the experiment.

    Returns:
        A sentence, such as '51.9 million parameters; there would be fewer with
        --network=conv (0.6 million)'.
    """
    # Without images, as for sampling: no parameter depends on them.
    data = dataclasses.replace(data, splits={})

    def size(config: ConfigT, data: ImageSet) -> int:
        init = build(config, data).init
        return count(jax.eval_shape(init, stream(config.seed, Stream.INIT)))

    now, found = size(config, data), []
    others = [(name, value, data) for name, value in _smaller(config)]
    for name, value, images in [*others, *_smaller_images(config, data)]:
        try:
            num = size(dataclasses.replace(config, **{name: value}), images)
        except Exception:  # it does not fit the other settings, or the images
            continue
        if num <= _SHARE * now:
            found.append((num, f'--{name}={settings.text(value)}'))
    fewer = ', '.join(f'{flag} ({_millions(num)})' for num, flag in sorted(found))
    return f'{_millions(now)} parameters' + (
        f'; there would be fewer with {fewer}' if fewer else ''
    )


def _smaller(config: Config) -> Iterator[tuple[str, Any]]:
    """Yield settings of the experiment with other values, one at a time."""
    common = {f.name for f in dataclasses.fields(Config)}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in common or f.metadata['free'] or f.metadata['evaluation_only']:
            continue
        if isinstance(value, tuple) and value:
            yield f.name, tuple(-(-size // 2) for size in value)
        elif isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield f.name, value // 2
        for choice in f.metadata['choices']:
            if choice not in (value, 'auto'):
                yield f.name, choice


def _smaller_images(
    config: Config, data: ImageSet
) -> Iterator[tuple[str, Any, ImageSet]]:
    """Yield settings of the images with other values, and images like these."""
    if config.binarize == 'none' and data.num_values > 2:
        bits = dataclasses.replace(data, binarize='threshold', num_values=2)
        yield 'binarize', 'threshold', bits
    kind, (height, width, channels) = files.kind(config.dataset), data.image_shape
    if kind == 'images' or kind != 'digits' and ':' not in kind + config.dataset:
        shape = -(-height // 2), -(-width // 2), channels
        yield 'image_size', max(shape), dataclasses.replace(data, image_shape=shape)


def _millions(num: int) -> str:
    return f'{num / 1e6:.1f} million'
