"""NICE: additive couplings and a diagonal scale.

Dinh et al. 2015, NICE: Non-linear Independent Components Estimation,
https://arxiv.org/abs/1410.8516. The even and the odd values of an image take turns: a
network of one half gives the shift of the other,

    x_odd  <- x_odd  + m_1(x_even)
    x_even <- x_even + m_2(x_odd)    and so on,    z = x e^s

so that the log-determinant is the sum of s alone. The prior of z is logistic.

    model = NICE(image_shape=(28, 28, 1))
    variables = model.init(rng, y)  # a first batch y [B, H, W, C] in [0, 1]
    z, log_det = model.apply(variables, y)  # [B, D], [B]
    y, minus_log_det = model.apply(variables, z, method='inverse')

NOTE: the paper draws all weights from U(-0.01, 0.01) and starts with s = 0. Here the
last layers start from 0 and the others follow He et al. 2015, so that the flow is only
a scale at first; it gives a first batch the deviation of the prior.
"""

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import transforms
from gm_jax.layers.coupling import DiagonalScale

__all__ = ['NICE', 'Shift']

# Deviation of the prior, and the least of a value in [0, 1]: one that is nearly always
# 0 may be so in the whole first batch.
_STD, _LEAST = math.pi / 3**0.5, 0.02


class Shift(nn.Module):
    """A network from one half of the values to a shift of the other; 0 at first."""

    hidden: Sequence[int]
    outputs: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [B, D'] to [B, outputs]."""
        h = x
        for width in self.hidden:
            init = nn.initializers.he_normal()
            h = nn.relu(nn.Dense(width, dtype=self.dtype, kernel_init=init)(h))
        zeros = nn.initializers.zeros_init()
        h = nn.Dense(self.outputs, dtype=self.dtype, kernel_init=zeros)(h)
        return h.astype(jnp.promote_types(x.dtype, h.dtype))


class NICE(nn.Module):
    """The flow z = f(y), its log-determinant, and its inverse."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_couplings: int = 4
    hidden: Sequence[int] = (1000,) * 5  # widths of the network of each coupling
    dtype: Any = jnp.float32

    def setup(self) -> None:
        """Make the networks and the scale."""
        num = math.prod(self.image_shape)
        halves = num // 2, num - num // 2  # odd, even
        self.shifts = [
            Shift(self.hidden, halves[i % 2], self.dtype)
            for i in range(self.num_couplings)
        ]
        self.scale = DiagonalScale(_STD, _LEAST)

    def __call__(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map images to z.

        Args:
            y: [B, H, W, C] in [0, 1].

        Returns:
            z [B, D], the even values first, and log |det dz / dy| [B] in nats.
        """
        chex.assert_shape(y, (None, *self.image_shape))
        flat = y.reshape(len(y), -1)
        seen, moved = flat[:, ::2], flat[:, 1::2]
        for shift in self.shifts:
            moved, _ = transforms.additive_coupling(moved, shift(seen))
            seen, moved = moved, seen
        if self.num_couplings % 2:
            seen, moved = moved, seen
        x = jnp.concatenate([seen, moved], axis=1)
        return self.scale(x)

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map z [B, D] to images y [B, H, W, C], with log |det dy / dz| [B]."""
        chex.assert_shape(z, (None, math.prod(self.image_shape)))
        x, log_det = self.scale(z, inverse=True)
        even, odd = jnp.split(x, [x.shape[1] - x.shape[1] // 2], axis=1)
        undo = transforms.additive_coupling_inverse
        for i in reversed(range(self.num_couplings)):
            if i % 2:
                even, _ = undo(even, self.shifts[i](odd))
            else:
                odd, _ = undo(odd, self.shifts[i](even))
        flat = jnp.zeros_like(x).at[:, ::2].set(even).at[:, 1::2].set(odd)
        return flat.reshape(-1, *self.image_shape), log_det
