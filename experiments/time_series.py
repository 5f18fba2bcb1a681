"""Time series: forecasts by a causal network that sees series as images of one row.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, for the network: a PixelCNN
of one row is a causal convolutional network in time.

    python -m experiments.time_series --workdir=/tmp/series
    python -m experiments.time_series --workdir=/tmp/mine --dataset=npz:series.npz

To use your own set, pass an npz of series cut to one length, as images [N, 1, T, 1] of
integers from 0 to 255. The last --horizon values of a series are forecast from those
before: many continuations are drawn, and their quantiles are compared with the truth.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import forecasts
from gm_jax.families import autoregressive, pixel_cnn
from gm_jax.families.setting import Setting
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.sampling.autoregressive import noise
from gm_jax.training import command
from gm_jax.training.contracts import Experiment, HostBatch, Pictures, Say
from gm_jax.training.settings import field
from gm_jax.training.train_state import TrainState

_SERIES, _DRAWS = 256, 40  # series that are forecast and scored; draws of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pixel_cnn.Config):
    """Settings of the network for time series."""

    dataset: str = field(
        'synthetic:lorenz', 'npz:FILE, or another set of images of one row'
    )
    horizon: int = field(
        48, 'values to forecast at the end of a series', low=1, free=True
    )


PRESETS = {
    'lorenz': Config(
        features=32, kernel=5, optimizer='muon', learning_rate=2.5e-3, ema=0.999,
        num_steps=4_000, eval_every=2_000, checkpoint_every=1_000, eval_batch_size=100,
    ),
}


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    height, length, channels = data.image_shape
    if height != 1 or channels != 1 or config.horizon >= length:
        raise UserError(
            f'{data.name} has images {list(data.image_shape)}: time series must be '
            f'[1, T, 1], with T more than --horizon={config.horizon}.'
        )
    if config.class_conditional:
        raise UserError('Forecasts of time series take no --class_conditional.')
    if config.order != 'raster':
        raise UserError('Time series are forecast in --order=raster, from the past.')
    s = autoregressive.make_setting(config, data, make_model=pixel_cnn.make_model)
    compiled = jax.jit(functools.partial(draw, s, config.horizon), static_argnums=2)
    return autoregressive.assemble(s)._replace(
        finish=functools.partial(finish, s, compiled),
        pictures=functools.partial(pictures, s, compiled),
    )


def draw(
    s: Setting, horizon: int, state: TrainState, x: jax.Array, num: int, rng: jax.Array
) -> jax.Array:
    """Draw continuations of x [N, 1, T, 1]: [N, num, horizon]."""
    length = s.data.image_shape[1]
    known = np.arange(length) < length - horizon
    x = jnp.repeat(x, num, axis=0)
    uniform = noise(
        derive(fold_in_each(rng, np.arange(len(x))), Use.DRAW), s.data.image_shape,
        s.model.distribution.num_noise,
    )
    given = jnp.broadcast_to(known[None, :, None], x.shape)
    x = s.generate(state.eval_variables, jnp.where(given, x, 0), given, uniform)
    return x[:, 0, ~known, 0].reshape(-1, num, horizon)


# `draw` of one setting and horizon, compiled
Draw = Callable[[TrainState, jax.Array, int, jax.Array], jax.Array]


def finish(
    s: Setting, draw: Draw, state: TrainState, seed: int, say: Say
) -> tuple[dict[str, float], Pictures]:
    """Score the forecasts of series from all over the test split."""
    del say
    test = s.data.splits['test']
    rng = stream(seed, Stream.FINISH)
    x = series(s, test.fetch(image_set.spread(len(test), _SERIES)), rng)
    draws = draw(state, x, _DRAWS, rng)
    return forecasts.scores(np.asarray(x)[:, 0, :, 0], np.asarray(draws)), {}


def pictures(
    s: Setting, draw: Draw, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw the forecasts of four series."""
    rows = np.minimum(np.arange(4), len(batch['index']) - 1)
    x = series(s, {'image': batch['image'][rows]}, rng)
    draws = np.asarray(draw(state, x, 4 * _DRAWS, rng))
    truth = np.asarray(x)[:, 0, :, 0]
    return {'forecasts': plotting.fan_charts(truth, draws, s.num_values)}


def series(s: Setting, batch: Mapping[str, Any], rng: jax.Array) -> jax.Array:
    """Return the series of a batch, [N, 1, T, 1] integers."""
    rngs = derive(fold_in_each(rng, np.arange(len(batch['image']))), Use.PIXELS)
    return binarize.integers(rngs, batch['image'], s.data)


main = command.Command('time_series', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
