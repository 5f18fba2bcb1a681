r"""Adversarial autoencoder: unsupervised, with a few labels, or for clustering.

Makhzani et al. 2015, Adversarial Autoencoders.

    python -m experiments.adversarial_autoencoder --workdir=/tmp/aae
    python -m experiments.adversarial_autoencoder --workdir=/tmp/ring --latent_dim=2 \
        --prior=mixture
    python -m experiments.adversarial_autoencoder --workdir=/tmp/few --num_labels=100
    python -m experiments.adversarial_autoencoder --workdir=/tmp/clusters \
        --num_clusters=16 --category_noise=0.3 --image_noise=0.3 --batch_norm

A step follows the paper: the autoencoder reconstructs a minibatch, discriminators learn
to tell its codes from draws of the prior, and the encoder learns to fool them. With
--num_labels the encoder also learns the classes of this many labelled images, and
q(y|x) is a distribution over the classes. Published errors on MNIST: 1.90 % with 100
labels, 1.60 % with 1000; clustering 9.55 % with 16 clusters, 4.10 % with 30.

NOTE: the paper trains by gradient descent with momentum and falling learning rates;
here the optimizer is Adam. The paper has no noise on the categories (--category_noise).
With --ema the evaluated parameters are averaged, but not BatchNorm's running averages.
"""

if __name__ == '__main__':
    from gm_jax import entry

    entry.begin()  # before JAX is imported

import dataclasses
import functools
import operator
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax.data import binarize, image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import probe
from gm_jax.families import classifier, codes, players
from gm_jax.families.classifier import Trained
from gm_jax.families.codes import Coder
from gm_jax.families.players import Players
from gm_jax.keys import Stream, Use, derive, stream
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import adversarial, reconstruction
from gm_jax.models.adversarial_autoencoder import Code, Decoder, Discriminator, Encoder
from gm_jax.models.players import Player
from gm_jax.sampling import latent
from gm_jax.training import command, game, optimizer, settings, train_state
from gm_jax.training.contracts import ByExample, Codes, Experiment, Pictures, Say
from gm_jax.training.settings import MOST_DECAY, MOST_UNITS, Sizes, field
from gm_jax.training.train_state import (
    Batch,
    LossFn,
    LossOutput,
    ModelState,
    Params,
    TrainState,
)

# Images whose labels are read at once.
_CHUNK = 1_000

_cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of the adversarial autoencoder."""

    num_steps: int = field(3000, 'training steps', low=1)
    eval_every: int = field(1000, 'steps between evaluations', low=1, free=True)
    hidden: Sizes = field((256, 256), 'widths of every network')
    latent_dim: int = field(8, 'size of z', low=1, high=MOST_UNITS)
    prior: str = field(
        'normal', 'prior of z; mixture: ten Gaussians on a ring, for --latent_dim=2',
        choices=('normal', 'mixture'),
    )
    adversarial_learning_rate: float = field(
        5e-4, 'peak learning rate of the discriminators, and of the encoder when it '
        'learns to fool them', low=0.0,
    )
    adversarial_b1: float = field(
        0.5, 'decay of the average of gradients in the adversarial optimizers',
        low=0.0, high=MOST_DECAY,
    )
    num_labels: int = field(
        0, 'labelled training images, balanced over the classes; 0: none', low=0
    )
    num_clusters: int = field(
        0, 'clusters, learned without labels; 0: none', low=0, high=MOST_UNITS
    )
    category_noise: float = field(
        0.0, 'initial standard deviation of the noise on the categories that a '
        'discriminator sees; it falls to zero by the last step, unless the learning '
        'rate is constant', low=0.0,
    )
    batch_norm: bool = field(
        False, 'normalise over the batch: the layers of encoder and decoder, and the '
        'logits of the categories',
    )
    image_noise: float = field(
        0.0, 'standard deviation of noise on the images that the encoder sees in '
        'training', low=0.0,
    )
    classifier: str = field(
        '', 'work directory of the experiment `classifier` on the same set, which '
        'evaluates arithmetic on codes; empty: no arithmetic', evaluation_only=True,
    )

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name."""
        found = super().without_effect
        if not (self.num_labels or self.num_clusters):
            found['category_noise'] = 'needs --num_labels or --num_clusters'
        if 'adam_b1' in found:
            found['adversarial_b1'] = found['adam_b1']
        return found

    def __post_init__(self) -> None:
        """Raise UserError for settings that contradict each other."""
        super().__post_init__()
        if self.prior == 'mixture' and self.latent_dim != 2:
            raise UserError('--prior=mixture has two dimensions: pass --latent_dim=2.')
        if self.num_labels and self.num_clusters:
            raise UserError(
                '--num_labels and --num_clusters do not go together: with labels the '
                'categories are the classes.'
            )
        if self.batch_norm and self.batch_size == 1:
            raise UserError(
                '--batch_norm needs a --batch_size of 2 or more: one image has no '
                'variance to divide by.'
            )


