"""Runs a pure evaluation or sampling function over a whole set, on all devices."""

import time
from collections.abc import Callable

import jax
import numpy as np

from gm_jax.data import image_set, pipeline
from gm_jax.data.image_set import Examples
from gm_jax.keys import Stream, stream
from gm_jax.training import parallel, processes, signals
from gm_jax.training.contracts import ByExample, BySamples, SampleMany
from gm_jax.training.parallel import EvalMany
from gm_jax.training.progress import doing
from gm_jax.training.train_state import TrainState

__all__ = [
    'over_examples', 'samples', 'shared', 'shared_names', 'some', 'with_shared',
]


def some(examples: Examples, num: int) -> Examples:
    """Return `num` examples from all over a split; 0: all."""
    if not 0 < num < len(examples):
        return examples
    return image_set.select(examples, image_set.spread(len(examples), num))


def shared(
    evaluation: ByExample, state: TrainState, rng: jax.Array, *, final: bool
) -> dict[str, float]:
    """Compute the numbers that all examples share, on one device; {} if there are none.

    Args:
        evaluation: what is evaluated.
        state: the training state, on the devices.
        rng: the key of the evaluation.
        final: whether this is the final evaluation.
    """
    if evaluation.shared is None:
        return {}
    with doing('computing what all examples share'):
        found = jax.jit(evaluation.shared, static_argnums=2)(
            parallel.local(state), rng, final
        )
        values = {name: np.asarray(x, np.float32) for name, x in found.items()}
    return {name: float(processes.from_primary(x)) for name, x in values.items()}


def shared_names(
    evaluation: ByExample | BySamples, state: TrainState
) -> tuple[str, ...]:
    """Return the names of the numbers that all examples share.

    Args:
        evaluation: what is evaluated.
        state: the state, or its shapes.
    """
    shared = evaluation.shared if isinstance(evaluation, ByExample) else None
    if shared is None:
        return ()
    return tuple(jax.eval_shape(
        lambda state, rng: shared(state, rng, True), state, stream(0, Stream.EVAL)
    ))


def with_shared(state: TrainState, numbers: dict[str, float]) -> TrainState:
    """Return the state with the result of `shared`, where the steps look for it."""
    if not numbers:
        return state
    arrays = {name: np.float32(x) for name, x in numbers.items()}
    return state.replace(
        model_state={**state.model_state, 'shared': parallel.replicate(arrays)}
    )


def over_examples(
    step: EvalMany,
    state: TrainState,
    examples: Examples,
    rng: jax.Array,
    batch_size: int,
    num_chunks: int = 1,
    report: Callable[[float], None] = lambda done: None,
    choose: Callable[[float], int] | None = None,
) -> dict[str, np.ndarray]:
    """Evaluate every example exactly once, whatever the batch size and the devices.

    Args:
        step: compiled by `parallel.eval_many`.
        state: the training state, on the devices.
        examples: a split of an image set, N examples.
        rng: the key of the evaluation; an example's noise is keyed by its place in
            the set.
        batch_size: examples at a time, if there are as many; rounded up to a multiple
            of the devices.
        num_chunks: calls of `step` per batch, with batch['chunk'] = 0, 1, ...: a loop
            over samples that is not a loop on the device.
        report: called after every call of `step` with the number of examples done,
            where one of whose chunks some are done counts as a part.
        choose: called once, with the seconds that each chunk takes for all examples;
            returns how many of the chunks there shall be.

    Returns:
        A dict in the order of the set. An output [B] becomes [N, num_chunks]; an output
        [B, ...] becomes [N, ...], averaged over the chunks.
    """
    batch_size = _round_up(min(batch_size, len(examples)))
    parts: dict[str, list[np.ndarray]] = {}
    batches = pipeline.eval_batches(
        examples, batch_size, jax.process_index(), jax.process_count()
    )
    for begin, batch in zip(range(0, len(examples), batch_size), batches):
        size = min(batch_size, len(examples) - begin)
        real = slice(size)  # the rest is padding
        outputs: list[dict[str, np.ndarray]] = []
        while len(outputs) < num_chunks:
            signals.check()
            started = time.monotonic()
            batch['chunk'] = np.full_like(batch['index'], len(outputs))
            outputs.append(parallel.join(step(state, parallel.split(batch), rng)))
            # The first call compiles.
            if choose is not None and len(outputs) == 2:
                each = time.monotonic() - started
                num_chunks = choose(each * -(-len(examples) // batch_size))
                outputs, choose = outputs[:num_chunks], None
            report(begin + size * len(outputs) / num_chunks)
        for name in outputs[0]:
            value = np.stack([output[name] for output in outputs], axis=1)[real]
            # All chunks of an array per example would take gigabytes.
            value = value if value.ndim == 2 else value.mean(axis=1)
            parts.setdefault(name, []).append(value)
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
