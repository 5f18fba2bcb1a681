"""The Wasserstein GAN with a gradient penalty, of the networks of the DCGAN.

All critic steps of one training step see the same minibatch here: gathering another by
index takes next to no time.
"""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import twins
from benchmarks.twins import Noise, Twin, dcgan
from experiments.wgan import Config
from gm_jax.keys import Use, derive, fold_in_each


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.wgan`, for the penalty and --network=dcgan."""
    networks = dcgan.Networks.make(config, image_shape, norm=False)
    g, d, g_optimizer, d_optimizer = networks

    def noise(rng: jax.Array, step: int, batch: int) -> dict[str, np.ndarray]:
        u = [
            jax.vmap(jax.random.uniform)(derive(
                twins.example_rngs(fold_in_each(rng, turn), step, batch), Use.POINT
            )) for turn in range(config.k)
        ]
        points = np.asarray(jnp.stack(u))[..., None, None, None]
        return {'z': dcgan.noise_z(config, rng, step, batch), 'u': points}

    def draw(batch: int) -> dict[str, torch.Tensor]:
        u = torch.rand(config.k, batch, 1, 1, 1)
        return {'z': dcgan.draw_z(config, batch), 'u': u}

    def critic_loss(x: torch.Tensor, z: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            fake = g(z)
        between = torch.lerp(x, fake, u).requires_grad_()
        slope, = torch.autograd.grad(d(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return d(fake).mean() - d(x).mean() + config.penalty * penalty

    def step(x: torch.Tensor, noise: Noise) -> dict[str, torch.Tensor]:
        d_losses = []
        for z, u in zip(noise['z'], noise['u']):
            d_optimizer.zero_grad(set_to_none=True)
            d_losses.append(critic_loss(x, z, u))
            d_losses[-1].backward()
            d_optimizer.step()
        g_optimizer.zero_grad(set_to_none=True)
        # The critic's own gradients are not needed.
        d.requires_grad_(False)
        g_loss = -d(g(noise['z'][-1])).mean()
        g_loss.backward()
        d.requires_grad_(True)
        g_optimizer.step()
        d_loss = sum(loss.detach() for loss in d_losses) / config.k
        return {'discriminator_loss': d_loss, 'generator_loss': g_loss.detach()}

    return Twin(
        {'generator': g, 'discriminator': d},
        lambda params, others: dcgan.copy(networks, params, others), dcgan.load,
        noise, draw, step, None, dcgan.sampler(g, config.latent_dim),
    )
