"""Weight normalisation of all parameters of a model at once, outside the model.

Salimans and Kingma 2016, Weight Normalization, https://arxiv.org/abs/1602.07868:

    kernel = g v / |v|,  a length g and a direction v for each output

A model has plain kernels; training updates `split(params)`, and `merge` returns the
kernels for the model. Sampling merges once, however often it runs the layers.

    params = weight_norm.directions(rng, model, x)
    params = weight_norm.split(weight_norm.data_dependent_init(model, params, x))
    model.apply({'params': weight_norm.merge(params)}, x)
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

__all__ = ['data_dependent_init', 'directions', 'merge', 'split']

# Standard deviation of the entries of v. The gradient of v is proportional to 1 / |v|,
# so a larger v changes its direction more slowly.
_SPREAD = 0.05
_EPS = 1e-10
# The variance below which an output is constant but for rounding.
_CONSTANT = 1e-8


def _norm(kernel: jax.Array) -> jax.Array:
    """Return the length of the weights of each output, [..., G] to [1, ..., G]."""
    axes = tuple(range(kernel.ndim - 1))
    return jnp.sqrt(jnp.sum(kernel ** 2, axes, keepdims=True))


def _is_layer(node: Any) -> bool:
    return isinstance(node, dict) and 'bias' in node and (
        'kernel' in node or 'v' in node
    )


def split(params: Any) -> Any:
    """Replace the kernel of every layer that has a bias by a direction and a length.

    Args:
        params: nested dicts; layers are those with 'kernel' [..., G] and 'bias' [G].

    Returns:
        The same with 'v' [..., G] and 'g' [G] in place of 'kernel'.
    """
    def of_layer(node: Any) -> Any:
        if not _is_layer(node):
            return node
        kernel = node['kernel']
        norm = _norm(kernel)
        size = _SPREAD * (kernel.size / kernel.shape[-1]) ** 0.5
        return {'v': size * kernel / norm, 'g': norm.reshape(-1), 'bias': node['bias']}

    return jax.tree.map(of_layer, params, is_leaf=_is_layer)


def merge(params: Any) -> Any:
    """Invert `split`: kernel = g v / |v|."""
    def of_layer(node: Any) -> Any:
        if not _is_layer(node):
            return node
        v, g = node['v'], node['g']
        return {'kernel': _last(g, v.ndim) * v / _norm(v), 'bias': node['bias']}

    return jax.tree.map(of_layer, params, is_leaf=_is_layer)


def directions(rng: jax.Array, module: nn.Module, *args: Any) -> Any:
    """Draw all parameters from N(0, 0.05^2), except biases, which are 0.

    They are drawn in one call: XLA takes a second to compile the generator again for
    each shape.

    Args:
        rng: a key.
        module: the model.
        *args: the arguments of its `__call__`.

    Returns:
        Parameters, as nested dicts.
    """
    shapes = jax.eval_shape(module.init, rng, *args)['params']
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    noise, start = _SPREAD * jax.random.normal(rng, (total,)), 0

    def draw(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        nonlocal start
        start += leaf.size
        if path[-1].key == 'bias':
            return jnp.zeros(leaf.shape)
        return noise[start - leaf.size:start].reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(draw, shapes)


def data_dependent_init(module: nn.Module, params: Any, *args: Any) -> Any:
    """Give the outputs of every layer mean 0 and a given standard deviation on a batch.

    Layer by layer, on the output of the layers before it that are already initialised
    (sec. 3): kernel <- kernel s / deviation, bias <- (bias - mean) s / deviation, with
    s the layer's `scale`, 1 if it has none. Layers are those with a kernel and a bias.

    An output that is the same everywhere in the batch, as that of the stream above a
    pixel is in images of one row, has no deviation to divide by: it gets mean 0 and the
    kernel s.

    Args:
        module: the model.
        params: its parameters, such as those from `directions`.
        *args: the arguments of its `__call__`, such as the batch.

    Returns:
        The parameters, as nested dicts.
    """
    changes = {}

    def normalise(next_fn, args, kwargs, context):
        y, layer = next_fn(*args, **kwargs), context.module
        if context.method_name != '__call__' or not all(
            layer.has_variable('params', name) for name in ('kernel', 'bias')
        ):
            return y
        axes = tuple(range(y.ndim - 1))
        mean, var = jnp.mean(y, axes), jnp.var(y, axes)
        scale = getattr(layer, 'scale', 1.0)
        factor = jnp.where(var > _CONSTANT, scale / jnp.sqrt(var + _EPS), scale)
        changes[layer.path] = mean, factor
        return (y - _last(mean, y.ndim)) * _last(factor, y.ndim)

    with nn.intercept_methods(normalise):
        module.apply({'params': params}, *args)

    def changed(node: Any, path: tuple = ()) -> Any:
        if path in changes:
            mean, factor = changes[path]
            kernel, bias = node['kernel'], node['bias']
            return {
                'kernel': kernel * _last(factor, kernel.ndim),
                'bias': (bias - mean) * factor,
            }
        if not isinstance(node, dict):
            return node
        return {name: changed(child, (*path, name)) for name, child in node.items()}

    return changed(params)


def _last(a: jax.Array, ndim: int) -> jax.Array:
    """Reshape [G] to [1, ..., G]."""
    return a.reshape((1,) * (ndim - 1) + (-1,))
