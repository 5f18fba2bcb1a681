"""The PixelVAE of images of bits, without a warm-up of the KL term or free bits."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin, pixels
from experiments.pixel_vae import Config
from gm_jax.families.setting import feature_maps
from gm_jax.keys import Use, derive
from gm_jax.losses import likelihoods


class PixelVAE(nn.Module):
    """The encoder and the decoder."""

    def __init__(self, config: Config, height: int, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs, before = 1, config.encoder[0]
        for after in config.encoder:
            layers += [nn.Conv2d(inputs, before, 3, padding=1), nn.ReLU()]
            layers += [nn.Conv2d(before, after, 3, 2, padding=1), nn.ReLU()]
            inputs = before = after
            height, width = -(-height // 2), -(-width // 2)
        for _ in range(2):
            layers += [nn.Conv2d(before, before, 3, padding=1), nn.ReLU()]
        self.encoder = nn.Sequential(*layers)
        self.code_shape = before, height, width
        self.moments = nn.Linear(before * height * width, 2 * config.latent_dim)
        self.decoder = pixels.Gated(
            num_values=2, features=config.features or feature_maps(1),
            num_layers=config.decoder_layers, first_kernel=config.first_kernel,
            kernels=config.kernels, head_features=config.head,
            num_h=config.latent_dim, gated_head=True,
        )

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return mean and log variance [B, Z] of q(z|x)."""
        mean, logvar = self.moments(self.encoder(x).flatten(1)).chunk(2, dim=-1)
        return mean, logvar


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.pixel_vae`."""
    height, width, _ = image_shape
    model = PixelVAE(config, height, width)

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        found = params['encoder']
        convs = [layer for layer in model.encoder if isinstance(layer, nn.Conv2d)]
        for number, conv in enumerate(convs):
            pixels.copy_conv(conv, found[f'Conv3x3_{number}'])
        dense = found['GaussianLayer_0']['Dense_0']
        # From rows, columns and maps to maps, rows and columns.
        channels, height, width = model.code_shape
        kernel = dense['kernel'].reshape(height, width, channels, -1)
        kernel = kernel.transpose(2, 0, 1, 3).reshape(dense['kernel'].shape)
        twins.copy_dense(model.moments, {**dense, 'kernel': kernel})
        pixels.copy_gated(model.decoder, params['decoder'])

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        rngs = derive(twins.example_rngs(rng, step, batch), Use.LATENT)
        zero = jnp.zeros((batch, 1, config.latent_dim))
        return {'z': np.asarray(likelihoods.gaussian_sample(rngs, zero, zero))[:, 0]}

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        scaled = pixels.encode(x, 2)
        mean, logvar = model.encode(scaled)
        z = mean + torch.exp(0.5 * logvar) * noise['z']
        logits = model.decoder(scaled, z[:, :, None, None])
        kl = 0.5 * (mean ** 2 + logvar.exp() - logvar - 1).sum(-1)
        return pixels.negative_log_prob(logits, x) + kl.mean()

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss, copy=copy,
        load=lambda images: pixels.load(images, 2), noise=noise,
        draw=lambda batch: {'z': torch.randn(batch, config.latent_dim)},
    )
