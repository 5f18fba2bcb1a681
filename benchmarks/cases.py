"""The models whose speed is measured, at the sizes of their papers or presets."""

import dataclasses
import functools
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
        options: what the twin's `make` takes besides.
        num_images: how many random images there are.
    """

    name: str
    experiment: str
    settings: dict[str, Any]
    image_shape: tuple[int, int, int] = (28, 28, 1)
    num_values: int = 2
    num_classes: int = 0
    twin: str = ''
    options: dict[str, Any] = {}
    num_images: int = 2_000

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
        make = importlib.import_module(f'benchmarks.twins.{module}').make
        return functools.partial(make, **self.options)


_VAE = {
    'hidden': (200, 200), 'latent_dims': (50,), 'activation': 'tanh', 'batch_size': 100
}
_MULTISCALE = {
    'num_stages': 2, 'features': 32, 'num_layers': 6, 'head': 64, 'batch_size': 32
}
_LEVELS: dict[str, Any] = {'num_values': 256, 'options': {'num_values': 256}}
_PIXEL_RNN = {'num_layers': 7, 'features': 16, 'batch_size': 16}
_GAN = {'features': (32, 64, 128), 'latent_dim': 100, 'batch_size': 64}
CASES = (
    Case('autoencoder', 'autoencoder', {
        'hidden': (500,), 'latent_dim': 16, 'batch_size': 100,
    }, num_values=256),
    Case('nade', 'nade', {'hidden': 500, 'batch_size': 100}),
    Case('made', 'made', {'hidden': (500, 500), 'batch_size': 100}),
    Case('pixel_rnn row_lstm', 'pixel_rnn', {**_PIXEL_RNN, 'cell': 'row_lstm'}),
    Case('pixel_rnn diagonal_bilstm', 'pixel_rnn', _PIXEL_RNN),
    Case('pixel_cnn', 'pixel_cnn', {
        'features': 16, 'num_blocks': 15, 'head': 32, 'batch_size': 32,
    }),
    Case('gated_pixel_cnn', 'gated_pixel_cnn', {
        'features': 64, 'num_layers': 10, 'batch_size': 64,
    }, num_images=200),
    Case('gated_pixel_cnn 256', 'gated_pixel_cnn', {
        'features': 32, 'num_layers': 6, 'batch_size': 32,
    }, **_LEVELS),
    Case('pixel_cnn_pp', 'pixel_cnn_pp', {
        'features': 32, 'num_resnets': 1, 'num_levels': 2, 'num_mixtures': 10,
        'batch_size': 32,
    }, (28, 28, 1), 256),
    Case('pixel_cnn_pp 32x32', 'pixel_cnn_pp', {
        'features': 160, 'num_resnets': 5, 'num_levels': 3, 'num_mixtures': 10,
        'dropout': 0.0, 'batch_size': 4, 'adam_b1': 0.95, 'adam_b2': 0.9995,
    }, (32, 32, 3), 256, num_images=20),
    Case('multiscale_pixel_cnn', 'multiscale_pixel_cnn', _MULTISCALE),
    Case('multiscale_pixel_cnn raster', 'multiscale_pixel_cnn', {
        **_MULTISCALE, 'stages': 'raster',
    }),
    Case('time_series', 'time_series', {}, (1, 96, 1), 256),
    Case('nice', 'nice', {
        'num_couplings': 4, 'hidden': (500, 500), 'batch_size': 200,
    }, num_values=256),
    Case('real_nvp', 'real_nvp', {
        'channelwise': (4, 8), 'last': 4, 'features': 32, 'batch_size': 32,
    }, (28, 28, 1), 256),
    Case('vae', 'vae', {
        'hidden': (400,), 'latent_dims': (20,), 'batch_size': 128,
    }),
    Case('iwae', 'vae', {**_VAE, 'objective': 'iwae', 'k': 5}),
    Case('pixel_vae', 'pixel_vae', {
        'encoder': (32, 64, 64), 'features': 16, 'decoder_layers': 12,
        'first_kernel': 7, 'kernels': (5,), 'head': 16, 'kl_warmup': 0.0,
        'free_bits': 0.0, 'batch_size': 32,
    }),
    Case('rbm', 'rbm', {
        'hidden': 500, 'k': 1, 'batch_size': 100, 'optimizer': 'sgd',
    }),
    Case('dbm', 'dbm', {
        'hidden': (500, 1000), 'k': 1, 'mean_field_steps': 5, 'batch_size': 100,
        'optimizer': 'sgd', 'learning_rate': 0.01, 'gibbs_steps': 100,
    }, num_images=200),
    Case('gsn', 'gsn', {
        'layers': (500, 500), 'walkbacks': 2, 'batch_size': 100, 'chain_steps': 200,
        'hidden_noise': 2.0,
    }),
    Case('gan', 'gan', {
        'hidden': (512, 512), 'discriminator_hidden': (240, 240), 'latent_dim': 100,
        'dropout': 0.5, 'batch_size': 100,
    }, num_values=256),
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
    # At the default rate of 5e-4 the first steps of Adam, which are as long for any
    # gradient, make a loss differ by 3e-4 for no more than rounding in float32.
    Case('adversarial_autoencoder', 'adversarial_autoencoder', {
        'hidden': (1000, 1000), 'latent_dim': 8, 'batch_size': 100,
        'adversarial_learning_rate': 1e-4,
    }, num_values=256),
    Case('classifier', 'classifier', {}, num_values=256, num_classes=10),
)
