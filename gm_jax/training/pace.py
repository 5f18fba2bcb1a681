"""How long a training step takes here."""

import time

import jax
import numpy as np

from gm_jax.data.image_set import ImageSet
from gm_jax.keys import Stream, stream
from gm_jax.training import dispatch, parallel
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import Config
from gm_jax.training.train_state import TrainState

__all__ = ['measure']


def measure(
    experiment: Experiment, config: Config, data: ImageSet, state: TrainState,
    at_least: float = 5.0,
) -> tuple[TrainState, float, int]:
    """Train for some seconds, compilation and the first dispatch left out.

    Args:
        experiment: the experiment.
        config: its settings.
        data: the image set; its training split is used.
        state: the initial state, on the devices.
        at_least: seconds for which steps are measured.

    Returns:
        The state after these steps, the seconds of a step, and on how many steps they
        were measured.
    """
    per_dispatch = dispatch.steps_per_dispatch(config, experiment.single_steps)
    train_many = parallel.train_many(experiment.train_step, per_dispatch)
    feed = dispatch.make_feed(
        config, data.splits['train'], config.seed, 0, per_dispatch,
        experiment.minibatches,
    )
    rng = stream(config.seed, Stream.TRAIN)
    num, done, seconds = 1, 0, 0.0
    compiled = False
    for _, batches in feed.dispatches:
        started = time.perf_counter()
        state, metrics = train_many(state, feed.resident, batches, np.int32(num), rng)
        jax.block_until_ready(metrics)
        if compiled:
            seconds, done = seconds + time.perf_counter() - started, done + num
            if seconds >= at_least:
                break
            left = int((at_least - seconds) * done / seconds)
            num = max(1, min(per_dispatch, left))
        compiled = True
    feed.dispatches.close()
    return state, seconds / done, done
