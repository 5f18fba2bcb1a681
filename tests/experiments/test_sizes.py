"""The number of parameters of the defaults, and what would make fewer."""

import dataclasses
import importlib

import jax
import pytest

from experiments import NAMES, made, vae
from gm_jax.data.image_set import ImageSet
from gm_jax.training import sizes

# Images that are not there: parameters have shapes without them.
COLOUR = ImageSet(
    name='cifar10', image_shape=(32, 32, 3), num_values=256, num_classes=10, splits={}
)
SERIES = ImageSet(
    name='series', image_shape=(1, 256, 1), num_values=256, num_classes=0, splits={}
)
GREY = ImageSet(
    name='mnist', image_shape=(28, 28, 1), num_values=256, num_classes=10, splits={}
)


def _shapes(module, config, data):
    return jax.eval_shape(module.main.build(config, data).init, jax.random.key(0))


@pytest.mark.parametrize('name', NAMES)
def test_defaults_fit_colour_images(name):
    """Catch defaults that refuse colours, or that have billions of parameters there."""
    module = importlib.import_module(f'experiments.{name}')
    data = SERIES if name == 'time_series' else COLOUR
    config = module.main.config_class()
    if config.binarize != 'none':
        data = dataclasses.replace(data, num_values=2, binarize=config.binarize)
    assert sizes.count(_shapes(module, config, data)) < sizes.MANY


def test_small_grey_images_keep_the_dense_vae():
    """Catch another network for MNIST or digits than before there was a choice."""
    digits = GREY.__class__(**{**vars(GREY), 'image_shape': (8, 8, 1)})
    for data in (GREY, digits):
        auto, dense = (
            _shapes(vae, config, data) for config in (
                vae.Config(), vae.Config(network='mlp', hidden=(256, 256))
            )
        )
        assert auto.params == dense.params


def test_the_settings_that_make_fewer_parameters():
    """Catch a hint that does not help, and one that misses what does."""
    config = made.Config(dataset='mnist', hidden=(500,), direct='yes')
    sentence = sizes.advice(config, GREY, made.main.build)
    assert sentence.startswith('258.3 million parameters')
    # 784 x 500 + 500 + 784 x 256 (500 + 1) without direct connections.
    assert '--direct=no (100.9 million)' in sentence
    assert '--binarize=threshold (1.4 million)' in sentence
    assert '--hidden=250 (' not in sentence  # leaves 81 %
    smaller = made.Config(dataset='idx:DIR', hidden=(500,), direct='no')
    sentence = sizes.advice(smaller, GREY, made.main.build)
    assert '--hidden=250 (50.6 million)' in sentence and 'image_size' not in sentence
