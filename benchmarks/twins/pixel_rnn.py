"""The PixelRNN, whose LSTMs are loops over rows or diagonals in Python."""

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin
from experiments.pixel_rnn import Config


class Masked(nn.Conv2d):
    """A convolution whose weights after the centre, or from the centre on, are 0."""

    def __init__(
        self, features: int, outputs: int, size: tuple[int, int], *, strict: bool
    ) -> None:
        rows, columns = (n // 2 for n in size)
        super().__init__(features, outputs, size, padding=(rows, columns))
        mask = torch.ones(size)
        mask[rows, columns + (0 if strict else 1):] = 0
        mask[rows + 1:] = 0
        self.register_buffer('mask', mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, F, H, W] to [B, G, H, W]."""
        return F.conv2d(x, self.weight * self.mask, self.bias, padding=self.padding)


def cell(gates: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute h and c [B, h, W] from K_ss * h' + K_is * x, [B, 4h, W], and c'."""
    o, f, i, g = gates.chunk(4, dim=1)
    c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


class RowLSTM(nn.Module):
    """An LSTM that runs down the rows."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.input = Masked(2 * features, 4 * features, (1, 3), strict=False)
        self.state = nn.Conv1d(features, 4 * features, 3, bias=False)
        self.outside = nn.Parameter(torch.zeros(2, 1, features, 1))

    def forward(self, x: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Map [B, 2h, H, W] to [B, h, H, W]."""
        del pixels
        h, c = self.outside.expand(2, len(x), -1, x.shape[3])
        side, rows = h[:, :, :1], []
        for gates in self.input(x).unbind(2):
            h, c = cell(gates + self.state(torch.cat([side, h, side], dim=2)), c)
            rows.append(h)
        return torch.stack(rows, dim=2)

    def copy(self, params: Any) -> None:
        """Take over the parameters."""
        left, here = params['left']['kernel'][0], params['here']['kernel'][None]
        _copy_masked(self.input, [left, here], params['here']['bias'])
        _copy_state(self, params)


@functools.cache
def _diagonals(
    height: int, width: int
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the pixels by diagonals, the inverse, and the length of each diagonal."""
    r, w = np.divmod(np.arange(height * width), width)
    order = np.lexsort((r, r + w))
    return (
        torch.from_numpy(order), torch.from_numpy(np.argsort(order)),
        np.bincount(r + w).tolist(),
    )


class DiagonalLSTM(nn.Module):
    """An LSTM that runs along the diagonals, from the left and from above."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.state = nn.Conv1d(features, 4 * features, 2, bias=False)
        self.outside = nn.Parameter(torch.zeros(2, 1, features, 1))

    def forward(self, k_is_x: torch.Tensor) -> torch.Tensor:
        """Map [B, 4h, H, W] to [B, h, H, W]."""
        batch, _, height, width = k_is_x.shape
        order, inverse, lengths = _diagonals(height, width)
        start_h, start_c = self.outside.expand(2, batch, -1, 1)
        h, c, made = start_h[:, :, :0], start_c[:, :, :0], []
        diagonals = k_is_x.flatten(2)[:, :, order].split(lengths, dim=2)
        for j, gates in enumerate(diagonals):
            # The row above the first pixel, the diagonal before, and a row that starts.
            top, left = j < width, j < height
            around = [start_h] * top + [h] + [start_h] * left
            before = (c if top else c[:, :, 1:], *[start_c] * left)
            h, c = cell(
                gates + self.state(torch.cat(around, dim=2)), torch.cat(before, dim=2)
            )
            made.append(h)
        return torch.cat(made, dim=2)[:, :, inverse].unflatten(2, (height, width))


class DiagonalBiLSTM(nn.Module):
    """Two LSTMs that run along the diagonals, in both directions."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.here = nn.Conv2d(2 * features, 4 * features, 1)
        self.mirrored = nn.Conv2d(2 * features + 1, 4 * features, 1)
        self.rightward, self.leftward = DiagonalLSTM(features), DiagonalLSTM(features)

    def forward(self, x: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
        """Map [B, 2h, H, W], and the pixels [B, 1, H, W], to [B, h, H, W]."""
        seen = torch.cat([x, pixels], dim=1).flip(3)
        mirrored = self.leftward(self.mirrored(seen)).flip(3)
        down = F.pad(mirrored[:, :, :-1], (0, 0, 1, 0))
        return self.rightward(self.here(x)) + down

    def copy(self, params: Any) -> None:
        """Take over the parameters."""
        _copy_here(self.here, params['here'])
        kernels = [params[name]['kernel'] for name in ('mirrored', 'mirrored_pixels')]
        _copy_here(
            self.mirrored, {**params['mirrored'], 'kernel': np.concatenate(kernels)}
        )
        for name in ('rightward', 'leftward'):
            _copy_state(getattr(self, name), params[name])


class PixelRNN(nn.Module):
    """The network, for bits."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        kind = {'row_lstm': RowLSTM, 'diagonal_bilstm': DiagonalBiLSTM}[config.cell]
        maps, size = 2 * config.features, (config.first_kernel,) * 2
        self.first = Masked(1, maps, size, strict=True)
        self.layers, self.out = nn.ModuleList(), nn.ModuleList()
        for _ in range(config.num_layers):
            self.layers.append(kind(config.features))
            self.out.append(nn.Conv2d(config.features, 2 * maps, 1))
        self.head = nn.Sequential(
            nn.ReLU(), nn.Conv2d(maps, config.head, 1),
            nn.ReLU(), nn.Conv2d(config.head, 1, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map bits [B, 1, H, W] to logits."""
        pixels = 2 * x - 1
        y, skips = self.first(pixels), 0
        for layer, out in zip(self.layers, self.out):
            residual, skip = out(layer(y, pixels)).chunk(2, dim=1)
            y, skips = y + residual, skips + skip
        return self.head(y + skips)

    def copy(self, params: Any, others: Mapping[str, Any]) -> None:
        """Take over the parameters."""
        del others
        above, left = (params['first'][name] for name in ('above', 'left'))
        _copy_masked(
            self.first, [*above['kernel'], left['kernel'][0]], above['bias']
        )
        for number, (layer, out) in enumerate(zip(self.layers, self.out)):
            layer.copy(params[f'layers_{number}'])
            _copy_here(out, params[f'out_{number}'])
        for number, out in enumerate((self.head[1], self.head[3])):
            _copy_here(out, params['to_logits'][f'Here_{number}'])


def _copy_here(layer: nn.Conv2d, params: Any) -> None:
    twins.assign(layer.weight, params['kernel'].T[:, :, None, None])
    twins.assign(layer.bias, params['bias'])


def _copy_masked(layer: Masked, taps: list[np.ndarray], bias: np.ndarray) -> None:
    """Take over [N, F, G] of the taps of each row, or of a part of it, in order."""
    before = np.concatenate(taps).transpose(2, 1, 0)
    weight = np.zeros(layer.weight.shape, np.float32)
    weight.reshape(*weight.shape[:2], -1)[:, :, :before.shape[2]] = before
    twins.assign(layer.weight, weight)
    twins.assign(layer.bias, bias)


def _copy_state(layer: RowLSTM | DiagonalLSTM, params: Any) -> None:
    twins.assign(layer.state.weight, params['state'].transpose(2, 1, 0))
    outside = np.stack([params['h'], params['c']])
    twins.assign(layer.outside, outside[:, None, :, None])


def load(images: np.ndarray) -> torch.Tensor:
    """Return bits as [N, 1, H, W] float32."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float()


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.pixel_rnn`, for images of bits."""
    del image_shape
    model = PixelRNN(config)

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        return F.binary_cross_entropy_with_logits(
            model(x), x, reduction='sum'
        ) / len(x)

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss,
        copy=model.copy, load=load,
    )
