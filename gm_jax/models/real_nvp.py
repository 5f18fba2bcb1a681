"""RealNVP: affine couplings at several resolutions.

Dinh et al. 2017, Density estimation using Real NVP, https://arxiv.org/abs/1605.08803.
A scale is

    couplings with checkerboard masks, at the resolution that it gets
    squeeze:  [H, W, C] -> [H/2, W/2, 4 C]
    couplings with channel-wise masks
    factor out:  half of the values go to z, the others to the next scale

and the last scale has couplings with checkerboard masks only. Each coupling comes after
a normalisation by channel. The first map is the logit of a + (1 - 2 a) y.

    model = RealNVP(image_shape=(28, 28, 1))
    variables = model.init(rng, y)  # a first batch y [B, H, W, C] in [0, 1]
    z, log_det = model.apply(variables, y)  # [B, D], [B]
    y, minus_log_det = model.apply(variables, z, method='inverse')

NOTE: the paper normalises by moving averages over batches; here ActNorm does (Glow).
Its networks have batch and weight normalisation; these are gated residual networks. Its
channel-wise masks always split the same halves; here a shuffle after every second
coupling changes the halves.
"""

import math
from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from gm_jax.layers import coupling, transforms
from gm_jax.layers.transforms import ALTERNATIVE

__all__ = ['RealNVP']


class RealNVP(nn.Module):
    """The flow z = f(y), its log-determinant, and its inverse."""

    image_shape: tuple[int, int, int]  # H, W, C
    checkerboard: int = 3  # couplings of each scale before its squeeze
    channelwise: Sequence[int] = (3,)  # couplings of each scale after its squeeze
    last: int = 4  # couplings of the last scale
    whole_scales: int = 0  # first scales that factor nothing out
    features: int = 64  # feature maps of the networks
    num_blocks: int = 8  # residual blocks of each network
    alpha: float = 0.05  # a
    dtype: jax.typing.DTypeLike = jnp.float32

    def setup(self) -> None:
        """Make the couplings."""
        def steps(num: int, by_channel: bool) -> list[coupling.Step]:
            return [
                coupling.Step(
                    by_channel, i % 2 == 1, self.features, self.num_blocks,
                    shuffle=by_channel and i % 2 == 1, dtype=self.dtype,
                )
                for i in range(num)
            ]

        self.before = [steps(self.checkerboard, False) for _ in self.channelwise]
        self.after = [steps(num, True) for num in self.channelwise]
        self.last_scale = steps(self.last, False)

    def __call__(self, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map images to z.

        Args:
            y: [B, H, W, C] in [0, 1].

        Returns:
            z [B, D], and log |det dz / dy| [B] in nats.
        """
        chex.assert_shape(y, (None, *self.image_shape))
        x, log_det = transforms.logit(y, self.alpha)
        factored = []
        for scale, (before, after) in enumerate(zip(self.before, self.after)):
            x, log_det = coupling.run(before, x, log_det)
            x, _ = transforms.squeeze(x)
            x, log_det = coupling.run(after, x, log_det)
            if scale >= self.whole_scales:
                x, out = _factor_out(x)
                factored.append(out)
        x, log_det = coupling.run(self.last_scale, x, log_det)
        parts = [a.reshape(len(y), -1) for a in (x, *factored)]
        return jnp.concatenate(parts, axis=1), log_det

    def inverse(self, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Map z [B, D] to images y [B, H, W, C], with log |det dy / dz| [B]."""
        x, *factored = self._parts(z)
        log_det = jnp.zeros(len(z), z.dtype)
        x, log_det = coupling.run(self.last_scale, x, log_det, inverse=True)
        for scale in reversed(range(len(self.channelwise))):
            if scale >= self.whole_scales:
                x = _factor_in(x, factored.pop())
            x, log_det = coupling.run(self.after[scale], x, log_det, inverse=True)
            x, _ = transforms.unsqueeze(x)
            x, log_det = coupling.run(self.before[scale], x, log_det, inverse=True)
        y, of_logit = transforms.logit_inverse(x, self.alpha)
        return y, log_det + of_logit

    def _parts(self, z: jax.Array) -> list[jax.Array]:
        """Split z [B, D] into the last scale and what each scale has factored out."""
        chex.assert_shape(z, (None, math.prod(self.image_shape)))
        height, width, channels = self.image_shape
        shapes = []
        for scale in range(len(self.channelwise)):
            height, width, channels = height // 2, width // 2, 4 * channels
            if scale >= self.whole_scales:
                channels //= 2
                shapes.append((height, width, channels))
        shapes.insert(0, (height, width, channels))
        parts, start = [], 0
        for shape in shapes:
            size = math.prod(shape)
            parts.append(z[:, start:start + size].reshape(-1, *shape))
            start += size
        return parts


def _factor_out(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Split the channels of x [B, H, W, 4 C] into halves.

    Of four equal parts the first half has the first and the last. If the shuffles
    before restore the order of `squeeze`, each half has two pixels of each block, on a
    diagonal, as in the paper; otherwise it has channels of all four.
    """
    x, _ = transforms.squeeze(transforms.unsqueeze(x)[0], ALTERNATIVE)
    first, second = jnp.split(x, 2, axis=-1)
    return first, second


def _factor_in(first: jax.Array, second: jax.Array) -> jax.Array:
    """Undo `_factor_out`."""
    x = jnp.concatenate([first, second], axis=-1)
    return transforms.squeeze(transforms.unsqueeze(x, ALTERNATIVE)[0])[0]
