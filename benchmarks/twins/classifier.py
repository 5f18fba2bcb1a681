"""The convolutional classifier; labels come with the noise of a step."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.classifier import Config
from gm_jax.keys import Use, derive

_NUM_CLASSES = 10


class Classifier(nn.Module):
    """Strided convolutions with BatchNorm, and two dense layers."""

    def __init__(self, config: Config, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        *sides, channels = image_shape
        layers: list[nn.Module] = []
        for before, after in zip((channels, *config.maps), config.maps):
            layers += [
                nn.Conv2d(before, after, 4, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after), nn.ReLU(),
            ]
        self.convolutions = nn.Sequential(*layers)
        size = math.prod(side >> len(config.maps) for side in sides) * config.maps[-1]
        self.dense = nn.Linear(size, config.num_features)
        self.head = nn.Linear(config.num_features, _NUM_CLASSES)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features [B, F] of images [B, C, H, W]."""
        h = self.convolutions(x)
        # In the order of gm_jax: a view of what is channels last.
        return F.relu(self.dense(h.permute(0, 2, 3, 1).flatten(1)))


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.classifier`, for sides that two halvings divide."""
    model = Classifier(config, image_shape).to(memory_format=torch.channels_last)
    optimizer = twins.adam(model.parameters(), config)
    shape, rate = (config.num_features,), config.dropout

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        stats = others['batch_stats']['convolutions']
        found = params['convolutions']
        for i in range(len(config.maps)):
            convolution, norm = model.convolutions[3 * i], model.convolutions[3 * i + 1]
            kernel = found[f'Conv_{i}']['kernel']
            twins.assign(convolution.weight, np.transpose(kernel, (3, 2, 0, 1)))
            own, moments = (
                a[f'_AfterLayer_{i}']['BatchNorm_0'] for a in (found, stats)
            )
            twins.assign(norm.weight, own['scale'])
            twins.assign(norm.bias, own['bias'])
            twins.assign(norm.running_mean, moments['mean'])
            twins.assign(norm.running_var, moments['var'])
        twins.copy_dense(model.dense, params['dense'])
        twins.copy_dense(model.head, params['head'])

    def load(images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(255)
        return x.contiguous(memory_format=torch.channels_last)

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = derive(twins.example_rngs(rng, step, batch), Use.DROPOUT)
        return {'mask': twins.dropout_mask(rngs, 'drop', rate, shape)}

    def draw(batch: int) -> dict[str, torch.Tensor]:
        return {'mask': torch.empty(batch, *shape).bernoulli_(1 - rate).div_(1 - rate)}

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        logits = model.head(model.features(x) * noise['mask'])
        loss = F.cross_entropy(logits, noise['label'])
        loss.backward()
        optimizer.step()
        return {'loss': loss.detach()}

    @torch.no_grad()
    def evaluate(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        model.eval()
        logits = model.head(model.features(x))
        model.train()
        return F.cross_entropy(logits, noise['label'])

    return Twin(
        {'model': model}, copy, load, noise, draw, step, evaluate, sample=None
    )
