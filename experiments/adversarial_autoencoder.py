"""Adversarial autoencoder: unsupervised, with a few labels, or as a clustering.

Makhzani et al. 2015, Adversarial Autoencoders.

    python -m experiments.adversarial_autoencoder --workdir=/tmp/aae
    python -m experiments.adversarial_autoencoder --workdir=/tmp/ring --latent_dim=2 \\
        --prior=mixture
    python -m experiments.adversarial_autoencoder --workdir=/tmp/few --num_labels=100
    python -m experiments.adversarial_autoencoder --workdir=/tmp/clusters \\
        --num_clusters=16

A step is the paper's: the autoencoder reconstructs a minibatch; discriminators tell its
codes from the prior's; the encoder moves to fool them; and with --num_labels it learns
the classes of as many labelled images, which q(y|x) is then for. Published errors on
MNIST: 1.90 % with 100 labels, 1.60 % with 1000; clustering 9.55 % with 16 clusters,
4.10 % with 30.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from gm_jax import plotting
from gm_jax.data import binarize, sources
from gm_jax.errors import UserError
from gm_jax.evaluation import probe
from gm_jax.losses import adversarial, reconstruction
from gm_jax.models.adversarial_autoencoder import Code, Decoder, Discriminator, Encoder
from gm_jax.sampling import latent
from gm_jax.training import config as config_lib
from gm_jax.training import evaluate, game, loop, optimizer, parallel
from gm_jax.training import state as state_lib
from gm_jax.training.config import field

# The mixture prior: so many Gaussians on a ring.
_PETALS, _RADIUS, _STD = 10, 4.0, 0.5
# Training images by which clusters are named.
_NAMED_BY = 10_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of the adversarial autoencoder."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    hidden: str = field('256,256', 'widths of every network')
    latent_dim: int = field(8, 'size of z', low=1)
    prior: str = field(
        'normal', 'of z; mixture: ten Gaussians on a ring, for --latent_dim=2',
        choices=('normal', 'mixture'),
    )
    adversarial_learning_rate: float = field(
        1e-4, 'peak learning rate of the discriminators, and of fooling them', low=0.0
    )
    num_labels: int = field(
        0, 'labelled training images, of every class as many; 0: none', low=0
    )
    num_clusters: int = field(0, 'categories without labels; 0: none', low=0)

    def __post_init__(self) -> None:
        """Raises UserError for settings that contradict each other."""
        super().__post_init__()
        config_lib.sizes(self.hidden, 'hidden')
        if self.prior == 'mixture' and self.latent_dim != 2:
            raise UserError('--prior=mixture is of the plane: pass --latent_dim=2.')
        if self.num_labels and self.num_clusters:
            raise UserError(
                '--num_labels and --num_clusters do not go together: with labels the '
                'categories are the classes.'
            )


_MNIST = Config(
    dataset='mnist', hidden='1000,1000', batch_size=100, num_steps=60_000,
    log_every=500, eval_every=6_000, checkpoint_every=2_000,
)
PRESETS = {
    'mnist': _MNIST,
    'mnist_ring': dataclasses.replace(_MNIST, latent_dim=2, prior='mixture'),
    'mnist_100_labels': dataclasses.replace(_MNIST, latent_dim=10, num_labels=100),
    'mnist_1000_labels': dataclasses.replace(_MNIST, latent_dim=10, num_labels=1000),
    'mnist_clusters': dataclasses.replace(_MNIST, latent_dim=5, num_clusters=16),
}


def build(config: Config, data: sources.ImageSet) -> loop.Experiment:
    """Makes the pure functions of the experiment."""
    num_categories = count_categories(config, data)
    players = make_players(config, data, num_categories)
    turns = make_turns(config, data, players, num_categories)
    of_game = dataclasses.replace(
        config, learning_rate=config.adversarial_learning_rate, adam_b1=0.5
    )
    tx = game.optimizers(turns, {
        'autoencoder': optimizer.make(config), 'classifier': optimizer.make(config),
        'discriminator': optimizer.make(of_game), 'encoder': optimizer.make(of_game),
    })

    def init(rng: jax.Array) -> state_lib.TrainState:
        z = jnp.zeros((1, config.latent_dim))
        y = jnp.zeros((1, num_categories))
        seen = {
            'encoder': (jnp.zeros((1, *data.image_shape)),), 'decoder': (z, y),
            'z_discriminator': (z,), 'y_discriminator': (y,),
        }
        params = {
            name: player.init(jax.random.fold_in(rng, i), *seen[name])['params']
            for i, (name, player) in enumerate(players.items())
        }
        return state_lib.create(
            params, tx, ema=config.ema > 0,
            # Kept in the state, so that a checkpoint holds all that a step needs.
            model_state=labelled_images(config, data) if config.num_labels else {},
        )

    def encode(state: state_lib.TrainState, batch: Any, rng: jax.Array) -> tuple:
        rngs = state_lib.fold_in_each(rng, batch['index'])
        x = prepare(data, batch['image'], rngs)
        code = players['encoder'].apply({'params': state.eval_params['encoder']}, x)
        return x, code

    def decode(state: state_lib.TrainState, z: jax.Array, y: jax.Array) -> jax.Array:
        return players['decoder'].apply(
            {'params': state.eval_params['decoder']}, z, y
        )

    def eval_step(state: Any, batch: Any, rng: jax.Array) -> dict[str, jax.Array]:
        x, code = encode(state, batch, rng)
        error = reconstruction.squared_error(decode(state, code.z, code.y), x)
        if not config.num_labels:
            return {'loss': error}
        wrong = jnp.argmax(code.logits, axis=-1) != batch['label']
        cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels(
            code.logits, batch['label']
        )
        return {
            'loss': cross_entropy, 'squared_error': error,
            'error': wrong.astype(jnp.float32),
        }

    def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
        numbers = {
            name: float(values.mean(dtype=np.float64))
            for name, values in arrays.items()
        }
        error = numbers.pop('squared_error' if config.num_labels else 'loss')
        if config.num_labels:
            numbers['cross_entropy_nats'] = numbers.pop('loss')
        return {'squared_error_per_image': error, **numbers}

    def sample(
        state: state_lib.TrainState, rngs: jax.Array, index: jax.Array
    ) -> jax.Array:
        y = jax.nn.one_hot(index % max(num_categories, 1), num_categories)
        return _to_uint8(decode(state, draw_z(config, rngs), y))

    def pictures(state: Any, batch: Any, rng: jax.Array) -> dict[str, np.ndarray]:
        x, code = jax.jit(encode)(state, batch, rng)
        z = draw_z(config, state_lib.fold_in_each(rng, jnp.arange(2000)))
        return make_pictures(
            jax.jit(functools.partial(decode, state)), x, code, batch['label'], z
        )

    return loop.Experiment(
        init=init,
        train_step=game.make_game_step(turns, ema_decay=config.ema),
        minibatches=1,
        eval_step=eval_step,
        test_step=eval_step,
        summarize=summarize,
        sample=sample,
        sampler='z from the prior, each category in turn, decoded',
        pictures=pictures,
        convolutional=False,
        finish=functools.partial(name_clusters, config, data, encode)
        if config.num_clusters and data.num_classes else None,
    )


def count_categories(config: Config, data: sources.ImageSet) -> int:
    """Returns K; raises UserError for labels that the set does not have."""
    if not config.num_labels:
        return config.num_clusters
    num_train = len(data.splits.get('train', range(config.num_labels)))
    if data.num_classes < 2 or config.num_labels > num_train:
        raise UserError(
            f'--num_labels={config.num_labels}: {data.name} has {data.num_classes} '
            f'classes and {num_train} training images.'
        )
    return data.num_classes


def make_players(
    config: Config, data: sources.ImageSet, num_categories: int
) -> dict[str, nn.Module]:
    """Makes the networks."""
    parts = dict(
        hidden=config_lib.sizes(config.hidden, 'hidden'), dtype=jnp.dtype(config.dtype)
    )
    players = {
        'encoder': Encoder(config.latent_dim, num_categories, **parts),
        'decoder': Decoder(data.image_shape, **parts),
        'z_discriminator': Discriminator(**parts),
    }
    if num_categories:
        players['y_discriminator'] = Discriminator(**parts)
    return players


def make_turns(
    config: Config,
    data: sources.ImageSet,
    players: dict[str, nn.Module],
    num_categories: int,
) -> list[game.Turn]:
    """Makes the moves of a step, all on one minibatch."""
    discriminators = tuple(name for name in players if 'discriminator' in name)

    def play(name: str, params: Any, *seen: jax.Array) -> Any:
        return players[name].apply({'params': params[name]}, *seen)

    def judged(params: Any, z: jax.Array, y: jax.Array) -> list[jax.Array]:
        codes = {'z_discriminator': z, 'y_discriminator': y}
        return [play(name, params, codes[name]) for name in discriminators]

    def reconstruct(params, model_state, batch, rngs, *, step, axis_name):
        x = prepare(data, batch['image'], rngs)
        code = play('encoder', params, x)
        error = reconstruction.squared_error(
            play('decoder', params, code.z, code.y), x
        )
        return state_lib.LossOutput(error.mean(), {}, model_state)

    def discriminate(params, model_state, batch, rngs, *, step, axis_name):
        pixel_rngs, z_rngs, y_rngs = _split_each(rngs, 3)
        code = play('encoder', params, prepare(data, batch['image'], pixel_rngs))
        y = jax.vmap(
            lambda rng: jax.random.randint(rng, (), 0, max(num_categories, 1))
        )(y_rngs)
        real = judged(
            params, draw_z(config, z_rngs), jax.nn.one_hot(y, num_categories)
        )
        fake = judged(params, code.z, code.y)
        loss = sum(map(adversarial.discriminator_loss, real, fake))
        return state_lib.LossOutput(loss, {}, model_state)

    def fool(params, model_state, batch, rngs, *, step, axis_name):
        code = play('encoder', params, prepare(data, batch['image'], rngs))
        logits = judged(params, code.z, code.y)
        loss = sum(map(adversarial.generator_loss_non_saturating, logits))
        return state_lib.LossOutput(loss, {}, model_state)

    def classify(params, model_state, batch, rngs, *, step, axis_name):
        row_rngs, pixel_rngs = _split_each(rngs, 2)
        row = jax.vmap(
            lambda rng: jax.random.randint(rng, (), 0, config.num_labels)
        )(row_rngs)
        x = prepare(data, model_state['image'][row], pixel_rngs)
        loss = optax.losses.softmax_cross_entropy_with_integer_labels(
            play('encoder', params, x).logits, model_state['label'][row]
        )
        return state_lib.LossOutput(loss.mean(), {}, model_state)

    turns = [
        game.Turn('autoencoder', ('encoder', 'decoder'), reconstruct),
        game.Turn('discriminator', discriminators, discriminate),
        game.Turn('encoder', ('encoder',), fool),
    ]
    if config.num_labels:
        turns.append(game.Turn('classifier', ('encoder',), classify))
    return turns


def labelled_images(config: Config, data: sources.ImageSet) -> dict[str, jax.Array]:
    """Returns the images whose labels are seen, {'image', 'label'}."""
    if 'train' not in data.splits:
        # A checkpoint is about to be read into these.
        images = np.zeros((config.num_labels, *data.image_shape), np.uint8)
        found = {'image': images, 'label': np.zeros(config.num_labels, np.int32)}
    else:
        train = data.splits['train']
        labels = train.fetch(np.arange(len(train)))['label']
        rows = probe.balanced_rows(labels, config.num_labels, seed=config.seed)
        found = train.fetch(rows)
    return {name: jnp.asarray(found[name]) for name in ('image', 'label')}


def draw_z(config: Config, rngs: jax.Array) -> jax.Array:
    """Draws z of the prior, [B, Z], one key [B] an image."""
    z = latent.prior_sample(rngs, config.latent_dim)
    if config.prior == 'normal':
        return z
    petal = jax.vmap(
        lambda rng: jax.random.randint(jax.random.fold_in(rng, 1), (), 0, _PETALS)
    )(rngs)
    angle = 2 * math.pi * petal / _PETALS
    return _RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) + _STD * z


def prepare(data: sources.ImageSet, image: jax.Array, rngs: jax.Array) -> jax.Array:
    """Turns integers [B, H, W, C] into x in [0, 1], with one key an example."""
    image = binarize.integers(rngs, image, data)
    return image.astype(jnp.float32) / (binarize.num_values(data) - 1)


def name_clusters(
    config: Config,
    data: sources.ImageSet,
    encode: Callable,
    state: state_lib.TrainState,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Measures the clusters as classes: each has that of its surest training image.

    Returns:
        {'error': the share of test images whose cluster has another class}.

    References:
        Makhzani et al. 2015, sec. 6.
    """
    def categories(state, batch, rng):
        return {'y': encode(state, batch, rng)[1].y, 'label': batch['label']}

    categories = parallel.eval_many(categories)
    arrays = [
        evaluate.over_examples(
            categories, state, examples, jax.random.key(config.seed),
            config.eval_batch_size or config.batch_size,
        )
        for examples in (_first(data.splits['train']), data.splits['test'])
    ]
    train, test = ((found['y'], found['label'][:, 0]) for found in arrays)
    names = train[1][np.argmax(train[0], axis=0)]
    error = np.mean(names[np.argmax(test[0], axis=1)] != test[1])
    say(f'  the clusters are named {names.tolist()}')
    return {'error': float(error)}


