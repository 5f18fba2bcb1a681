"""Generation given part of an image.

With --task, an `Observer` reads the given part of an image, and its output conditions
the network at every pixel.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import autoregressive, orders, sides
from gm_jax.families.autoregressive import MakeModel
from gm_jax.families.setting import Model, Task, Variables
from gm_jax.keys import Use, derive
from gm_jax.layers.observer import Observer
from gm_jax.sampling import conditional
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import MOST_LAYERS, field

__all__ = ['build', 'Config', 'make_task', 'observed']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(orders.Config):
    """Settings of every model that can be given part of an image."""

    task: str = field(
        'none', 'what is generated given the rest: a missing region, the colours of a '
        'grey image, or the details of a coarse one',
        choices=('none', 'completion', 'colorization', 'super_resolution'),
    )
    missing: str = field(
        'bottom', 'region that --task=completion fills in',
        choices=('bottom', 'top', 'left', 'right', 'center'),
    )
    factor: int = field(
        4, 'side of the blocks whose means are given by --task=super_resolution', low=2
    )
    observer_blocks: int = field(
        3, 'residual blocks of the network that reads the given part', low=0,
        high=MOST_LAYERS
    )

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        if self.task != 'none' and self.class_conditional:
            raise UserError('--task and --class_conditional do not go together.')

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.task == 'none':
            found['observer_blocks'] = 'needs a --task'
        if self.task != 'completion':
            found['missing'] = 'needs --task=completion'
        if self.task != 'super_resolution':
            found['factor'] = 'needs --task=super_resolution'
        return found


def build(config: Config, data: ImageSet, *, make_model: MakeModel) -> Experiment:
    """Make the experiment of a model that may be given part of an image.

    Args:
        config: the settings.
        data: the image set.
        make_model: makes the model; with a task its h is [B, H, W, config.features].
    """
    if config.task == 'none':
        return autoregressive.build(config, data, make_model=make_model)

    def make(config: Any, data: ImageSet) -> Model:
        observer = Observer(
            config.features, config.observer_blocks, dtype=jnp.dtype(config.dtype)
        )
        return observed(make_model(config, data), observer)

    return autoregressive.build(
        config, data, make_model=make, task=make_task(config, data)
    )


def make_task(config: Config, data: ImageSet) -> Task:
    """Return the task of the settings; raise UserError if the images do not fit it."""
    height, width, channels = data.image_shape
    num_values = binarize.num_values(data)
    missing = np.ones((height, width), bool)
    if config.task == 'completion':
        missing = conditional.missing_region(data.image_shape, config.missing)
        if not missing.any():
            raise UserError(
                f'--missing={config.missing} hides no pixel of images of {height} x '
                f'{width}.'
            )
        return Task(
            config.task,
            functools.partial(
                conditional.completion, missing=missing, num_values=num_values
            ),
            lambda x: np.asarray(x) * ~missing[..., None],
            missing,
        )
    if config.task == 'colorization':
        if channels != 3:
            raise UserError(f'--task=colorization needs colours; {data.name} has none.')
        given = functools.partial(conditional.colorization, num_values=num_values)
    else:
        sides.check(data, config.factor, f'--factor={config.factor}')
        given = functools.partial(
            conditional.super_resolution, factor=config.factor, num_values=num_values
        )

    def shown(x: jax.Array) -> np.ndarray:
        levels = (np.asarray(given(x)) + 1) / 2 * (num_values - 1)
        return np.broadcast_to(np.rint(levels).astype(int), x.shape)

    return Task(config.task, given, shown, missing)


def observed(model: Model, observer: Observer) -> Model:
    """Return the model conditioned on what the observer computes from a given map.

    Args:
        model: the model; its h is a map of features.
        observer: the network that computes h; it is trained together with the model.
    """
    def look(
        variables: Variables, given: jax.Array | None
    ) -> tuple[Variables, jax.Array]:
        """Return the variables of the model alone, and its h."""
        params = variables['params']
        h = observer.apply({'params': params['observer']}, given)
        return {**variables, 'params': params['network']}, h

    def init(rng: jax.Array, x: jax.Array, given: jax.Array | None) -> Variables:
        if given is None:
            raise ValueError('nothing is given')
        params = observer.init(derive(rng, Use.OBSERVER), given[:1])['params']
        h = observer.apply({'params': params}, given)
        inner = dict(model.init(derive(rng, Use.WEIGHTS), x, h))
        return {**inner, 'params': {'network': inner['params'], 'observer': params}}

    def apply(
        variables: Variables, x: jax.Array, given: jax.Array | None, **mode: Any
    ) -> Any:
        variables, h = look(variables, given)
        return model.apply(variables, x, h, **mode)

    def incremental(
        variables: Variables, given: jax.Array | None, *rest: Any
    ) -> jax.Array:
        return model.incremental(*look(variables, given), *rest)

    return model._replace(init=init, apply=apply, incremental=incremental)
