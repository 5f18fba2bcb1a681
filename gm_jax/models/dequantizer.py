"""A small conditional flow that learns the noise of dequantization, q(v|x).

Ho et al. 2019, Flow++: Improving Flow-Based Generative Models with Variational
Dequantization and Architecture Design, sec. 3.1, https://arxiv.org/abs/1902.00275.
Uniform noise becomes v in (0, 1) by a logit, couplings whose networks see the image x,
and a sigmoid. Before training it stays uniform.

    model = Dequantizer(image_shape=(28, 28, 1), num_values=256)
    v, log_det = model.apply(variables, u, x)  # u [B, H, W, C] uniform, x integers

log q(v|x) is then -log_det: see `losses.dequantization.variational`.
"""

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import transforms
from gm_jax.layers.activations import elu
from gm_jax.layers.coupling import Coupling
from gm_jax.layers.pixels import encode

__all__ = ['Dequantizer']

# Uniform noise of float32 is a multiple of 2^-23: this keeps it away from 0 and 1.
_ALPHA = 2.0**-24


class Dequantizer(nn.Module):
    """The conditional flow v = f(u; x)."""

    image_shape: tuple[int, int, int]  # H, W, C
    num_values: int  # V
    num_couplings: int = 4
    features: int = 16  # feature maps of the networks
    num_blocks: int = 1
    dtype: jax.typing.DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, u: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map uniform noise to the noise of an image.

        Args:
            u: [B, H, W, C] in [0, 1).
            x: [B, H, W, C] integers in [0, V).

        Returns:
            v [B, H, W, C] in [0, 1], and log |det dv / du| [B] in nats.
        """
        chex.assert_shape([u, x], (None, *self.image_shape))
        context = encode(x, self.num_values)
        v, log_det = transforms.logit(u, _ALPHA)
        # Convolutions at half the resolution take a quarter of the time.
        halves = not (u.shape[1] % 2 or u.shape[2] % 2)
        if halves:
            v, context = (transforms.squeeze(a)[0] for a in (v, context))
        context = nn.Conv(self.features, (3, 3), dtype=self.dtype)(context)
        context = elu(context)
        for i in range(self.num_couplings):
            coupling = Coupling(
                halves, i % 2 == 1, self.features, self.num_blocks, self.dtype
            )
            v, more = coupling(v, context)
            log_det = log_det + more
        if halves:
            v, _ = transforms.unsqueeze(v)
        v, more = transforms.sigmoid(v)
        return v, log_det + more
