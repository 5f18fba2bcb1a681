"""Refuses a run that cannot fit into memory, before anything is allocated or written.

What the network computes on the way is known only to the compiler; see
`parallel._Program`. Here are the numbers that no program has to be compiled for.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax

from gm_jax import memory
from gm_jax.data.image_set import ImageSet
from gm_jax.training import dispatch, parallel, settings
from gm_jax.training.contracts import ByExample, Experiment
from gm_jax.training.settings import Config

__all__ = ['check']


def check(
    config: Config, data: ImageSet, experiment: Experiment, shapes: Any, mode: str
) -> None:
    """Raise UserError for sizes that this machine can never hold.

    Args:
        config: the settings.
        data: the image set.
        experiment: the functions of the model.
        shapes: the state of training as jax.ShapeDtypeStruct.
        mode: train, eval or sample.
    """
    # On a CPU all devices of this process lie in the memory of the host.
    limit, copies = parallel.device_memory()
    num_bytes = _num_bytes(shapes)
    if mode == 'train':
        num_bytes += _num_bytes(shapes.params)  # its gradient
    memory.check(_network(config), copies * num_bytes, limit)
    if mode != 'sample':
        for what, size in _batches(config, data, experiment, mode):
            memory.check(what, size)
    images = 3 * config.num_samples * math.prod(data.image_shape)
    memory.check(f'--num_samples={config.num_samples}', images)


def _num_bytes(shapes: Any) -> int:
    leaves = [x for x in jax.tree.leaves(shapes) if hasattr(x, 'dtype')]
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in leaves)


def _network(config: Config) -> str:
    """Return the flags of the sizes of the network that are not the defaults."""
    common = {f.name for f in dataclasses.fields(Config)}
    changed = [
        f'--{f.name}={settings.text(getattr(config, f.name))}'
        for f in dataclasses.fields(config)
        if f.name not in common and isinstance(f.default, (int, tuple))
        and getattr(config, f.name) != f.default
    ]
    return f'the network of {" ".join(changed) or "these settings"}'


def _batches(
    config: Config, data: ImageSet, experiment: Experiment, mode: str
) -> Iterator[tuple[str, int]]:
    """Yield flags and the bytes of what they ask for on this host."""
    # The image, its place and its label.
    image = math.prod(data.image_shape) + 8
    processes = jax.process_count()
    if mode == 'train':
        steps = dispatch.steps_per_dispatch(config, experiment.single_steps)
        many = max(experiment.minibatches, 1)
        batch = config.batch_size * image // processes
        yield f'--batch_size={config.batch_size}', batch * many
        yield (
            f'--batch_size={config.batch_size} with {steps} steps per dispatch',
            config.batch_size // processes * 8 * steps * many,
        )
    yield f'--eval_batch_size={config.eval_batch}', config.eval_batch * image
    if isinstance(experiment.evaluation, ByExample):
        chunks = experiment.evaluation.test_chunks
        num = len(data.splits['test'])
        yield f'the evaluation of {num} images {chunks} times each', 4 * num * chunks
