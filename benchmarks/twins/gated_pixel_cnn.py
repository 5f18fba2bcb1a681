"""The Gated PixelCNN, for grey images without a condition."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks import twins
from benchmarks.twins import Noise, Twin, pixels
from experiments.gated_pixel_cnn import Config


def make(
    config: Config, image_shape: tuple[int, int, int], num_values: int = 2
) -> Twin:
    """Make the twin of `experiments.gated_pixel_cnn`."""
    del image_shape
    model = pixels.Gated(
        num_values=num_values, features=config.features, num_layers=config.num_layers,
        first_kernel=config.first_kernel, kernels=config.kernels,
        head_features=config.head,
    )
    if num_values > 2:  # faster for the logits
        model = model.to(memory_format=torch.channels_last)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        pixels.copy_gated(model, params)

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        return pixels.negative_log_prob(model(pixels.encode(x, num_values)), x)

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss, copy=copy,
        load=lambda images: pixels.load(images, num_values),
    )
