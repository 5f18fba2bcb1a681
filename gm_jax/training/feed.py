"""What each dispatch of the training loop is given: data on the devices, and batches.

A set in memory is put on the devices once and a step gathers its batch by row; a larger
one is streamed. A dispatch never crosses a step where the loop has something else to
do.
"""

from collections.abc import Iterator

import jax
import numpy as np

from gm_jax.data import image_set, pipeline
from gm_jax.training import parallel
from gm_jax.training.config import Config


def steps_per_dispatch(config: Config, convolutional: bool) -> int:
    """Returns K, how many steps one compiled loop holds.

    Args:
        config: its `steps_per_dispatch`, where that is not 0.
        convolutional: whether XLA would run convolutions inside the loop, which it
            does 40 to 60 times slower on the CPU.
    """
    if config.steps_per_dispatch:
        return config.steps_per_dispatch
    return 1 if convolutional and jax.default_backend() == 'cpu' else 50


def make_feed(
    config: Config,
    examples: image_set.Examples,
    seed: int,
    first_step: int,
    per_dispatch: int,
    minibatches: int = 0,
) -> tuple[dict[str, jax.Array], Iterator[tuple[np.int32, dict[str, np.ndarray]]]]:
    """Returns the data that stays on the devices and the batches of each dispatch.

    Args:
        config: its batch size, steps and intervals are used.
        examples: the training split.
        seed: which order of examples.
        first_step: where to begin.
        per_dispatch: K, the most steps of a dispatch.
        minibatches: M, how many batches each step takes, along an axis of their own;
            0: one, without the axis.

    Returns:
        (resident, feed): `resident` is {} for a streamed set; `feed` yields (num,
        batches) up to the last step, where num <= K steps are to be run of batches
        [D, K, B/D, ...] or [D, K, M, B/D, ...], as `parallel.train_many` takes them.
    """
    in_memory = isinstance(examples, image_set.ArrayExamples)
    resident = {}
    if in_memory:
        resident = parallel.replicate(
            {'image': examples.images, 'label': examples.labels}
        )
    process, processes = jax.process_index(), jax.process_count()
    # This process's places in the global batch.
    index = parallel.my_part(np.arange(config.batch_size))

    many = max(minibatches, 1)
    # Axes before that of the examples: all the batches of a dispatch in one go.
    lead = (per_dispatch, minibatches) if minibatches else (per_dispatch,)

    def rows(first: int) -> dict[str, np.ndarray]:
        order = pipeline.example_order(
            seed, first * many, config.batch_size, len(examples),
            num_steps=per_dispatch * many,
        )[:, index].reshape(*lead, -1)
        return {
            'row': order.astype(np.int32),
            'index': np.broadcast_to(index.astype(np.int32), order.shape),
        }

    def feed(step: int) -> Iterator:
        stream = None if in_memory else pipeline.stream_batches(
            examples, seed=seed, first_step=step * many, batch_size=config.batch_size,
            process_index=process, process_count=processes,
        )
        try:
            while step < config.num_steps:
                num = _steps_to_boundary(config, step, per_dispatch)
                if stream is None:
                    batches = rows(step)
                else:
                    taken = [next(stream) for _ in range(num * many)]
                    taken += taken[-1:] * ((per_dispatch - num) * many)
                    batches = jax.tree.map(
                        lambda *x: np.stack(x).reshape(*lead, *x[0].shape), *taken
                    )
                yield np.int32(num), parallel.split(batches, axis=len(lead))
                step += num
        finally:
            if stream is not None:
                stream.close()

    return resident, feed(first_step)


def _steps_to_boundary(config: Config, step: int, most: int) -> int:
    every = (config.log_every, config.eval_every, config.checkpoint_every)
    return min(most, config.num_steps - step, *(n - step % n for n in every))
