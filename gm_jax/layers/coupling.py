"""Layers of flows: coupling, normalisation and scale, each with its inverse.

Every layer is called as `layer(x)` for y = f(x), or `layer(x, inverse=True)` for
x = f^-1(y), and returns the result and its log |det| [B] in nats; the maps themselves
are those of `layers.transforms`. A new layer is the identity but for the
normalisation, since the last convolution of its network starts from zero.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import transforms
from gm_jax.layers.activations import elu

__all__ = ['ActNorm', 'ConvNet', 'Coupling', 'DiagonalScale', 'run', 'Step']

# Log-scales of a coupling are at first within these bounds, which are learned.
_BOUND = 2.0
_EPS = 1e-6

# A map's result and log |det| [B].
_Mapped = tuple[jax.Array, jax.Array]


class ActNorm(nn.Module):
    """y = (x - m) e^s by channel; m and s normalise the batch of initialisation."""

    @nn.compact
    def __call__(self, x: jax.Array, *, inverse: bool = False) -> _Mapped:
        """Apply the map to x [B, ..., C]; initialise it without `inverse`."""
        axes = tuple(range(x.ndim - 1))
        mean = self.param('mean', lambda rng: jnp.mean(x, axes))
        log_scale = self.param(
            'log_scale', lambda rng: -0.5 * jnp.log(jnp.var(x, axes) + _EPS)
        )
        norm = transforms.actnorm_inverse if inverse else transforms.actnorm
        return norm(x, mean, log_scale)


class DiagonalScale(nn.Module):
    """y = x e^s by value; s gives the first batch the standard deviation `std`."""

    std: float
    least: float  # the least standard deviation of x: a batch may be small

    @nn.compact
    def __call__(self, x: jax.Array, *, inverse: bool = False) -> _Mapped:
        """Apply the map to x [B, ...]; initialise it without `inverse`."""
        log_scale = self.param('log_scale', lambda rng: math.log(self.std) - jnp.log(
            jnp.maximum(jnp.std(x, axis=0), self.least)
        ))
        if inverse:
            return transforms.diagonal_scale_inverse(x, log_scale)
        return transforms.diagonal_scale(x, log_scale)


class ConvNet(nn.Module):
    """Gated residual convolutions, [B, H, W, E] to [B, H, W, outputs]; 0 at first."""

    features: int  # F
    num_blocks: int
    outputs: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the layers."""
        h = self._conv(self.features, 3)(x)
        for _ in range(self.num_blocks):
            update = self._conv(self.features, 3)(elu(h))
            update = self._conv(2 * self.features, 1)(elu(update))
            first, second = jnp.split(update, 2, axis=-1)
            h = h + first * nn.sigmoid(second)
        zeros = nn.initializers.zeros_init()
        return self._conv(self.outputs, 3, kernel_init=zeros)(elu(h))

    def _conv(self, features: int, side: int, **kwargs: Any) -> nn.Conv:
        return nn.Conv(features, (side, side), dtype=self.dtype, **kwargs)


class Coupling(nn.Module):
    """An affine coupling: a network sees half of the values and moves the others.

        y = x e^s + t      (t, r) = network(the half that stays, context)

    s is w tanh(r / 2), with a learned bound w for each channel.

    References:
        Dinh et al. 2017, Density estimation using Real NVP, sec. 3.2 to 3.4.
        https://arxiv.org/abs/1605.08803
    """

    by_channel: bool  # halves by channels, else by a checkerboard
    flip: bool  # whether the other half is the one that the network sees
    features: int
    num_blocks: int
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, context: jax.Array | None = None, *, inverse: bool = False
    ) -> _Mapped:
        """Apply the map to x [B, H, W, C], given context [B, H, W, E] if any."""
        shift, log_scale = self._parameters(x, context)
        if inverse:
            return transforms.affine_coupling_inverse(x, shift, log_scale)
        return transforms.affine_coupling(x, shift, log_scale)

    def _parameters(self, x: jax.Array, context: jax.Array | None) -> _Mapped:
        """Compute shift and log-scale [B, H, W, C], 0 where x stays."""
        height, width, channels = x.shape[1:]
        half = channels // 2
        if not self.by_channel:
            stays = jnp.asarray(
                transforms.checkerboard_mask(height, width, flip=self.flip)
            )[None]
            return self._by_network(stays * x, context, channels, 1 - stays)
        # As with a mask of channels, but the network computes only what is used.
        if self.flip:
            made = self._by_network(x[..., half:], context, half)
            pad = (0, channels - half)
        else:
            made = self._by_network(x[..., :half], context, channels - half)
            pad = (half, 0)
        shift, log_scale = (jnp.pad(a, (*[(0, 0)] * 3, pad)) for a in made)
        return shift, log_scale

    def _by_network(
        self, seen: jax.Array, context: jax.Array | None, outputs: int,
        moved: jax.Array | None = None,
    ) -> _Mapped:
        """Compute shift and log-scale [..., outputs], times the mask `moved` if any."""
        given = [seen] if context is None else [seen, context]
        out = ConvNet(
            self.features, self.num_blocks, 2 * outputs, self.dtype, name='network'
        )(jnp.concatenate(given, axis=-1))
        out = out.astype(jnp.promote_types(seen.dtype, out.dtype))
        shift, raw = jnp.split(out, 2, axis=-1)
        bound = self.param('bound', nn.initializers.constant(_BOUND), (outputs,))
        log_scale = bound[None, None, None] * jnp.tanh(raw / 2)
        return (shift, log_scale) if moved is None else (
            moved * shift, moved * log_scale
        )


class Step(nn.Module):
    """A normalisation, a coupling, and maybe a shuffle of the channels after it."""

    by_channel: bool
    flip: bool
    features: int
    num_blocks: int
    shuffle: bool = False
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the layers."""
        self.norm = ActNorm()
        self.coupling = Coupling(
            self.by_channel, self.flip, self.features, self.num_blocks, self.dtype
        )

    def __call__(self, x: jax.Array, *, inverse: bool = False) -> _Mapped:
        """Apply the map to x [B, H, W, C]."""
        if inverse:
            x = transforms.shuffle_inverse(x)[0] if self.shuffle else x
            x, of_coupling = self.coupling(x, inverse=True)
            x, of_norm = self.norm(x, inverse=True)
            return x, of_coupling + of_norm
        x, of_norm = self.norm(x)
        x, of_coupling = self.coupling(x)
        x = transforms.shuffle(x)[0] if self.shuffle else x
        return x, of_norm + of_coupling


def run(
    layers: Sequence[Any], x: jax.Array, log_det: jax.Array, *, inverse: bool = False
) -> _Mapped:
    """Apply layers one after the other, or their inverses from the last to the first.

    Args:
        layers: called as the layers of this module are.
        x: [B, H, W, C].
        log_det: [B] log |det| of what came before.
        inverse: whether to invert.

    Returns:
        The result, and log |det| [B] of all.
    """
    for layer in reversed(layers) if inverse else layers:
        x, more = layer(x, inverse=inverse)
        log_det = log_det + more
    return x, log_det
