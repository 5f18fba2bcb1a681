"""Multi-scale PixelCNN: a small image first, then larger ones around its pixels.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, sec. 3.6, with
`--stages=raster`; Reed et al. 2017, Parallel Multiscale Autoregressive Density
Estimation, with `--stages=parallel`: a number of network evaluations that grows with
the logarithm of the side. The log-likelihood of both is exact.

    python -m experiments.multiscale_pixel_cnn --workdir=/tmp/multiscale
    python -m experiments.multiscale_pixel_cnn --workdir=/tmp/multiscale --mode=sample
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
import numpy as np

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families import autoregressive, setting, sides
from gm_jax.families.setting import Variables
from gm_jax.models.multiscale_pixel_cnn import MultiscalePixelCNN
from gm_jax.sampling import distributions, multiscale
from gm_jax.sampling.autoregressive import Network, incremental
from gm_jax.sampling.distributions import Quantile
from gm_jax.training import command
from gm_jax.training.settings import MOST_LAYERS, MOST_UNITS, field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(setting.Config):
    """Settings of the multi-scale PixelCNN."""

    stages: str = field(
        'parallel', 'how a stage adds pixels: in groups, or one by one in raster order',
        choices=('parallel', 'raster'),
    )
    num_stages: int = field(
        1, 'how often the sides of the image are doubled', low=1, high=30
    )
    features: int = field(24, 'feature maps of each layer', low=1, high=MOST_UNITS)
    num_layers: int = field(
        4, 'layers, or residual blocks, of each network', low=1, high=MOST_LAYERS
    )
    head: int = field(64, 'feature maps before the logits', low=1, high=MOST_UNITS)
    # The step takes long to compile, so the first line of metrics must come soon after.
    log_every: int = field(25, 'steps between lines of metrics', low=1, free=True)

    def __post_init__(self) -> None:
        """Raise UserError for settings that are not allowed."""
        super().__post_init__()
        if self.class_conditional:
            raise UserError('The multi-scale PixelCNN takes no --class_conditional.')


# Small enough for a CPU; the papers have images of up to 256 x 256. A Gated PixelCNN of
# equal width and depth is its preset with --num_layers=6 --kernels=3 --head=64.
_HOUR = Config(
    dataset='binarized_mnist', num_stages=2, features=32, num_layers=6, head=64,
    optimizer='muon', batch_size=32, learning_rate=3e-3, ema=0.999, weight_decay=0.2,
    num_steps=6_000, log_every=50, eval_every=3_000, checkpoint_every=250,
    eval_batch_size=50,
)
PRESETS = {
    'hour': _HOUR,
    'fashion': dataclasses.replace(
        _HOUR, dataset='fashion_mnist', batch_size=16, weight_decay=0.0,
    ),
}


def make_model(config: Config, data: ImageSet) -> setting.Model:
    """Make the functions of the network."""
    num_values, channels = binarize.num_values(data), data.image_shape[2]
    setting.check_colours(config.features, channels)
    sides.check(data, 2**config.num_stages, f'--num_stages={config.num_stages}')
    module = MultiscalePixelCNN(
        image_shape=data.image_shape,
        num_values=num_values,
        num_stages=config.num_stages,
        parallel=config.stages == 'parallel',
        features=config.features,
        num_layers=config.num_layers,
        head=config.head,
        dtype=jnp.dtype(config.dtype),
    )

    def generate(
        variables: Variables, h: jax.Array | None, quantile: Quantile,
        uniform: jax.Array, x: jax.Array, known: jax.Array,
    ) -> jax.Array:
        del h
        bound = module.bind(variables)
        make = _parallel if module.parallel else _raster
        stages = [make(stage, quantile) for stage in bound.stages]
        base = functools.partial(incremental, _network(bound.base), quantile)
        return multiscale.multiscale(base, stages, uniform, x, known)

    rank = module.rank()
    return setting.Model(
        init=lambda rng, x, h: module.init(rng, x[:1]),
        apply=lambda variables, x, h, **mode: module.apply(variables, x),
        incremental=generate,
        distribution=distributions.discrete(num_values, channels),
        order=np.argsort(rank, kind='stable'),
        rank=rank,
        micro_batch=4,  # most of its maps are small
    )


def _network(bound: Any, h: jax.Array | None = None) -> Network:
    """Return a bound Gated PixelCNN as a network that runs by rows and pixels."""
    return setting.linen_network(bound.clone(parent=None), bound.variables, h)


def _raster(bound: Any, quantile: Quantile) -> multiscale.Stage:
    return multiscale.raster(
        lambda small: _network(bound.network, bound.observe(small)), quantile
    )


def _parallel(bound: Any, quantile: Quantile) -> multiscale.Stage:
    return multiscale.parallel(bound.observe, bound.logits, quantile)


main = command.Command(
    'multiscale_pixel_cnn', __doc__, Config, PRESETS,
    functools.partial(autoregressive.build, make_model=make_model),
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
