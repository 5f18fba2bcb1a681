"""The VAE of one latent layer between dense layers, by the ELBO or the IWAE bound."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.vae import Config
from gm_jax.keys import Use, derive
from gm_jax.losses import likelihoods


class VAE(nn.Module):
    """The encoder and the decoder."""

    def __init__(self, config: Config, num_dims: int) -> None:
        super().__init__()
        sizes, (latent,) = config.hidden, config.latent_dims
        self.encoder = twins.mlp((num_dims, *sizes), config.activation)
        self.moments = nn.Linear(sizes[-1], 2 * latent)
        self.decoder = twins.mlp((latent, *sizes[::-1]), config.activation)
        self.output = nn.Linear(sizes[0], num_dims)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance [B, Z] of q(z|x)."""
        mean, logvar = self.moments(self.encoder(x)).chunk(2, dim=-1)
        return mean, logvar

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Return logits [..., D]."""
        return self.output(self.decoder(z))


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.vae`, for images of bits."""
    model = VAE(config, math.prod(image_shape))
    optimizer = twins.adam(model.parameters(), config)
    num, (latent,) = config.k, config.latent_dims

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        for name in ('encoder', 'decoder'):
            twins.copy_mlp(getattr(model, name), params[name])
        twins.copy_dense(model.moments, params['posterior']['Dense_0'])
        twins.copy_dense(model.output, params['output'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = derive(twins.example_rngs(rng, step, batch), Use.LATENT)
        zero = jnp.zeros((batch, num, latent))
        return {'z': np.asarray(likelihoods.gaussian_sample(rngs, zero, zero))}

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        mean, logvar = model.encode(x)
        z = mean[:, None] + torch.exp(0.5 * logvar[:, None]) * noise['z']
        target = x[:, None].expand(-1, num, -1)
        log_px = -F.binary_cross_entropy_with_logits(
            model.decode(z), target, reduction='none'
        ).sum(-1)
        if config.objective == 'elbo':
            kl = 0.5 * (mean ** 2 + logvar.exp() - logvar - 1).sum(-1)
            return (kl - log_px.mean(1)).mean()
        log_ratio = 0.5 * (z ** 2 - noise['z'] ** 2 - logvar[:, None]).sum(-1)
        log_w = log_px - log_ratio
        return (math.log(num) - torch.logsumexp(log_w, dim=1)).mean()

    def sample(num: int) -> torch.Tensor:
        return torch.sigmoid(model.decode(torch.randn(num, latent)))

    return twins.of_loss(
        {'model': model}, optimizer, loss, copy=copy, noise=noise, load=twins.flat,
        draw=lambda batch: {'z': torch.randn(batch, num, latent)}, sample=sample,
    )
