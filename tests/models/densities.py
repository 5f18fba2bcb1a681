"""Small autoregressive networks with random weights, all under one interface."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.families.setting import linen_network
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.models.made import MADE, ascending, draw_masks
from gm_jax.models.nade import NADE
from gm_jax.models.pixel_cnn import PixelCNN
from gm_jax.models.pixel_cnn_pp import PixelCNNpp
from gm_jax.models.pixel_rnn import PixelRNN
from gm_jax.sampling import distributions
from gm_jax.sampling.autoregressive import Network

NAMES = (
    'nade', 'made', 'pixel_cnn', 'gated_pixel_cnn', 'pixel_cnn_pp', 'row_lstm',
    'row_lstm_5', 'diagonal_bilstm',
)
_CELLS: dict[str, dict[str, Any]] = {
    'row_lstm': {'cell': 'row_lstm'},
    'row_lstm_5': {'cell': 'row_lstm', 'kernel_size': 5},
    'diagonal_bilstm': {'cell': 'diagonal_bilstm'},
}
# The method that takes what the images are conditioned on.
_CONDITIONED = {'nade': 'start', 'made': 'pixel'}


class Density(NamedTuple):
    """A network with its weights, as functions of images.

    Attributes:
        params: x -> parameters of the distribution of every value.
        log_prob: x -> [B].
        terms: (x float, target) -> [B, H, W, C] log p(target_i | x_<i).
        quantile: (params, x, noise) -> values.
        network: by rows and pixels.
        order: [D] the flat positions; None: raster.
        num_noise: N, uniform numbers per pixel.
    """

    params: Callable
    log_prob: Callable
    terms: Callable
    quantile: Callable
    network: Network
    order: np.ndarray | None = None
    num_noise: int = 1


def make(
    name: str,
    image_shape: tuple[int, int, int],
    num_values: int,
    *,
    h: jax.Array | None = None,
    scale: float = 1.0,
    dtype: Any = jnp.float32,
) -> Density:
    """Return a network away from where training starts; `scale` sharpens it."""
    # Wide enough that no ReLU hides all paths of a colour.
    wide = dict(features=24, first_kernel=3, head=24)
    args, more = dict(image_shape=image_shape, num_values=num_values, dtype=dtype), ()
    num_dims, rng = int(np.prod(image_shape)), np.random.default_rng(7)
    order = None
    if name == 'nade':
        order = rng.permutation(num_dims)
        model = NADE(hidden=24, order=tuple(order.tolist()), **args)
    elif name == 'made':
        model = MADE(hidden=(24, 25), **args)
        more = (ascending(draw_masks(rng, num_dims, (24, 25), shuffle=True)),)
        order = more[0].order
    elif name == 'pixel_cnn':
        model = PixelCNN(num_blocks=2, **wide, **args)
    elif name == 'gated_pixel_cnn':
        model = GatedPixelCNN(num_layers=2, kernel_sizes=(3,), **wide, **args)
    elif name in _CELLS:
        model = PixelRNN(num_layers=2, **_CELLS[name], **wide, **args)
    else:
        model = PixelCNNpp(
            features=8, num_resnets=1, num_levels=2, num_mixtures=3, **args
        )
    x = jnp.zeros((1 if h is None else len(h), *image_shape), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, *more, h)['params']
    params = jax.tree.map(functools.partial(_draw, rng, scale, dtype), shapes)

    def apply(x: jax.Array) -> Any:
        return model.apply({'params': params}, x, *more, h)

    kind, terms = distributions.discrete, _discrete_terms
    if name == 'pixel_cnn_pp':
        kind, terms = distributions.logistic_mixture, _mixture_terms
    pixel = kind(num_values, image_shape[2])
    return Density(
        params=apply,
        log_prob=lambda x: pixel.log_prob(apply(x), x),
        terms=lambda x, target: terms(apply(x), x, target),
        quantile=pixel.quantile,
        network=linen_network(
            model, {'params': params}, h, more=more,
            conditioned=_CONDITIONED.get(name, 'row'),
            by_colour=name != 'pixel_cnn_pp',
        ),
        order=order,
        num_noise=pixel.num_noise,
    )


def _draw(
    rng: np.random.Generator, scale: float, dtype: Any, shape: jax.ShapeDtypeStruct
) -> jax.Array:
    if len(shape.shape) < 2:  # a bias, or the factor of a weight norm
        values = 0.1 * np.cos(np.arange(shape.size)).reshape(shape.shape)
    else:  # about the size that keeps the scale of features
        fan_in = shape.size / shape.shape[-1]
        values = scale * rng.normal(size=shape.shape) / fan_in ** 0.5
    return jnp.asarray(values, dtype)


def _discrete_terms(logits: jax.Array, x: jax.Array, target: np.ndarray) -> jax.Array:
    if logits.ndim == x.ndim:
        return target * logits - jax.nn.softplus(logits)
    return jnp.take_along_axis(
        jax.nn.log_softmax(logits), target[..., None], axis=-1
    )[..., 0]


def _mixture_terms(mixture: Any, x: jax.Array, target: np.ndarray) -> jax.Array:
    """Use a stand-in: all that the network says of a pixel, for its colours."""
    del target
    leaves = [a.reshape(*x.shape[:3], -1) for a in jax.tree.leaves(mixture)]
    total = jnp.sum(jnp.sin(jnp.concatenate(leaves, axis=-1)), -1, keepdims=True)
    return jnp.broadcast_to(total, x.shape)