_MNIST = Config(
    dataset='mnist', hidden=(1000, 1000), batch_size=100, num_steps=60_000,
    log_every=500, eval_every=6_000, checkpoint_every=2_000,
)
_FEW = dataclasses.replace(_MNIST, latent_dim=10, batch_norm=True, image_noise=0.3)
PRESETS = {
    'mnist': _MNIST,
    'mnist_ring': dataclasses.replace(_MNIST, latent_dim=2, prior='mixture'),
    'mnist_100_labels': dataclasses.replace(_FEW, num_labels=100),
    'mnist_1000_labels': dataclasses.replace(_FEW, num_labels=1000),
    # Clusters are purer with noise on the images, with a stronger adversary, and with
    # narrower networks. Seeds differ: 74 to 86 % of the images have the most frequent
    # class of their cluster.
    'mnist_clusters': dataclasses.replace(
        _MNIST, hidden=(400, 400), latent_dim=5, num_clusters=16, batch_norm=True,
        image_noise=0.3, category_noise=0.3, adversarial_learning_rate=1e-3,
        num_steps=20_000, eval_every=5_000,
    ),
}


class Game(NamedTuple):
    """What the training step and the evaluation are built from.

    Attributes:
        config: the settings.
        data: the image set.
        num_categories: K.
        players: the networks by name: encoder, decoder, and the discriminators of z
            and of y.
    """

    config: Config
    data: ImageSet
    num_categories: int
    players: Players

    @property
    def discriminators(self) -> tuple[str, ...]:
        """The names of the discriminators."""
        return tuple(name for name in self.players if 'discriminator' in name)


def build(config: Config, data: ImageSet) -> Experiment:
    """Make the experiment."""
    num_categories = count_categories(config, data)
    g = Game(config, data, num_categories, make_players(config, data, num_categories))
    coder = make_coder(g)
    turns = make_turns(g)
    tx = game.optimizers(turns, make_optimizers(config))
    eval_step = functools.partial(evaluate, g, coder)
    trained = classifier.load_if_given(config.classifier, data)
    measured = bool(config.num_clusters and data.num_classes) or trained is not None
    return Experiment(
        init=functools.partial(init, g, tx),
        train_step=game.make_game_step(turns, ema_decay=config.ema),
        minibatches=1,
        evaluation=ByExample(eval_step, eval_step, summarize),
        sample=functools.partial(sample, coder),
        sampler='z from the prior, each category in turn, decoded',
        given=functools.partial(given, coder),
        codes=make_codes(coder, config.latent_dim),
        classes=image_set.classes(data) if config.num_labels else (),
        pictures=functools.partial(codes.make_pictures, coder),
        single_steps=False,
        loss_unit=(
            'nats per image' if config.num_labels else 'squared error per image'
        ),
        finish=functools.partial(finish, g, coder, trained) if measured else None,
    )


