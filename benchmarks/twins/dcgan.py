"""The DCGAN: a step of the discriminator, then one of the generator on fresh noise."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.dcgan import Config
from gm_jax.families import adversarial
from gm_jax.keys import fold_in_each

__all__ = ['copy', 'draw_z', 'load', 'make', 'Networks', 'noise_z', 'sampler']


class Networks(NamedTuple):
    """Both players.

    Attributes:
        generator: maps z [B, Z, 1, 1] to images [B, C, H, W] in (-1, 1).
        discriminator: maps images to logits or scores [B, 1, 1, 1].
        g_optimizer: the optimizer of the generator.
        d_optimizer: that of the discriminator.
    """

    generator: nn.Sequential
    discriminator: nn.Sequential
    g_optimizer: torch.optim.Adam
    d_optimizer: torch.optim.Adam

    @classmethod
    def make(
        cls, config: Any, image_shape: tuple[int, int, int], *, norm: bool
    ) -> 'Networks':
        """Make them; `norm` is whether the discriminator has BatchNorm."""
        side, _, channels = image_shape
        g = _generator(config.latent_dim, config.features[::-1], side, channels)
        d = _discriminator(config.features, side, channels, norm=norm)
        for player in (g, d):
            player.to(memory_format=torch.channels_last)
        return cls(g, d, *(twins.adam(x.parameters(), config) for x in (g, d)))


def _generator(
    latent: int, features: Sequence[int], side: int, channels: int
) -> nn.Sequential:
    """Make the network from z [B, Z, 1, 1] to images [B, C, H, W] in (-1, 1)."""
    first, following = side // 2 ** len(features), (*features[1:], channels)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(latent, features[0], first, bias=False)
    ]
    for number, (before, after) in enumerate(zip(features, following), 1):
        last = number == len(features)
        layers += [
            nn.BatchNorm2d(before), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(before, after, 4, 2, 1, bias=last),
        ]
    return nn.Sequential(*layers, nn.Tanh())


def _discriminator(
    features: Sequence[int], side: int, channels: int, *, norm: bool
) -> nn.Sequential:
    """Make the network from images to logits [B, 1, 1, 1]."""
    layers: list[nn.Module] = []
    for number, (before, after) in enumerate(zip((channels, *features), features)):
        normalised = norm and number > 0
        layers.append(nn.Conv2d(before, after, 4, 2, 1, bias=not normalised))
        if normalised:
            layers.append(nn.BatchNorm2d(after))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(
        *layers, nn.Conv2d(features[-1], 1, side // 2 ** len(features))
    )


def copy(networks: Networks, params: Any, others: Mapping[str, Any]) -> None:
    """Take over the parameters of both players; running averages start alike."""
    del others
    _copy_layers(networks.generator, params['generator'], 'ConvTranspose')
    _copy_layers(networks.discriminator, params['discriminator'], 'Conv')


def _copy_layers(network: nn.Sequential, params: Any, convolution: str) -> None:
    numbers = {convolution: 0, 'BatchNorm': 0}

    def following(name: str) -> Any:
        numbers[name] += 1
        return params[f'{name}_{numbers[name] - 1}']

    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            found = following('BatchNorm')['BatchNorm_0']
            twins.assign(layer.weight, found['scale'])
            twins.assign(layer.bias, found['bias'])
        elif isinstance(layer, nn.ConvTranspose2d) and layer.stride == (1, 1):
            kernel = params['DenseGeneral_0']['kernel']  # [Z, H, W, F]
            twins.assign(layer.weight, kernel.transpose(0, 3, 1, 2))
        elif isinstance(layer, nn.Conv2d) and layer.stride == (1, 1):
            found = params['Dense_0']
            _, maps, *sides = layer.weight.shape
            kernel = found['kernel'].reshape(1, *sides, maps)
            twins.assign(layer.weight, kernel.transpose(0, 3, 1, 2))
            twins.assign(layer.bias, found['bias'])
        elif isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            found = following(convolution)
            kernel = found['kernel']  # [I, J, F, G]
            twins.assign(
                layer.weight, kernel.transpose(3, 2, 0, 1)
                if isinstance(layer, nn.Conv2d)
                # PyTorch flips kernels here, JAX does not.
                else kernel[::-1, ::-1].transpose(2, 3, 0, 1)
            )
            if layer.bias is not None:
                twins.assign(layer.bias, found['bias'])


def load(images: np.ndarray) -> torch.Tensor:
    """Return 8-bit images as [N, C, H, W] in [-1, 1], with channels last."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def noise_z(config: Any, rng: jax.Array, step: int, batch: int) -> np.ndarray:
    """Return the z of all turns of a step, [k + 1, B, Z, 1, 1]."""
    z = np.stack([
        adversarial.draw_z(
            config, twins.example_rngs(fold_in_each(rng, turn), step, batch)
        ) for turn in range(config.k + 1)
    ])
    return z[..., None, None]


def draw_z(config: Any, batch: int) -> torch.Tensor:
    """Draw the same from the uniform prior."""
    return 2 * torch.rand(config.k + 1, batch, config.latent_dim, 1, 1) - 1


def sampler(generator: nn.Sequential, latent: int) -> Any:
    """Return the function that draws images, by the running averages of BatchNorm."""

    @torch.no_grad()
    def sample(num: int) -> torch.Tensor:
        generator.eval()
        images = generator(2 * torch.rand(num, latent, 1, 1) - 1)
        generator.train()
        return images

    return sample


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.dcgan`, for the non-saturating loss and k = 1."""
    networks = Networks.make(config, image_shape, norm=True)
    g, d, g_optimizer, d_optimizer = networks

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        with torch.no_grad():
            fake = g(noise['z'][0])
        d_optimizer.zero_grad(set_to_none=True)
        d_loss = F.softplus(-d(x)).mean() + F.softplus(d(fake)).mean()
        d_loss.backward()
        d_optimizer.step()
        g_optimizer.zero_grad(set_to_none=True)
        # The discriminator's own gradients are not needed.
        d.requires_grad_(False)
        g_loss = F.softplus(-d(g(noise['z'][1]))).mean()
        g_loss.backward()
        d.requires_grad_(True)
        g_optimizer.step()
        return {
            'discriminator_loss': d_loss.detach(), 'generator_loss': g_loss.detach()
        }

    return Twin(
        {'generator': g, 'discriminator': d},
        lambda params, others: copy(networks, params, others), load,
        lambda *args: {'z': noise_z(config, *args)},
        lambda batch: {'z': draw_z(config, batch)},
        step, None, sampler(g, config.latent_dim),
    )
