"""NICE: additive couplings and a diagonal scale.

Dinh et al. 2015, NICE: Non-linear Independent Components Estimation,
https://arxiv.org/abs/1410.8516. The even and the odd values of an image take turns: a
network of one half gives the shift of the other,

    x_odd  <- x_odd  + m_1(x_even)
    x_even <- x_even + m_2(x_odd)    and so on,    z = x e^s

so that the log-determinant is the sum of s alone. The prior of z is logistic. The
networks give the shifts in units of z: m = n e^-s. The family of functions is the same,
but the steps of Adam, which have the same size for every value, are taken in the units
of the prior. In units of y, each step would change z strongly at the border of MNIST,
where s is near 6.

    model = NICE(image_shape=(28, 28, 1))
    variables = model.init(rng, y)  # a first batch y [B, H, W, C] in [0, 1]
    z, log_det = model.apply(variables, y)  # [B, D], [B]
    y, minus_log_det = model.apply(variables, z, method='inverse')

NOTE: the authors' code draws all weights from U(-0.01, 0.01) and starts with s = 0.
Here the last layers start from 0 and the others follow He et al. 2015, so that the flow
is only a scale at first; it gives a first batch the standard deviation of the prior.
"""

import math
from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import transforms
from gm_jax.layers.coupling import DiagonalScale

__all__ = ['NICE', 'Shift']

# The standard deviation of the prior, and the least that is assumed for a value in
# [0, 1]: a value that is nearly always 0 may be 0 in the whole first batch.
_STD, _LEAST = math.pi / 3**0.5, 0.02

# A coupling or its inverse: values and shifts [B, D'] to values and a log-determinant.
_Coupling = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]


class Shift(nn.Module):
    """A network from one half of the values to a shift of the other; 0 at first."""

    hidden: Sequence[int]
    outputs: int
    dtype: jax.typing.DTypeLike = jnp.float32

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
    dtype: jax.typing.DTypeLike = jnp.float32

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
        x = jnp.concatenate([flat[:, ::2], flat[:, 1::2]], axis=1)
        z, log_det = self.scale(x)
        for i in range(self.num_couplings):
            z = self._couple(z, i, transforms.additive_coupling)
        return z, log_det

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map z [B, D] to images y [B, H, W, C], with log |det dy / dz| [B]."""
        chex.assert_shape(z, (None, math.prod(self.image_shape)))
        for i in reversed(range(self.num_couplings)):
            z = self._couple(z, i, transforms.additive_coupling_inverse)
        x, log_det = self.scale(z, inverse=True)
        even, odd = self._halves(x)
        flat = jnp.zeros_like(x).at[:, ::2].set(even).at[:, 1::2].set(odd)
        return flat.reshape(-1, *self.image_shape), log_det

    def _couple(self, z: jax.Array, i: int, coupling: _Coupling) -> jax.Array:
        """Shift the odd half of z [B, D], or undo it; for an odd i the even one."""
        x, _ = self.scale(z, inverse=True)
        x_even, x_odd = self._halves(x)
        even, odd = self._halves(z)
        if i % 2:
            even, _ = coupling(even, self.shifts[i](x_odd))
        else:
            odd, _ = coupling(odd, self.shifts[i](x_even))
        return jnp.concatenate([even, odd], axis=1)

    def _halves(self, x: jax.Array) -> list[jax.Array]:
        """Split [B, D] into the even values and the D // 2 odd ones."""
        return jnp.split(x, [x.shape[1] - x.shape[1] // 2], axis=1)
