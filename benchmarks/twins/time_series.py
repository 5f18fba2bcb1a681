"""The PixelCNN of images of one row.

There are no rows above, so that of the kernels over these only the bias matters; the
twin leaves them out, as does everyone who writes a causal network in time.
"""

import torch
from torch import nn

from benchmarks import twins
from benchmarks.twins import Twin, pixel_cnn, pixels
from benchmarks.twins.pixels import Params
from experiments.time_series import Config


class FromLeft(nn.Module):
    """A convolution over the k // 2 values before and, unless `strict`, this one."""

    def __init__(
        self, inputs: int, features: int, kernel: int, strict: bool = False
    ) -> None:
        super().__init__()
        half, own = kernel // 2, int(not strict)
        self.pad = nn.ZeroPad2d((half, own - 1, 0, 0))
        self.left = nn.Conv2d(inputs, features, (1, half + own))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [B, F, 1, T] to [B, G, 1, T]."""
        return self.left(self.pad(x))

    def copy(self, params: Params) -> None:
        """Take over the parameters of a `MaskedConv`."""
        pixels.copy_left(self.left, params)
        twins.assign(self.left.bias, params['above']['bias'])


def make(config: Config, image_shape: tuple[int, int, int]) -> Twin:
    """Make the twin of `experiments.time_series`, for series of 256 levels."""
    del image_shape
    return pixel_cnn.twin(config, 256, FromLeft)
