"""Classifiers with few labels, which measure how useful an encoder's features are.

Three are compared: a linear one on the codes of the frozen encoder, and the encoder
with a softmax layer, trained from its parameters (fine-tuned) or from scratch. The last
two have the same labels, batches, optimizer and number of steps.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gm_jax.data import binarize, pipeline
from gm_jax.data.image_set import ImageSet
from gm_jax.evaluation import probe
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.training import (
    evaluate,
    optimizer,
    parallel,
    settings,
    signals,
    train_state,
)
from gm_jax.training.contracts import Pictures, Say
from gm_jax.training.settings import field
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
    make_train_step,
)

__all__ = ['compare', 'Config', 'Fit', 'make_fit', 'NUM_LABELS', 'Probe']

# Numbers of labels that the classifiers are trained on, besides all labels.
NUM_LABELS = (100, 1000)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of every experiment that ends with these classifiers."""

    probe: bool = field(
        True, 'train classifiers on the features at the end, if there are labels',
        free=True,
    )
    probe_steps: int = field(
        1000, 'training steps of each of these classifiers', low=1, free=True
    )


class Probe(NamedTuple):
    """What the classifiers are built from.

    Attributes:
        config: its batch size, optimizer and probe_steps are used, and its seed where
            `compare` is not given another.
        data: the image set.
        encode: (parameters, x [B, H, W, C] in [0, 1]) -> codes [B, Z].
        classifier: the encoder with a softmax layer, as a module.
        encoder: the name of the encoder among the parameters of the classifier.
        single_steps: whether a CPU takes the training steps one by one.
    """

    config: Config
    data: ImageSet
    encode: Callable[[Params, jax.Array], jax.Array]
    classifier: nn.Module
    encoder: str
    single_steps: bool

    @property
    def rng(self) -> jax.Array:
        """The key of all classifiers."""
        return stream(self.config.seed, Stream.PROBE)


# (rows [n] of the training set, parameters to start from or None) -> test accuracy
Fit = Callable[[np.ndarray, Params | None], float]


def compare(
    p: Probe, state: TrainState, seed: int, say: Say
) -> tuple[dict[str, Any], Pictures]:
    """Measure classifiers with few labels: frozen, fine-tuned and from scratch.

    Args:
        p: what the classifiers are built from.
        state: the trained encoder; it does not change.
        seed: of the classifiers, in place of that of the settings.
        say: prints what is measured.

    Returns:
        ({'probe_accuracy': {number of labels: {'frozen', 'fine_tuned',
        'from_scratch'}}} on the whole test set, empty if the set does not have two
        classes to tell apart; no pictures).
    """
    if p.config.batch_size % jax.device_count():
        # Of a run that is evaluated on other devices than it was trained on.
        say(
            f'no classifiers are trained: their batch of {p.config.batch_size} cannot '
            f'be spread over {jax.device_count()} devices.'
        )
        return {}, {}
    p, data = p._replace(config=dataclasses.replace(p.config, seed=seed)), p.data
    if data.num_classes > 1:
        train, test = (_codes(p, state, split) for split in ('train', 'test'))
        labels = train['label']
    if data.num_classes < 2 or np.ptp(labels) == 0:
        say(
            f'{data.name} does not have two classes to tell apart: nothing is '
            f'classified.'
        )
        return {}, {}
    fit = make_fit(p)
    accuracy = {}
    for num in [n for n in NUM_LABELS if n < len(labels)] + [len(labels)]:
        rows = probe.balanced_rows(labels, num, seed=p.config.seed)
        name = 'all' if num == len(labels) else str(num)
        accuracy[name] = {
            'frozen': probe.linear_accuracy(
                train['z'][rows], labels[rows], test['z'], test['label']
            ),
            'fine_tuned': fit(rows, state.eval_params),
            'from_scratch': fit(rows, None),
        }
        say(f'  accuracy with {name} labels: ' + ', '.join(
            f'{key} {value:.4f}' for key, value in accuracy[name].items()
        ))
    return {'probe_accuracy': accuracy}, {}


