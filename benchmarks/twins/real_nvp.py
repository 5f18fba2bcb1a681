"""RealNVP: affine couplings at several resolutions, with uniform dequantization."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.real_nvp import Config
from gm_jax.keys import Use, derive, fold_in_each

_NUM_VALUES = 256
Mapped = tuple[torch.Tensor, torch.Tensor]  # a result, and its log |det| [B] or []


class Block(nn.Module):
    """A gated residual block."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)
        self.gated = nn.Conv2d(features, 2 * features, 1)

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        """Map [B, F, H, W] to the same shape."""
        return h + F.glu(self.gated(F.elu(self.conv(F.elu(h)))), dim=1)


class Step(nn.Module):
    """A normalisation and a coupling."""

    def __init__(
        self, channels: int, config: Config, *, by_channel: bool, flip: bool
    ) -> None:
        super().__init__()
        seen = channels // 2 if by_channel else channels
        self.by_channel, self.flip = by_channel, flip
        self.mean, self.log_scale, self.bound = (
            nn.Parameter(torch.zeros(1, size, 1, 1)) for size in (
                channels, channels, seen
            )
        )
        self.network = nn.Sequential(
            nn.Conv2d(seen, config.features, 3, padding=1),
            *(Block(config.features) for _ in range(config.num_blocks)),
            nn.ELU(), nn.Conv2d(config.features, 2 * seen, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> Mapped:
        """Apply the map to x [B, C, H, W]."""
        x = (x - self.mean) * self.log_scale.exp()
        of_norm = math.prod(x.shape[2:]) * self.log_scale.sum()
        x, log_scale = self._couple(x, inverse=False)
        return x, of_norm + log_scale.flatten(1).sum(1)

    def inverse(self, x: torch.Tensor) -> torch.Tensor:
        """Undo it."""
        x, _ = self._couple(x, inverse=True)
        return x * (-self.log_scale).exp() + self.mean

    def _couple(self, x: torch.Tensor, *, inverse: bool) -> Mapped:
        """Move half of the values; return the log-scales of these too."""
        if self.by_channel:
            stays, moved = x.chunk(2, dim=1)[::-1 if self.flip else 1]
            shift, log_scale = self._given(stays)
        else:
            mask = self._mask(*x.shape[2:])
            moved, (shift, log_scale) = x, self._given(mask * x)
            shift, log_scale = (1 - mask) * shift, (1 - mask) * log_scale
        if inverse:
            moved = (moved - shift) * torch.exp(-log_scale)
        else:
            moved = moved * torch.exp(log_scale) + shift
        if self.by_channel:
            parts = (moved, stays) if self.flip else (stays, moved)
            return torch.cat(parts, dim=1), log_scale
        return moved, log_scale

    def _given(self, seen: torch.Tensor) -> Mapped:
        """Return shift and log-scale."""
        shift, raw = self.network(seen).chunk(2, dim=1)
        return shift, self.bound * torch.tanh(raw / 2)

    def _mask(self, height: int, width: int) -> torch.Tensor:
        """Return ones [H, W] where x stays."""
        odd = (torch.arange(height)[:, None] + torch.arange(width)) % 2 == 1
        return (odd == self.flip).float()

    def copy(self, params: Any) -> None:
        """Take over the parameters."""
        norm, coupling = params['norm'], params['coupling']
        for name, values in (*norm.items(), ('bound', coupling['bound'])):
            twins.assign(getattr(self, name), values[None, :, None, None])
        convolutions = [x for x in self.network.modules() if isinstance(x, nn.Conv2d)]
        for number, layer in enumerate(convolutions):
            found = coupling['network'][f'Conv_{number}']
            twins.assign(layer.weight, found['kernel'].transpose(3, 2, 0, 1))
            twins.assign(layer.bias, found['bias'])


def squeeze(x: torch.Tensor) -> torch.Tensor:
    """Stack the pixels of each 2 x 2 block: [B, C, H, W] to [B, 4 C, H/2, W/2]."""
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # [B, C, H/2, 2, W/2, 2]
    return x.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)


def unsqueeze(x: torch.Tensor) -> torch.Tensor:
    """Undo `squeeze`."""
    x = x.unflatten(1, (2, 2, -1)).permute(0, 3, 4, 1, 5, 2)
    return x.flatten(4, 5).flatten(2, 3)


class RealNVP(nn.Module):
    """The flow of 8-bit images."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        if config.checkerboard or config.dequantization != 'uniform':
            raise ValueError('the twin has neither of these')
        height, width, channels = image_shape
        self.alpha, self.whole_scales = config.alpha, config.whole_scales
        self.scales, self.inner_shapes = nn.ModuleList(), []
        for scale, num in enumerate(config.channelwise):
            height, width, channels = height // 2, width // 2, 4 * channels
            self.scales.append(nn.ModuleList(
                Step(channels, config, by_channel=True, flip=i % 2 == 1)
                for i in range(num)
            ))
            if scale >= config.whole_scales:
                channels //= 2
                self.inner_shapes.append((channels, height, width))
        self.inner_shapes.insert(0, (channels, height, width))
        self.last = nn.ModuleList(
            Step(channels, config, by_channel=False, flip=i % 2 == 1)
            for i in range(config.last)
        )

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        """Return log p(y) [B] of y [B, C, H, W] in [0, 1]."""
        log_p = torch.log(self.alpha + (1 - 2 * self.alpha) * y)
        log_q = torch.log(self.alpha + (1 - 2 * self.alpha) * (1 - y))
        x = log_p - log_q
        total = (math.log(1 - 2 * self.alpha) - log_p - log_q).flatten(1).sum(1)
        out = []
        for scale, steps in enumerate(self.scales):
            x = squeeze(x)
            for number, step in enumerate(steps):
                x, log_det = step(x)
                total = total + log_det
                if number % 2 == 1:
                    x = torch.cat([x[:, ::2], x[:, 1::2]], dim=1)
            if scale >= self.whole_scales:
                # Two pixels of each block, on a diagonal, and the two others.
                first, second, third, fourth = x.chunk(4, dim=1)
                x = torch.cat([first, fourth], dim=1)
                out.append(torch.cat([second, third], dim=1))
        for step in self.last:
            x, log_det = step(x)
            total = total + log_det
        z = torch.cat([part.flatten(1) for part in (x, *out)], dim=1)
        return total - 0.5 * (z.square() + math.log(2 * math.pi)).sum(1)

    def invert(self, z: torch.Tensor) -> torch.Tensor:
        """Map z [B, D] to images y [B, C, H, W]."""
        sizes = [math.prod(shape) for shape in self.inner_shapes]
        x, *out = (
            part.unflatten(1, shape)
            for part, shape in zip(z.split(sizes, dim=1), self.inner_shapes)
        )
        for step in reversed(self.last):
            x = step.inverse(x)
        for scale, steps in reversed(list(enumerate(self.scales))):
            if scale >= self.whole_scales:
                first, fourth = x.chunk(2, dim=1)
                x = torch.cat([first, out.pop(), fourth], dim=1)
            for number, step in reversed(list(enumerate(steps))):
                if number % 2 == 1:
                    x = torch.stack(x.chunk(2, dim=1), dim=2).flatten(1, 2)
                x = step.inverse(x)
            x = unsqueeze(x)
        return (torch.sigmoid(x) - self.alpha) / (1 - 2 * self.alpha)

    def copy(self, params: Any, others: Mapping[str, Any]) -> None:
        """Take over the parameters."""
        del others
        flow = params['flow']
        for scale, steps in enumerate(self.scales):
            for number, step in enumerate(steps):
                step.copy(flow[f'after_{scale}_{number}'])
        for number, step in enumerate(self.last):
            step.copy(flow[f'last_scale_{number}'])


def load(images: np.ndarray) -> torch.Tensor:
    """Return integers as [N, C, H, W] float32."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().contiguous()


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.real_nvp`, for 8-bit images."""
    model = RealNVP(config, image_shape)
    num_dims, (height, width, channels) = math.prod(image_shape), image_shape

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        first_chunk = jnp.zeros(batch, jnp.int32)
        rngs = derive(
            fold_in_each(twins.example_rngs(rng, step, batch), first_chunk),
            Use.DEQUANTIZATION,
        )
        u = jax.vmap(lambda rng: jax.random.uniform(rng, image_shape))(rngs)
        return {'u': np.asarray(u).transpose(0, 3, 1, 2)}

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        log_density = model((x + noise['u']) / _NUM_VALUES)
        return num_dims * math.log(_NUM_VALUES) - log_density.mean()

    def sample(num: int) -> torch.Tensor:
        y = model.invert(torch.randn(num, num_dims))
        return (y * _NUM_VALUES).floor().clamp(0, _NUM_VALUES - 1)

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss,
        copy=model.copy, noise=noise, load=load, sample=sample,
        draw=lambda batch: {'u': torch.rand(batch, channels, height, width)},
    )
