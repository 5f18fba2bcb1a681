"""The classifier, and how another experiment loads a trained one."""

import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.data import image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.keys import Stream, stream
from gm_jax.models.classifier import Classifier
from gm_jax.training import checkpoints, exporting, optimizer, settings, train_state
from gm_jax.training.settings import MOST_UNITS, Sizes, field
from gm_jax.training.train_state import TrainState

__all__ = [
    'check', 'Config', 'init', 'load', 'load_if_given', 'make_model', 'OfImages',
    'Trained', 'weights_digest',
]

# Images whose features are computed at a time.
_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of the classifier."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    maps: Sizes = field((32, 64), 'feature maps of each strided convolution')
    num_features: int = field(
        128, 'units before the softmax layer', low=1, high=MOST_UNITS
    )
    dropout: float = field(
        0.5, 'share of features dropped in training', low=0.0, high=0.99
    )


def make_model(config: Config, data: ImageSet) -> Classifier:
    """Make the network."""
    return Classifier(
        num_classes=data.num_classes,
        maps=config.maps,
        num_features=config.num_features,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def init(config: Config, data: ImageSet, rng: jax.Array) -> TrainState:
    """Return the initial training state."""
    variables = make_model(config, data).init(rng, jnp.zeros((1, *data.image_shape)))
    return train_state.create(
        variables['params'], optimizer.make(config), ema=config.ema > 0,
        model_state={'batch_stats': variables['batch_stats']},
    )


# A function of images [N, H, W, C], uint8 of levels 0 to 255.
OfImages = Callable[[np.ndarray], np.ndarray]


class Trained(NamedTuple):
    """The functions of a trained classifier.

    Attributes:
        features: images -> [N, F] float32.
        classify: images -> [N] the most likely class of each.
        digest: a digest of its parameters.
    """

    features: OfImages
    classify: OfImages
    digest: str = ''

    @property
    def name(self) -> str:
        """What the results call it."""
        return f'classifier {self.digest}'.strip()


def check(workdir: str, data: ImageSet) -> Config:
    """Return the settings of a classifier of this image set; JAX computes nothing.

    Args:
        workdir: the work directory of its run, or an exported model.
        data: the image set.

    Raises:
        UserError: there is no such run, or it was on another set.
    """
    workdir = os.path.expanduser(workdir)
    path = os.path.join(workdir, 'config.json')
    if not os.path.exists(path):
        raise UserError(
            f'{workdir} holds no run: train the experiment `classifier` there first.'
        )
    config = settings.load(path, Config, 'classifier')
    image_set.check_same_images(
        os.path.join(workdir, 'data.json'), data, f'{workdir} holds a classifier'
    )
    if not (exporting.is_exported(workdir) or checkpoints.last_step(workdir)):
        raise UserError(f'{workdir} has no checkpoint yet: train there first.')
    return config


def load_if_given(workdir: str, data: ImageSet) -> Trained | None:
    """Return the classifier of a flag; None where it is '', or for sampling.

    Sampling needs only a checkpoint, so the image set may have no splits.
    """
    return load(workdir, data) if workdir and data.splits else None


def load(workdir: str, data: ImageSet) -> Trained:
    """Return a classifier that was trained on this image set.

    Args:
        workdir: the work directory of its run, or an exported model.
        data: the image set.

    Returns:
        Its functions, which take images of levels 0 to 255 whatever the set's values.

    Raises:
        UserError: there is no such run, or it was on another set.
    """
    config, workdir = check(workdir, data), os.path.expanduser(workdir)
    template = jax.eval_shape(
        functools.partial(init, config, data), stream(config.seed, Stream.INIT)
    )
    variables, _ = exporting.variables(workdir, template)
    apply = functools.partial(make_model(config, data).apply, variables)
    return Trained(
        _by_batch(lambda x: apply(x, method='features')),
        _by_batch(lambda x: jnp.argmax(apply(x), axis=-1)),
        weights_digest(variables),
    )


def weights_digest(weights: Any) -> str:
    """Return eight letters that tell the weights of a network from others.

    Args:
        weights: a tree of arrays.
    """
    found = hashlib.sha256()
    for path, x in jax.tree_util.tree_leaves_with_path(weights):
        found.update(f'{jax.tree_util.keystr(path)} {np.shape(x)}'.encode())
        found.update(np.ascontiguousarray(x).tobytes())
    return found.hexdigest()[:8]


def _by_batch(function: Callable[[jax.Array], jax.Array]) -> OfImages:
    """Extend a function of one batch in [0, 1] to any number of uint8 images."""
    compiled = jax.jit(lambda image: function(image.astype(jnp.float32) / 255))

    def on_all(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, images[:1].repeat(-len(images) % _BATCH, 0)])
        parts = [compiled(x) for x in np.split(padded, len(padded) // _BATCH)]
        return np.concatenate(parts)[:len(images)]

    return on_all
