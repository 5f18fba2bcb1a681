"""Speed of a training step of the DCGAN against PyTorch, on this machine.

Both sides train the same networks (4x4 kernels, BatchNorm, z with 100 dimensions) with
Adam on the same random colour images: one step of the discriminator, then one of the
generator on fresh noise, as in the paper. They take turns as in
`benchmarks.train_step`.

Usage:
    python -m benchmarks.dcgan --out=results/bench_dcgan.json
"""

import argparse
import json
import pathlib
import shlex
import sys
import time

import jax
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.machine import device_name
from benchmarks.train_step import (
    Runner,
    compare,
    gm_jax_runner,
    prepare_torch,
    timed,
    torch_device,
    torch_wait,
)
from experiments import dcgan
from gm_jax.training import dispatch

NUM_IMAGES, LATENT = 2_000, 100


def torch_generator(features: tuple[int, ...], side: int) -> nn.Sequential:
    """Make the generator: z [B, Z, 1, 1] to images [B, 3, side, side]."""
    first = side // 2 ** len(features)
    layers: list[nn.Module] = [
        nn.ConvTranspose2d(LATENT, features[0], first, bias=False)
    ]
    for size, following in zip(features, (*features[1:], 3)):
        last = following == 3
        layers += [
            nn.BatchNorm2d(size), nn.ReLU(inplace=True),
            nn.ConvTranspose2d(size, following, 4, 2, 1, bias=last),
        ]
    return nn.Sequential(*layers, nn.Tanh())


def torch_discriminator(features: tuple[int, ...], side: int) -> nn.Sequential:
    """Make the discriminator: images to logits [B, 1, 1, 1]."""
    layers: list[nn.Module] = []
    for before, size in zip((3, *features), features):
        layers.append(nn.Conv2d(before, size, 4, 2, 1, bias=before == 3))
        if before != 3:
            layers.append(nn.BatchNorm2d(size))
        layers.append(nn.LeakyReLU(0.2, inplace=True))
    return nn.Sequential(
        *layers, nn.Conv2d(features[-1], 1, side // 2 ** len(features))
    )


def torch_runner(config: dcgan.Config, images: np.ndarray) -> Runner:
    """Make the PyTorch loop: channels-last, with fused Adam, on every core.

    Args:
        config: the settings.
        images: [N, H, W, 3] uint8.

    Returns:
        A Runner that goes on from where its last call ended.
    """
    prepare_torch()
    device = torch_device()
    features, side = config.features, images.shape[1]
    data = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
    data = data.contiguous(memory_format=torch.channels_last)
    players = torch_generator(features[::-1], side), torch_discriminator(features, side)
    g, d = (player.to(device, memory_format=torch.channels_last) for player in players)
    g_optimizer, d_optimizer = (
        torch.optim.Adam(
            player.parameters(), lr=config.learning_rate, fused=True,
            betas=(config.adam_b1, config.adam_b2),
        ) for player in (g, d)
    )

    def draw() -> torch.Tensor:
        return g(2 * torch.rand(config.batch_size, LATENT, 1, 1, device=device) - 1)

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            real = data[torch.randint(len(data), (config.batch_size,), device=device)]
            with torch.no_grad():
                fake = draw()
            d_optimizer.zero_grad(set_to_none=True)
            loss = F.softplus(-d(real)).mean() + F.softplus(d(fake)).mean()
            loss.backward()
            d_optimizer.step()
            g_optimizer.zero_grad(set_to_none=True)
            # The discriminator's own gradients are not needed.
            d.requires_grad_(False)
            F.softplus(-d(draw())).mean().backward()
            d.requires_grad_(True)
            g_optimizer.step()
        torch_wait()

    return run


def rows_of(config: dcgan.Config, args: argparse.Namespace) -> list[dict]:
    """Time one network size on both sides."""
    rng = np.random.default_rng(0)
    shape = (args.side, args.side, 3)
    images = rng.integers(0, 256, (NUM_IMAGES, *shape), dtype=np.uint8)
    per_dispatch = dispatch.steps_per_dispatch(config, single_steps=True)
    start = time.perf_counter()
    ours = gm_jax_runner(dcgan.main.build, config, images, 256, per_dispatch)
    ours(per_dispatch)
    first = time.perf_counter() - start
    theirs = torch_runner(config, images)
    timed(theirs, 1)
    common = {
        'model': 'dcgan', 'device': device_name(), 'devices': jax.device_count(),
        'batch': config.batch_size, 'image_shape': list(shape),
        'features': config.features, 'steps_per_dispatch': per_dispatch,
        'versions': {'jax': jax.__version__, 'torch': torch.__version__},
    }
    return [
        {**common, 'what': 'first_dispatch', 'seconds': round(first, 1)},
        {**common, 'what': 'train', **compare(
            ours, theirs, args.turns, max(args.num_steps, per_dispatch),
            args.max_load, config.batch_size,
        )},
    ]


def main(argv: list[str]) -> None:
    """Time the step and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--side', type=int, default=32, help='pixels per side')
    parser.add_argument('--features', default='32,64,128')
    parser.add_argument('--turns', type=int, default=7)
    parser.add_argument('--num_steps', type=int, default=10, help='steps per turn')
    parser.add_argument('--out', default='results/bench_dcgan.json')
    parser.add_argument(
        '--max_load', type=float, default=0.05,
        help='share of the CPU that other processes may use in a turn that counts',
    )
    args = parser.parse_args(argv)
    config = dcgan.Config(features=args.features, latent_dim=LATENT)
    rows = rows_of(config, args)
    command = shlex.join(['python', '-m', 'benchmarks.dcgan', *argv])
    text = json.dumps([{**row, 'command': command} for row in rows], indent=2) + '\n'
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


if __name__ == '__main__':
    main(sys.argv[1:])
