"""Speed of a PixelRNN training step against a Python loop in PyTorch, on this machine.

Both sides train the paper's network for MNIST (7 layers, h = 16) with Adam on the same
random binary images. The PyTorch network loops over rows or diagonals in Python, which
is how PixelRNN is written there. They take turns as in `benchmarks.train_step`.

Usage:
    python -m benchmarks.pixel_rnn --out=results/bench_pixel_rnn.json
"""

import argparse
import dataclasses
import json
import pathlib
import shlex
import sys
import time
from typing import Any

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
from experiments import pixel_rnn
from gm_jax.training import dispatch

IMAGE_SHAPE, NUM_IMAGES, KERNEL = (28, 28, 1), 1_000, 7


class Masked(nn.Conv2d):
    """A convolution whose weights after the centre, or from the centre on, are 0."""

    def __init__(self, features: int, outputs: int, size: tuple, strict: bool) -> None:
        super().__init__(features, outputs, size, padding=[n // 2 for n in size])
        mask = torch.ones(size)
        mask[size[0] // 2, size[1] // 2 + (0 if strict else 1):] = 0
        mask[size[0] // 2 + 1:] = 0
        self.register_buffer('mask', mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, F, H, W] to [B, G, H, W]."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def cell(gates: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute h and c from the gates K_ss * h' + K_is * x, [B, 4h, W]."""
    o, f, i, g = gates.chunk(4, dim=1)
    c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class RowLSTM(nn.Module):
    """An LSTM that runs down the rows."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.input = Masked(2 * features, 4 * features, (1, 3), strict=False)
        self.state = nn.Conv1d(features, 4 * features, 3, padding=1, bias=False)
        self.start = nn.Parameter(torch.zeros(2, 1, features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, 2h, H, W] to [B, h, H, W]."""
        gates = self.input(x)
        h, c = self.start.expand(2, len(x), -1, x.shape[3])
        rows = []
        for r in range(x.shape[2]):
            h, c = cell(gates[:, :, r] + self.state(h), c)
            rows.append(h)
        return torch.stack(rows, dim=2)


class DiagonalLSTM(nn.Module):
    """An LSTM that runs along the diagonals, from the left."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.input = nn.Conv2d(2 * features, 4 * features, 1)
        self.state = nn.Conv1d(features, 4 * features, 2, bias=False)
        self.start = nn.Parameter(torch.zeros(2, 1, features, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, 2h, H, W] to [B, h, H, W]."""
        batch, _, height, width = x.shape
        gates = F.pad(self.input(x), (0, height))
        gates = gates.flatten(2)[:, :, :-height].unflatten(2, (height, -1))
        h, c = self.start.expand(2, batch, -1, height)
        top, columns = h[:, :, :1], []
        for j in range(height + width - 1):
            state = self.state(torch.cat([top, h], dim=2))
            h, c = cell(gates[:, :, :, j] + state, c)
            columns.append(h)
        h = F.pad(torch.stack(columns, dim=3).flatten(2), (0, height))
        return h.unflatten(2, (height, -1))[..., :width]


class DiagonalBiLSTM(nn.Module):
    """Two LSTMs that run along the diagonals, in both directions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.rightward, self.leftward = DiagonalLSTM(features), DiagonalLSTM(features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, 2h, H, W] to [B, h, H, W]."""
        mirrored = self.leftward(x.flip(3)).flip(3)
        return self.rightward(x) + F.pad(mirrored, (0, 0, 1, 0))[:, :, :-1]


class TorchPixelRNN(nn.Module):
    """The same network in PyTorch."""

    def __init__(self, config: pixel_rnn.Config) -> None:
        super().__init__()
        kind = {'row_lstm': RowLSTM, 'diagonal_bilstm': DiagonalBiLSTM}[config.cell]
        maps, layers = 2 * config.features, range(config.num_layers)
        self.first = Masked(1, maps, (KERNEL, KERNEL), strict=True)
        self.layers = nn.ModuleList(kind(config.features) for _ in layers)
        self.out = nn.ModuleList(
            nn.Conv2d(config.features, 2 * maps, 1) for _ in layers
        )
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(maps, config.head, 1),
            nn.ReLU(), nn.Conv2d(config.head, 1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map bits [B, 1, H, W] to logits."""
        y, skips = self.first(2 * x - 1), 0
        for layer, out in zip(self.layers, self.out):
            residual, skip = out(layer(y)).chunk(2, dim=1)
            y, skips = y + residual, skips + skip
        return self.head(y + skips)


def torch_runner(config: pixel_rnn.Config, images: np.ndarray) -> Runner:
    """Make the PyTorch loop, with fused Adam, on every core."""
    prepare_torch()
    device = torch_device()
    data = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float()
    model = TorchPixelRNN(config).to(device)
    optimizer = torch.optim.Adam(
        model.parameters(), lr=config.learning_rate, fused=True
    )

    def run(num_steps: int) -> None:
        for _ in range(num_steps):
            x = data[torch.randint(len(data), (config.batch_size,), device=device)]
            loss = F.binary_cross_entropy_with_logits(model(x), x, reduction='sum')
            optimizer.zero_grad(set_to_none=True)
            (loss / len(x)).backward()
            optimizer.step()
        torch_wait()

    return run


def rows_of(cell: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time one kind of layer: the first step, which compiles, and the others."""
    config = dataclasses.replace(
        pixel_rnn.PRESETS['paper'], cell=cell, batch_size=args.batch, optimizer='adam',
        weight_decay=0.0, schedule='constant', ema=0.0,
        steps_per_dispatch=args.steps_per_dispatch,
    )
    per_dispatch = dispatch.steps_per_dispatch(config, single_steps=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (NUM_IMAGES, *IMAGE_SHAPE), dtype=np.uint8)
    start = time.perf_counter()
    ours = gm_jax_runner(pixel_rnn.main.build, config, images, 2, per_dispatch)
    ours(per_dispatch)
    first = time.perf_counter() - start
    theirs = torch_runner(config, images)
    timed(theirs, 1)
    common = {
        'model': f'pixel_rnn {cell}', 'device': device_name(), 'batch': args.batch,
        'image_shape': list(IMAGE_SHAPE), 'num_layers': config.num_layers,
        'features': config.features, 'steps_per_dispatch': per_dispatch,
    }
    return [
        {**common, 'what': 'first_dispatch', 'seconds': round(first, 1)},
        {**common, 'what': 'train', **compare(
            ours, theirs, args.turns, max(args.num_steps, per_dispatch),
            args.max_load, args.batch,
        )},
    ]


def main(argv: list[str]) -> None:
    """Time both kinds of layer and write the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=16)
    parser.add_argument('--turns', type=int, default=5)
    parser.add_argument('--num_steps', type=int, default=5, help='steps per turn')
    parser.add_argument(
        '--steps_per_dispatch', type=int, default=0, help='of gm_jax; 0: as in training'
    )
    parser.add_argument('--out', default='results/bench_pixel_rnn.json')
    parser.add_argument(
        '--max_load', type=float, default=0.05,
        help='share of the CPU that other processes may use in a turn that counts',
    )
    args = parser.parse_args(argv)
    rows = [row for cell in pixel_rnn.CELLS for row in rows_of(cell, args)]
    common = {
        'versions': {'jax': jax.__version__, 'torch': torch.__version__},
        'command': shlex.join(['python', '-m', 'benchmarks.pixel_rnn', *argv]),
    }
    text = json.dumps([{**row, **common} for row in rows], indent=2) + '\n'
    path = pathlib.Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    print(text)


if __name__ == '__main__':
    main(sys.argv[1:])
