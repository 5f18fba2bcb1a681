"""PixelRNN: exact likelihood by LSTM layers that run over the image.

van den Oord et al. 2016, Pixel Recurrent Neural Networks.

    python -m experiments.pixel_rnn --workdir=/tmp/rnn
    python -m experiments.pixel_rnn --workdir=/tmp/row --cell=row_lstm
    python -m experiments.pixel_rnn --workdir=/tmp/rnn --mode=sample
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
from gm_jax.families import autoregressive, orders, setting
from gm_jax.models.pixel_rnn import CELLS, PixelRNN
from gm_jax.sampling import distributions
from gm_jax.training import command
from gm_jax.training.settings import MOST_LAYERS, MOST_SIDE, MOST_UNITS, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(orders.Config):
    """Settings of the PixelRNN."""

    cell: str = field('diagonal_bilstm', 'kind of LSTM layer', choices=tuple(CELLS))
    features: int = field(
        0, 'feature maps of each LSTM; 0: 16, or 18 for colours', low=0, high=MOST_UNITS
    )
    num_layers: int = field(4, 'LSTM layers', low=1, high=MOST_LAYERS)
    first_kernel: int = field(7, 'side of the first kernel, odd', low=3, high=MOST_SIDE)
    kernel: int = field(
        3, 'columns that the kernels of a Row LSTM reach, odd', low=3, high=MOST_SIDE
    )
    head: int = field(32, 'feature maps before the logits', low=1, high=MOST_UNITS)
    dropout: float = field(
        0.0, 'share of features dropped in every layer, in training', low=0.0, high=0.99
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if self.cell != 'row_lstm':
            found['kernel'] = 'needs --cell=row_lstm'
        return found

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        for name in ('kernel', 'first_kernel'):
            if getattr(self, name) % 2 == 0:
                raise UserError(f'--{name} must be odd.')


# The sizes of the paper for MNIST; it gives no learning rate. One core takes one to
# two hours for either.
_PAPER = Config(
    dataset='binarized_mnist', num_layers=7, optimizer='muon', batch_size=16,
    learning_rate=2.5e-3, weight_decay=0.2, ema=0.999, num_steps=16_000, log_every=50,
    eval_every=8_000, checkpoint_every=250, eval_batch_size=50,
)
PRESETS = {
    'paper': _PAPER,
    # A Row LSTM sees the row of a pixel through its kernels alone, so these are wide.
    'row_lstm': dataclasses.replace(
        _PAPER, cell='row_lstm', features=24, kernel=7, num_steps=15_000,
        eval_every=5_000,
    ),
}


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    channels, num_values = data.image_shape[2], binarize.num_values(data)
    features = config.features or setting.feature_maps(channels)
    setting.check_colours(features, channels)
    module = PixelRNN(
        image_shape=data.image_shape,
        num_values=num_values,
        cell=config.cell,
        features=features,
        num_layers=config.num_layers,
        first_kernel=config.first_kernel,
        kernel_size=config.kernel,
        head=config.head,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )
    pixel = distributions.discrete(num_values, channels)
    model = setting.linen_model(module, pixel)._replace(micro_batch=4)
    return orders.apply(config.order, model, data.image_shape)


main = command.Command(
    'pixel_rnn', __doc__, Config, PRESETS,
    functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
