"""One run of an experiment, with what the parts of the loop need from it."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from gm_jax.data.image_set import ImageSet
from gm_jax.keys import Stream, stream
from gm_jax.training import evaluate, settings
from gm_jax.training.contracts import BySamples, Experiment, SampleMany
from gm_jax.training.flags import Run
from gm_jax.training.settings import Config
from gm_jax.training.train_state import TrainState

__all__ = ['devices', 'Job', 'validation_split']


class Job(NamedTuple):
    """A run of an experiment; its fields never change.

    Attributes:
        name: the name of the experiment.
        run: what to do.
        config: the settings.
        data: the image set.
        experiment: the pure functions.
        init: `init` of the experiment, jitted.
        sampler: its sampler, compiled when it is first called, once for all that a run
            draws; None for a model that generates nothing.
    """

    name: str
    run: Run
    config: Config
    data: ImageSet
    experiment: Experiment
    init: Callable[[jax.Array], TrainState]
    sampler: SampleMany | None

    @property
    def noise_seed(self) -> int:
        """The seed of the noise of evaluations, samples and pictures."""
        return self.config.seed if self.run.seed is None else self.run.seed

    @property
    def settings(self) -> dict[str, Any]:
        """The name of the experiment and its settings, as config.json has them."""
        return {'experiment': self.name, **settings.plain(self.config)}

    def path(self, name: str) -> str:
        """Return the path of a file in the work directory."""
        return os.path.join(self.run.workdir, name)

    @property
    def best_by(self) -> str:
        """The number of an evaluation that is lowest for the best checkpoint."""
        evaluation = self.experiment.evaluation
        return evaluation.best_by if isinstance(evaluation, BySamples) else 'loss'

    def picture(self, name: str) -> str:
        """Return the path of a picture."""
        return self.path(os.path.join('samples', f'{name}.png'))

    def sample_many(self) -> SampleMany:
        """Return the sampler, which the experiment must have."""
        if self.sampler is None:
            raise ValueError(f'{self.name} generates nothing')
        return self.sampler

    def draw_samples(
        self, sample_many: SampleMany, state: TrainState, num: int
    ) -> np.ndarray:
        """Generate images [num, H, W, C] uint8, the same for a state each time."""
        return evaluate.samples(
            sample_many, state, num, stream(self.noise_seed, Stream.SAMPLE),
            self.config.batch_size,
        )


def validation_split(data: ImageSet) -> str:
    """Return the split that is evaluated in training, and that chooses the best."""
    return 'validation' if 'validation' in data.splits else 'test'


def devices() -> str:
    """Return the number of devices, over all processes, and their kind."""
    return f'{jax.device_count()} x {jax.devices()[0].device_kind}'
