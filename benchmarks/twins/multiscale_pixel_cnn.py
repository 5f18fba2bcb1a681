"""The multi-scale PixelCNN of images of bits, with both kinds of stages.

Samples of parallel stages take a pass for each pixel of the smallest image, and three
for each stage; those of raster stages would take one for each of all pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin, pixels
from benchmarks.twins.pixels import Params
from experiments.multiscale_pixel_cnn import Config


class Observer(nn.Module):
    """Residual blocks of 3 x 3 convolutions."""

    def __init__(self, inputs: int, features: int, num_blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, features, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.ReLU(), nn.Conv2d(features, features, 3, padding=1),
                nn.ReLU(), nn.Conv2d(features, features, 3, padding=1),
            ) for _ in range(num_blocks)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, E, H, W] to [B, F, H, W]."""
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return torch.relu(x)

    def copy(self, params: Params) -> None:
        """Take over the parameters of gm_jax."""
        convs = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d)]
        for number, conv in enumerate(convs):
            pixels.copy_conv(conv, params[f'Conv3x3_{number}'])


class ParallelStage(nn.Module):
    """Three groups of new pixels, each with a network of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        size = config.features
        self.observers = nn.ModuleList(
            Observer(n + 1, size, config.num_layers) for n in range(3)
        )
        self.to_logits = nn.ModuleList(
            pixels.head(size, config.head, 2) for _ in range(3)
        )

    def group(self, number: int, known: list[torch.Tensor]) -> torch.Tensor:
        """Return the logits of a group given the quarters before it."""
        known_pixels = pixels.encode(torch.cat(known, dim=1), 2)
        return self.to_logits[number](self.observers[number](known_pixels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of -log p of the new pixels of x."""
        parts = quarters(x)
        terms = (
            pixels.negative_log_prob(self.group(n, parts[:n + 1]), parts[n + 1])
            for n in range(3)
        )
        return sum(terms, torch.zeros(()))

    def sample(self, small: torch.Tensor) -> torch.Tensor:
        """Draw an image of twice the side."""
        parts = [small]
        for n in range(3):
            parts.append(torch.bernoulli(torch.sigmoid(self.group(n, parts))))
        batch, _, height, width = small.shape
        x = small.new_empty(batch, 1, 2 * height, 2 * width)
        for part, values in zip(quarters(x), parts):
            part.copy_(values)
        return x

    def copy(self, params: Params) -> None:
        """Take over the parameters of gm_jax."""
        for n in range(3):
            self.observers[n].copy(params[f'observers_{n}'])
            pixels.copy_head(self.to_logits[n], params[f'to_logits_{n}'])


class RasterStage(nn.Module):
    """The new pixels in raster order, given those of the smaller image."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.observer = Observer(2, config.features, config.num_layers)
        self.network = gated(config, num_h=config.features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean of -log p of the new pixels of x."""
        scaled = pixels.encode(x, 2)
        given = x.new_zeros(len(x), 2, *x.shape[2:])
        given[:, :1, ::2, ::2] = scaled[:, :, ::2, ::2]
        given[:, 1, ::2, ::2] = 1  # marks the smaller image
        logits = self.network(scaled, self.observer(given))
        new = [torch.cat(quarters(a)[1:], dim=3) for a in (logits, x)]
        return pixels.negative_log_prob(*new)

    def copy(self, params: Params) -> None:
        """Take over the parameters of gm_jax."""
        self.observer.copy(params['observer'])
        pixels.copy_gated(self.network, params['network'])


def gated(config: Config, num_h: int = 0) -> pixels.Gated:
    """Make a Gated PixelCNN."""
    return pixels.Gated(
        num_values=2, features=config.features, num_layers=config.num_layers,
        first_kernel=7, kernels=(3,), head_features=config.head, num_h=num_h,
    )


def quarters(x: torch.Tensor) -> list[torch.Tensor]:
    """Split [B, F, 2 H, 2 W] into four [B, F, H, W] by the parity of the position."""
    return [x[:, :, r::2, w::2] for r in (0, 1) for w in (0, 1)]


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.multiscale_pixel_cnn`."""
    height, width, _ = image_shape
    most = 2 ** config.num_stages
    parallel = config.stages == 'parallel'
    kind = ParallelStage if parallel else RasterStage
    base = gated(config)
    stages = nn.ModuleList(kind(config) for _ in range(config.num_stages))
    model = nn.ModuleDict({'base': base, 'stages': stages})
    model.to(memory_format=torch.channels_last)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        pixels.copy_gated(base, params['base'])
        for number, stage in enumerate(stages):
            stage.copy(params[f'stages_{number}'])

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        small = x[:, :, ::most, ::most]
        total = pixels.negative_log_prob(base(pixels.encode(small, 2)), small)
        for number, stage in enumerate(stages, 1):
            part = most // 2 ** number
            total = total + stage(x[:, :, ::part, ::part])
        return total

    def sample(num: int) -> torch.Tensor:
        x = torch.zeros(num, 1, height // most, width // most)
        for r in range(x.shape[2]):
            for w in range(x.shape[3]):
                logits = base(pixels.encode(x, 2))[:, :, r, w]
                x[:, :, r, w] = torch.bernoulli(torch.sigmoid(logits))
        for stage in stages:
            x = stage.sample(x)
        return x

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss, copy=copy,
        load=lambda images: pixels.load(images, 2), sample=sample if parallel else None,
    )
