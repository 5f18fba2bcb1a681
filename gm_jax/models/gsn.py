"""Generative stochastic networks, and denoising autoencoders as their simplest case.

Bengio et al. 2014, Deep Generative Stochastic Networks Trainable by Backprop,
https://arxiv.org/abs/1306.1091, sec. 5, fig. 3. Between x = h_0 and the top h_L lie
weights W_l, which serve in both directions. With s the activation, an update is

    h_l = s(W_l^T h_{l-1} + W_{l+1} h_{l+1} + b_l + n_l) + m_l    l odd, then l even
    logits = W_1 h_1 + b_0

The noise n_l, m_l is Gaussian, and h_1 has none. One layer is the denoising
autoencoder: h_1 is a function of x and needs no memory.

    model = GSN(num_dims=784, layers=(1500, 1500))
    logits, hidden = model.apply(variables, x, model.start(len(x)), noise)
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

__all__ = ['GSN', 'Hidden', 'Noise']

# h_1 ... h_L, [B, H_l] each.
Hidden = tuple[jax.Array, ...]
# For each of h_2 ... h_L what is added before and after s, [B, H_l] each.
Noise = tuple[tuple[jax.Array, jax.Array], ...]


class GSN(nn.Module):
    """The network, from a corrupted image and the hidden layers to the next ones."""

    num_dims: int  # D
    layers: Sequence[int]  # H_1 ... H_L
    activation: Callable[[jax.Array], jax.Array] = jnp.tanh  # s
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the parameters."""
        sizes = (self.num_dims, *self.layers)
        uniform, zeros = nn.initializers.glorot_uniform(), nn.initializers.zeros_init()
        self.w = [
            self.param(f'w{i}', uniform, shape)
            for i, shape in enumerate(zip(sizes, sizes[1:]), 1)
        ]
        self.b = [self.param(f'b{i}', zeros, (size,)) for i, size in enumerate(sizes)]

    def start(self, batch_size: int) -> Hidden:
        """Return hidden layers of zeros."""
        return tuple(jnp.zeros((batch_size, size), self.dtype) for size in self.layers)

    def __call__(
        self, x: jax.Array, hidden: Hidden, noise: Noise | None = None
    ) -> tuple[jax.Array, Hidden]:
        """Update the hidden layers, and compute P(x|h_1).

        Args:
            x: [B, D] in [0, 1], the corrupted image.
            hidden: the hidden layers before.
            noise: what is added; None: nothing.

        Returns:
            Logits [B, D] of ones, at least float32, and the new hidden layers.
        """
        chex.assert_shape(x, (None, self.num_dims))
        chex.assert_equal_shape_prefix([x, *hidden], 1)
        h = [x.astype(self.dtype), *hidden]
        for first in (1, 2):
            for i in range(first, len(h), 2):
                h[i] = self._layer(i, h, noise)
        return self.decode(h[1]), tuple(h[1:])

    def encode(self, x: jax.Array) -> jax.Array:
        """Compute h_1 without noise, if the layers above are zero.

        Args:
            x: [B, D] in [0, 1].

        Returns:
            [B, H_1], at least float32.
        """
        chex.assert_shape(x, (None, self.num_dims))
        h1 = self._layer(1, [x.astype(self.dtype), *self.start(len(x))], None)
        return h1.astype(jnp.promote_types(h1.dtype, jnp.float32))

    def decode(self, h: jax.Array) -> jax.Array:
        """Return the logits [B, D] of P(x|h_1)."""
        logits = h.astype(self.dtype) @ self._w(1).T + self._b(0)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

    def _layer(self, i: int, h: Sequence[jax.Array], noise: Noise | None) -> jax.Array:
        total = h[i - 1] @ self._w(i) + self._b(i)
        if i + 1 < len(h):
            total = total + h[i + 1] @ self._w(i + 1).T
        if noise is None or i == 1:
            return self.activation(total)
        before, after = (n.astype(self.dtype) for n in noise[i - 2])
        return self.activation(total + before) + after

    def _w(self, i: int) -> jax.Array:
        return self.w[i - 1].astype(self.dtype)

    def _b(self, i: int) -> jax.Array:
        return self.b[i][None].astype(self.dtype)