def make_fit(p: Probe) -> Fit:
    """Compile the training of a classifier once, for all of them.

    Returns:
        `(rows [n], params) -> accuracy`: trains on the training images `rows`, from an
        encoder's parameters or (None) from scratch, and tests on the whole test set.
        Whatever `params` is, the softmax layer starts from the same weights and the
        batches are the same.
    """
    config, data = p.config, p.data
    tx = optimizer.make(dataclasses.replace(
        config, num_steps=config.probe_steps,
        # The same share of the steps, so that the rate reaches its peak here too.
        warmup_steps=config.warmup_steps * config.probe_steps // config.num_steps,
    ))
    slow_loop = p.single_steps and jax.default_backend() == 'cpu'
    per_dispatch = 1 if slow_loop else min(50, config.probe_steps)
    init = jax.jit(p.classifier.init)
    train_many = parallel.train_many(
        make_train_step(functools.partial(_loss, p)), per_dispatch,
        'the training step of a classifier',
    )
    eval_many = parallel.eval_many(
        functools.partial(_is_right, p), 'the test of a classifier'
    )

    def fit(rows: np.ndarray, trained: Params | None) -> float:
        x = jnp.zeros((1, *data.image_shape))
        params = init(derive(p.rng, Use.WEIGHTS), x)['params']
        if trained is not None:
            # Copies: training overwrites what it starts from.
            encoder = {
                name: jax.tree.map(jnp.copy, trained[name])
                for name in params[p.encoder]
            }
            params = {**params, p.encoder: encoder}
        state = parallel.replicate(train_state.create(params, tx))
        for step in range(0, config.probe_steps, per_dispatch):
            signals.check()
            num = min(per_dispatch, config.probe_steps - step)
            batches = _batches(config, data, rows, step, per_dispatch)
            state, _ = train_many(state, {}, batches, np.int32(num), p.rng)
        arrays = evaluate.over_examples(
            eval_many, state, data.splits['test'], p.rng, config.eval_batch
        )
        return float(arrays['correct'].mean())

    return fit


def _loss(
    p: Probe, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    del step, axis_name
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], p.data)
    logits = p.classifier.apply({'params': params}, x)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
    return LossOutput(loss.mean(), {}, model_state)


def _is_right(
    p: Probe, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    rngs = fold_in_each(rng, batch['index'])
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], p.data)
    logits = p.classifier.apply({'params': state.params}, x)
    return {'correct': logits.argmax(-1) == batch['label']}


def _batches(
    config: Config, data: ImageSet, rows: np.ndarray, step: int, num: int
) -> dict[str, np.ndarray]:
    """Fetch `num` batches of the training images `rows`, split over the devices."""
    order = pipeline.example_order(
        config.seed, step, config.batch_size, len(rows), num_steps=num
    )
    index = parallel.my_part(np.arange(config.batch_size, dtype=np.int32))
    order = order[:, index]
    flat = data.splits['train'].fetch(rows[order.ravel()])
    batches = {
        name: value.reshape(*order.shape, *value.shape[1:])
        for name, value in flat.items()
    }
    batches['index'] = np.broadcast_to(index, order.shape)
    return parallel.split(batches, axis=1)


def _codes(p: Probe, state: TrainState, split: str) -> dict[str, np.ndarray]:
    """Encode a whole split: 'z' [N, Z] and 'label' [N]."""

    def step(state: TrainState, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        rngs = fold_in_each(rng, batch['index'])
        x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], p.data)
        return {'z': p.encode(state.eval_params, x), 'label': batch['label']}

    # A test image must not have the key of a training image.
    rng = derive(p.rng, Use.TRAINING_IMAGES) if split == 'train' else p.rng
    arrays = evaluate.over_examples(
        parallel.eval_many(step, 'the encoder'), state, p.data.splits[split], rng,
        p.config.eval_batch,
    )
    return {'z': arrays['z'], 'label': arrays['label'][:, 0]}
