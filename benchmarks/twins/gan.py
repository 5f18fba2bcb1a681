"""The dense GAN: a generator of ReLU layers, a discriminator of maxout layers."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.gan import Config
from gm_jax.families import adversarial
from gm_jax.keys import Use, derive, fold_in_each

_PIECES = 5


class Discriminator(nn.Module):
    """Maxout layers with dropout, whose masks are given."""

    def __init__(self, sizes: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(before, _PIECES * size) for before, size in zip(sizes, sizes[1:])
        )
        self.output = nn.Linear(sizes[-1], 1)

    def forward(self, x: torch.Tensor, masks: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return logits [B] of images [B, D]."""
        h = x * masks[0]
        for layer, mask in zip(self.layers, masks[1:]):
            h = layer(h).unflatten(-1, (-1, _PIECES)).amax(-1) * mask
        return self.output(h)[:, 0]


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.gan`, for images of 256 values.

    As `F.dropout` does, masks are drawn and divided by the share that is kept, before
    the product with them.
    """
    num_dims, latent = math.prod(image_shape), config.latent_dim
    generator = nn.Sequential(
        twins.mlp((latent, *config.hidden), 'relu'),
        nn.Linear(config.hidden[-1], num_dims), nn.Tanh(),
    )
    sizes = (num_dims, *config.discriminator_hidden)
    rates = [0.4 * config.dropout, *[config.dropout] * len(sizes[1:])]
    discriminator = Discriminator(sizes)
    g_optimizer = twins.adam(generator.parameters(), config)
    d_optimizer = twins.adam(discriminator.parameters(), config)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        twins.copy_mlp([*generator[0], generator[1]], params['generator'])
        maxouts = params['discriminator']
        for i, layer in enumerate(discriminator.layers):
            twins.copy_dense(layer, maxouts[f'Maxout_{i}']['Dense_0'])
        twins.copy_dense(discriminator.output, maxouts['Dense_0'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = [
            twins.example_rngs(fold_in_each(rng, turn), step, batch) for turn in (0, 1)
        ]
        uses = {
            'real': derive(rngs[0], Use.REAL), 'fake': derive(rngs[0], Use.FAKE),
            'generator': rngs[1],
        }
        masks = {
            f'{name}{i}': twins.dropout_mask(
                derive(keys, Use.DROPOUT), f'Dropout_{i}', rate, (size,)
            )
            for name, keys in uses.items()
            for i, (rate, size) in enumerate(zip(rates, sizes))
        }
        return masks | {
            f'z{turn}': np.asarray(adversarial.draw_z(config, rngs[turn]))
            for turn in (0, 1)
        }

    def draw(batch: int) -> dict[str, torch.Tensor]:
        masks = {
            f'{name}{i}': torch.empty(batch, size).bernoulli_(1 - rate).div_(1 - rate)
            for name in ('real', 'fake', 'generator')
            for i, (rate, size) in enumerate(zip(rates, sizes))
        }
        return masks | {f'z{turn}': prior(batch) for turn in (0, 1)}

    def prior(batch: int) -> torch.Tensor:
        return torch.empty(batch, latent).uniform_(-1, 1)

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        real_masks, fake_masks, masks = (
            [noise[f'{name}{i}'] for i in range(len(sizes))]
            for name in ('real', 'fake', 'generator')
        )
        with torch.no_grad():
            fake = generator(noise['z0'])
        d_optimizer.zero_grad(set_to_none=True)
        real_score = discriminator(x, real_masks)
        fake_score = discriminator(fake, fake_masks)
        d_loss = F.softplus(-real_score).mean() + F.softplus(fake_score).mean()
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad(set_to_none=True)
        score = discriminator(generator(noise['z1']), masks)
        if config.generator_loss == 'minimax':
            g_loss = -F.softplus(score).mean()
        else:
            g_loss = F.softplus(-score).mean()
        g_loss.backward(inputs=list(generator.parameters()))
        g_optimizer.step()
        return {
            'discriminator_loss': d_loss.detach(), 'generator_loss': g_loss.detach()
        }

    @torch.no_grad()
    def sample(num: int) -> torch.Tensor:
        return generator(prior(num))

    return Twin(
        {'generator': generator, 'discriminator': discriminator}, copy,
        load=lambda images: twins.unit_range(images).mul_(2).sub_(1), noise=noise,
        draw=draw, step=step, evaluate=None, sample=sample,
    )
