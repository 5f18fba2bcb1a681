"""MADE: an autoencoder whose masks make it autoregressive, for any order.

Germain et al. 2015, MADE: Masked Autoencoder for Distribution Estimation, sec. 3 and 4,
https://arxiv.org/abs/1502.03509. A hidden unit of degree m sees the first m values in
the order. With r(i) the number of values before value i,

    M_1[i, k] = r(i) < m_1(k)        M_l[j, k] = m_{l-1}(j) <= m_l(k)
    h_l = relu((W_l o M_l)^T h_{l-1} + b_l)                          h_0 = x
    logits = (V o M_V)^T h_L + (A o M_A)^T x + c
    M_V[k, i] = m_L(k) <= r(i)       M_A[j, i] = r(j) < r(i)

The same parameters serve any number of orders and masks, and the average of their
densities is again a density. The direct connections A may be left out. For V > 2 the
input is x / (V - 1) and the output a softmax.

    model = MADE(image_shape=(28, 28, 1), num_values=2, hidden=(500,))
    masks = ascending(draw_masks(np.random.default_rng(0), 784, (500,), shuffle=False))
    logits = model.apply(variables, x, masks)  # x integers [B, H, W, C]

`start` and `pixel` compute the same network value by value, for
`sampling.autoregressive.incremental`, in the order of the masks, which must be
`ascending`.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.causal import logits_per_value
from gm_jax.layers.dropout import Dropout
from gm_jax.layers.pixels import unit_interval

__all__ = ['ascending', 'draw_masks', 'MADE', 'mask', 'Masks']


class Masks(NamedTuple):
    """An order of the D values, and the degrees of the hidden units.

    Attributes:
        rank: [D] r, the number of values before each value in the order.
        degrees: m_l, the degrees of the units of each hidden layer, in 1 ... D - 1.
    """

    rank: np.ndarray
    degrees: tuple[np.ndarray, ...]

    @property
    def order(self) -> np.ndarray:
        """The flat positions of the values, in the order."""
        return np.argsort(self.rank)


def draw_masks(
    rng: np.random.Generator, num_dims: int, hidden: Sequence[int], *, shuffle: bool
) -> Masks:
    """Draw degrees uniformly from the lowest of the previous layer to D - 1 (sec. 4.1).

    Args:
        rng: the source of randomness.
        num_dims: D.
        hidden: the number of units of each hidden layer.
        shuffle: whether the order is random too; otherwise it is raster order.

    Returns:
        The masks.
    """
    rank = rng.permutation(num_dims) if shuffle else np.arange(num_dims)
    degrees, lowest = [], 1
    for size in hidden:
        degrees.append(rng.integers(lowest, max(num_dims, lowest + 1), size))
        lowest = int(np.min(degrees[-1], initial=num_dims))
    return Masks(rank, tuple(degrees))


def mask(m: jax.typing.ArrayLike, m_next: jax.typing.ArrayLike) -> jax.Array:
    """Compute M[j, k] = m(j) <= m_next(k): whether unit k may depend on input j.

    Args:
        m: [J] the number of values that must be known to compute each input.
        m_next: [K] the number of values that are known when each unit is computed.

    Returns:
        [J, K] bool.
    """
    return jnp.asarray(m)[:, None] <= jnp.asarray(m_next)[None]


def ascending(masks: Masks) -> Masks:
    """Sort the units of each layer by degree, as `MADE.pixel` needs them.

    With one mask, units are exchangeable and sorting changes nothing. With several
    masks over shared weights sort only one; sorting all would make them nearly
    identical.
    """
    return masks._replace(degrees=tuple(np.sort(layer) for layer in masks.degrees))


class MADE(nn.Module):
    """The network, from integers to logits."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    hidden: Sequence[int] = (500,)  # units of each hidden layer
    direct: bool = True  # whether there are connections A from x to the logits
    dropout: float = 0.0  # share of the units of every layer dropped in training
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the parameters."""
        num_dims = math.prod(self.image_shape)
        self.outputs = logits_per_value(self.num_values)
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
        self.drops = [Dropout(self.dropout) for _ in self.hidden]
        self.v = self.param('v', small, (sizes[-1], num_dims * self.outputs))
        if self.direct:
            self.a = self.param('a', small, (num_dims, num_dims * self.outputs))
        self.c = self.param('c', zeros, (num_dims * self.outputs,))
        # The condition has no place in the order: every unit may depend on it.
        self.condition = nn.Dense(self.hidden[0], use_bias=False)
        self.condition_output = nn.Dense(num_dims * self.outputs, use_bias=False)

    def __call__(
        self, x: jax.Array, masks: Masks, h: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        """Compute the logits of every value given those before it in the order.

        Args:
            x: [B, H, W, C] integers in [0, V).
            masks: the order and the degrees.
            h: [B, E] the condition, such as a one-hot class.
            dropout_rng: one key, or [B] keys, one per example; None: no dropout.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        x = unit_interval(x.reshape(len(x), -1), self.num_values).astype(self.dtype)
        *biases, c = self._biases(h)
        m_x = masks.rank + 1
        y, m = x, m_x
        for w, b, m_l, drop in zip(self.w, biases, masks.degrees, self.drops):
            M = mask(m, m_l)
            y = drop(jax.nn.relu(y @ self._masked(w, M) + b), rng=dropout_rng)
            m = m_l
        r = jnp.repeat(masks.rank, self.outputs)
        logits = y @ self._masked(self.v, mask(m, r))
        if self.direct:
            logits = logits + x @ self._masked(self.a, mask(m_x, r))
        logits = logits + c
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
        """Compute the hidden units that the last value completes, and the next logits.

        Units of degree m are complete once m values are known. Ascending degrees make
        them contiguous: a slice as long as the largest number of units of one degree
        contains them all. Units of higher degrees in it are computed again later.

        Args:
            left: [B, H_l] for each layer, of which the units of degree < place matter.
            context: unused.
            x_row: [B, D, 1] integers in the order.
            r: 0, the only row.
            place: the number of values that are known.
            masks: the order and the degrees, `ascending`, as numpy arrays.
            h: [B, E] the condition.

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
            size = int(np.max(np.bincount(m_l)))
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

        def here(p: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(
                p, position * self.outputs, self.outputs, -1
            )

        rank = jnp.broadcast_to(place, (self.outputs,))
        logits = y @ self._masked(here(self.v), mask(m, rank))
        if self.direct:
            logits = logits + x @ self._masked(here(self.a), mask(m_x, rank))
        logits = logits + here(c)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        return tuple(known), logits if self.num_values == 2 else logits[:, None], ()

    def _masked(self, kernel: jax.Array, M: jax.Array) -> jax.Array:
        return jnp.where(M, kernel, 0).astype(self.dtype)

    def _biases(self, h: jax.Array | None) -> list[jax.Array]:
        """Return the biases of every layer, [1, n], or [B, n] if the condition adds."""
        first, *others = [b[None].astype(self.dtype) for b in (*self.b, self.c)]
        if h is not None:
            first = first + self.condition(h)
            others[-1] = others[-1] + self.condition_output(h)
        return [first, *others]
