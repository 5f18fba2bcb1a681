"""The generative stochastic network, trained by walkbacks, for images of bits."""

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
from experiments.gsn import Config
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.sampling.gibbs import uniforms


class GSN(nn.Module):
    """Two hidden layers of tanh units, of which the second is noisy."""

    def __init__(self, config: Config, num_dims: int) -> None:
        super().__init__()
        first, second = config.layers
        self.std = config.hidden_noise
        self.w1 = nn.Parameter(nn.init.xavier_uniform_(torch.empty(num_dims, first)))
        self.w2 = nn.Parameter(nn.init.xavier_uniform_(torch.empty(first, second)))
        self.b0 = nn.Parameter(torch.zeros(num_dims))
        self.b1 = nn.Parameter(torch.zeros(first))
        self.b2 = nn.Parameter(torch.zeros(second))

    def forward(
        self, x: torch.Tensor, h2: torch.Tensor, before: torch.Tensor,
        after: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits [B, D] of a corrupted image, and the next h2."""
        h1 = torch.tanh(torch.addmm(torch.addmm(self.b1, x, self.w1), h2, self.w2.T))
        total = torch.addmm(self.b2, h1, self.w2)
        h2 = torch.tanh(total + self.std * before) + self.std * after
        return torch.addmm(self.b0, h1, self.w1.T), h2


def corrupt(x: torch.Tensor, u: torch.Tensor, rate: float) -> torch.Tensor:
    """Replace a share of the values by coins, by uniform numbers of the shape of x."""
    return torch.where(u < rate, (u < rate / 2).float(), x)


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.gsn` with two layers.

    The image that the last walkback would draw is not drawn, as nothing needs it.
    """
    model = GSN(config, math.prod(image_shape))
    optimizer = twins.adam(model.parameters(), config)
    num, num_dims, (_, second) = config.walkbacks, len(model.b0), config.layers

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        for name, parameter in model.named_parameters():
            twins.assign(parameter, params[name])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = derive(twins.example_rngs(rng, step, batch), Use.CHAIN)
        normal = jax.vmap(lambda rng: jax.random.normal(rng, (second,)))
        found: dict[str, jax.Array] = {}
        for t in range(num):
            own = fold_in_each(rngs, t)
            hidden = derive(own, Use.NOISE)
            found |= {
                f'corruption{t}': uniforms(derive(own, Use.CORRUPTION), num_dims),
                f'before{t}': normal(fold_in_each(hidden, 0)),
                f'after{t}': normal(fold_in_each(hidden, 1)),
                f'draw{t}': uniforms(derive(own, Use.DRAW), num_dims),
            }
        del found[f'draw{num - 1}']
        return {name: np.asarray(values) for name, values in found.items()}

    def draw(batch: int) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for t in range(num):
            found |= {
                f'corruption{t}': torch.rand(batch, num_dims),
                f'before{t}': torch.randn(batch, second),
                f'after{t}': torch.randn(batch, second),
            }
        return found | {f'draw{t}': torch.rand(batch, num_dims) for t in range(num - 1)}

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        h2, state, nats = torch.zeros(len(x), second), x, torch.zeros(())
        for t in range(num):
            corrupted = corrupt(state, noise[f'corruption{t}'], config.input_noise)
            logits, h2 = model(corrupted, h2, noise[f'before{t}'], noise[f'after{t}'])
            nats = nats + F.binary_cross_entropy_with_logits(
                logits, x, reduction='sum'
            ) / len(x)
            if t < num - 1:
                probability = torch.sigmoid(logits.detach())
                state = (noise[f'draw{t}'] < probability).float()
        return nats

    def sample(num_images: int) -> torch.Tensor:
        mean = torch.full((num_images, num_dims), 0.5)
        h2 = torch.zeros(num_images, second)
        for _ in range(config.chain_steps):
            x = torch.bernoulli(mean)
            logits, h2 = model(
                corrupt(x, torch.rand_like(x), config.input_noise), h2,
                torch.randn_like(h2), torch.randn_like(h2),
            )
            mean = torch.sigmoid(logits)
        return mean

    return twins.of_loss(
        {'model': model}, optimizer, loss, copy=copy, load=twins.flat, noise=noise,
        draw=draw, sample=sample,
    )
