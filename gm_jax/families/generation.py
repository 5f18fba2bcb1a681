"""Samplers, completions and pictures of autoregressive models."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize
from gm_jax.families import given, setting
from gm_jax.families.setting import Setting
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.sampling import autoregressive
from gm_jax.training import parallel, processes
from gm_jax.training.contracts import HostBatch, HostSampler, Pictures, Sample
from gm_jax.training.progress import reporter, say
from gm_jax.training.train_state import Batch, TrainState

__all__ = ['levels', 'pictures', 'Samplers', 'samplers']

# (state, rngs [B], index [B]) -> what a sampler starts from
_Start = Callable[[TrainState, jax.Array, jax.Array], dict[str, Any]]


class Samplers(NamedTuple):
    """The samplers of a model, all of which give the same images.

    Attributes:
        sample: `incremental`, which is compiled whole. This and the next two are None
            for a task whose images are not there.
        make_host_sampler: makes --sampler=fixed_point or ancestral, which loops on the
            host.
        given: what images are generated from, by their indices.
        complete: (images, mask) -> the sampler that keeps what the mask marks.
    """

    sample: Sample | None
    make_host_sampler: Callable[[], HostSampler] | None
    given: Callable[[np.ndarray], dict[str, np.ndarray]] | None
    complete: Callable[[np.ndarray, np.ndarray], Sample]


def samplers(s: Setting) -> Samplers:
    """Return the samplers of a model."""
    complete, partial = functools.partial(_complete, s), given.images(s)
    if partial is None:
        return Samplers(None, None, None, complete)
    _tell_inexact(s, partial)
    start = functools.partial(_start, s, partial)
    return Samplers(
        _incremental(s, start), functools.partial(_host_sampler, s, start),
        functools.partial(_given, s, partial), complete,
    )


def _complete(s: Setting, images: np.ndarray, mask: np.ndarray) -> Sample:
    """Return the sampler that keeps image i mod N where its mask is true."""
    partial = given.whole(s, images) if s.task is not None else given.known_part(
        'given', images, mask, s.data.image_shape, s.num_values
    )
    _tell_inexact(s, partial)
    return _incremental(s, functools.partial(_start, s, partial))


def _tell_inexact(s: Setting, partial: given.PartialImages) -> None:
    warning = given.inexact(s.model, partial.known) if s.task is None else ''
    if warning:
        where = f'--given={s.config.given}' if s.config.given else 'given'
        say(f'{where}: {warning}')


def _incremental(s: Setting, start: _Start) -> Sample:
    def sample(state: TrainState, rngs: jax.Array, index: jax.Array) -> jax.Array:
        drawn = s.generate(state.eval_variables, **start(state, rngs, index))
        return jnp.asarray(levels(s))[drawn]

    return sample


def _given(
    s: Setting, partial: given.PartialImages, index: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the labels of images, and what is known of them before they are drawn."""
    found = {}
    if s.config.class_conditional:
        found['labels'] = np.asarray(_labels(s, index), np.int32)
    if s.config.given or s.task is not None:
        images, known = (a[index % len(a)] for a in partial)
        shown = images * known if s.task is None else s.task.shown(jnp.asarray(images))
        found |= {'given': levels(s)[shown], 'mask': known}
    return found


def _labels(s: Setting, index: Any) -> Any:
    """Return the labels of generated images: all in turn, or that of --label."""
    labels, wanted = index % max(s.data.num_classes, 1), setting.label(s.config, s.data)
    return labels if wanted is None else labels * 0 + wanted


def _start(
    s: Setting, partial: given.PartialImages, state: TrainState, rngs: jax.Array,
    index: jax.Array,
) -> dict[str, Any]:
    """Return what a sampler starts from: noise, given pixels, h."""
    del state
    uniform = autoregressive.noise(
        derive(rngs, Use.DRAW), s.data.image_shape, s.model.distribution.num_noise
    )
    images, known = (jnp.asarray(a)[index % len(a)] for a in partial)
    return {
        'x': jnp.where(known, images, 0), 'known': known, 'uniform': uniform,
        'h': s.condition_of_samples(rngs, images, _labels(s, index)),
    }


def levels(s: Setting) -> np.ndarray:
    """Return the grey level of each value, [V] uint8."""
    return plotting.to_uint8(np.arange(s.num_values), num_values=s.num_values)


def _host_sampler(s: Setting, start: _Start) -> HostSampler:
    """Make a sampler that evaluates the whole network repeatedly."""
    def redraw_step(
        state: TrainState, batch: Batch, rng: jax.Array
    ) -> Any:
        del rng
        return s.sweep(
            state.eval_variables, batch['x'], batch['uniform'], batch['h']
        )

    start_many = parallel.for_each_image(start, 'the noise')
    redraw_many = parallel.eval_many(redraw_step, 'the sampler')

    def begin(
        state: TrainState, indices: np.ndarray, rng: jax.Array
    ) -> tuple[dict[str, Any], Callable[[np.ndarray], np.ndarray]]:
        batch: dict[str, Any] = start_many(state, indices, rng)
        return batch, lambda x: np.asarray(redraw_many(state, {**batch, 'x': x}, rng))

    def warm_up(state: TrainState, indices: np.ndarray, rng: jax.Array) -> np.ndarray:
        batch, redraw = begin(state, indices, rng)
        return redraw(np.asarray(batch['x']))

    def sample(state: TrainState, indices: np.ndarray, rng: jax.Array) -> np.ndarray:
        batch, redraw = begin(state, indices, rng)
        x, known = np.asarray(batch['x']), np.asarray(batch['known'])
        if s.config.sampler == 'ancestral':
            x = autoregressive.ancestral(
                redraw, x, known, order=s.model.order,
                report=reporter('values drawn', x[0, 0].size),
            )
        else:
            x, sweeps = autoregressive.fixed_point(
                redraw, x, known, all_agree=processes.all_agree
            )
            num = x[..., 0, 0, 0].size * jax.process_count()
            say(f'fixed point of {num} images after {sweeps} sweeps')
        return levels(s)[x]

    return HostSampler(sample, warm_up)


def pictures(
    s: Setting, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw one row per image: what is given of it, three samples and the truth."""
    rows = np.minimum(np.arange(8), len(batch['index']) - 1)
    rngs = fold_in_each(rng, batch['index'][rows])
    x = binarize.integers(derive(rngs, Use.PIXELS), batch['image'][rows], s.data)
    if s.task is None:
        half = given.first_half(s.model, s.data.image_shape)
        known = np.broadcast_to(half, x.shape)
        shown = np.asarray(x) * known
    else:
        known = np.broadcast_to(~s.task.missing[..., None], x.shape)
        shown = s.task.shown(x)
    complete, samples = jax.jit(s.generate), []
    h = s.condition(x, jnp.asarray(batch['label'][rows]))
    for draw in range(1, 4):
        uniform = autoregressive.noise(
            derive(fold_in_each(rngs, draw), Use.DRAW),
            s.data.image_shape, s.model.distribution.num_noise,
        )
        samples.append(complete(state.eval_variables, x, known, uniform, h))
    columns = [np.asarray(column) for column in (shown, *samples, x)]
    grid = plotting.image_grid(
        np.stack(columns, axis=1).reshape(-1, *s.data.image_shape),
        columns=len(columns), num_values=s.num_values,
    )
    labels = 'given', 'sample 1', 'sample 2', 'sample 3', 'truth'
    name = 'completions' if s.task is None else s.task.name
    return {name: plotting.with_axes(
        grid, rows=[str(row) for row in rows], columns=labels,
        ylabel='row of the test split',
        title='What is missing, drawn given the rest',
    )}
