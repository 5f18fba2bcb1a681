"""PixelCNN++: exact likelihood by a mixture of discretized logistics for each pixel.

Salimans et al. 2017, PixelCNN++.

    python -m experiments.pixel_cnn_pp --workdir=/tmp/pixel_cnn_pp
    python -m experiments.pixel_cnn_pp --workdir=/tmp/pixel_cnn_pp --mode=sample
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.families import conditional, orders, setting
from gm_jax.families.setting import Variables
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.layers import weight_norm
from gm_jax.losses.likelihoods import LogisticMixture
from gm_jax.models.pixel_cnn_pp import PixelCNNpp
from gm_jax.sampling import distributions
from gm_jax.sampling.autoregressive import Network
from gm_jax.training import command
from gm_jax.training.settings import MOST_LAYERS, MOST_UNITS, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(conditional.Config):
    """Settings of PixelCNN++."""

    features: int = field(20, 'feature maps of each layer', low=1, high=MOST_UNITS)
    num_resnets: int = field(
        1, 'layers of each level on the way down, and again on the way up', low=1,
        high=MOST_LAYERS
    )
    num_levels: int = field(
        2, 'resolutions, each half of the one before', low=1, high=30
    )
    num_mixtures: int = field(5, 'components of each mixture', low=1, high=MOST_UNITS)
    dropout: float = field(
        0.0, 'share of features dropped in training', low=0.0, high=0.99
    )
    # A step takes several times as long as those of the other models.
    log_every: int = field(25, 'steps between lines of metrics', low=1, free=True)


PRESETS = {
    # The settings of the authors' code, except for the decay of the learning rate.
    'paper': Config(
        dataset='cifar10', features=160, num_resnets=5, num_levels=3, num_mixtures=10,
        dropout=0.5, batch_size=128, learning_rate=1e-3, adam_b1=0.95, adam_b2=0.9995,
        ema=0.9995, num_steps=400_000, log_every=100, eval_every=10_000,
        checkpoint_every=1_000,
    ),
    # Small enough for a CPU; not a recipe of the paper.
    'fashion': Config(
        dataset='fashion_mnist', features=32, num_resnets=1, num_levels=2,
        num_mixtures=10, dropout=0.0, optimizer='muon', batch_size=16,
        learning_rate=3e-3, ema=0.999, num_steps=5_000, log_every=50,
        eval_every=2_500, checkpoint_every=250, eval_batch_size=50,
    ),
}


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    channels, num_values = data.image_shape[2], binarize.num_values(data)
    module = PixelCNNpp(
        image_shape=data.image_shape,
        num_values=num_values,
        features=config.features,
        num_resnets=config.num_resnets,
        num_levels=config.num_levels,
        num_mixtures=config.num_mixtures,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )

    def init(rng: jax.Array, x: jax.Array, h: jax.Array | None) -> Variables:
        params = weight_norm.directions(derive(rng, Use.WEIGHTS), module, x, h)
        first = functools.partial(weight_norm.data_dependent_init, module)
        rngs = derive(fold_in_each(rng, jnp.arange(len(x))), Use.DROPOUT)
        return {'params': weight_norm.split(jax.jit(first)(params, x, h, rngs))}

    def merged(variables: Variables) -> Variables:
        return {'params': weight_norm.merge(variables['params'])}

    def apply(
        variables: Variables, x: jax.Array, h: jax.Array | None, *,
        rngs: jax.Array | None, **mode: Any,
    ) -> LogisticMixture:
        del mode
        return module.apply(merged(variables), x, h, rngs)

    def network(variables: Variables, h: jax.Array | None) -> Network:
        return setting.linen_network(module, merged(variables), h, by_colour=False)

    pixel = distributions.logistic_mixture(num_values, channels)
    model = setting.Model(init, apply, setting.by_rows(network), pixel)
    return orders.apply(config.order, model, data.image_shape)


main = command.Command(
    'pixel_cnn_pp', __doc__, Config, PRESETS,
    functools.partial(conditional.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
