"""How the experiments of autoregressive models generate; not an experiment itself.

`s` is the `Setting` of `experiments.autoregressive`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import given
from gm_jax import plotting
from gm_jax.data import binarize
from gm_jax.sampling import autoregressive
from gm_jax.training import distributed, metrics, parallel
from gm_jax.training import state as state_lib


def samplers_of(s: Any) -> tuple[Callable, Callable]:
    """Returns what generates in one program, and what makes the one that does not.

    The second is for --sampler=fixed_point and ancestral, whose loop is in Python.
    """
    if s.task is None:
        partial = given.partial_images(s.config, s.data.image_shape, s.num_values)
    else:
        partial = given.whole_images(s.config, s.data, s.num_values, s.task.missing)
    levels = _levels(s)

    def start(state: Any, rngs: jax.Array, index: jax.Array) -> dict[str, jax.Array]:
        """Makes what a sampler starts from: noise, given pixels, conditions."""
        uniform = autoregressive.noise(
            rngs, s.data.image_shape, s.model.distribution.num_noise
        )
        images, known = (jnp.asarray(a)[index % len(a)] for a in partial)
        labels = index % max(s.data.num_classes, 1)
        if s.config.label >= 0:
            labels = jnp.full_like(labels, s.config.label)
        return {
            'x': jnp.where(known, images, 0), 'known': known, 'uniform': uniform,
            'given': images, 'label': labels,
        }

    def sample(state: Any, rngs: jax.Array, index: jax.Array) -> jax.Array:
        begin = start(state, rngs, index)
        h = s.condition(begin.pop('given'), begin.pop('label'))
        return jnp.asarray(levels)[s.generate(state.eval_variables, **begin, h=h)]

    return sample, lambda: _host_sampler(s, start)


def _levels(s: Any) -> np.ndarray:
    """Returns the grey of each value, [V] uint8."""
    return plotting.to_uint8(np.arange(s.num_values), num_values=s.num_values)


def _host_sampler(s: Any, start: Callable) -> Callable:
    """Makes a sampler that evaluates the whole network again and again."""
    def redraw_step(
        state: Any, batch: state_lib.Batch, rng: jax.Array
    ) -> jax.Array:
        del rng
        h = s.condition(batch['given'], batch['label'])
        return s.sweep(state.eval_variables, batch['x'], batch['uniform'], h)

    start_many = parallel.sample_many(start)
    redraw_many = parallel.eval_many(redraw_step)

    def sample(
        state: Any, indices: np.ndarray, rng: jax.Array, *, warm_up: bool = False
    ) -> np.ndarray:
        begin = start_many(state, indices, rng)
        x, known = np.asarray(begin['x']), np.asarray(begin['known'])

        def redraw(x: np.ndarray) -> np.ndarray:
            return np.asarray(redraw_many(state, {**begin, 'x': x}, rng))

        if warm_up:
            return redraw(x)
        if s.config.sampler == 'ancestral':
            report = metrics.reporter('values drawn', s.num_dims)
            x = autoregressive.ancestral(
                redraw, x, known, order=s.model.order, report=report
            )
        else:
            x, sweeps = autoregressive.fixed_point(
                redraw, x, known, all_agree=distributed.all_agree
            )
            num = x[..., 0, 0, 0].size * jax.process_count()
            metrics.say(f'fixed point of {num} images after {sweeps} sweeps')
        return _levels(s)[x]

    return sample


def pictures(
    s: Any, state: Any, batch: state_lib.Batch, rng: jax.Array
) -> dict[str, np.ndarray]:
    """Draws rows of what is given of an image, three samples and the truth."""
    rows = np.minimum(np.arange(8), len(batch['index']) - 1)
    rngs = state_lib.fold_in_each(rng, batch['index'][rows])
    x = binarize.integers(rngs, batch['image'][rows], s.data)
    if s.task is None:
        known = np.zeros(x.shape, bool)
        known[:, :x.shape[1] // 2] = True
        shown = x * known
    else:
        known = np.broadcast_to(~s.task.missing[..., None], x.shape)
        shown = s.task.shown(x)
    complete, samples = jax.jit(s.generate), []
    h = s.condition(x, batch['label'][rows])
    for draw in range(1, 4):
        uniform = autoregressive.noise(
            jax.vmap(jax.random.fold_in, (0, None))(rngs, draw),
            s.data.image_shape, s.model.distribution.num_noise,
        )
        samples.append(complete(state.eval_variables, x, known, uniform, h))
    columns = [shown, *samples, x]
    grid = np.stack([np.asarray(column) for column in columns], axis=1)
    return {
        'completions' if s.task is None else s.task.name: plotting.image_grid(
            grid.reshape(-1, *s.data.image_shape), columns=len(columns),
            num_values=s.num_values,
        )
    }
