"""Autoencoders, linear, deep and convolutional, and what their features are good for.

Hinton and Salakhutdinov 2006, Reducing the Dimensionality of Data with Neural Networks.

    python -m experiments.autoencoder --workdir=/tmp/autoencoder
    python -m experiments.autoencoder --workdir=/tmp/mnist --preset=mnist_conv \\
        --data_dir=DIR

The loss is ||x - x_hat||^2 with pixels in [0, 1], summed over the image. Where the set
has labels, a run ends with classifiers that see the labels of 100, of 1000 and of all
training images: a linear one on the codes of the frozen encoder, and the same encoder
with a softmax layer, trained from where the autoencoder left it (fine-tuned) or from
scratch. The last two have the same labels, batches, optimizer and number of steps.
"""

import dataclasses
import functools
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax import plotting
from gm_jax.data import binarize, pipeline, sources
from gm_jax.evaluation import probe
from gm_jax.losses import reconstruction
from gm_jax.models.autoencoder import Autoencoder, Classifier
from gm_jax.sampling import latent
from gm_jax.training import config as config_lib
from gm_jax.training import evaluate, loop, optimizer, parallel
from gm_jax.training import state as state_lib
from gm_jax.training.config import field


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of the autoencoder."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(
        1000, 'steps between checkpoints', low=1, free=True
    )
    network: str = field(
        'deep', 'linear (one layer and a sigmoid each way), deep (fully connected) or '
        'conv', choices=('linear', 'deep', 'conv'),
    )
    hidden: str = field(
        '256,256', 'widths from x to the code; maps, for conv; linear has none'
    )
    latent_dim: int = field(16, 'size of the code', low=1)
    probe: bool = field(
        True, 'train classifiers on the features at the end, where there are labels',
        free=True,
    )
    probe_steps: int = field(
        1000, 'training steps of each of these classifiers', low=1, free=True
    )

    def __post_init__(self) -> None:
        """Raises UserError for settings that are not allowed."""
        super().__post_init__()
        config_lib.sizes(self.hidden, 'hidden')


_MNIST = dict(
    dataset='mnist', latent_dim=30, eval_every=2000, log_every=500, probe_steps=3000,
    checkpoint_every=2000,
)
PRESETS = {
    'mnist_linear': Config(**_MNIST, network='linear', num_steps=20_000),
    'mnist_deep': Config(**_MNIST, hidden='1000,500,250', num_steps=20_000),
    'mnist_conv': Config(**_MNIST, network='conv', hidden='32,64', num_steps=10_000),
}

# How many labels the classifiers see, besides all.
NUM_LABELS = (100, 1000)
# Training images whose codes are mixed to sample.
POOL = 256
# The loop's own uses of the seed come before this one.
_PROBE = 4


def make_model(config: Config, data: sources.ImageSet) -> Autoencoder:
    """Makes the model for a data set."""
    return Autoencoder(
        image_shape=data.image_shape,
        network=config.network,
        hidden=config_lib.sizes(config.hidden, 'hidden'),
        latent_dim=config.latent_dim,
        dtype=jnp.dtype(config.dtype),
    )


