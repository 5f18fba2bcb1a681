"""The deep autoencoder of dense layers."""

import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.autoencoder import POOL, Config


class Autoencoder(nn.Module):
    """The encoder and the decoder, and images whose codes are mixed to samples."""

    pool: torch.Tensor

    def __init__(self, config: Config, num_dims: int) -> None:
        super().__init__()
        sizes, latent = config.hidden, config.latent_dim
        self.encoder = twins.mlp((num_dims, *sizes), 'relu')
        self.code = nn.Linear(sizes[-1], latent)
        self.decoder = twins.mlp((latent, *sizes[::-1]), 'relu')
        self.output = nn.Linear(sizes[0], num_dims)
        self.register_buffer('pool', torch.zeros(POOL, num_dims))

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        """Return codes [B, Z]."""
        return self.code(self.encoder(x))

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return images [B, D] in [0, 1]."""
        return torch.sigmoid(self.output(self.decoder(z)))


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.autoencoder`, for images of 256 values."""
    model = Autoencoder(config, math.prod(image_shape))
    optimizer = twins.adam(model.parameters(), config)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        for name in ('encoder', 'decoder'):
            twins.copy_mlp(getattr(model, name), params[name])
        for name in ('code', 'output'):
            twins.copy_dense(getattr(model, name), params[name])
        model.pool.copy_(twins.unit_range(others['pool'].copy()))

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        x_hat = model.decode(model.encode(x))
        return F.mse_loss(x_hat, x, reduction='sum') / len(x)

    def sample(num: int) -> torch.Tensor:
        pairs = torch.randint(POOL, (2, num))
        ends = [model.encode(model.pool[rows]) for rows in pairs]
        return model.decode((ends[0] + ends[1]) / 2)

    return twins.of_loss(
        {'model': model}, optimizer, loss, copy=copy, load=twins.unit_range,
        sample=sample,
    )
