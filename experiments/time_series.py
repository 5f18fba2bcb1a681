"""Time series: forecasts from a causal network of series as images of one row.

van den Oord et al. 2016, Pixel Recurrent Neural Networks, for the network: a PixelCNN
of one row is a causal convolutional network in time.

    python -m experiments.time_series --workdir=/tmp/series
    python -m experiments.time_series --workdir=/tmp/series --dataset=npz:series.npz

A set of one's own is an npz of series cut to one length, images [N, 1, T, 1] of
integers from 0 to 255. The last --horizon values of a series are forecast from those
before: many continuations are drawn, and their quantiles set against the truth.
"""

import dataclasses
import functools
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import autoregressive, pixel_cnn
from gm_jax import plotting
from gm_jax.data import binarize, sources
from gm_jax.errors import UserError
from gm_jax.sampling.autoregressive import noise
from gm_jax.training import loop
from gm_jax.training.config import field

_SERIES, _DRAWS = 256, 40  # of the forecasts that are scored, and continuations of each


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(pixel_cnn.Config):
    """Settings of the network of time series."""

    dataset: str = field('synthetic:lorenz', 'as of all experiments')
    horizon: int = field(48, 'values that are forecast', low=1, free=True)


PRESETS = {
    'lorenz': Config(
        features=32, kernel=5, optimizer='muon', learning_rate=2.5e-3, ema=0.999,
        num_steps=4_000, eval_every=2_000, checkpoint_every=1_000, eval_batch_size=100,
    ),
}


def build(config: Config, data: sources.ImageSet) -> loop.Experiment:
    """Makes the pure functions of the experiment."""
    height, length, channels = data.image_shape
    if height != 1 or channels != 1 or config.horizon >= length:
        raise UserError(
            f'{data.name} has images {list(data.image_shape)}: time series must be '
            f'[1, T, 1], with T more than --horizon={config.horizon}.'
        )
    if config.class_conditional:
        raise UserError('Forecasts of time series take no --class_conditional.')
    num_values = autoregressive.num_values(config, data)
    model = pixel_cnn.make_model(dataclasses.replace(config, dtype='float32'), data)
    generate, _ = autoregressive.samplers(model, config.temperature)
    known = np.arange(length) < length - config.horizon

    def series(examples: Any, rng: jax.Array) -> jax.Array:
        rngs = jax.random.split(rng, len(examples['image']))
        return binarize.integers(rngs, examples['image'], data)

    @functools.partial(jax.jit, static_argnums=2)
    def draw(state: Any, x: jax.Array, num: int, rng: jax.Array) -> jax.Array:
        """Draws continuations of x [N, 1, T, 1]: [N, num, horizon]."""
        x = jnp.repeat(x, num, axis=0)
        uniform = noise(
            jax.random.split(rng, len(x)), data.image_shape,
            model.distribution.num_noise,
        )
        given = jnp.broadcast_to(known[None, :, None], x.shape)
        x = generate(
            state.eval_variables, jnp.where(given, x, 0), given, uniform
        )
        return x[:, 0, ~known, 0].reshape(-1, num, config.horizon)

    def finish(state: Any, say: Any) -> tuple[dict[str, float], dict]:
        del say
        test = data.splits['test']
        pixel_rng, rng = jax.random.split(jax.random.key(config.seed))
        x = series(test.fetch(np.arange(min(_SERIES, len(test)))), pixel_rng)
        draws = draw(state, x, _DRAWS, rng)
        return scores(np.asarray(x)[:, 0, :, 0], np.asarray(draws)), {}

    def pictures(state: Any, batch: Any, rng: jax.Array) -> dict[str, np.ndarray]:
        rows = np.minimum(np.arange(4), len(batch['index']) - 1)
        pixel_rng, rng = jax.random.split(rng)
        x = series({'image': batch['image'][rows]}, pixel_rng)
        draws = np.asarray(draw(state, x, 4 * _DRAWS, rng))
        truth = np.asarray(x)[:, 0, :, 0]
        return {'forecasts': plotting.fan_charts(truth, draws, num_values)}

    common = autoregressive.build(config, data, make_model=pixel_cnn.make_model)
    return common._replace(finish=finish, pictures=pictures)


def scores(x: np.ndarray, draws: np.ndarray) -> dict[str, float]:
    """Scores forecasts against what came.

    The continuous ranked probability score of K draws y of a value x is

        mean_k |y_k - x| - sum_{j != k} |y_j - y_k| / (2 K (K - 1)),

    the absolute error where the forecast is a point (Gneiting and Raftery 2007,
    Strictly Proper Scoring Rules, Prediction, and Estimation, eq. 21).

    Args:
      x: [N, T] series.
      draws: [N, K, horizon] continuations of their values before.

    Returns:
      The score of the draws and of two point forecasts, that nothing changes and the
      mean of what is known, in levels; and how much of the truth lies between the
      quantiles that should hold half and 90 % of it.
    """
    num, horizon = draws.shape[1:]
    past, truth = x[:, :-horizon].astype(float), x[:, None, -horizon:].astype(float)
    order = np.sort(draws.astype(float), axis=1)
    # Of sorted values, the sum of differences counts the k-th 2 k - K + 1 times.
    weights = (2 * np.arange(num) - num + 1)[:, None] / (num * (num - 1))
    numbers = {
        'crps': np.mean(np.abs(draws - truth)) - np.mean(np.sum(weights * order, 1)),
        'error_if_nothing_changes': np.mean(np.abs(past[:, None, -1:] - truth)),
        'error_of_the_mean': np.mean(
            np.abs(past.mean(axis=1)[:, None, None] - truth)
        ),
    }
    for share in (0.5, 0.9):
        low, high = np.quantile(draws, [(1 - share) / 2, (1 + share) / 2], axis=1)
        inside = (low <= truth[:, 0]) & (truth[:, 0] <= high)
        numbers[f'inside_{100 * share:.0f}_percent'] = inside.mean()
    return {name: float(value) for name, value in numbers.items()}


main = functools.partial(
    loop.main, module='time_series', about=__doc__, config_class=Config,
    presets=PRESETS, build=build,
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