def build(config: Config, data: sources.ImageSet) -> loop.Experiment:
    """Makes the pure functions of the experiment."""
    model = make_model(config, data)

    def encode(state: state_lib.TrainState, image: jax.Array, rngs: jax.Array) -> Any:
        x = binarize.to_unit_range(rngs, image, data)
        return x, model.apply(
            {'params': state.eval_params}, x, method=Autoencoder.encode
        )

    def decode(state: state_lib.TrainState, z: jax.Array) -> jax.Array:
        return model.apply({'params': state.eval_params}, z, method=Autoencoder.decode)

    def init(rng: jax.Array) -> state_lib.TrainState:
        params = model.init(rng, jnp.zeros((1, *data.image_shape)))['params']
        # Kept in the state, so that a checkpoint is all that sampling needs.
        images = pipeline.first_images(data, POOL)
        pool = jnp.asarray(np.resize(images, (POOL, *data.image_shape)))
        return state_lib.create(
            params, optimizer.make(config), ema=config.ema > 0,
            model_state={'pool': pool},
        )

    def loss_fn(params, model_state, batch, rngs, *, step, axis_name):
        x = binarize.to_unit_range(rngs, batch['image'], data)
        x_hat = model.apply({'params': params}, x)
        loss = reconstruction.squared_error(x_hat, x).mean()
        return state_lib.LossOutput(loss, {}, model_state)

    def eval_step(state, batch, rng):
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x, z = encode(state, batch['image'], rngs)
        return {'loss': reconstruction.squared_error(decode(state, z), x)}

    def summarize(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
        error = float(arrays['loss'].mean(dtype=np.float64))
        return {
            'squared_error_per_image': error,
            'squared_error_per_value': error / int(np.prod(data.image_shape)),
        }

    def sample(
        state: state_lib.TrainState, rngs: jax.Array, index: jax.Array
    ) -> jax.Array:
        del index
        pool = state.model_state['pool']
        pairs = jax.vmap(lambda rng: jax.random.randint(rng, (2,), 0, len(pool)))(rngs)
        ends = [encode(state, pool[pairs[:, i]], rngs)[1] for i in (0, 1)]
        return _to_uint8(decode(state, (ends[0] + ends[1]) / 2))

    def pictures(state, batch, rng):
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x, z = jax.jit(encode)(state, batch['image'], rngs)
        return make_pictures(jax.jit(functools.partial(decode, state)), x, z)

    return loop.Experiment(
        init=init,
        train_step=state_lib.make_train_step(loss_fn, ema_decay=config.ema),
        eval_step=eval_step,
        test_step=eval_step,
        test_chunks=1,
        summarize=summarize,
        sample=sample,
        sampler='decoded midpoints of two training codes: there is no prior',
        pictures=pictures,
        convolutional=config.network == 'conv',
        finish=functools.partial(compare_features, config, data)
        if config.probe else None,
    )


def make_pictures(
    decode: Callable[[jax.Array], jax.Array], x: jax.Array, z: jax.Array
) -> dict[str, np.ndarray]:
    """Draws reconstructions, and straight walks from code to code.

    Args:
        decode: z [N, Z] -> x_hat [N, H, W, C].
        x: [B, H, W, C] in [0, 1].
        z: [B, Z] their codes.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    x_hat = np.asarray(decode(z[:30]))
    num = min(8, len(z) // 2)
    walks = latent.interpolate(z[:num], z[num:2 * num], 9).swapaxes(0, 1)
    between = np.asarray(decode(walks.reshape(-1, z.shape[1])))
    return {
        'reconstructions': plotting.reconstructions(np.asarray(x[:30]), x_hat),
        'interpolations': plotting.image_grid(between, columns=9),
    }


def compare_features(
    config: Config,
    data: sources.ImageSet,
    state: state_lib.TrainState,
    say: Callable[[str], None],
) -> tuple[dict[str, dict[str, dict[str, float]]], dict[str, np.ndarray]]:
    """Measures classifiers with few labels: frozen, fine-tuned and from scratch.

    Args:
        config: its seed, batch size, optimizer and probe_steps are used.
        data: the image set.
        state: the trained autoencoder; it is left as it is.
        say: told what is measured.

    Returns:
        ({'accuracy': {number of labels: {'frozen', 'fine_tuned', 'from_scratch'}}} on
        the whole test set, empty where the set has no two classes to tell apart; no
        pictures).
    """
    parallel.check_batch_size(config.batch_size)
    rng = jax.random.fold_in(jax.random.key(config.seed), _PROBE)
    if data.num_classes > 1:
        train, test = (_codes(config, data, state, rng, s) for s in ('train', 'test'))
        labels = train['label']
    if data.num_classes < 2 or np.ptp(labels) == 0:
        say(f'{data.name} has no two classes to tell apart: nothing is classified.')
        return {}, {}
    fit = make_fit(config, data)
    accuracy = {}
    for num in [n for n in NUM_LABELS if n < len(labels)] + [len(labels)]:
        rows = probe.balanced_rows(labels, num, seed=config.seed)
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
    return {'accuracy': accuracy}, {}


def make_fit(config: Config, data: sources.ImageSet) -> Callable:
    """Compiles the training of a classifier once, for all of them.

    Args:
        config: the settings.
        data: the image set.

    Returns:
        `(rows [n], params) -> accuracy`: trains on the training images `rows`, from an
        autoencoder's parameters or (None) from scratch, and tests on the whole test
        set. Whatever `params` is, the softmax layer starts from the same numbers and
        the batches are the same.
    """
    model = Classifier(make_model(config, data), data.num_classes)
    rng = jax.random.fold_in(jax.random.key(config.seed), _PROBE)
    tx = optimizer.make(dataclasses.replace(config, num_steps=config.probe_steps))

    def loss_fn(params, model_state, batch, rngs, *, step, axis_name):
        x = binarize.to_unit_range(rngs, batch['image'], data)
        logits = model.apply({'params': params}, x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
        return state_lib.LossOutput(loss.mean(), {}, model_state)

    def test_step(state, batch, rng):
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x = binarize.to_unit_range(rngs, batch['image'], data)
        logits = model.apply({'params': state.params}, x)
        return {'correct': logits.argmax(-1) == batch['label']}

    slow_loop = config.network == 'conv' and jax.default_backend() == 'cpu'
    per_dispatch = 1 if slow_loop else min(50, config.probe_steps)
    train_many = parallel.train_many(state_lib.make_train_step(loss_fn), per_dispatch)
    eval_many = parallel.eval_many(test_step)

    def fit(rows: np.ndarray, trained: Any) -> float:
        params = model.init(rng, jnp.zeros((1, *data.image_shape)))['params']
        if trained is not None:
            # Copies: training overwrites what it starts from.
            encoder = {
                name: jax.tree.map(jnp.copy, trained[name])
                for name in params['autoencoder']
            }
            params = {**params, 'autoencoder': encoder}
        state = parallel.replicate(state_lib.create(params, tx))
        for step in range(0, config.probe_steps, per_dispatch):
            num = min(per_dispatch, config.probe_steps - step)
            batches = _batches(config, data, rows, step, per_dispatch)
            state, _ = train_many(state, {}, batches, np.int32(num), rng)
        arrays = evaluate.over_examples(
            eval_many, state, data.splits['test'], rng,
            config.eval_batch_size or config.batch_size,
        )
        return float(arrays['correct'].mean())

    return fit


def _batches(
    config: Config, data: sources.ImageSet, rows: np.ndarray, step: int, num: int
) -> dict[str, np.ndarray]:
    """Fetches `num` batches of the training images `rows`, split over the devices."""
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


def _codes(
    config: Config,
    data: sources.ImageSet,
    state: state_lib.TrainState,
    rng: jax.Array,
    split: str,
) -> dict[str, np.ndarray]:
    """Encodes a whole split: 'z' [N, Z] and 'label' [N]."""
    model = make_model(config, data)

    def encode(state, batch, rng):
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x = binarize.to_unit_range(rngs, batch['image'], data)
        variables = {'params': state.eval_params}
        z = model.apply(variables, x, method=Autoencoder.encode)
        return {'z': z, 'label': batch['label']}

    arrays = evaluate.over_examples(
        parallel.eval_many(encode), state, data.splits[split], rng,
        config.eval_batch_size or config.batch_size,
    )
    return {'z': arrays['z'], 'label': arrays['label'][:, 0]}


def _to_uint8(x: jax.Array) -> jax.Array:
    """Scales [0, 1] to uint8."""
    return jnp.round(255 * x).astype(jnp.uint8)


main = functools.partial(
    loop.main, module='autoencoder', about=__doc__, config_class=Config,
    presets=PRESETS, build=build,
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