def count_categories(config: Config, data: ImageSet) -> int:
    """Return K; raise UserError for labels that the set does not have."""
    if not config.num_labels:
        return config.num_clusters
    num_train = len(data.splits.get('train', range(config.num_labels)))
    if data.num_classes < 2:
        raise UserError(
            f'--num_labels needs at least two classes; {data.name} has '
            f'{data.num_classes or "no labels"}.'
        )
    if config.num_labels > num_train:
        raise UserError(
            f'--num_labels={config.num_labels}: {data.name} has {num_train} training '
            f'images.'
        )
    return data.num_classes


def make_players(config: Config, data: ImageSet, num_categories: int) -> Players:
    """Make the networks."""
    parts: dict[str, Any] = dict(hidden=config.hidden, dtype=jnp.dtype(config.dtype))
    norm = config.batch_norm
    made: dict[str, Player] = {
        'encoder': Encoder(
            config.latent_dim, num_categories, batch_norm=norm, **parts
        ),
        'decoder': Decoder(data.image_shape, batch_norm=norm, **parts),
        'z_discriminator': Discriminator(**parts),
    }
    if num_categories:
        made['y_discriminator'] = Discriminator(**parts)
    return made


def make_coder(g: Game) -> Coder:
    """Return the trained autoencoder as functions."""
    return Coder(
        data=g.data,
        encode=functools.partial(players.play, g.players, 'encoder'),
        decode=functools.partial(players.play, g.players, 'decoder'),
        draw_z=functools.partial(draw_z, g.config),
        num_categories=g.num_categories,
    )


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """Make the optimizer of each turn."""
    adversarial_config = dataclasses.replace(
        config, learning_rate=config.adversarial_learning_rate,
        adam_b1=config.adversarial_b1,
    )
    of_game = optimizer.make(adversarial_config)
    return {
        'autoencoder': optimizer.make(config), 'classifier': optimizer.make(config),
        'discriminator': of_game, 'encoder': of_game,
    }


def make_turns(g: Game) -> list[game.Turn]:
    """Make the turns of a step, all on one minibatch."""
    moves: list[tuple[str, tuple[str, ...], LossFn]] = [
        ('autoencoder', ('encoder', 'decoder'), functools.partial(autoencoder_loss, g)),
        ('discriminator', g.discriminators, functools.partial(discriminator_loss, g)),
        ('encoder', ('encoder',), functools.partial(encoder_loss, g)),
    ]
    if g.config.num_labels:
        moves.append(
            ('classifier', ('encoder',), functools.partial(classifier_loss, g))
        )
    return [game.Turn(*move) for move in moves]


