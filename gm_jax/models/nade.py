"""NADE: the neural autoregressive distribution estimator.

Larochelle and Murray 2011, The Neural Autoregressive Distribution Estimator; Uria et
al. 2016, Neural Autoregressive Distribution Estimation, sec. 2,
https://arxiv.org/abs/1605.02226. For d = 1 ... D in the order o of the values,

    h_d = sigmoid(W_{., o_<d} x_{o_<d} + c)
    p(x_{o_d} | x_{o_<d}) = sigmoid(V_{o_d} h_d + b_{o_d})

All h_d share W, so the pre-activation a of h_{d+1} needs one column more than that of
h_d: a <- a + W_{., o_d} x_{o_d}, which costs O(D H) per image. For V > 2 the input is
x / (V - 1) and the output a softmax.

    model = NADE(image_shape=(28, 28, 1), num_values=2)
    logits = model.apply(variables, x)  # x integers [B, H, W, C]

`start` and `pixel` compute the same network value by value, for
`sampling.autoregressive.incremental`, in the order of the model.
"""

import math
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from gm_jax.layers.causal import LECUN, logits_per_value
from gm_jax.layers.dropout import Dropout
from gm_jax.layers.pixels import unit_interval

__all__ = ['NADE']


class NADE(nn.Module):
    """The network, from integers to logits; rows of W, V and b are in the order o."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    hidden: int = 500  # H of the formulas
    order: tuple[int, ...] | None = None  # o, the flat positions; None: raster
    dropout: float = 0.0  # share of the hidden units that is dropped in training
    # If it is float64, so is the result.
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the parameters."""
        num_dims = math.prod(self.image_shape)
        outputs = logits_per_value(self.num_values)
        zeros = nn.initializers.zeros_init()
        self.w = self.param('w', LECUN, (num_dims, self.hidden))
        self.c = self.param('c', zeros, (self.hidden,))
        v = nn.initializers.normal(self.hidden ** -0.5)
        self.v = self.param('v', v, (num_dims, self.hidden, outputs))
        self.b = self.param('b', zeros, (num_dims, outputs))
        self.condition = nn.Dense(self.hidden, use_bias=False)
        self.drop = Dropout(self.dropout)

    def __call__(
        self, x: jax.Array, h: jax.Array | None = None,
        dropout_rng: jax.Array | None = None,
    ) -> jax.Array:
        """Compute the logits of every value given those before it in the order.

        Args:
            x: [B, H, W, C] integers in [0, V).
            h: [B, E] the condition, such as a one-hot class.
            dropout_rng: one key, or [B] keys, one per example; None: no dropout. The
                same units of an image are dropped in h_1 ... h_D.

        Returns:
            Logits [B, H, W, C] of a one (V = 2), or [B, H, W, C, V].
        """
        chex.assert_shape(x, (None, *self.image_shape))
        order = slice(None) if self.order is None else np.array(self.order)
        values = unit_interval(x.reshape(len(x), -1)[:, order], self.num_values)
        values = values.astype(self.dtype).T  # [D, B]
        kept = None
        if dropout_rng is not None and self.dropout:
            kept = self.drop(
                jnp.ones((len(x), self.hidden), self.dtype), rng=dropout_rng
            )

        def one(a: jax.Array, d: tuple) -> tuple[jax.Array, jax.Array]:
            x_d, w, v, b = d
            return a + x_d[:, None] * w[None], self._logits(a, v, b, kept)

        # By rows of the image, each rematerialised in the backward pass: storing a for
        # every d would not fit in the cache of a CPU.
        rows = self.image_shape[0]
        inputs = jax.tree.map(
            lambda p: p.reshape(rows, -1, *p.shape[1:]), (values, *self._weights())
        )
        _, logits = jax.lax.scan(
            jax.checkpoint(lambda a, row: jax.lax.scan(one, a, row)),
            self._start(len(x), h), inputs,
        )
        logits = jnp.moveaxis(logits.reshape(-1, *logits.shape[2:]), 0, 1)
        if self.order is not None:
            logits = logits[:, np.argsort(self.order)]
        shape = (len(x), *self.image_shape)
        return logits.reshape(shape if self.num_values == 2 else (*shape, -1))

    def start(
        self, batch_size: int, h: jax.Array | None = None
    ) -> tuple[Any, Any, Any]:
        """Return (state, left, features), with a before the first value as `left`."""
        return (), self._start(batch_size, h), ()

    def pixel(
        self, left: Any, context: Any, x_row: jax.Array, r: jax.Array, w: jax.Array
    ) -> tuple[Any, jax.Array, Any]:
        """Add the column of value w - 1 to a, and compute the logits of value w.

        Args:
            left: [B, H] a before value w - 1.
            context: unused.
            x_row: [B, D, 1] integers in the order.
            r: 0, the only row.
            w: the value's place in the order.

        Returns:
            The next left, the logits [B, 1] or [B, 1, V], and no features to keep.
        """
        del context, r
        weights, v, b = self._weights()
        last = jnp.maximum(w - 1, 0)
        x_d = unit_interval(x_row[:, last], self.num_values).astype(self.dtype)
        left = left + jnp.where(w > 0, x_d * weights[last][None], 0)
        logits = self._logits(left, v[w], b[w])
        return left, logits if self.num_values == 2 else logits[:, None], ()

    def _weights(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        return tuple(p.astype(self.dtype) for p in (self.w, self.v, self.b))

    def _start(self, batch_size: int, h: jax.Array | None) -> jax.Array:
        c = self.c[None] if h is None else self.c[None] + self.condition(h)
        return jnp.broadcast_to(c, (batch_size, self.hidden)).astype(self.dtype)

    def _logits(
        self, a: jax.Array, v: jax.Array, b: jax.Array, kept: jax.Array | None = None
    ) -> jax.Array:
        """Map a [B, H] to the logits of one value [B, 1] or [B, V].

        `kept` [B, H] is 0 for a unit that is dropped, None for no dropout.
        """
        h = jax.nn.sigmoid(a) if kept is None else jax.nn.sigmoid(a) * kept
        logits = h @ v + b[None]
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
