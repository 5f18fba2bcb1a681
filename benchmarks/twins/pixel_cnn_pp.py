"""PixelCNN++ of images of 256 levels, without dropout and without a condition."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from benchmarks import twins
from benchmarks.twins import Noise, Twin, pixels
from benchmarks.twins.pixels import Params
from experiments.pixel_cnn_pp import Config
from gm_jax.losses.logistic_mixture import MIN_LOG_SCALE

_BIN = 2 / 255  # the width of the bin of a level
Streams = tuple[torch.Tensor, torch.Tensor]


def concat_elu(*xs: torch.Tensor) -> torch.Tensor:
    """Compute elu([x_1, x_2, ..., -x_1, -x_2, ...])."""
    return F.elu(torch.cat([*xs, *(-x for x in xs)], dim=1))


def shifted(
    inputs: int, features: int, size: tuple[int, int], centred: bool, stride: int = 1
) -> nn.Sequential:
    """Make a convolution over the rows up to a pixel's own; see `ShiftedConv`."""
    rows, columns = size
    right = columns // 2 if centred else 0
    return nn.Sequential(
        nn.ZeroPad2d((columns - 1 - right, right, rows - 1, 0)),
        weight_norm(nn.Conv2d(inputs, features, size, stride)),
    )


def doubled(features: int, centred: bool) -> nn.ConvTranspose2d:
    """Make the transposed convolution of stride 2."""
    if centred:
        layer = nn.ConvTranspose2d(
            features, features, (2, 3), 2, padding=(0, 1), output_padding=(0, 1)
        )
    else:
        layer = nn.ConvTranspose2d(features, features, 2, 2)
    return weight_norm(layer, dim=1)


class GatedResnet(nn.Module):
    """A layer of one stream."""

    def __init__(self, features: int, centred: bool, num_shortcuts: int) -> None:
        super().__init__()
        size = (2, 3 if centred else 2)
        self.conv_in = shifted(2 * features, features, size, centred)
        self.conv_out = shifted(2 * features, 2 * features, size, centred)
        if num_shortcuts:
            inputs = 2 * num_shortcuts * features
            self.nin = weight_norm(nn.Conv2d(inputs, features, 1))

    def forward(self, x: torch.Tensor, *shortcuts: torch.Tensor) -> torch.Tensor:
        """Map x [B, F, H, W] and the short-cuts to the next x."""
        c = self.conv_in(concat_elu(x))
        if shortcuts:
            c = c + self.nin(concat_elu(*shortcuts))
        return x + F.glu(self.conv_out(concat_elu(c)), dim=1)


class Level(nn.Module):
    """All layers of one resolution, and the `depth` levels below it."""

    def __init__(self, features: int, num_resnets: int, depth: int) -> None:
        super().__init__()
        ups = num_resnets + (1 if depth else 0)
        self.down_u, self.up_u, self.down_ul, self.up_ul = (
            nn.ModuleList(
                GatedResnet(features, centred, shortcuts) for _ in range(num)
            ) for centred, shortcuts, num in (
                (True, 0, num_resnets), (True, 1, ups),
                (False, 1, num_resnets), (False, 2, ups),
            )
        )
        self.depth = depth
        if depth:
            self.halve_u = shifted(features, features, (2, 3), True, stride=2)
            self.halve_ul = shifted(features, features, (2, 2), False, stride=2)
            self.double_u = doubled(features, True)
            self.double_ul = doubled(features, False)
            self.lower = Level(features, num_resnets, depth - 1)

    def forward(self, u: torch.Tensor, ul: torch.Tensor) -> Streams:
        """Compute both streams, [B, F, H, W]; H and W are even if `depth`."""
        shortcuts = [(u, ul)]
        for layer_u, layer_ul in zip(self.down_u, self.down_ul):
            u = layer_u(u)
            ul = layer_ul(ul, u)
            shortcuts.append((u, ul))
        if self.depth:
            u, ul = self.lower(self.halve_u(u), self.halve_ul(ul))
            u, ul = self.double_u(u), self.double_ul(ul)
        else:
            shortcuts.pop()
        for layer_u, layer_ul in zip(self.up_u, self.up_ul):
            u_down, ul_down = shortcuts.pop()
            u = layer_u(u, u_down)
            ul = layer_ul(ul, u, ul_down)
        return u, ul


