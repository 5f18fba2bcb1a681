"""Runs a pure evaluation or sampling function over a whole set, on all devices."""

from collections.abc import Callable

import jax
import numpy as np

from gm_jax.data import pipeline
from gm_jax.data.image_set import Examples
from gm_jax.training import parallel, signals
from gm_jax.training.contracts import SampleMany
from gm_jax.training.parallel import EvalMany
from gm_jax.training.train_state import TrainState

__all__ = ['over_examples', 'samples']


def over_examples(
    step: EvalMany,
    state: TrainState,
    examples: Examples,
    rng: jax.Array,
    batch_size: int,
    num_chunks: int = 1,
    report: Callable[[int], None] = lambda done: None,
) -> dict[str, np.ndarray]:
    """Evaluate every example exactly once, whatever the batch size and the devices.

    Args:
        step: compiled by `parallel.eval_many`.
        state: the training state, on the devices.
        examples: a split of an image set, N examples.
        rng: the key of the evaluation; an example's noise is keyed by its place in
            the set.
        batch_size: examples at a time; rounded up to a multiple of the devices.
        num_chunks: calls of `step` per batch, with batch['chunk'] = 0, 1, ...: a loop
            over samples that is not a loop on the device.
        report: called with the number of examples done.

    Returns:
        A dict in the order of the set. An output [B] becomes [N, num_chunks]; an output
        [B, ...] becomes [N, ...], averaged over the chunks.
    """
    batch_size = _round_up(batch_size)
    parts: dict[str, list[np.ndarray]] = {}
    batches = pipeline.eval_batches(
        examples, batch_size, jax.process_index(), jax.process_count()
    )
    for first, batch in zip(range(0, len(examples), batch_size), batches):
        real = slice(len(examples) - first)  # the rest is padding
        outputs = []
        for chunk in range(num_chunks):
            signals.check()
            batch['chunk'] = np.full_like(batch['index'], chunk)
            outputs.append(parallel.join(step(state, parallel.split(batch), rng)))
        for name in outputs[0]:
            value = np.stack([output[name] for output in outputs], axis=1)[real]
            # All chunks of an array per example would take gigabytes.
            value = value if value.ndim == 2 else value.mean(axis=1)
            parts.setdefault(name, []).append(value)
        report(min(first + batch_size, len(examples)))
    return {name: np.concatenate(values) for name, values in parts.items()}


def samples(
    sample: SampleMany, state: TrainState, num: int, rng: jax.Array, batch_size: int
) -> np.ndarray:
    """Generate `num` images; image i has the key fold_in(rng, i).

    Args:
        sample: compiled by `parallel.sample_many`.
        state: the training state, on the devices.
        num: the number of images.
        rng: the key of the sampling.
        batch_size: images at a time; rounded up to a multiple of the devices.

    Returns:
        [num, H, W, C] uint8.
    """
    # Always whole batches: in a smaller one the same image may be rounded differently.
    batch_size = _round_up(batch_size)
    images = []
    for first in range(0, num, batch_size):
        signals.check()
        indices = parallel.my_part(
            np.arange(first, first + batch_size, dtype=np.int32)
        )
        images.append(parallel.join(sample(state, parallel.split(indices), rng)))
    return np.concatenate(images)[:num]


def _round_up(batch_size: int) -> int:
    devices = jax.device_count()
    return -(-batch_size // devices) * devices
