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
_PIXEL_RNN = {'num_layers': 7, 'features': 16, 'batch_size': 16}
_GAN = {'features': (32, 64, 128), 'latent_dim': 100, 'batch_size': 64}
CASES = (
    Case('vae', 'vae', {
        'hidden': (400,), 'latent_dims': (20,), 'batch_size': 128,
    }),
    Case('iwae', 'vae', {**_VAE, 'objective': 'iwae', 'k': 5}),
    Case('pixel_rnn row_lstm', 'pixel_rnn', {**_PIXEL_RNN, 'cell': 'row_lstm'}),
    Case('pixel_rnn diagonal_bilstm', 'pixel_rnn', _PIXEL_RNN),
    Case('dcgan', 'dcgan', _GAN, (32, 32, 3), 256),
    Case('dcgan 64x64', 'dcgan', {
        **_GAN, 'features': (64, 128, 256, 512), 'batch_size': 16,
        # Adam's first steps have the same size for gradients that are only rounding
        # errors: at the default rate the losses differ by a thousandth.
        'learning_rate': 1e-5,
    }, (64, 64, 3), 256),
    # The penalty's gradient jumps where a unit of the critic changes its sign, so that
    # rounding errors grow with the steps: the more, the higher the rate. The default
    # rate leaves three digits of the generator's loss, which is near 0, too few for
    # the check.
    Case('wgan', 'wgan', {**_GAN, 'learning_rate': 3e-6}, (32, 32, 3), 256),
    Case('real_nvp', 'real_nvp', {
        'channelwise': (4, 8), 'last': 4, 'features': 32, 'batch_size': 32,
    }, (28, 28, 1), 256),
)
