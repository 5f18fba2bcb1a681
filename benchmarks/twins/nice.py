"""NICE: additive couplings with uniform dequantization."""

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
from experiments.nice import Config
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.sampling.gibbs import uniforms


class NICE(nn.Module):
    """The flow, for an even number of couplings."""

    def __init__(self, config: Config, num_dims: int) -> None:
        super().__init__()
        halves, sizes = (num_dims // 2, num_dims - num_dims // 2), config.hidden
        self.shifts = nn.ModuleList(
            twins.mlp((halves[1 - i % 2], *sizes), 'relu').append(
                nn.Linear(sizes[-1], halves[i % 2])
            )
            for i in range(config.num_couplings)
        )
        self.log_scale = nn.Parameter(torch.zeros(num_dims))

    def forward(self, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return z [B, D], and the log-determinant []."""
        of_seen, of_moved = self._scales()
        seen, moved = y[:, ::2] * of_seen.exp(), y[:, 1::2] * of_moved.exp()
        for shift in self.shifts:
            # A network sees values of y, and its shift is in units of z.
            seen, moved = moved + shift(seen * (-of_seen).exp()), seen
            of_seen, of_moved = of_moved, of_seen
        return torch.cat([seen, moved], dim=1), self.log_scale.sum()

    def inverse(self, z: torch.Tensor) -> torch.Tensor:
        """Return y [B, D]."""
        of_seen, of_moved = self._scales()
        num = z.shape[1] // 2
        seen, moved = z[:, :-num], z[:, -num:]
        for shift in reversed(self.shifts):
            of_seen, of_moved = of_moved, of_seen
            seen, moved = moved, seen - shift(moved * (-of_seen).exp())
        y = torch.empty_like(z)
        y[:, ::2] = seen * (-of_seen).exp()
        y[:, 1::2] = moved * (-of_moved).exp()
        return y

    def _scales(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-scales of the even and of the odd values."""
        num = self.log_scale.shape[0] // 2
        return self.log_scale[:-num], self.log_scale[-num:]


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.nice`, for images of 256 values."""
    num_dims = math.prod(image_shape)
    model = NICE(config, num_dims)
    optimizer = twins.adam(model.parameters(), config)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        for i, shift in enumerate(model.shifts):
            assert isinstance(shift, nn.Sequential)
            twins.copy_mlp(shift, params['flow'][f'shifts_{i}'])
        twins.assign(model.log_scale, params['flow']['scale']['log_scale'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = fold_in_each(twins.example_rngs(rng, step, batch), 0)
        return {'u': np.asarray(uniforms(derive(rngs, Use.DEQUANTIZATION), num_dims))}

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        z, log_det = model((x + noise['u']) / 256)
        log_prior = -(z + 2 * F.softplus(-z)).sum(1)
        return num_dims * math.log(256) - log_det - log_prior.mean()

    def sample(num: int) -> torch.Tensor:
        y = model.inverse(torch.logit(torch.rand(num, num_dims)))
        return (y * 256).floor().clamp(0, 255)

    return twins.of_loss(
        {'model': model}, optimizer, loss, copy=copy, load=twins.flat, noise=noise,
        draw=lambda batch: {'u': torch.rand(batch, num_dims)}, sample=sample,
    )