def init(g: Game, tx: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """Initialise all players."""
    z, y = jnp.zeros((1, g.config.latent_dim)), jnp.zeros((1, g.num_categories))
    seen = {
        'encoder': (jnp.zeros((1, *g.data.image_shape)),), 'decoder': (z, y),
        'z_discriminator': (z,), 'y_discriminator': (y,),
    }
    params, model_state = players.init(g.players, seen, rng)
    if g.config.num_labels:
        # Kept in the state, so that a checkpoint holds all that a step needs.
        model_state |= labelled_images(g.config, g.data)
    return train_state.create(
        params, tx, ema=g.config.ema > 0, model_state=model_state
    )


def labelled_images(config: Config, data: ImageSet) -> dict[str, jax.Array]:
    """Return the labelled training images, {'image', 'label'}."""
    if 'train' not in data.splits:
        # A checkpoint is about to be read into these.
        images = jnp.zeros((config.num_labels, *data.image_shape), jnp.uint8)
        return {'image': images, 'label': jnp.zeros(config.num_labels, jnp.int32)}
    train = data.splits['train']
    starts = range(0, len(train), _CHUNK)  # a set may be larger than the memory
    labels = np.concatenate([
        train.fetch(np.arange(i, min(i + _CHUNK, len(train))))['label'] for i in starts
    ])
    found = train.fetch(
        probe.balanced_rows(labels, config.num_labels, seed=config.seed)
    )
    return {name: jnp.asarray(found[name]) for name in ('image', 'label')}


def autoencoder_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute ||x - x_hat||^2 from noisy images; see `train_state.LossFn`.

    Only this turn updates BatchNorm's running averages.
    """
    del step
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], g.data)
    code, model_state = encode(g, params, model_state, x, rngs, axis_name)
    x_hat, model_state = players.train(
        g.players, 'decoder', params, model_state, code.z, code.y, axis_name=axis_name
    )
    loss = reconstruction.squared_error(x_hat, x).mean()
    return LossOutput(loss, {'squared_error_per_image': loss}, model_state)


def discriminator_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the loss of telling codes from the prior; see `train_state.LossFn`."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], g.data)
    code, _ = encode(g, params, model_state, x, rngs, axis_name)
    z = draw_z(g.config, rngs)
    y = codes.draw_integers(derive(rngs, Use.CATEGORY), max(g.num_categories, 1))
    y = jax.nn.one_hot(y, g.num_categories)
    y = instance_noise(g.config, y, derive(rngs, Use.REAL), step)
    y_hat = instance_noise(g.config, code.y, derive(rngs, Use.FAKE), step)
    real, fake = judge(g, params, z, y), judge(g, params, code.z, y_hat)
    losses = map(adversarial.discriminator_loss, real, fake)
    loss = functools.reduce(operator.add, losses)
    return LossOutput(loss, {}, model_state)


def encoder_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the loss of fooling the discriminators; see `train_state.LossFn`."""
    x = binarize.to_unit_range(derive(rngs, Use.PIXELS), batch['image'], g.data)
    code, _ = encode(g, params, model_state, x, rngs, axis_name)
    y = instance_noise(g.config, code.y, derive(rngs, Use.FAKE), step)
    logits = judge(g, params, code.z, y)
    losses = map(adversarial.generator_loss_non_saturating, logits)
    loss = functools.reduce(operator.add, losses)
    return LossOutput(loss, {}, model_state)


def classifier_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the cross-entropy of labelled images; see `train_state.LossFn`."""
    del batch, step
    row = codes.draw_integers(derive(rngs, Use.ROWS), g.config.num_labels)
    x = binarize.to_unit_range(
        derive(rngs, Use.PIXELS), model_state['image'][row], g.data
    )
    code, _ = encode(g, params, model_state, x, rngs, axis_name)
    loss = _cross_entropy(code.logits, model_state['label'][row]).mean()
    return LossOutput(loss, {'cross_entropy_nats': loss}, model_state)


def encode(
    g: Game, params: Params, model_state: ModelState, x: jax.Array, rngs: jax.Array,
    axis_name: str | None,
) -> tuple[Code, ModelState]:
    """Return the code of x [B, H, W, C] with noise, and the new model state."""
    if g.config.image_noise:
        x = add_noise(x, g.config.image_noise, rngs)
    return players.train(
        g.players, 'encoder', params, model_state, x, axis_name=axis_name
    )


def judge(g: Game, params: Params, z: jax.Array, y: jax.Array) -> list[jax.Array]:
    """Return the logits [B] of each discriminator."""
    seen = {'z_discriminator': z, 'y_discriminator': y}
    return [
        g.players[name].apply({'params': params[name]}, seen[name])
        for name in g.discriminators
    ]


def draw_z(config: Config, rngs: jax.Array) -> jax.Array:
    """Draw z from the prior, [B, Z], one key [B] per image."""
    z = latent.prior_sample(derive(rngs, Use.LATENT), config.latent_dim)
    if config.prior == 'normal':
        return z
    return codes.draw_mixture(derive(rngs, Use.COMPONENT), z)


def instance_noise(
    config: Config, y: jax.Array, rngs: jax.Array, step: jax.Array
) -> jax.Array:
    """Add noise to y [B, K] for a discriminator, with one key [B] per example.

    Without noise a discriminator tells q(y|x) from a one-hot vector at once, and the
    encoder saturates its softmax. Most categories have no image by then and never get
    one, since a saturated softmax has no gradient. The noise falls to zero, because
    with it q(y|x) need not be one-hot and gives the decoder more than a category.

    References:
        Sonderby et al. 2017, Amortised MAP Inference for Image Super-resolution.
        https://arxiv.org/abs/1610.04490
    """
    if not config.category_noise:
        return y
    fall = 1.0 if config.schedule == 'constant' else 1 - step / config.num_steps
    return add_noise(y, config.category_noise * fall, rngs)


def add_noise(x: jax.Array, std: float | jax.Array, rngs: jax.Array) -> jax.Array:
    """Return x [B, ...] + std * e, e ~ N(0, 1), one key [B] per example."""
    noise = jax.vmap(lambda rng: jax.random.normal(rng, x.shape[1:]))(
        derive(rngs, Use.NOISE)
    )
    return x + std * noise


def evaluate(
    g: Game, coder: Coder, state: TrainState, batch: Batch, rng: jax.Array
) -> dict[str, jax.Array]:
    """Compute the numbers of each example; with labels the loss is of the classes."""
    x = coder.observe(batch, rng)
    code = coder.encode(state, x)
    error = reconstruction.squared_error(coder.decode(state, code.z, code.y), x)
    if not g.config.num_labels:
        return {'loss': error, 'squared_error_per_image': error}
    loss = _cross_entropy(code.logits, batch['label'])
    wrong = jnp.argmax(code.logits, axis=-1) != batch['label']
    return {
        'loss': loss, 'cross_entropy_nats': loss, 'squared_error_per_image': error,
        'error_rate': wrong.astype(jnp.float32),
    }


def summarize(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """Return the means of the numbers, without the loss, which is one of them."""
    return {
        name: float(values.mean(dtype=np.float64))
        for name, values in arrays.items() if name != 'loss'
    }


def sample(
    coder: Coder, state: TrainState, rngs: jax.Array, index: jax.Array
) -> jax.Array:
    """Decode z from the prior in each category in turn."""
    num = coder.num_categories
    y = jax.nn.one_hot(index % max(num, 1), num)
    return to_uint8(coder.decode(state, coder.draw_z(rngs), y))


def make_codes(coder: Coder, latent_dim: int) -> Codes:
    """Return the code (z, y) of an image as one vector, [B, Z + K]."""
    def encode(state: TrainState, image: jax.Array, rngs: jax.Array) -> jax.Array:
        x = binarize.to_unit_range(derive(rngs, Use.PIXELS), image, coder.data)
        code = coder.encode(state, x)
        return jnp.concatenate([code.z, code.y], axis=1)

    def decode(state: TrainState, code: jax.Array) -> jax.Array:
        num = code.shape[1] - coder.num_categories
        return to_uint8(coder.decode(state, code[:, :num], code[:, num:]))

    return Codes(encode, decode, encode, latent_dim + coder.num_categories)


def given(coder: Coder, index: np.ndarray) -> dict[str, np.ndarray]:
    """Return the categories that images of these indices are decoded from."""
    num = coder.num_categories
    return {'labels': index % num} if num else {}


def finish(
    g: Game, coder: Coder, trained: Trained | None, state: TrainState, seed: int,
    say: Say,
) -> tuple[dict[str, Any], Pictures]:
    """Score the clusters as classes, and arithmetic on codes."""
    numbers: dict[str, Any] = {}
    pictures: Pictures = {}
    if g.config.num_clusters and g.data.num_classes:
        rng = stream(seed, Stream.FINISH)
        numbers |= codes.name_clusters(coder, state, rng, g.config.eval_batch, say)
    if trained is not None:
        more, pictures = codes.compare_attributes(coder, trained, state)
        numbers |= {**more, 'judged_by': trained.name}
    return numbers, pictures


main = command.Command('adversarial_autoencoder', __doc__, Config, PRESETS, build)

if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
