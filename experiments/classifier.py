"""A small classifier, whose features score the samples of other models.

    python -m experiments.classifier --workdir=/tmp/classifier --data_dir=DIR \\
        --dataset=fashion_mnist
    python -m experiments.gan --workdir=/tmp/gan --preset=lucic --data_dir=DIR \\
        --classifier=/tmp/classifier

The Frechet distance in these features is called a classifier Frechet distance. It is no
FID, which is of the features of one certain Inception network.
"""

import dataclasses
import functools
import os
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax.data import binarize, image_set, sources
from gm_jax.errors import UserError
from gm_jax.models.classifier import Classifier
from gm_jax.training import checkpoints
from gm_jax.training import config as config_lib
from gm_jax.training import loop, optimizer
from gm_jax.training import state as state_lib
from gm_jax.training.config import field

# Images whose features are taken at a time.
_BATCH = 250


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of the classifier."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    maps: str = field('32,64', 'maps of the strided convolutions')
    num_features: int = field(128, 'units before the softmax layer', low=1)
    dropout: float = field(
        0.5, 'rate of features dropped in training', low=0.0, high=0.99
    )

    def __post_init__(self) -> None:
        """Raises UserError for sizes that are none."""
        super().__post_init__()
        config_lib.sizes(self.maps, 'maps')


def make_model(config: Config, data: sources.ImageSet) -> Classifier:
    """Makes the network."""
    return Classifier(
        num_classes=data.num_classes,
        maps=config_lib.sizes(config.maps, 'maps'),
        num_features=config.num_features,
        dropout=config.dropout,
        dtype=jnp.dtype(config.dtype),
    )


def build(config: Config, data: sources.ImageSet) -> loop.Experiment:
    """Makes the pure functions of the experiment."""
    if data.num_classes < 2:
        raise UserError(f'{data.name} has no two classes to tell apart.')
    model = make_model(config, data)

    def init(rng: jax.Array) -> state_lib.TrainState:
        variables = model.init(rng, jnp.zeros((1, *data.image_shape)))
        return state_lib.create(
            variables['params'], optimizer.make(config), ema=config.ema > 0,
            model_state={'batch_stats': variables['batch_stats']},
        )

    def loss_fn(params, model_state, batch, rngs, *, step, axis_name):
        del step
        pixel_rngs, dropout_rngs = state_lib.split_each(rngs, 2)
        logits, updated = model.apply(
            {'params': params, **model_state},
            binarize.to_unit_range(pixel_rngs, batch['image'], data),
            dropout_rngs=dropout_rngs, train=True, axis_name=axis_name,
            mutable=['batch_stats'],
        )
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(
            logits, batch['label']
        )
        return state_lib.LossOutput(loss.mean(), {}, updated)

    def eval_step(state: Any, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x = binarize.to_unit_range(rngs, batch['image'], data)
        logits = model.apply(state.eval_variables, x)
        label = batch['label']
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, label)
        right = jnp.argmax(logits, axis=-1) == label
        return {'loss': loss, 'accuracy': right.astype(jnp.float32)}

    def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
        return {
            'cross_entropy_nats': float(arrays['loss'].mean(dtype=np.float64)),
            'accuracy': float(arrays['accuracy'].mean(dtype=np.float64)),
        }

    return loop.Experiment(
        init=init,
        train_step=state_lib.make_train_step(loss_fn, ema_decay=config.ema),
        eval_step=eval_step,
        test_step=eval_step,
        summarize=summarize,
        convolutional=True,
    )


class Trained(NamedTuple):
    """What a trained classifier sees in images [N, H, W, C], uint8 of 0 to 255."""

    features: Callable[[np.ndarray], np.ndarray]  # images -> [N, F] float32
    classify: Callable[[np.ndarray], np.ndarray]  # images -> [N] likeliest classes


def load(workdir: str, data: sources.ImageSet) -> Trained:
    """Returns a classifier that was trained on this image set.

    Args:
        workdir: of the classifier's run.
        data: the image set.

    Returns:
        Its functions, of images of levels 0 to 255 whatever the set's values.

    Raises:
        UserError: there is no such run, or it was on another set.
    """
    path = os.path.join(workdir, 'config.json')
    if not os.path.exists(path):
        raise UserError(
            f'{workdir} holds no run: train one there with python -m '
            f'experiments.classifier.'
        )
    config = config_lib.load(path, Config)
    facts = image_set.read_facts(os.path.join(workdir, 'data.json'))
    seen, wanted = (
        f'{x.name} {x.image_shape} with --binarize={x.binarize}' for x in (facts, data)
    )
    if seen != wanted:
        raise UserError(f'{workdir} holds a classifier of {seen}, not of {wanted}.')
    template = build(config, data).init(jax.random.key(0))
    manager = checkpoints.open_directory(workdir)
    found = checkpoints.restore(manager, template)
    manager.close()
    if found is None:
        raise UserError(f'{workdir} has no checkpoint yet.')
    apply = functools.partial(
        make_model(config, data).apply, found.state.eval_variables
    )
    return Trained(
        _by_batch(lambda x: apply(x, method='features')),
        _by_batch(lambda x: jnp.argmax(apply(x), axis=-1)),
    )


def _by_batch(
    of_batch: Callable[[jax.Array], jax.Array]
) -> Callable[[np.ndarray], np.ndarray]:
    """Makes a function of any number of uint8 images from one of a batch in [0, 1]."""
    compiled = jax.jit(lambda image: of_batch(image.astype(jnp.float32) / 255))

    def of_images(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, images[:1].repeat(-len(images) % _BATCH, 0)])
        parts = [compiled(x) for x in np.split(padded, len(padded) // _BATCH)]
        return np.concatenate(parts)[:len(images)]

    return of_images


main = functools.partial(
    loop.main, module='classifier', about=__doc__, config_class=Config, presets={},
    build=build,
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
