"""MADE with one mask, for images of bits."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.made import Config
from gm_jax.models import made


class Masked(nn.Linear):
    """A dense layer without some of its connections."""

    mask: torch.Tensor

    def __init__(self, before: np.ndarray, after: np.ndarray, bias: bool) -> None:
        super().__init__(len(before), len(after), bias)
        mask = torch.from_numpy(before[None] <= after[:, None])
        self.register_buffer('mask', mask.float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, F] to [B, G]."""
        return F.linear(x, self.mask * self.weight, self.bias)


class MADE(nn.Module):
    """The network, from bits to logits."""

    def __init__(self, rank: np.ndarray, degrees: Sequence[np.ndarray]) -> None:
        super().__init__()
        layers, known = [], rank + 1
        for degree in degrees:
            layers += [Masked(known, degree, True), nn.ReLU()]
            known = degree
        self.hidden = nn.Sequential(*layers)
        self.output = Masked(known, rank, True)
        self.direct = Masked(rank + 1, rank, False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits [B, D]."""
        return self.output(self.hidden(x)) + self.direct(x)


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.made`; its sampler needs one pass per pixel."""
    masks = made.ascending(made.draw_masks(
        np.random.default_rng(config.seed), math.prod(image_shape), config.hidden,
        shuffle=False,
    ))
    model = MADE(*masks)
    optimizer = twins.adam(model.parameters(), config)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        layers = [layer for layer in model.hidden if isinstance(layer, Masked)]
        for i, layer in enumerate(layers, 1):
            layer_params = {'kernel': params[f'w{i}'], 'bias': params[f'b{i}']}
            twins.copy_dense(layer, layer_params)
        twins.copy_dense(model.output, {'kernel': params['v'], 'bias': params['c']})
        twins.copy_dense(model.direct, {'kernel': params['a']})

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        nats = F.binary_cross_entropy_with_logits(model(x), x, reduction='none')
        return nats.sum(-1).mean()

    return twins.of_loss({'model': model}, optimizer, loss, copy=copy, load=twins.flat)
