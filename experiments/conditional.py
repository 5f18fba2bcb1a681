"""Generation given part of an image; not an experiment itself.

With --task, an `Observer` looks at what is given of an image, and what it makes of it
conditions every pixel of the network.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import autoregressive
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.layers.observer import Observer
from gm_jax.sampling import conditional
from gm_jax.training import loop
from gm_jax.training.config import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(autoregressive.Config):
    """Settings of every model that can be given part of an image."""

    task: str = field(
        'none', 'what is generated, given the rest: a missing region, the colours of a '
        'grey image, the details of a coarse one',
        choices=('none', 'completion', 'colorization', 'super_resolution'),
    )
    missing: str = field(
        'bottom', 'region that --task=completion fills in',
        choices=('bottom', 'top', 'left', 'right', 'center'),
    )
    factor: int = field(
        4, 'sides of the blocks whose means --task=super_resolution is given', low=2
    )
    observer_blocks: int = field(
        3, 'residual blocks that look at what --task gives', low=0
    )

    def __post_init__(self) -> None:
        """Raises UserError for settings that are not allowed."""
        super().__post_init__()
        if self.task != 'none' and self.class_conditional:
            raise UserError('--task and --class_conditional do not go together.')


def build(
    config: Config, data: sources.ImageSet, *, make_model: Callable
) -> loop.Experiment:
    """Makes the pure functions of an experiment, given part of an image or not.

    Args:
        config: the settings.
        data: the image set.
        make_model: (config, data) -> Model, of which h is given to `row`.
    """
    if config.task == 'none':
        return autoregressive.build(config, data, make_model=make_model)

    def make(config: Config, data: sources.ImageSet) -> autoregressive.Model:
        observer = Observer(
            config.features, config.observer_blocks, dtype=jnp.dtype(config.dtype)
        )
        return observed(make_model(config, data), observer)

    return autoregressive.build(
        config, data, make_model=make, task=make_task(config, data)
    )


def make_task(config: Config, data: sources.ImageSet) -> autoregressive.Task:
    """Returns what is given; raises UserError where the images do not fit the task."""
    height, width, channels = data.image_shape
    values = dict(num_values=autoregressive.num_values(config, data))
    missing = np.ones((height, width), bool)
    if config.task == 'completion':
        missing = conditional.missing_region(data.image_shape, config.missing)
        given = functools.partial(conditional.completion, missing=missing, **values)
        return autoregressive.Task(
            config.task, given, lambda x: x * ~missing[..., None], missing
        )
    if config.task == 'colorization':
        if channels != 3:
            raise UserError(f'--task=colorization needs colours; {data.name} has none.')
        given = functools.partial(conditional.colorization, **values)
    else:
        if height % config.factor or width % config.factor:
            raise UserError(
                f'--factor={config.factor} must divide the sides of the images of '
                f'{data.name}, {height} and {width}.'
            )
        given = functools.partial(
            conditional.super_resolution, factor=config.factor, **values
        )

    def shown(x: jax.Array) -> np.ndarray:
        levels = (np.asarray(given(x)) + 1) / 2 * (values['num_values'] - 1)
        return np.broadcast_to(np.rint(levels).astype(int), x.shape)

    return autoregressive.Task(config.task, given, shown, missing)


def observed(
    model: autoregressive.Model, observer: Observer
) -> autoregressive.Model:
    """Returns the model with a map as its condition, which the observer looks at first.

    Args:
        model: the model; its h is a map of features.
        observer: its parameters are trained with the model's.
    """
    def apart(variables: Any, given: jax.Array) -> tuple[Any, jax.Array]:
        params = variables['params']
        h = observer.apply({'params': params['observer']}, given)
        return {**variables, 'params': params['network']}, h

    def init(rng: jax.Array, x: jax.Array, given: jax.Array) -> Any:
        network_rng, observer_rng = jax.random.split(rng)
        params = observer.init(observer_rng, given[:1])['params']
        h = observer.apply({'params': params}, given)
        inner = dict(model.init(network_rng, x, h))
        return {**inner, 'params': {'network': inner['params'], 'observer': params}}

    def apply(variables: Any, x: jax.Array, given: jax.Array, **mode: Any) -> Any:
        variables, h = apart(variables, given)
        return model.apply(variables, x, h, **mode)

    return model._replace(
        init=init, apply=apply,
        network=lambda variables, given: model.network(*apart(variables, given)),
    )
