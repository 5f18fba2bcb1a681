"""The models whose speed is measured, at the sizes of their papers or presets."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.twins import Twin
from gm_jax.training.command import Command
from gm_jax.training.settings import Config

__all__ = ['Case', 'CASES']

# Neither side averages parameters or changes the learning rate.
_COMMON = {
    'optimizer': 'adam', 'schedule': 'constant', 'ema': 0.0, 'weight_decay': 0.0,
    'warmup_steps': 0, 'grad_clip': 0.0, 'binarize': 'none',
}


class Case(NamedTuple):
    """A model and its sizes.

    Attributes:
        name: the name of the row.
        experiment: the name of the experiment.
        settings: what is not the experiment's default.
        image_shape: H, W, C.
        num_values: V.
        num_classes: 0 for images without labels.
        twin: the module in benchmarks.twins.
    """

    name: str
    experiment: str
    settings: dict[str, Any]
    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_values: int = 2
    num_classes: int = 0
    twin: str = ''

    @property
    def command(self) -> Command:
        """The experiment."""
        return importlib.import_module(f'experiments.{self.experiment}').main

    @property
    def config(self) -> Config:
        """All its settings."""
        return dataclasses.replace(
            self.command.config_class(), **{**_COMMON, **self.settings}
        )

    @property
    def make_twin(self) -> Callable[[Any, tuple[int, int, int]], Twin]:
        """The function that makes the twin from the settings and the image shape."""
        module = self.twin or self.experiment
        return importlib.import_module(f'benchmarks.twins.{module}').make


_VAE = {
    'hidden': (200, 200), 'latent_dims': (50,), 'activation': 'tanh', 'batch_size': 100
}
CASES = (
    Case('autoencoder', 'autoencoder', {
        'hidden': (500,), 'latent_dim': 16, 'batch_size': 100,
    }, num_values=256),
    Case('nade', 'nade', {'hidden': 500, 'batch_size': 100}),
    Case('made', 'made', {'hidden': (500, 500), 'batch_size': 100}),
    Case('nice', 'nice', {
        'num_couplings': 4, 'hidden': (500, 500), 'batch_size': 200,
    }, num_values=256),
    Case('vae', 'vae', {
        'hidden': (400,), 'latent_dims': (20,), 'batch_size': 128,
    }),
    Case('iwae', 'vae', {**_VAE, 'objective': 'iwae', 'k': 5}),
    Case('rbm', 'rbm', {
        'hidden': 500, 'k': 1, 'batch_size': 100, 'optimizer': 'sgd',
    }),
    Case('dbm', 'dbm', {
        'hidden': (500, 1000), 'k': 1, 'mean_field_steps': 5, 'batch_size': 100,
        'optimizer': 'sgd', 'learning_rate': 0.01,
    }),
    Case('gsn', 'gsn', {'layers': (500, 500), 'walkbacks': 2, 'batch_size': 100}),
    Case('gan', 'gan', {
        'hidden': (512, 512), 'discriminator_hidden': (240, 240), 'latent_dim': 100,
        'dropout': 0.5, 'batch_size': 100,
    }, num_values=256),
    # At the default rate of 5e-4 the first steps of Adam, which are as long for any
    # gradient, make a loss differ by 3e-4 for no more than rounding in float32.
    Case('adversarial_autoencoder', 'adversarial_autoencoder', {
        'hidden': (1000, 1000), 'latent_dim': 8, 'batch_size': 100,
        'adversarial_learning_rate': 1e-4,
    }, num_values=256),
    Case('classifier', 'classifier', {}, num_values=256, num_classes=10),
)
