"""Gated PixelCNN: exact likelihood by gated causal convolutions in two stacks.

van den Oord et al. 2016, Conditional Image Generation with PixelCNN Decoders.

    python -m experiments.gated_pixel_cnn --workdir=/tmp/gated
    python -m experiments.gated_pixel_cnn --workdir=/tmp/gated --mode=sample
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys

import jax.numpy as jnp

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import conditional, orders, setting
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.sampling import distributions
from gm_jax.training import command
from gm_jax.training.settings import MOST_LAYERS, MOST_SIDE, MOST_UNITS, Sizes, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(conditional.Config):
    """Settings of the Gated PixelCNN."""

    features: int = field(24, 'feature maps of each layer', low=1, high=MOST_UNITS)
    num_layers: int = field(5, 'layers after the first', low=1, high=MOST_LAYERS)
    first_kernel: int = field(7, 'side of the first kernel', low=3, high=MOST_SIDE)
    kernels: Sizes = field(
        (3,), 'sides of the other kernels in turn, e.g. 5,3', high=MOST_SIDE
    )
    head: int = field(64, 'feature maps before the logits', low=1, high=MOST_UNITS)
    dropout: float = field(
        0.0, 'share of features dropped in every layer, in training', low=0.0, high=0.99
    )

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        sides = (*self.kernels, self.first_kernel)
        if any(side % 2 == 0 or side < 3 for side in sides):
            raise UserError('--kernels and --first_kernel must be odd, 3 or more.')


# Small enough for a CPU. The paper has no network for MNIST; 80.10 nats are published
# by Gulrajani et al. 2017, PixelVAE, as those of a PixelCNN without z. A pixel sees
# 10 + 4 * 2 + 4 * 1 = 22 rows up and columns to the sides, so a whole digit, which is
# at most 20 high and wide. With a first kernel of 7x7 it sees 15, and the number is
# worse by more than a nat. One of 21x21 costs little: its input is the image alone.
_PAPER = Config(
    dataset='binarized_mnist', features=32, num_layers=8, first_kernel=21,
    kernels=(5, 3), head=128, optimizer='muon', batch_size=32, learning_rate=3e-3,
    ema=0.999, num_steps=60_000, log_every=50, eval_every=3_000, checkpoint_every=250,
    eval_batch_size=50,
)
PRESETS = {
    'paper': _PAPER,
    'hour': dataclasses.replace(
        _PAPER, weight_decay=0.2, num_steps=8_000, eval_every=4_000
    ),
    # With 256 levels the neighbours say most: a first kernel of 21x21 is no better.
    'fashion': dataclasses.replace(
        _PAPER, dataset='fashion_mnist', first_kernel=7, kernels=(3,), batch_size=16,
        num_steps=6_000,
    ),
}


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    channels, num_values = data.image_shape[2], binarize.num_values(data)
    setting.check_colours(config.features, channels)
    module = GatedPixelCNN(
        image_shape=data.image_shape,
        num_values=num_values,
        features=config.features,
        num_layers=config.num_layers,
        first_kernel=config.first_kernel,
        kernel_sizes=config.kernels,
        head=config.head,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )
    pixel = distributions.discrete(num_values, channels)
    model = setting.linen_model(module, pixel)
    return orders.apply(config.order, model, data.image_shape)


main = command.Command(
    'gated_pixel_cnn', __doc__, Config, PRESETS,
    functools.partial(conditional.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
