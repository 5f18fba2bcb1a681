"""The optimizer that the common settings describe."""

from typing import Any

import jax
import optax
import optax.contrib

from gm_jax.training.settings import Config
from gm_jax.training.train_state import Params

__all__ = ['learning_rate', 'make']


def learning_rate(config: Config) -> optax.Schedule:
    """Return the learning rate as a function of the step, from the config.

    `stages` is the schedule of Burda et al. 2016, Importance Weighted Autoencoders,
    sec. 5: stage i = 0..7 has the rate peak * 10^(-i/7) and lasts 3^i / 3280 of the
    run, so that it keeps its shape whatever the length of the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    main_steps = max(config.num_steps - warmup, 1)
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, main_steps)
    elif config.schedule == 'linear':
        main = optax.linear_schedule(peak, 0.0, main_steps)
    elif config.schedule == 'stages':
        ends = [(3 ** (i + 1) - 1) / 2 / 3280 for i in range(7)]
        main = optax.join_schedules(
            [optax.constant_schedule(peak * 10 ** (-i / 7)) for i in range(8)],
            [round(end * main_steps) for end in ends],
        )
    else:
        main = optax.constant_schedule(peak)
    if not warmup:
        return main
    ramp = optax.linear_schedule(0.0, peak, warmup)
    return optax.join_schedules([ramp, main], [warmup])


def make(config: Config, *, updates_per_step: int = 1) -> optax.GradientTransformation:
    """Return the config's optimizer with its schedule and gradient clipping.

    Args:
        config: the settings.
        updates_per_step: updates per training step; the schedule is a function of the
            training steps that were not skipped.
    """
    schedule = learning_rate(config)

    def rate(count: jax.Array) -> jax.Array:
        return schedule(count // updates_per_step)

    if config.optimizer == 'muon':
        tx = _muon(config, rate)
    elif config.optimizer == 'sgd':
        decay = optax.add_decayed_weights(config.weight_decay, _are_kernels)
        tx = optax.chain(decay, optax.sgd(rate))
    else:
        tx = optax.adamw(
            rate, b1=config.adam_b1, b2=config.adam_b2, eps=config.adam_eps,
            weight_decay=config.weight_decay, mask=_are_kernels,
        )
    if config.grad_clip:
        tx = optax.chain(optax.clip_by_global_norm(config.grad_clip), tx)
    return tx


def _are_kernels(params: Params) -> Any:
    """Return for each array whether it is a kernel: neither a bias nor a scale."""
    return jax.tree.map(lambda x: x.ndim > 1, params)


def _muon(config: Config, rate: optax.Schedule) -> optax.GradientTransformation:
    """Return Muon for kernels, Adam with Nesterov's momentum for the rest.

    Muon replaces the averaged gradient of a matrix by the orthogonal matrix nearest to
    it. A kernel [..., F, G] is a matrix of G columns. The result is scaled so that the
    root mean square of its entries is 0.2, about that of Adam's steps, and one learning
    rate serves both: Liu et al. 2025, Muon is Scalable for LLM Training, sec. 2.2,
    https://arxiv.org/abs/2502.16982.
    """

    def as_matrices(params: Params) -> Any:
        def one(x: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
            if x.ndim < 2:
                return None
            return optax.contrib.MuonDimensionNumbers(
                reduction_axis=tuple(range(x.ndim - 1)), output_axis=x.ndim - 1
            )

        return jax.tree.map(one, params)

    return optax.contrib.muon(
        rate, adam_b1=config.adam_b1, adam_b2=config.adam_b2, consistent_rms=0.2,
        weight_decay=config.weight_decay, muon_weight_dimension_numbers=as_matrices,
    )
