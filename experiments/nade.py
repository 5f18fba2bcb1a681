"""NADE: exact likelihood by a running sum that all hidden layers share.

Larochelle and Murray 2011, The Neural Autoregressive Distribution Estimator.

    python -m experiments.nade --workdir=/tmp/nade
    python -m experiments.nade --workdir=/tmp/nade --mode=sample

NOTE: the preset paper has the number of hidden units of the published numbers on
binarized MNIST. The raster order, dropout, Adam, its learning rate and the averaged
parameters are ours.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import math
import sys

import jax.numpy as jnp
import numpy as np

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.families import autoregressive, setting
from gm_jax.models.nade import NADE
from gm_jax.sampling import distributions
from gm_jax.training import command
from gm_jax.training.settings import MOST_UNITS, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(setting.Config):
    """Settings of NADE."""

    hidden: int = field(
        0, 'hidden units; 0: 200, or fewer for large images of many levels', low=0,
        high=MOST_UNITS,
    )
    dropout: float = field(
        0.0, 'share of hidden units dropped in training', low=0.0, high=0.99
    )
    order: str = field(
        'raster', 'order of the values; a random one is drawn from the seed',
        choices=('raster', 'random'),
    )

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays."""
        return ('order', 'seed') if self.order == 'random' else ('order',)


PRESETS = {
    'paper': Config(
        dataset='binarized_mnist', hidden=500, dropout=0.2, batch_size=50,
        learning_rate=2e-3, ema=0.999, num_steps=45_000, log_every=100,
        eval_every=5_000, checkpoint_every=1_000,
    ),
}


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    num_values, order = binarize.num_values(data), None
    num_dims = math.prod(data.image_shape)
    if config.order == 'random':
        order = np.random.default_rng(config.seed).permutation(num_dims)
    module = NADE(
        image_shape=data.image_shape,
        num_values=num_values,
        hidden=config.hidden or setting.hidden_units(200, data),
        order=None if order is None else tuple(order.tolist()),
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )
    pixel = distributions.discrete(num_values, data.image_shape[2])
    order = np.arange(num_dims) if order is None else order
    model = setting.linen_model(module, pixel, conditioned='start', order=order)
    return model._replace(heavy=False)


main = command.Command(
    'nade', __doc__, Config, PRESETS,
    functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
