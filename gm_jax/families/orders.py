r"""Models that generate the pixels of an image in another order than raster order.

Any order factorises the same p(x), and models that were trained in different orders
err on different images: a reason to mix them (`evaluation.mixture`). The reversed order
needs no other network: with q a model in raster order, and turn(x) the image turned by
180 degrees,

    p(x) = q(turn(x))
"""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from gm_jax.families import setting
from gm_jax.families.setting import Model, Variables
from gm_jax.sampling.distributions import Quantile
from gm_jax.training.settings import field

__all__ = ['apply', 'Config', 'turn']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(setting.Config):
    """Settings of every model whose network is of raster order."""

    order: str = field(
        'raster', 'order of the pixels; reversed: from the last to the first',
        choices=('raster', 'reversed'),
    )

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return ('order',)


def turn(tree: Any) -> Any:
    """Turn leaves [B, H, W, ...] by 180 degrees."""
    return jax.tree.map(lambda a: a[:, ::-1, ::-1], tree)


def apply(order: str, model: Model, image_shape: tuple[int, int, int]) -> Model:
    """Return the model of an order from one whose network is of raster order.

    The colours of a pixel keep their order.

    Args:
        order: 'raster' or 'reversed'.
        model: the model in raster order.
        image_shape: H, W, C.
    """
    if order == 'raster':
        return model

    def init(rng: jax.Array, x: jax.Array, h: jax.Array | None) -> Any:
        return model.init(rng, turn(x), _turn_map(h))

    def apply_turned(
        variables: Variables, x: jax.Array, h: jax.Array | None, **mode: Any
    ) -> Any:
        return turn(model.apply(variables, turn(x), _turn_map(h), **mode))

    def incremental(
        variables: Variables, h: jax.Array | None, quantile: Quantile,
        uniform: jax.Array, x: jax.Array, known: jax.Array,
    ) -> jax.Array:
        drawn = model.incremental(
            variables, _turn_map(h), quantile, *turn((uniform, x, known))
        )
        return turn(drawn)

    positions = np.arange(math.prod(image_shape)).reshape(1, *image_shape)
    return model._replace(
        init=init, apply=apply_turned, incremental=incremental,
        order=turn(positions).reshape(-1),
    )


def _turn_map(h: jax.Array | None) -> jax.Array | None:
    """Turn what the images are conditioned on, where it has pixels: [B, H, W, E]."""
    return turn(h) if h is not None and h.ndim == 4 else h
