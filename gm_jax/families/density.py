"""Turns a likelihood into an experiment: loss, evaluation and results.

A model supplies its terms, computed for each image of a batch, and functions of them:

    density = Density(init, terms, loss, numbers, estimates, report)
    experiment = build(config, density, sample=sample, ...)

If the terms are log p(x) [B] and nothing else, or one random estimate of it, `plain`
supplies the rest:

    density = plain(init, log_prob, num_dims, estimator='exact')

Estimates are combined by log-mean-exp over the chunks of the final evaluation. So
mixtures of densities, importance weights and dequantization noise are one case: each
chunk is the log of an unbiased estimate of p(x).
"""

import functools
import math
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.evaluation import likelihood
from gm_jax.keys import fold_in_each
from gm_jax.losses import likelihoods
from gm_jax.training import optimizer, train_state
from gm_jax.training.contracts import (
    ByExample,
    EvalStep,
    Experiment,
    HostSampler,
    MakePictures,
    Sample,
    Summarize,
)
from gm_jax.training.settings import Config
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    Metrics,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)

__all__ = ['build', 'Density', 'Mode', 'plain', 'report', 'TermsFn']

T = TypeVar('T')
T_co = TypeVar('T_co', covariant=True)


class Mode(NamedTuple):
    """The circumstances in which the terms of a model are computed.

    Attributes:
        train: whether this is training: dropout is active, and BatchNorm uses the
            moments of the batch.
        final: whether this is the final evaluation, which may take more samples.
        step: [] int32, the training step.
        chunk: [B] int32, all equal: the index of this estimate among those of an
            evaluation; 0 in training.
        axis_name: the pmap axis over which a batch is spread in training.
    """

    train: bool
    final: bool
    step: jax.Array
    chunk: jax.Array
    axis_name: str | None


class TermsFn(Protocol[T_co]):
    """A function that computes the terms of each image of a batch."""

    def __call__(
        self, variables: dict[str, Any], batch: Batch, rngs: jax.Array, mode: Mode, /
    ) -> tuple[T_co, ModelState]:
        """Compute the terms.

        Args:
            variables: 'params' and the other collections.
            batch: 'image' [B, H, W, C] as the image set holds them, 'label' [B].
            rngs: [B] one key per example.
            mode: the circumstances.

        Returns:
            The terms, and the new variables other than parameters ({} outside
            training).
        """


class Density(NamedTuple, Generic[T]):
    """A model with a likelihood, as pure functions.

    Attributes:
        init: makes the variables, 'params' and the other collections, from a key.
        terms: computes the terms of each image.
        loss: (terms, mode) -> the loss [] to minimise, and scalars to log.
        numbers: terms -> numbers [B] of an evaluation during training; 'loss' selects
            the best checkpoint.
        estimates: terms -> arrays [B, ...] of the final evaluation.
        report: computes the numbers of results.json from these arrays for the whole
            test set.
        num_chunks: the number of estimates per image in the final evaluation.
        fewer_chunks: see `ByExample`, as for the next.
        chunk_size: the samples that one estimate is made of.
        log_prob: the name of the estimate of log p(x) among `estimates`.
    """

    init: Callable[[jax.Array], dict[str, Any]]
    terms: TermsFn[T]
    loss: Callable[[T, Mode], tuple[jax.Array, Metrics]]
    numbers: Callable[[T], dict[str, jax.Array]]
    estimates: Callable[[T], dict[str, jax.Array]]
    report: Summarize
    num_chunks: int = 1
    fewer_chunks: tuple[int, ...] = ()
    chunk_size: int = 1
    log_prob: str = 'log_px'


def plain(
    init: Callable[[jax.Array], dict[str, Any]], log_prob: TermsFn[jax.Array],
    num_dims: int, estimator: str, *, num_chunks: int = 1,
) -> Density[jax.Array]:
    """Return the density of a model whose terms are log p(x) [B], in nats.

    Training minimises the mean of -log p(x).

    Args:
        init: makes the variables from a key.
        log_prob: log p(x), or the log of an unbiased estimate of p(x).
        num_dims: D, the number of values whose log-probability it is.
        estimator: its name in results.json, such as 'exact'.
        num_chunks: how many estimates the final evaluation averages.
    """

    def numbers(log_px: jax.Array) -> dict[str, jax.Array]:
        bits = likelihoods.bits_per_dim(log_px, num_dims)
        return {'nats_per_image': -log_px, 'bits_per_dim': bits}

    def loss(log_px: jax.Array, mode: Mode) -> tuple[jax.Array, Metrics]:
        return -log_px.mean(), jax.tree.map(jnp.mean, numbers(log_px))

    return Density(
        init=init,
        terms=log_prob,
        loss=loss,
        numbers=lambda log_px: {'loss': -log_px, **numbers(log_px)},
        estimates=lambda log_px: {'log_px': log_px},
        report=functools.partial(report, num_dims, estimator),
        num_chunks=num_chunks,
    )


