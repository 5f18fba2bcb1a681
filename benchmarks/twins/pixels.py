"""What the twins of PixelCNNs have in common, for images of one channel.

Their convolutions see zeros above and to the left of an image, and a negative margin
drops the last row or column: on a CPU this is faster than masks, and than zeros on all
sides of which the results are dropped. Channels last are up to a tenth faster in some
of the networks, and slower in others: each twin has the faster.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import twins
from benchmarks.twins import Noise, Twin

__all__ = [
    'copy_conv', 'copy_gated', 'copy_head', 'copy_left', 'encode', 'gate', 'Gated',
    'GatedHead', 'GatedLayer', 'head', 'load', 'negative_log_prob', 'oihw', 'Params',
    'twin',
]

Params = Mapping[str, Any]


def load(images: np.ndarray, num_values: int) -> torch.Tensor:
    """Return bits as [N, 1, H, W] float32, other integers as int64."""
    x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    return x.float() if num_values == 2 else x.long()


def encode(x: torch.Tensor, num_values: int) -> torch.Tensor:
    """Scale integers in [0, V) to [-1, 1]."""
    return x * (2 / (num_values - 1)) - 1


def negative_log_prob(logits: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the mean of -log p(x) per image, of logits [B, 1 or V, H, W]."""
    if logits.shape[1] == 1:
        total = F.binary_cross_entropy_with_logits(logits, x, reduction='sum')
    else:
        rows = logits.permute(0, 2, 3, 1).flatten(0, 2)  # a view, with channels last
        total = F.cross_entropy(rows, x.flatten(), reduction='sum')
    return total / len(x)


def head(inputs: int, features: int, num_values: int) -> nn.Sequential:
    """Make ReLU, 1 x 1, ReLU, 1 x 1 to the logits."""
    outputs = 1 if num_values == 2 else num_values
    return nn.Sequential(
        nn.ReLU(), nn.Conv2d(inputs, features, 1),
        nn.ReLU(), nn.Conv2d(features, outputs, 1),
    )


def gate(x: torch.Tensor) -> torch.Tensor:
    """Compute tanh(x_1) o sigmoid(x_2) for the two halves of the channels."""
    first, second = x.chunk(2, dim=1)
    return torch.tanh(first) * torch.sigmoid(second)


