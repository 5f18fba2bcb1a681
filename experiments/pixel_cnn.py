"""PixelCNN: exact likelihood by masked convolutions.

van den Oord et al. 2016, Pixel Recurrent Neural Networks.

    python -m experiments.pixel_cnn --workdir=/tmp/pixel_cnn
    python -m experiments.pixel_cnn --workdir=/tmp/pixel_cnn --mode=sample
"""

import dataclasses
import functools
import sys

import jax.numpy as jnp

from experiments import autoregressive
from gm_jax.data import sources
from gm_jax.errors import UserError
from gm_jax.models.pixel_cnn import PixelCNN
from gm_jax.training import loop
from gm_jax.training.config import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(autoregressive.Config):
    """Settings of the PixelCNN."""

    features: int = field(16, 'maps h of the masked convolutions; else 2h', low=1)
    num_blocks: int = field(6, 'residual blocks', low=1)
    first_kernel: int = field(7, 'side of the first kernel', low=3)
    kernel: int = field(3, 'side of the kernels in the blocks', low=3)
    head: int = field(64, 'maps of the layer before the logits', low=1)

    def __post_init__(self) -> None:
        """Raises UserError for settings that are not allowed."""
        super().__post_init__()
        if self.kernel % 2 == 0 or self.first_kernel % 2 == 0:
            raise UserError('--kernel and --first_kernel must be odd.')


_PAPER = Config(
    dataset='binarized_mnist', features=16, num_blocks=15, head=32, optimizer='muon',
    batch_size=32, learning_rate=2.5e-3, ema=0.999, num_steps=80_000, log_every=50,
    eval_every=4_000, checkpoint_every=250, eval_batch_size=50,
)
PRESETS = {
    'paper': _PAPER,
    # As was run here: 10 blocks of 5 x 5 kernels see 23 rows up, the 15 above 18.
    'hour': dataclasses.replace(
        _PAPER, features=32, num_blocks=10, kernel=5, head=64, num_steps=8_000
    ),
}


def make_model(config: Config, data: sources.ImageSet) -> autoregressive.Model:
    """Makes the functions of the network."""
    channels, values = data.image_shape[2], autoregressive.num_values(config, data)
    autoregressive.check_colours(config.features, channels)
    module = PixelCNN(
        image_shape=data.image_shape,
        num_values=values,
        features=config.features,
        num_blocks=config.num_blocks,
        first_kernel=config.first_kernel,
        kernel_size=config.kernel,
        head=config.head,
        dtype=jnp.dtype(config.dtype),
    )
    distribution = autoregressive.discrete(values, channels)
    return autoregressive.linen_model(module, distribution)


main = functools.partial(
    loop.main, module='pixel_cnn', about=__doc__, config_class=Config,
    presets=PRESETS,
    build=functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
