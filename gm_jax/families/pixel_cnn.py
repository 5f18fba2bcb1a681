"""The PixelCNN as a model of images, and of time series as images of one row."""

import dataclasses

import jax.numpy as jnp

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import orders, setting
from gm_jax.models.pixel_cnn import PixelCNN
from gm_jax.sampling import distributions
from gm_jax.training.settings import MOST_LAYERS, MOST_SIDE, MOST_UNITS, field

__all__ = ['Config', 'make_model']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(orders.Config):
    """Settings of the PixelCNN."""

    features: int = field(
        0, 'feature maps h inside a residual block; 2h between blocks; 0: 16, or 18 '
        'for colours', low=0, high=MOST_UNITS,
    )
    num_blocks: int = field(6, 'residual blocks', low=1, high=MOST_LAYERS)
    first_kernel: int = field(7, 'side of the first kernel', low=3, high=MOST_SIDE)
    kernel: int = field(3, 'side of the kernels in the blocks', low=3, high=MOST_SIDE)
    head: int = field(64, 'feature maps before the logits', low=1, high=MOST_UNITS)

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        for name in ('kernel', 'first_kernel'):
            if getattr(self, name) % 2 == 0:
                raise UserError(f'--{name} must be odd.')


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    channels, num_values = data.image_shape[2], binarize.num_values(data)
    features = config.features or setting.feature_maps(channels)
    setting.check_colours(features, channels)
    module = PixelCNN(
        image_shape=data.image_shape,
        num_values=num_values,
        features=features,
        num_blocks=config.num_blocks,
        first_kernel=config.first_kernel,
        kernel_size=config.kernel,
        head=config.head,
        dtype=jnp.dtype(config.dtype),
    )
    pixel = distributions.discrete(num_values, channels)
    model = setting.linen_model(module, pixel)
    return orders.apply(config.order, model, data.image_shape)