class GatedLayer(nn.Module):
    """A layer of both stacks; h is [B, E, H, W] or [B, E, 1, 1]."""

    def __init__(
        self, inputs: int, features: int, kernel: int, first: bool, num_h: int
    ) -> None:
        super().__init__()
        half, own, self.first = kernel // 2, int(not first), first
        # The first layer sees neither its own row nor its own pixel.
        self.pad_above = nn.ZeroPad2d((half, half, half, own - 1))
        self.above = nn.Conv2d(inputs, 2 * features, (half + own, kernel))
        self.pad_left = nn.ZeroPad2d((half, own - 1, 0, 0))
        self.left = nn.Conv2d(inputs, 2 * features, (1, half + own), bias=False)
        self.link = nn.Conv2d(2 * features, 2 * features, 1)
        self.out = nn.Conv2d(features, 2 * features, 1)
        if num_h:
            self.above_h = nn.Conv2d(num_h, 2 * features, 1, bias=False)
            self.left_h = nn.Conv2d(num_h, 2 * features, 1, bias=False)

    def forward(
        self, v: torch.Tensor, u: torch.Tensor, h: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the next v, u and the skip."""
        a = self.above(self.pad_above(v))
        if h is not None:
            a = a + self.above_h(h)
        b = self.left(self.pad_left(u)) + self.link(a)
        if h is not None:
            b = b + self.left_h(h)
        r, skip = self.out(gate(b)).chunk(2, dim=1)
        return gate(a), r if self.first else u + r, skip


class GatedHead(nn.Module):
    """Two gated 1 x 1 layers that h enters too, and 1 x 1 to the logit of a bit."""

    def __init__(self, inputs: int, features: int, num_h: int) -> None:
        super().__init__()
        self.gates = nn.ModuleList(
            nn.Conv2d(size, 2 * features, 1) for size in (inputs, features)
        )
        self.gates_h = nn.ModuleList(
            nn.Conv2d(num_h, 2 * features, 1, bias=False) for _ in range(2)
        )
        self.out = nn.Conv2d(features, 1, 1)

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """Map [B, F, H, W] and h [B, E, 1, 1] to logits."""
        for layer, of_h in zip(self.gates, self.gates_h):
            x = gate(layer(x) + of_h(h))
        return self.out(x)


class Gated(nn.Module):
    """The Gated PixelCNN, from images in [-1, 1] to logits."""

    def __init__(
        self, *, num_values: int, features: int, num_layers: int, first_kernel: int,
        kernels: Sequence[int], head_features: int, num_h: int = 0,
        gated_head: bool = False,
    ) -> None:
        super().__init__()
        sizes = [kernels[n % len(kernels)] for n in range(num_layers)]
        self.layers = nn.ModuleList([
            GatedLayer(1, features, first_kernel, True, num_h),
            *(GatedLayer(features, features, size, False, num_h) for size in sizes),
        ])
        self.to_logits: nn.Module = head(features, head_features, num_values)
        if gated_head:
            self.to_logits = GatedHead(features, head_features, num_h)

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> torch.Tensor:
        """Map [B, 1, H, W] to logits [B, 1 or V, H, W]."""
        v = u = x
        skips: Any = 0
        for layer in self.layers:
            v, u, skip = layer(v, u, h)
            skips = skips + skip
        if isinstance(self.to_logits, GatedHead):
            return self.to_logits(skips, h)
        return self.to_logits(skips)


def oihw(kernel: Any) -> np.ndarray:
    """Transpose a kernel of Flax, [I, J, F, G] or [F, G], for PyTorch."""
    kernel = kernel if kernel.ndim == 4 else kernel[None, None]
    return np.transpose(kernel, (3, 2, 0, 1))


def copy_conv(conv: nn.Module, params: Params) -> None:
    """Take over 'kernel' and, if there is one, 'bias'."""
    twins.assign(conv.weight, oihw(params['kernel']))
    if 'bias' in params:
        twins.assign(conv.bias, params['bias'])


def copy_left(conv: nn.Module, params: Params) -> None:
    """Take over the kernels of the pixels to the left and of the pixel itself."""
    kernel = params['left']['kernel']
    if 'here' in params:
        kernel = np.concatenate(
            [kernel, params['here']['kernel'][None, None]], axis=1
        )
    twins.assign(conv.weight, oihw(kernel))


def copy_head(layers: nn.Sequential, params: Params) -> None:
    """Take over the parameters of a `Head`."""
    copy_conv(layers[1], params['Here_0'])
    copy_conv(layers[3], params['Here_1'])


def copy_gated(model: Gated, params: Params) -> None:
    """Take over the parameters of a Gated PixelCNN."""
    for number, layer in enumerate(model.layers):
        found = params[f'layers_{number}']
        copy_left(layer.left, found)
        for name in found.keys() - {'left', 'here'}:
            copy_conv(getattr(layer, name), found[name])
    found = params['to_logits']
    if not isinstance(model.to_logits, GatedHead):
        copy_head(model.to_logits, found)
        return
    for number in range(2):
        copy_conv(model.to_logits.gates[number], found[f'gates_{number}'])
        copy_conv(model.to_logits.gates_h[number], found[f'gates_h_{number}'])
    copy_conv(model.to_logits.out, found['out'])


def twin(
    model: nn.Module, config: Any, num_values: int,
    copy: Callable[[Any, Mapping[str, Any]], None],
) -> Twin:
    """Make the twin of a network whose logits are of one pixel each; see `Twin`."""

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        return negative_log_prob(model(encode(x, num_values)), x)

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss, copy=copy,
        load=lambda images: load(images, num_values),
    )
