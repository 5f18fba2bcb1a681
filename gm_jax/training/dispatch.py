"""The input of each dispatch of the training loop: data on the devices, and batches.

A set in memory is put on the devices once, and a step gathers its batch by row; a
larger set is streamed, and so is one of which the devices of a CPU would hold too many
copies. A dispatch never crosses a step at which the loop has something else to do.
"""

from collections.abc import Generator
from typing import NamedTuple

import jax
import numpy as np

from gm_jax.data import image_set, pipeline
from gm_jax.training import parallel
from gm_jax.training.settings import Config

__all__ = ['Dispatch', 'Feed', 'make_feed', 'steps_per_dispatch']

# Bytes of a memory that the images on its devices may take.
_RESIDENT = 2**30


def steps_per_dispatch(config: Config, single_steps: bool) -> int:
    """Return K, how many steps one compiled loop holds.

    Args:
        config: its `steps_per_dispatch` is K, if it is not 0; but no dispatch is
            longer than an interval of the loop.
        single_steps: whether K = 1 on a CPU, which runs convolutions in a loop 40 to 60
            times slower.
    """
    if config.steps_per_dispatch:
        return min(config.steps_per_dispatch, config.num_steps, *_intervals(config))
    return 1 if single_steps and jax.default_backend() == 'cpu' else 50


class Dispatch(NamedTuple):
    """The input of one dispatch.

    Attributes:
        num: [] int32, how many steps to run, at most K.
        batches: arrays [D, K, B/D, ...] or [D, K, M, B/D, ...], of which the first
            `num` steps are run; see `parallel.train_many`.
    """

    num: np.int32
    batches: dict[str, np.ndarray]


class Feed(NamedTuple):
    """The input of all dispatches.

    Attributes:
        resident: the data set, on the devices; {} for one that is streamed.
        dispatches: the inputs up to the last step; the generator must be closed.
    """

    resident: dict[str, jax.Array]
    dispatches: Generator[Dispatch, None, None]


def make_feed(
    config: Config,
    examples: image_set.Examples,
    seed: int,
    first_step: int,
    per_dispatch: int,
    minibatches: int = 0,
) -> Feed:
    """Return the data that stays on the devices and the batches of each dispatch.

    Args:
        config: its batch size, steps and intervals are used.
        examples: the training split.
        seed: the seed of the order of the examples.
        first_step: where to begin.
        per_dispatch: K, the largest number of steps per dispatch.
        minibatches: M, batches per step, along an axis of their own; 0: one, without
            the axis.
    """
    # The axes before that of the examples, for all batches of a dispatch.
    lead = (per_dispatch, minibatches) if minibatches else (per_dispatch,)
    _, copies = parallel.device_memory()
    if isinstance(examples, image_set.ArrayExamples) and (
        copies * examples.images.nbytes <= _RESIDENT
    ):
        resident = {'image': examples.images, 'label': examples.labels}
        order = _rows(config, len(examples), seed, first_step, lead)
        return Feed(parallel.replicate(resident), order)
    return Feed({}, _images(config, examples, seed, first_step, lead))


def _rows(
    config: Config, num_examples: int, seed: int, step: int, lead: tuple[int, ...]
) -> Generator[Dispatch, None, None]:
    """Yield the rows of the set that each dispatch is to gather."""
    per_dispatch, many = lead[0], int(np.prod(lead[1:]))
    # This process's places in the global batch.
    index = parallel.my_part(np.arange(config.batch_size))
    while step < config.num_steps:
        num = _steps_to_boundary(config, step, per_dispatch)
        order = pipeline.example_order(
            seed, step * many, config.batch_size, num_examples,
            num_steps=per_dispatch * many,
        )[:, index].reshape(*lead, -1)
        batches = {
            'row': order.astype(np.int32),
            'index': np.broadcast_to(index.astype(np.int32), order.shape),
        }
        yield Dispatch(np.int32(num), parallel.split(batches, axis=len(lead)))
        step += num


def _images(
    config: Config, examples: image_set.Examples, seed: int, step: int,
    lead: tuple[int, ...],
) -> Generator[Dispatch, None, None]:
    """Yield the images of each dispatch, as they are read."""
    per_dispatch, many = lead[0], int(np.prod(lead[1:]))
    stream = pipeline.stream_batches(
        examples, seed=seed, first_step=step * many, batch_size=config.batch_size,
        process_index=jax.process_index(), process_count=jax.process_count(),
    )
    try:
        while step < config.num_steps:
            num = _steps_to_boundary(config, step, per_dispatch)
            taken = [next(stream) for _ in range(num * many)]
            taken += taken[-1:] * ((per_dispatch - num) * many)
            batches = jax.tree.map(
                lambda *x: np.stack(x).reshape(*lead, *x[0].shape), *taken
            )
            yield Dispatch(np.int32(num), parallel.split(batches, axis=len(lead)))
            step += num
    finally:
        stream.close()


def _steps_to_boundary(config: Config, step: int, most: int) -> int:
    left = (n - step % n for n in _intervals(config))
    return min(most, config.num_steps - step, *left)


def _intervals(config: Config) -> tuple[int, ...]:
    return config.log_every, config.eval_every, config.checkpoint_every
