"""Spectral normalisation as an option of a layer."""

import functools
from collections.abc import Callable

from flax import linen as nn

__all__ = ['maybe_spectral']


def maybe_spectral(wanted: bool, train: bool) -> Callable[[nn.Module], Callable]:
    """Return a wrapper that applies spectral normalisation to a layer, or the identity.

    Spectral normalisation divides a layer's kernel by its largest singular value.

    Args:
        wanted: whether to normalise.
        train: whether to store the estimate that a power iteration improves. A step
            that applies a layer to real and to generated images stores it twice.

    References:
        Miyato et al. 2018, Spectral Normalization for GANs, sec. 2.1.
        https://arxiv.org/abs/1802.05957
    """
    def normalised(layer: nn.Module) -> Callable:
        return functools.partial(nn.SpectralNorm(layer), update_stats=train)

    return normalised if wanted else lambda layer: layer