class PixelCNNpp(nn.Module):
    """The network, from images in [-1, 1] to the parameters of the mixtures."""

    def __init__(self, config: Config, channels: int) -> None:
        super().__init__()
        self.first_u, self.first_above, self.first_left = (
            weight_norm(nn.Conv2d(channels + 1, config.features, size))
            for size in ((2, 3), (1, 3), (2, 1))
        )
        self.level = Level(config.features, config.num_resnets, config.num_levels - 1)
        per_pixel = 1 + 2 * channels + (3 if channels == 3 else 0)
        self.to_mixture = weight_norm(
            nn.Conv2d(config.features, per_pixel * config.num_mixtures, 1)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, C, H, W] to [B, P K, H, W]."""
        x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)  # ones distinguish it from padding
        u = self.first_u(F.pad(x, (1, 1, 2, -1)))
        ul = self.first_above(F.pad(x, (1, 1, 1, -1)))
        ul = ul + self.first_left(F.pad(x, (1, -1, 1, 0)))
        return self.to_mixture(F.elu(self.level(u, ul)[1]))


def negative_log_prob(
    params: torch.Tensor, x: torch.Tensor, num_mixtures: int
) -> torch.Tensor:
    """Return the mean of -log p(x) per image, of mixtures [B, P K, H, W]."""
    batch, channels, height, width = x.shape
    params = params.reshape(batch, -1, num_mixtures, height, width)
    logits, means, log_scales, coeffs = params.split(
        [1, channels, channels, params.shape[1] - 1 - 2 * channels], dim=1
    )
    if channels == 3:
        g_r, b_r, b_g = torch.tanh(coeffs).unbind(1)
        red, green = x[:, :1], x[:, 1:2]
        r, g, b = means.unbind(1)
        means = torch.stack([r, g + g_r * red, b + b_r * red + b_g * green], dim=1)
    x = x[:, :, None]
    log_scales = log_scales.clamp(min=MIN_LOG_SCALE)
    inverse = torch.exp(-log_scales)
    # log (s(high) - s(low)), s the sigmoid, without a difference of nearly equal terms.
    high, low = (
        F.logsigmoid(sign * inverse * (x + sign * _BIN / 2 - means)) for sign in (1, -1)
    )
    middle = torch.log(-torch.expm1(-_BIN * inverse))
    first, last = x < -1 + _BIN / 2, x > 1 - _BIN / 2
    bins = (
        high.masked_fill(last, 0) + low.masked_fill(first, 0)
        + middle.masked_fill(first | last, 0)
    )
    joint = F.log_softmax(logits[:, 0], dim=1) + bins.sum(1)
    return -torch.logsumexp(joint, dim=1).sum() / batch


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.pixel_cnn_pp`."""
    model = PixelCNNpp(config, image_shape[2])

    def copy(params: Any, others: Mapping[str, Any]) -> None:
        del others
        for name in ('first_u', 'first_above', 'first_left', 'to_mixture'):
            _copy(getattr(model, name), params[name])
        _copy_level(model.level, params['level'])

    def load(images: np.ndarray) -> torch.Tensor:
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return pixels.encode(x.float(), 256)

    def loss(x: torch.Tensor, noise: Noise) -> torch.Tensor:
        del noise
        return negative_log_prob(model(x), x, config.num_mixtures)

    return twins.of_loss(
        {'model': model}, twins.adam(model.parameters(), config), loss, copy=copy,
        load=load,
    )


def _copy_level(level: Level, params: Params) -> None:
    for name, child in level.named_children():
        if name == 'lower':
            _copy_level(level.lower, params[name])
        elif isinstance(child, nn.ModuleList):
            for number, layer in enumerate(child):
                found = params[f'{name}_{number}']
                for part in found:
                    _copy(getattr(layer, part), found[part])
        else:
            _copy(child, params[name])


def _copy(layer: nn.Module, params: Params) -> None:
    """Take over the directions, lengths and biases of a layer."""
    conv: Any = layer[1] if isinstance(layer, nn.Sequential) else layer
    v, g = params['v'], params['g'][:, None, None, None]
    if v.ndim == 3:  # `Nin`: [N, 2 F, G], each input beside its negative
        num, double, _ = v.shape
        v = v.reshape(num, 2, double // 2, -1).swapaxes(0, 1)
        v = v.reshape(num * double, -1)
    v = pixels.oihw(v)
    if isinstance(conv, nn.ConvTranspose2d):
        v, g = v.swapaxes(0, 1), g.swapaxes(0, 1)
    twins.assign(conv.parametrizations.weight.original0, g)
    twins.assign(conv.parametrizations.weight.original1, v)
    twins.assign(conv.bias, params['bias'])
