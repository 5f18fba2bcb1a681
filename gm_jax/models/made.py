"""MADE: an autoencoder whose masks make it autoregressive, for any order.

Germain et al. 2015, MADE: Masked Autoencoder for Distribution Estimation, sec. 3 and 4,
https://arxiv.org/abs/1502.03509. A hidden unit of degree m sees the first m values in
the order. With r(i) the number of values before value i,

    M_1[i, k] = r(i) < m_1(k)        M_l[j, k] = m_{l-1}(j) <= m_l(k)
    h_l = relu((W_l o M_l)^T h_{l-1} + b_l)                          h_0 = x
    logits = (V o M_V)^T h_L + (A o M_A)^T x + c
    M_V[k, i] = m_L(k) <= r(i)       M_A[j, i] = r(j) < r(i)

The same parameters serve any number of orders and masks; their densities average to
another one. Of V > 2 values, x is the value over V - 1 and the output a softmax.

    model = MADE(image_shape=(28, 28, 1), num_values=2, hidden=(500,))
    masks = ascending(draw_masks(np.random.default_rng(0), 784, (500,), shuffle=False))
    logits = model.apply(variables, x, masks)  # x integers [B, H, W, C]

`start` and `pixel` are the same network for `sampling.autoregressive` to run
incrementally, in the order of the masks, which must be `ascending`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.pixels import unit_interval

__all__ = ['ascending', 'draw_masks', 'MADE', 'mask', 'Masks']


class Masks(NamedTuple):
    """An order of the D values, and the degrees of the hidden units.

    Attributes:
        rank: [D] r, how many values come before each.
        degrees: m_l of each layer's units, in 1 ... D - 1.
    """

    rank: np.ndarray
    degrees: tuple[np.ndarray, ...]

    @property
    def order(self) -> np.ndarray:
        """The flat positions in the order."""
        return np.argsort(self.rank)


def draw_masks(
    rng: np.random.Generator, num_dims: int, hidden: Sequence[int], *, shuffle: bool
) -> Masks:
    """Draw degrees uniform from the lowest of the layer before to D - 1 (sec. 4.1).

    Args:
        rng: the source of randomness.
        num_dims: D.
        hidden: units of each hidden layer.
        shuffle: whether the order is random too; otherwise raster.

    Returns:
        The masks.
    """
    rank = rng.permutation(num_dims) if shuffle else np.arange(num_dims)
    degrees, lowest = [], 1
    for size in hidden:
        degrees.append(rng.integers(lowest, max(num_dims, lowest + 1), size))
        lowest = int(degrees[-1].min(initial=num_dims))
    return Masks(rank, tuple(degrees))


def mask(m: jax.typing.ArrayLike, m_next: jax.typing.ArrayLike) -> jax.Array:
    """Compute M[j, k] = m(j) <= m_next(k): what unit k may see of the layer before.

    Args:
        m: [J] how many values must be known for each input to be.
        m_next: [K] how many are, where each unit is computed.

    Returns:
        [J, K] bool.
    """
    return jnp.asarray(m)[:, None] <= jnp.asarray(m_next)[None]


def ascending(masks: Masks) -> Masks:
    """Sort the units of each layer by degree, as `MADE.pixel` needs them.

    Of one mask alone the units are exchangeable. Of several that share their weights
    only one may be sorted: sorted all, they would be nearly the same mask.
    """
    return masks._replace(degrees=tuple(np.sort(layer) for layer in masks.degrees))


class MADE(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    hidden: Sequence[int] = (500,)  # units of each layer
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the parameters."""
        num_dims = math.prod(self.image_shape)
        self.outputs = 1 if self.num_values == 2 else self.num_values
        he, zeros = nn.initializers.he_normal(), nn.initializers.zeros_init()
        small = nn.initializers.variance_scaling(0.01, 'fan_in', 'normal')
        sizes = (num_dims, *self.hidden)
        self.w = [
            self.param(f'w{i}', he, shape)
            for i, shape in enumerate(zip(sizes, sizes[1:]), 1)
        ]
        self.b = [
            self.param(f'b{i}', zeros, (size,)) for i, size in enumerate(self.hidden, 1)
        ]
        self.v = self.param('v', small, (sizes[-1], num_dims * self.outputs))
        self.a = self.param('a', small, (num_dims, num_dims * self.outputs))
        self.c = self.param('c', zeros, (num_dims * self.outputs,))
        # What the image is conditioned on has no place in the order: all may see it.
        self.condition = nn.Dense(self.hidden[0], use_bias=False)
        self.condition_output = nn.Dense(num_dims * self.outputs, use_bias=False)

    def __call__(
        self, x: jax.Array, masks: Masks, h: jax.Array | None = None
    ) -> jax.Array:
        """Compute the logits of every value given those before it in the order.

        Args:
            x: [B, H, W, C] integers in [0, V).
            masks: the order and the degrees.
            h: [B, E] what the image is conditioned on, such as a class as one-hot.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        x = unit_interval(x.reshape(len(x), -1), self.num_values).astype(self.dtype)
        *biases, c = self._biases(h)
        m_x = masks.rank + 1
        y, m = x, m_x
        for w, b, m_l in zip(self.w, biases, masks.degrees):
            M = mask(m, m_l)
            y = jax.nn.relu(y @ self._masked(w, M) + b)
            m = m_l
        r = jnp.repeat(masks.rank, self.outputs)
        M_V, M_A = mask(m, r), mask(m_x, r)
        logits = y @ self._masked(self.v, M_V) + x @ self._masked(self.a, M_A) + c
        shape = (len(x), *self.image_shape)
        logits = logits.reshape(shape if self.num_values == 2 else (*shape, -1))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def start(self, batch_size: int) -> tuple[Any, Any, Any]:
        """Return (state, left, features): no hidden unit is known yet."""
        left = tuple(jnp.zeros((batch_size, n), self.dtype) for n in self.hidden)
        return (), left, ()

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array,
        place: jax.Array, masks: Masks, h: jax.Array | None = None,
    ) -> tuple[Any, jax.Array, Any]:
        """Compute the hidden units that one more value completes, and its successor.

        Units of degree m are complete once m values are known. Ascending degrees put
        them side by side: a slice as long as there are units of any degree also takes
        units of higher ones, which are computed again when their turn comes.

        Args:
            left: of each layer, [B, H_l] of which the units of degree < place matter.
            context: nothing.
            x_row: [B, D, 1] integers in the order.
            r: 0, the only row.
            place: how many values are known.
            masks: the order and the degrees, `ascending`, as numpy arrays.
            h: [B, E] what the image is conditioned on.

        Returns:
            The next left, the logits [B, 1] or [B, 1, V], and no features to keep.
        """
        del context, r
        x = unit_interval(x_row[:, masks.rank, 0], self.num_values).astype(self.dtype)
        *biases, c = self._biases(h)
        m_x = masks.rank + 1
        y, m, known = x, m_x, []
        for w, b, m_l, layer in zip(self.w, biases, masks.degrees, left):
            begin = jnp.searchsorted(jnp.asarray(m_l), place)
            size = np.bincount(m_l).max()
            w, b, m_new = (
                jax.lax.dynamic_slice_in_dim(a, begin, size, -1)
                for a in (w, b, jnp.asarray(m_l))
            )
            M = mask(m, m_new)
            new = jax.nn.relu(y @ self._masked(w, M) + b)
            y = jax.lax.dynamic_update_slice_in_dim(layer, new, begin, 1)
            known.append(y)
            m = m_l
        position = jnp.asarray(masks.order)[place]
        v, a, c = (
            jax.lax.dynamic_slice_in_dim(
                p, position * self.outputs, self.outputs, -1
            )
            for p in (self.v, self.a, c)
        )
        rank = jnp.broadcast_to(place, (self.outputs,))
        M_V, M_A = mask(m, rank), mask(m_x, rank)
        logits = y @ self._masked(v, M_V) + x @ self._masked(a, M_A) + c
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return tuple(known), logits if self.num_values == 2 else logits[:, None], ()

    def _masked(self, kernel: jax.Array, M: jax.Array) -> jax.Array:
        return jnp.where(M, kernel, 0).astype(self.dtype)

    def _biases(self, h: jax.Array | None) -> list[jax.Array]:
        """Return the biases of every layer, [1, n], or [B, n] by the condition."""
        first, *others = [b[None].astype(self.dtype) for b in (*self.b, self.c)]
        if h is not None:
            first = first + self.condition(h)
            others[-1] = others[-1] + self.condition_output(h)
        return [first, *others]
