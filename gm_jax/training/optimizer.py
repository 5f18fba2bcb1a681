"""The optimizer that the common settings describe."""

import optax

from gm_jax.training.config import Config


def learning_rate(config: Config) -> optax.Schedule:
    """Returns the learning rate as a function of the step, from the config.

    `stages` is the schedule of Burda et al. 2016, Importance Weighted Autoencoders,
    sec. 5: stage i = 0..7 has the rate peak * 10^(-i/7) and lasts 3^i / 3280 of the
    run, so that it keeps its shape whatever the length of the run.
    """
    peak, warmup = config.learning_rate, config.warmup_steps
    main_steps = max(config.num_steps - warmup, 1)
    if config.schedule == 'cosine':
        main = optax.cosine_decay_schedule(peak, main_steps)
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


def adam(config: Config) -> optax.GradientTransformation:
    """Returns Adam with the config's schedule, constants and gradient clipping."""
    tx = optax.adam(
        learning_rate(config), b1=config.adam_b1, b2=config.adam_b2,
        eps=config.adam_eps,
    )
    if config.grad_clip:
        tx = optax.chain(optax.clip_by_global_norm(config.grad_clip), tx)
    return tx
