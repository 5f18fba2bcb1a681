"""Multi-scale sampling: a small image first, then larger ones around its pixels.

    images = multiscale(base, stages, uniform, x, known)

where `base` and `stages` generate the values that are not known, each stage given the
smaller image. A `raster` stage generates one pixel after another, a `parallel` stage
three groups of pixels. The noise of a pixel determines its values, as in
`sampling.autoregressive`.

References:
    van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3.6.
    https://arxiv.org/abs/1601.06759
    Reed et al. 2017, Parallel Multiscale Autoregressive Density Estimation, sec. 3.
    https://arxiv.org/abs/1703.03664
"""

from collections.abc import Callable, Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp

from gm_jax.layers.pixels import join, quarters
from gm_jax.sampling.autoregressive import Network, incremental
from gm_jax.sampling.distributions import Quantile

__all__ = ['Base', 'multiscale', 'parallel', 'raster', 'Stage']

# (uniform [B, H, W, N], x and known [B, H, W, C]) -> [B, H, W, C]
Base = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
# The same arguments and the smaller image [B, H / 2, W / 2, C] -> [B, H, W, C]
Stage = Callable[[jax.Array, jax.Array, jax.Array, jax.Array], jax.Array]


def multiscale(
    base: Base,
    stages: Sequence[Stage],
    uniform: jax.Array,
    x: jax.Array,
    known: jax.Array,
) -> jax.Array:
    """Generate every 2^L-th pixel, then every 2^(L-1)-th, until all are there.

    Args:
        base: generates the small image.
        stages: L functions, each of which doubles the sides.
        uniform: [B, H, W, N] noise of every pixel.
        x: [B, H, W, C] integers, of which the known ones matter.
        known: [B, H, W, C] bool, the values to keep.

    Returns:
        [B, H, W, C] int32.
    """
    chex.assert_equal_shape([x, known])
    chex.assert_rank([x, uniform], 4)
    given, part = (uniform, x, known), 2 ** len(stages)
    uniform_, x_, known_ = (a[:, ::part, ::part] for a in given)
    image = base(uniform_, x_, known_)
    for stage in stages:
        part //= 2
        uniform_, x_, known_ = (a[:, ::part, ::part] for a in given)
        image = stage(uniform_, x_, known_, image)
    return image


def raster(
    network: Callable[[jax.Array], Network[Any, Any, Any, Any, Any]],
    quantile: Quantile,
) -> Stage:
    """Return a stage that generates the new pixels in raster order.

    Args:
        network: returns the network of the larger image, given the smaller one.
        quantile: returns the values that noise draws.
    """
    def stage(
        uniform: jax.Array, x: jax.Array, known: jax.Array, small: jax.Array
    ) -> jax.Array:
        x = join([small, *quarters(x)[1:]])
        known = join([jnp.ones(small.shape, bool), *quarters(known)[1:]])
        return incremental(network(small), quantile, uniform, x, known)

    return stage


def parallel(
    observe: Callable[[int, jax.Array], jax.Array],
    params: Callable[[int, jax.Array, jax.Array], jax.Array],
    quantile: Quantile,
) -> Stage:
    """Return a stage that generates three groups, the pixels of a group at once.

    Args:
        observe: (group, the smaller image and the groups before, [B, H, W,
            (group + 1) C]) -> features.
        params: (group, features, the group's pixels [B, H, W, C]) -> the parameters of
            their distribution; those of a colour depend on the colours before it.
        quantile: returns the values that noise draws.
    """
    def stage(
        uniform: jax.Array, x: jax.Array, known: jax.Array, small: jax.Array
    ) -> jax.Array:
        parts = [small]
        news = zip(quarters(uniform)[1:], quarters(x)[1:], quarters(known)[1:])
        for group, (u, new, keep) in enumerate(news):
            features = observe(group, jnp.concatenate(parts, axis=-1))
            for c in range(x.shape[-1]):
                drawn = quantile(params(group, features, new), new, u)[..., c]
                value = jnp.where(keep[..., c], new[..., c], drawn)
                new = new.at[..., c].set(value)
            parts.append(new)
        return join(parts)

    return stage