def report(
    num_dims: int, estimator: str, arrays: dict[str, np.ndarray]
) -> dict[str, Any]:
    """Return the numbers of results.json from estimates 'log_px' [N, chunks]."""
    log_px = likelihood.combine(arrays['log_px'])
    return likelihood.report(log_px, num_dims, estimator)


def build(
    config: Config,
    density: Density[Any],
    *,
    sample: Sample | None,
    sampler: str,
    single_steps: bool,
    host_sampler: Callable[[], HostSampler] | None = None,
    pictures: MakePictures | None = None,
    micro_batch: int = 0,
    eval_micro_batch: int = 0,
) -> Experiment:
    """Make the experiment of a model with a likelihood.

    Args:
        config: the settings.
        density: the model.
        sample: generates images; for this and what follows see `Experiment`.
        sampler: how it samples, in words.
        single_steps: whether a CPU runs the training steps one by one.
        host_sampler: makes a sampler that loops on the host.
        pictures: draws pictures.
        micro_batch: examples per gradient computation on a device; 0: all.
        eval_micro_batch: the most examples that an evaluation takes at a time; 0: all.
    """
    return Experiment(
        init=functools.partial(_init, config, density),
        train_step=make_train_step(
            functools.partial(_loss, density), ema_decay=config.ema,
            micro_batch=micro_batch,
        ),
        evaluation=ByExample(
            _in_parts(functools.partial(_eval_step, density), eval_micro_batch),
            _in_parts(functools.partial(_test_step, density), eval_micro_batch),
            density.report,
            density.num_chunks,
            density.fewer_chunks,
            density.chunk_size,
            density.log_prob,
        ),
        sample=sample,
        sampler=sampler,
        host_sampler=host_sampler,
        pictures=pictures,
        single_steps=single_steps,
        loss_unit='nats per image',
        micro_batch=micro_batch,
    )


def _init(config: Config, density: Density[Any], rng: jax.Array) -> TrainState:
    variables = dict(density.init(rng))
    params = variables.pop('params')
    return train_state.create(
        params, optimizer.make(config), ema=config.ema > 0, model_state=variables
    )


def _loss(
    density: Density[Any], params: Params, model_state: ModelState, batch: Batch,
    rngs: jax.Array, *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    mode = Mode(True, False, step, jnp.zeros(len(rngs), jnp.int32), axis_name)
    terms, model_state = density.terms(
        {'params': params, **model_state}, batch, rngs, mode
    )
    loss, metrics = density.loss(terms, mode)
    return LossOutput(loss, metrics, model_state)


def _eval_step(
    density: Density[Any], state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    chunk = jnp.zeros_like(batch['index'])
    return density.numbers(_evaluate(density, state, batch, rng, chunk, False))


def _test_step(
    density: Density[Any], state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    return density.estimates(
        _evaluate(density, state, batch, rng, batch['chunk'], True)
    )


def _in_parts(step: EvalStep, size: int) -> EvalStep:
    """Evaluate at most `size` examples of a batch at a time; 0: all."""
    if not size:
        return step

    def in_parts(
        state: TrainState, batch: Batch, rng: jax.Array
    ) -> dict[str, jax.Array]:
        num = len(batch['index'])
        part = math.gcd(num, size)
        parts = jax.tree.map(lambda a: a.reshape(-1, part, *a.shape[1:]), batch)
        found = jax.lax.map(lambda part: step(state, part, rng), parts)
        return {name: a.reshape(num, *a.shape[2:]) for name, a in found.items()}

    return in_parts


def _evaluate(
    density: Density[T], state: TrainState, batch: Batch, rng: jax.Array,
    chunk: jax.Array, final: bool,
) -> T:
    """Compute the terms with the variables that evaluation uses."""
    terms, _ = density.terms(
        state.eval_variables, batch, fold_in_each(rng, batch['index']),
        Mode(False, final, state.step, chunk, None),
    )
    return terms
