r"""A small classifier, whose features score the samples of other models.

    python -m experiments.classifier --workdir=/tmp/classifier --data_dir=DIR \
        --dataset=fashion_mnist
    python -m experiments.gan --workdir=/tmp/lucic --preset=lucic --data_dir=DIR \
        --classifier=/tmp/classifier

The Frechet distance in these features is called a classifier Frechet distance. It is
not FID, which is defined on the features of one particular Inception network.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import functools
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax.data import binarize
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.families.classifier import Config, init, make_model
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.models.classifier import Classifier
from gm_jax.training import command
from gm_jax.training.contracts import ByExample, Codes, Experiment
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)

_cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


class Setting(NamedTuple):
    """What the functions of the experiment have in common.

    Attributes:
        data: the image set.
        model: the network.
    """

    data: ImageSet
    model: Classifier


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    if data.num_classes < 2:
        raise UserError(f'{data.name} does not have two classes to tell apart.')
    s = Setting(data, make_model(config, data))
    eval_step = functools.partial(evaluate, s)
    return Experiment(
        init=functools.partial(init, config, data),
        train_step=make_train_step(
            functools.partial(loss, s), ema_decay=config.ema
        ),
        evaluation=ByExample(eval_step, eval_step, summarize),
        codes=Codes(embed=functools.partial(embed, s)),
        single_steps=True,
        loss_unit='nats per image',
    )


def loss(
    s: Setting, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the cross-entropy of the labels; see `train_state.LossFn`."""
    del step
    logits, updated = s.model.apply(
        {'params': params, **model_state},
        binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], s.data),
        dropout_rng=derive(rngs, Use.DROPOUT), train=True, axis_name=axis_name,
        mutable=['batch_stats'],
    )
    loss = _cross_entropy(logits, batch['label']).mean()
    return LossOutput(loss, {'cross_entropy_nats': loss}, updated)


def evaluate(
    s: Setting, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compute the cross-entropy of each example, and whether its class is predicted."""
    rngs = fold_in_each(rng, batch['index'])
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], s.data)
    logits = s.model.apply(state.eval_variables, x)
    right = jnp.argmax(logits, axis=-1) == batch['label']
    loss = _cross_entropy(logits, batch['label'])
    return {
        'loss': loss, 'cross_entropy_nats': loss, 'accuracy': right.astype(jnp.float32),
    }


def embed(
    s: Setting, state: TrainState, image: jax.Array, rngs: jax.Array
) -> jax.Array:
    """Return the features [B, F] before the logits."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), image, s.data)
    return s.model.apply(state.eval_variables, x, method='features')


def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the numbers of results.json."""
    return {
        name: float(arrays[name].mean(dtype=np.float64))
        for name in ('cross_entropy_nats', 'accuracy')
    }


main = command.Command('classifier', __doc__, Config, {}, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
