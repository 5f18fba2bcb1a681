"""Turns an autoregressive model into an experiment.

A model supplies functions (`setting.Model`); here they become an exact density and
three samplers.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from gm_jax.data import binarize, image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.families import density, generation, setting
from gm_jax.families.density import Mode
from gm_jax.families.setting import Config, Model, Setting, Task, Variables
from gm_jax.keys import Use, derive
from gm_jax.training.contracts import Experiment, Summarize
from gm_jax.training.train_state import Batch, ModelState

__all__ = [
    'assemble', 'build', 'generate_and_sweep', 'make_setting', 'MakeModel',
    'micro_batch_size',
]

# (config, image set) -> model
MakeModel = Callable[[Any, ImageSet], Model]


def build(
    config: Config, data: ImageSet, *, make_model: MakeModel, task: Task | None = None
) -> Experiment:
    """Make the experiment of an autoregressive model.

    Args:
        config: the settings.
        data: the image set.
        make_model: makes the model; called twice, once for each dtype: `config.dtype`
            for training and float32 for sampling.
        task: the part of an image that is given; log-probabilities are then those of
            the rest.
    """
    return assemble(make_setting(config, data, make_model=make_model, task=task))


def assemble(s: Setting) -> Experiment:
    """Make the experiment of a setting: its density, samplers and pictures."""
    exact = density.plain(
        functools.partial(_init, s), functools.partial(_log_prob, s), s.num_dims,
        'exact', num_chunks=s.model.test_chunks,
    )
    if s.task is not None:
        report = functools.partial(_report, s.task.name, exact.report)
        exact = exact._replace(report=report)
    samplers = generation.samplers(s)
    experiment = density.build(
        s.config,
        exact,
        sample=samplers.sample,
        sampler=s.config.sampler,
        host_sampler=(
            None if s.config.sampler == 'incremental' else samplers.make_host_sampler
        ),
        pictures=functools.partial(generation.pictures, s),
        single_steps=s.model.heavy,
        micro_batch=micro_batch_size(s.config, s.model),
        eval_micro_batch=micro_batch_size(s.config, s.model),
    )
    in_turn = s.config.class_conditional and setting.label(s.config, s.data) is None
    if s.task is not None:
        experiment = experiment._replace(no_sample=(
            f'--task={s.task.name} needs --given=FILE: an npz with whole images, or a '
            f'PNG or JPEG, a part of which is given to the network.'
        ))
    return experiment._replace(
        given=samplers.given,
        complete=samplers.complete,
        classes=image_set.classes(s.data) if in_turn and s.task is None else (),
        conditional=s.config.class_conditional or s.task is not None,
    )


def make_setting(
    config: Config, data: ImageSet, *, make_model: MakeModel, task: Task | None = None
) -> Setting:
    """Make the `Setting` that the functions of an experiment share; see `build`.

    Raises:
        UserError: the settings do not fit the images.
    """
    setting.check(config, data)
    model = make_model(config, data)
    # Samplers compute in float32, whatever dtype training uses.
    in_float32 = make_model(dataclasses.replace(config, dtype='float32'), data)
    generate, sweep = generate_and_sweep(in_float32, config.temperature)
    height, width, channels = data.image_shape
    pixels = height * width if task is None else int(task.missing.sum())
    return Setting(
        config, data, model, task, binarize.num_values(data),
        pixels * channels, generate, sweep,
    )


def generate_and_sweep(
    model: Model, temperature: float = 1.0
) -> tuple[Callable[..., jax.Array], Callable[..., jax.Array]]:
    """Return the functions that the samplers compile: pixel by pixel, and all at once.

    Both compute in full float32: by default GPUs and TPUs multiply matrices with less
    precision, and draws would differ between the three samplers.

    Args:
        model: a model whose network computes in float32.
        temperature: the temperature of the distributions.

    Returns:
        `generate(variables, x, known, uniform, h)`, which returns the images by
        `incremental`, and `sweep(variables, x, uniform, h)`, which returns for each
        value what its noise draws given x.
    """

    def quantile(params: Any, x: jax.Array, uniform: jax.Array) -> jax.Array:
        tempered = model.distribution.temper(params, temperature)
        return model.distribution.quantile(tempered, x, uniform)

    def generate(
        variables: Variables, x: jax.Array, known: jax.Array, uniform: jax.Array,
        h: jax.Array | None = None,
    ) -> jax.Array:
        with jax.default_matmul_precision('float32'):
            return model.incremental(variables, h, quantile, uniform, x, known)

    def sweep(
        variables: Variables, x: jax.Array, uniform: jax.Array,
        h: jax.Array | None = None,
    ) -> jax.Array:
        with jax.default_matmul_precision('float32'):
            params = model.apply(variables, x, h, rngs=None, step=None, chunk=0)
            return quantile(params, x, uniform)

    return generate, sweep


def micro_batch_size(config: Config, model: Model) -> int:
    """Return the examples per gradient computation, 0 for all of a device.

    By default, on a CPU, it is the number whose activations fit into the caches.
    """
    if config.micro_batch or not model.heavy or jax.default_backend() != 'cpu':
        return config.micro_batch
    return math.gcd(config.batch_size // jax.device_count(), model.micro_batch)


def _init(s: Setting, rng: jax.Array) -> Variables:
    x, labels = setting.first_batch(s.data, rng)
    return s.model.init(derive(rng, Use.WEIGHTS), x, s.condition(x, labels))


def _log_prob(
    s: Setting, variables: Variables, batch: Batch, rngs: jax.Array, mode: Mode
) -> tuple[jax.Array, ModelState]:
    """Compute log p(x) [B], in nats."""
    x = binarize.integers(derive(rngs, Use.PIXELS), batch['image'], s.data)
    params = s.model.apply(
        variables, x, s.condition(x, batch['label']),
        rngs=derive(rngs, Use.DROPOUT) if mode.train else None, step=mode.step,
        chunk=mode.chunk[0],
    )
    model_state = {k: v for k, v in variables.items() if k != 'params'}
    return s.log_prob(params, x), model_state


def _report(
    task: str, report: Summarize, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    return {**report(arrays), 'task': task}