def make_pictures(
    decode: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    code: Code,
    label: np.ndarray,
    prior: jax.Array,
) -> dict[str, np.ndarray]:
    """Draws reconstructions, the plane of codes, and each style in all categories.

    Args:
        decode: z [N, Z] and y [N, K] -> x_hat [N, H, W, C].
        x: [B, H, W, C] in [0, 1].
        code: theirs.
        label: [B] theirs.
        prior: [N, Z] draws of the prior.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    pictures = {'reconstructions': plotting.reconstructions(
        np.asarray(x[:30]), np.asarray(decode(code.z, code.y)[:30])
    )}
    if code.z.shape[1] == 2:
        pictures['codes'] = plotting.scatter(
            np.asarray(prior), np.asarray(code.z), names=('prior', 'codes'),
            labels=label,
        )
    num = code.logits.shape[1]
    if num:
        z = jnp.repeat(prior[:8], num, axis=0)
        y = jnp.tile(jnp.eye(num), (8, 1))
        pictures['styles'] = plotting.image_grid(np.asarray(decode(z, y)), columns=num)
    return pictures


def _first(examples: Any) -> sources.ArrayExamples:
    found = examples.fetch(np.arange(min(len(examples), _NAMED_BY)))
    return sources.ArrayExamples(found['image'], found['label'])


def _split_each(rngs: jax.Array, num: int) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.split(rng, num), out_axes=1)(rngs)


def _to_uint8(x: jax.Array) -> jax.Array:
    return jnp.round(255 * x).astype(jnp.uint8)


main = functools.partial(
    loop.main, module='adversarial_autoencoder', about=__doc__, config_class=Config,
    presets=PRESETS, build=build,
)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
