"""The adversarial autoencoder of dense layers, without labels or categories."""

import dataclasses
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
from experiments.adversarial_autoencoder import Config, draw_z
from gm_jax.keys import fold_in_each


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.adversarial_autoencoder`, for 256 values."""
    num_dims, latent, sizes = math.prod(image_shape), config.latent_dim, config.hidden

    def network(inputs: int, outputs: int) -> nn.Sequential:
        hidden = twins.mlp((inputs, *sizes), 'relu')
        return hidden.append(nn.Linear(sizes[-1], outputs))

    encoder, decoder = network(num_dims, latent), network(latent, num_dims)
    discriminator = network(latent, 1)
    modules = {
        'encoder': encoder, 'decoder': decoder, 'z_discriminator': discriminator
    }
    autoencoder = [*encoder.parameters(), *decoder.parameters()]
    of_game = dataclasses.replace(
        config, learning_rate=config.adversarial_learning_rate,
        adam_b1=config.adversarial_b1,
    )
    optimizer = twins.adam(autoencoder, config)
    d_optimizer = twins.adam(discriminator.parameters(), of_game)
    e_optimizer = twins.adam(encoder.parameters(), of_game)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        for name, module in modules.items():
            twins.copy_mlp(module[:-1], params[name]['DenseStack_0'])
            twins.copy_dense(module[-1], params[name]['Dense_0'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = twins.example_rngs(fold_in_each(rng, 1), step, batch)
        return {'z': np.asarray(draw_z(config, rngs))}

    def reconstruct(x: torch.Tensor) -> torch.Tensor:
        x_hat = torch.sigmoid(decoder(encoder(x)))
        return F.mse_loss(x_hat, x, reduction='sum') / len(x)

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        optimizer.zero_grad(set_to_none=True)
        loss = reconstruct(x)
        loss.backward()
        optimizer.step()
        d_optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            z = encoder(x)
        real, fake = discriminator(noise['z']), discriminator(z)
        d_loss = F.softplus(-real).mean() + F.softplus(fake).mean()
        d_loss.backward()
        d_optimizer.step()
        e_optimizer.zero_grad(set_to_none=True)
        e_loss = F.softplus(-discriminator(encoder(x))).mean()
        e_loss.backward(inputs=list(encoder.parameters()))
        e_optimizer.step()
        losses = {
            'autoencoder_loss': loss, 'discriminator_loss': d_loss,
            'encoder_loss': e_loss,
        }
        return {name: value.detach() for name, value in losses.items()}

    @torch.no_grad()
    def evaluate(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        return reconstruct(x)

    @torch.no_grad()
    def sample(num: int) -> torch.Tensor:
        return torch.sigmoid(decoder(torch.randn(num, latent)))

    return Twin(
        modules, copy, twins.unit_range, noise,
        lambda batch: {'z': torch.randn(batch, latent)}, step, evaluate, sample,
    )
