"""The Gated PixelCNN, for grey images without a condition."""

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.twins import Twin, pixels
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

    return pixels.twin(model, config, num_values, copy)
