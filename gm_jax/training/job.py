"""What the parts of a run share: an experiment, its job, keys and places."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gm_jax.data import sources
from gm_jax.training import evaluate
from gm_jax.training.config import Config, Run
from gm_jax.training.state import TrainState

# Each use of randomness has a key of its own.
INIT, TRAIN, EVAL, SAMPLE = range(4)


class Experiment(NamedTuple):
    """What the loop needs to know of a model: pure functions of arrays and keys."""

    init: Callable  # rng -> TrainState
    train_step: Callable  # (state, batch, rng, *, axis_name) -> (state, metrics)
    convolutional: bool  # XLA on the CPU is slow for convolutions inside a loop
    # A model is evaluated example by example, by the first three,
    eval_step: Callable | None = None  # (state, batch, rng) -> {'loss': [B], ...}
    test_step: Callable | None = None  # the same, with careful numbers for the end
    summarize: Callable | None = None  # {name: [N, chunks, ...]} -> metrics
    test_chunks: int = 1  # calls of test_step a batch, with batch['chunk'] = 0, 1, ...
    # or by a set of its samples: (num -> uint8 [num, H, W, C], Examples, last) ->
    # numbers, of which 'loss' chooses the best checkpoint; `last`: the careful ones.
    score: Callable | None = None
    sample: Callable | None = None  # (state, rngs [B], index [B]) -> uint8 [B, H, W, C]
    sampler: str = ''  # how it samples, for samples.npz
    pictures: Callable | None = None  # (state, batch, rng) -> {name: uint8 [H, W, C]}
    # (split, metrics of a line) -> sentences on what is wrong
    alarms: Callable | None = None
    # (state, say) -> (metrics, pictures) of what is measured at the end, such as probes
    finish: Callable | None = None
    micro_batch: int = 0  # examples of a device whose gradient is taken together
    minibatches: int = 0  # of each step, along a first axis; 0: one, without the axis
    # () -> what parallel.sample_many returns, for a sampler that is no one program;
    # with `warm_up` it only compiles
    host_sampler: Callable | None = None


class Job(NamedTuple):
    """A run of an experiment; nothing in it changes."""

    run: Run
    config: Config
    data: sources.ImageSet
    experiment: Experiment
    manager: Any  # of checkpoints

    def picture(self, name: str) -> str:
        """Returns the path of a picture."""
        return os.path.join(self.run.workdir, 'samples', f'{name}.png')

    def draw_samples(
        self, sample_many: Callable, state: TrainState, num: int
    ) -> np.ndarray:
        """Generates images [num, H, W, C] uint8, the same for a state each time."""
        return evaluate.samples(
            sample_many, state, num, stream(self.config.seed, SAMPLE),
            self.config.batch_size,
        )


def stream(seed: int, use: int) -> jax.Array:
    """Returns the key of one use of randomness, such as TRAIN."""
    return jax.random.fold_in(jax.random.key(seed), use)


def count_parameters(state: TrainState) -> int:
    """Returns how many numbers are trained."""
    return sum(x.size for x in jax.tree.leaves(state.params))


def devices() -> str:
    """Returns how many devices there are, over all processes, and of which kind."""
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
