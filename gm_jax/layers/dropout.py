"""Dropout whose mask depends on the example, not on the device.

Usage:
    x = Dropout(0.5)(x, rng=rng if train else None)
"""

import zlib

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.keys import per_example

__all__ = ['Dropout']


class Dropout(nn.Module):
    """Dropout: each feature is 0 with probability `rate`, else divided by 1 - rate.

    flax.linen.Dropout draws one mask for the batch that it is given, so a batch spread
    over devices gets other masks than the same batch on one.

    References:
        Srivastava et al. 2014, Dropout, sec. 4 and 10.
    """

    rate: float

    @nn.compact
    def __call__(self, x: jax.Array, *, rng: jax.Array | None) -> jax.Array:
        """Drop features.

        Args:
            x: [B, ...], or [B * S, ...] with the S rows of an example contiguous.
            rng: [B] keys, one per example; one key, if S = 1; None to keep all.

        Returns:
            [B * S, ...].

        Raises:
            AssertionError: `rng` is none of these, or B does not divide the rows of x.
        """
        if rng is None or self.rate == 0.0:
            return x
        rngs = per_example(rng, None if rng.ndim else len(x))
        num = len(rngs)
        chex.assert_is_divisible(x.shape[0], num)
        # A number of this layer alone, so that no two layers share a mask.
        layer = zlib.crc32('/'.join(self.path).encode()) & 0x7FFFFFFF
        shape = (x.shape[0] // num, *x.shape[1:])

        def keep(rng: jax.Array) -> jax.Array:
            layer_rng = jax.random.fold_in(rng, layer)
            return jax.random.bernoulli(layer_rng, 1 - self.rate, shape)

        mask = jax.vmap(keep)(rngs).reshape(x.shape)
        return jnp.where(mask, x / (1 - self.rate), jnp.zeros_like(x))
