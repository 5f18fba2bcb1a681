"""The PixelCNN, for grey images without a condition."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from benchmarks.twins import Twin, pixels
from benchmarks.twins.pixels import Params
from gm_jax.families.pixel_cnn import Config
from gm_jax.families.setting import feature_maps

__all__ = ['CausalConv', 'make', 'PixelCNN', 'twin']


class CausalConv(nn.Module):
    """A k x k convolution under mask A (`strict`) or B, without the masked taps."""

    def __init__(
        self, inputs: int, features: int, kernel: int, strict: bool = False
    ) -> None:
        super().__init__()
        half, own = kernel // 2, int(not strict)
        self.pad_above = nn.ZeroPad2d((half, half, half, -1))
        self.above = nn.Conv2d(inputs, features, (half, kernel))
        self.pad_left = nn.ZeroPad2d((half, own - 1, 0, 0))
        self.left = nn.Conv2d(inputs, features, (1, half + own), bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, F, H, W] to [B, G, H, W]."""
        return self.above(self.pad_above(x)) + self.left(self.pad_left(x))

    def copy(self, params: Params) -> None:
        """Take over the parameters of a `MaskedConv`."""
        pixels.copy_conv(self.above, params['above'])
        pixels.copy_left(self.left, params)


class PixelCNN(nn.Module):
    """The network, from images in [-1, 1] to logits."""

    def __init__(
        self, config: Config, num_values: int, conv: Callable[..., nn.Module]
    ) -> None:
        super().__init__()
        h = config.features or feature_maps(1)
        self.first = conv(1, 2 * h, config.first_kernel, strict=True)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(2 * h, h, 1),
                nn.ReLU(), conv(h, h, config.kernel),
                nn.ReLU(), nn.Conv2d(h, 2 * h, 1),
            ) for _ in range(config.num_blocks)
        )
        self.to_logits = pixels.head(2 * h, config.head, num_values)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, 1, H, W] to logits [B, 1 or V, H, W]."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.to_logits(x)


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.pixel_cnn`, for images of bits."""
    del image_shape
    return twin(config, 2, CausalConv)


def twin(config: Config, num_values: int, conv: Callable[..., nn.Module]) -> Twin:
    """Make the twin of a network with these causal convolutions."""
    model = PixelCNN(config, num_values, conv).to(memory_format=torch.channels_last)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        model.first.copy(params['first'])
        for number, block in enumerate(model.blocks):
            found = params[f'blocks_{number}']
            pixels.copy_conv(block[1], found['reduce'])
            block[3].copy(found['conv'])
            pixels.copy_conv(block[5], found['expand'])
        pixels.copy_head(model.to_logits, params['to_logits'])

    return pixels.twin(model, config, num_values, copy)
