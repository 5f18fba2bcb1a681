"""Turns two players and the losses of their game into an experiment.

A generator draws x = G(z), a discriminator (or critic) scores x, and a game of two
losses trains both: the algorithm of Goodfellow et al. 2014, Generative Adversarial
Networks, https://arxiv.org/abs/1406.2661, with losses and optimizers as arguments.

NOTE: with --ema samples are drawn with the averaged parameters, but with BatchNorm's
running averages, which belong to the parameters that are not averaged.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gm_jax import plotting
from gm_jax.data import binarize, image_set, pipeline, synthetic
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.evaluation import inception
from gm_jax.families import attributes, classifier, players, scores, sides
from gm_jax.families.classifier import Trained
from gm_jax.families.scores import Features
from gm_jax.keys import Stream, Use, derive, fold_in_each, stream
from gm_jax.layers.pixels import to_uint8
from gm_jax.losses import adversarial
from gm_jax.models import dcgan, infogan
from gm_jax.models.players import Discriminator, Generator
from gm_jax.sampling import latent
from gm_jax.training import game, optimizer, settings, train_state
from gm_jax.training.contracts import (
    BySamples,
    Codes,
    Experiment,
    HostBatch,
    Pictures,
    Say,
)
from gm_jax.training.settings import MOST_DECAY, MOST_UNITS, field
from gm_jax.training.train_state import (
    Batch,
    LossOutput,
    ModelState,
    Params,
    TrainState,
)

__all__ = [
    'build', 'check_unconditional', 'compare_attributes', 'Config',
    'dcgan_networks', 'discriminator_loss', 'draw_z', 'Game', 'generate',
    'generator_loss', 'init', 'Losses', 'make_optimizers', 'make_pictures',
    'make_turns', 'Networks', 'sample', 'small_networks', 'to_tanh_range',
]

# Samples whose codes are used for attribute arithmetic.
_POPULATION = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(settings.Config):
    """Settings of every adversarial experiment."""

    batch_size: int = field(
        64, 'examples of each minibatch, over all devices of all processes', low=1
    )
    learning_rate: float = field(2e-4, 'peak learning rate', low=0.0)
    schedule: str = field(
        'constant', 'schedule of the learning rate',
        choices=('constant', 'cosine', 'stages'),
    )
    adam_b1: float = field(
        0.5, 'decay of the average of gradients', low=0.0, high=MOST_DECAY
    )
    discriminator_learning_rate: float = field(
        0.0, 'learning rate of the discriminator; 0: that of the generator', low=0.0
    )
    k: int = field(
        1, 'discriminator steps per generator step, each on a minibatch of its own',
        low=1, high=100,
    )
    latent_dim: int = field(64, 'size of z', low=1, high=MOST_UNITS)
    prior: str = field(
        'uniform', 'distribution of each unit of z: uniform on (-1, 1), or normal',
        choices=('uniform', 'normal'),
    )
    class_conditional: bool = field(False, 'give both networks the label')
    score_samples: int = field(
        10_000, 'largest number of samples, and of images, that an evaluation compares',
        low=5, evaluation_only=True,
    )
    classifier: str = field(
        '', 'work directory of the experiment `classifier` on the same set, whose '
        'features evaluations compare; empty: compare pixels', evaluation_only=True,
    )
    inception: str = field(
        '', 'weight file for gm_jax.evaluation.inception, whose features evaluations '
        'compare in place of those of a classifier', evaluation_only=True,
    )


class Losses(NamedTuple):
    """The losses of both players, all to be minimised, and bounds on the discriminator.

    Attributes:
        discriminator: (scores [B] of real images, of generated ones) -> loss [].
        generator: scores [B] of generated images -> loss [].
        penalty: weight of the gradient penalty; 0: none.
        r1: weight of the R1 penalty; 0: none.
        clip: largest absolute weight of the discriminator; 0: no limit.
        saturated_below: the discriminator is saturated if its loss is below this value;
            the loss of a critic has no such value.
    """

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]
    generator: Callable[[jax.Array], jax.Array]
    penalty: float = 0.0
    r1: float = 0.0
    clip: float = 0.0
    saturated_below: float = -np.inf


class Networks(NamedTuple):
    """The networks of both players.

    Attributes:
        generator: maps z, and the label if class-conditional, to an image.
        discriminator: maps an image, and the label if class-conditional, to a score.
        convolutional: whether they are convolutional; see `Experiment.single_steps`.
    """

    generator: Generator
    discriminator: Discriminator
    convolutional: bool = True


class Game(NamedTuple):
    """What the training step, the evaluation and the pictures are built from.

    Attributes:
        config: the settings.
        data: the image set.
        networks: the networks of both players.
        losses: the losses of both players.
    """

    config: Config
    data: ImageSet
    networks: Networks
    losses: Losses

    @property
    def players(self) -> players.Players:
        """The players by name, in the order in which they are initialised."""
        return {
            'generator': self.networks.generator,
            'discriminator': self.networks.discriminator,
        }

    def label(self, label: jax.Array) -> tuple[jax.Array, ...]:
        """Return labels [B] as network arguments: an empty tuple if unconditional."""
        return (label,) if self.config.class_conditional else ()


def build(
    config: Config,
    data: ImageSet,
    *,
    make_networks: Callable[[Any, ImageSet], Networks],
    make_losses: Callable[[Any], Losses],
) -> Experiment:
    """Make an adversarial experiment.

    Args:
        config: the settings.
        data: the image set.
        make_networks: makes the networks from the settings and the image set.
        make_losses: makes the losses from the settings.
    """
    if config.class_conditional and not data.num_classes:
        raise UserError(f'--class_conditional needs labels; {data.name} has none.')
    scores.check_splits(data, config.test_examples)
    g = Game(config, data, make_networks(config, data), make_losses(config))
    turns = make_turns(g)
    features, trained = _judges(config, data)
    return Experiment(
        init=functools.partial(init, g, game.optimizers(
            turns, make_optimizers(config)
        )),
        train_step=game.make_game_step(turns, ema_decay=config.ema),
        evaluation=BySamples(
            functools.partial(
                scores.score, most=config.score_samples, data=data, features=features
            ),
            scores.distance_name(features),
        ),
        sample=functools.partial(sample, g),
        sampler='z from the prior, G(z)',
        given=functools.partial(_given, g),
        codes=Codes(decode=functools.partial(_decode, g), size=config.latent_dim),
        classes=image_set.classes(data) if config.class_conditional else (),
        pictures=functools.partial(make_pictures, g, features),
        finish=functools.partial(compare_attributes, g, trained) if trained else None,
        alarms=functools.partial(
            scores.find_alarms, saturated_below=g.losses.saturated_below, data=data
        ),
        single_steps=g.networks.convolutional,
        minibatches=config.k,
    )


def _judges(config: Config, data: ImageSet) -> tuple[Features, Trained | None]:
    """Return the features that are compared, and the classifier where there is one."""
    features = scores.PIXELS
    trained = classifier.load_if_given(config.classifier, data)
    if trained is not None:
        features = Features('classifier', trained.features, trained.digest)
    if config.inception and data.splits:
        weights = inception.load(config.inception)
        digest = classifier.weights_digest(weights)
        if trained is not None:  # it judges arithmetic
            digest = f'{digest}, {trained.name}'
        features = Features(
            'inception', functools.partial(inception.features, weights), digest
        )
    return features, trained


def init(g: Game, tx: optax.GradientTransformation, rng: jax.Array) -> TrainState:
    """Initialise both players."""
    label = g.label(jnp.zeros(1, jnp.int32))
    seen = {
        'generator': (jnp.zeros((1, g.config.latent_dim)), *label),
        'discriminator': (jnp.zeros((1, *g.data.image_shape)), *label),
    }
    params, model_state = players.init(g.players, seen, rng)
    return train_state.create(
        params, tx, model_state=model_state, ema=g.config.ema > 0
    )


def sample(
    g: Game, state: TrainState, rngs: jax.Array, index: jax.Array
) -> jax.Array:
    """Generate images from z drawn from the prior, of all classes in turn."""
    z = draw_z(g.config, rngs)
    return generate(g, state, z, index % max(g.data.num_classes, 1))


def _decode(g: Game, state: TrainState, z: jax.Array) -> jax.Array:
    """Return G(z), of all classes in turn if class-conditional."""
    return generate(g, state, z, jnp.arange(len(z)) % max(g.data.num_classes, 1))


def _given(g: Game, index: np.ndarray) -> dict[str, np.ndarray]:
    """Return the labels that images of these indices are generated from."""
    return {'labels': index % g.data.num_classes} if g.config.class_conditional else {}


def generate(
    g: Game, state: TrainState, z: jax.Array, label: jax.Array
) -> jax.Array:
    """Return G(z), given labels [B] if class-conditional, as uint8 [B, H, W, C]."""
    x = players.play(g.players, 'generator', state, z, *g.label(label))
    return to_uint8((x + 1) / 2)


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """Make each player's optimizer; the discriminator's counts k updates per step."""
    rate = config.discriminator_learning_rate or config.learning_rate
    with_its_rate = dataclasses.replace(config, learning_rate=rate)
    return {
        'generator': optimizer.make(config),
        'discriminator': optimizer.make(with_its_rate, updates_per_step=config.k),
    }


def make_turns(g: Game) -> list[game.Turn]:
    """Make the turns of a step: k of the discriminator, then one of the generator."""
    clip = g.losses.clip

    def clipped(params: Params) -> Params:
        return jax.tree.map(lambda w: jnp.clip(w, -clip, clip), params)

    turn = game.Turn(
        'discriminator', ('discriminator',), functools.partial(discriminator_loss, g)
    )
    if clip:
        turn = turn._replace(project=clipped)
    return [turn._replace(minibatch=i) for i in range(g.config.k)] + [
        game.Turn('generator', ('generator',), functools.partial(generator_loss, g))
    ]


def discriminator_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the discriminator's loss on a minibatch; see `train_state.LossFn`."""
    del step
    label = g.label(batch['label'])
    real = to_tanh_range(derive(rngs, Use.PIXELS), batch['image'], g.data)
    # The generator's running averages of BatchNorm are updated in its own turn only.
    fake, _ = players.train(
        g.players, 'generator', params, model_state, draw_z(g.config, rngs), *label,
        axis_name=axis_name,
    )
    judged = []
    # In two passes: in one, the batch moments of BatchNorm would reveal to the
    # discriminator how many images are fake.
    for x, use in ((real, Use.REAL), (fake, Use.FAKE)):
        score, model_state = players.train(
            g.players, 'discriminator', params, model_state, x, *label,
            dropout_rng=derive(rngs, use, Use.DROPOUT), axis_name=axis_name,
        )
        judged.append(score)
    loss = g.losses.discriminator(*judged)
    metrics = {'real_score': judged[0].mean(), 'fake_score': judged[1].mean()}
    if g.losses.penalty or g.losses.r1:
        metrics['game_loss'] = loss

    def critic(x: jax.Array) -> jax.Array:
        return players.train(
            g.players, 'discriminator', params, model_state, x, *label
        )[0]

    if g.losses.penalty:
        penalty = adversarial.gradient_penalty(
            critic, derive(rngs, Use.POINT), real, fake
        )
        loss, metrics['gradient_penalty'] = loss + g.losses.penalty * penalty, penalty
    if g.losses.r1:
        penalty = adversarial.r1_penalty(critic, real)
        loss, metrics['r1_penalty'] = loss + g.losses.r1 * penalty, penalty
    return LossOutput(loss, metrics, model_state)


def generator_loss(
    g: Game, params: Params, model_state: ModelState, batch: Batch, rngs: jax.Array,
    *, step: jax.Array, axis_name: str | None,
) -> LossOutput:
    """Compute the generator's loss, from fresh noise; see `train_state.LossFn`."""
    del step
    label = g.label(batch['label'])
    fake, model_state = players.train(
        g.players, 'generator', params, model_state, draw_z(g.config, rngs), *label,
        axis_name=axis_name,
    )
    score, _ = players.train(
        g.players, 'discriminator', params, model_state, fake, *label,
        dropout_rng=derive(rngs, Use.DROPOUT), axis_name=axis_name,
    )
    # The derivatives of the loss by the scores: near 0, the generator cannot learn.
    loss, slopes = jax.value_and_grad(g.losses.generator)(score)
    metrics = {'generator_slope': jnp.sum(jnp.abs(slopes))}
    return LossOutput(loss, metrics, model_state)


def draw_z(config: Config, rngs: jax.Array) -> jax.Array:
    """Draw z from the prior, [B, Z], one key [B] per image."""
    rngs = derive(rngs, Use.LATENT)
    if config.prior == 'normal':
        return latent.prior_sample(rngs, config.latent_dim)
    return jax.vmap(
        lambda rng: jax.random.uniform(rng, (config.latent_dim,), minval=-1.0)
    )(rngs)


def to_tanh_range(rngs: jax.Array, image: jax.Array, data: ImageSet) -> jax.Array:
    """Scale integers to [-1, 1], after binarization if the set is binarized."""
    return 2 * binarize.to_unit_range(rngs, image, data) - 1


def dcgan_networks(
    config: Config, data: ImageSet, features: tuple[int, ...], *, kernel_size: int,
    norm: str,
) -> Networks:
    """Make the all-convolutional networks, which may be class-conditional."""
    flag = f'--features={settings.text(features)}'
    sides.check(data, 2 ** len(features), flag)
    parts = dict(
        kernel_size=kernel_size, dtype=jnp.dtype(config.dtype),
        num_classes=data.num_classes if config.class_conditional else 0,
    )
    return Networks(
        dcgan.Generator(data.image_shape, features[::-1], **parts),
        dcgan.Discriminator(features, norm=norm, **parts),
    )


def small_networks(config: Config, data: ImageSet, *, norm: str) -> Networks:
    """Make the networks of Lucic et al. 2018."""
    check_unconditional(config)
    sides.check(data, 4, 'this network')
    dtype = jnp.dtype(config.dtype)
    return Networks(
        infogan.Generator(data.image_shape, dtype=dtype),
        infogan.Discriminator(norm=norm, dtype=dtype),
    )


def check_unconditional(config: Config) -> None:
    """Raise UserError if --class_conditional is set for networks without labels."""
    if config.class_conditional:
        raise UserError(
            '--class_conditional: only the all-convolutional networks, those of '
            'dcgan, take labels.'
        )


def compare_attributes(
    g: Game, trained: Trained, state: TrainState, seed: int, say: Say
) -> tuple[dict[str, float], Pictures]:
    """Do arithmetic on the z of samples; see `attributes.compare`."""
    del say
    config, num_classes = g.config, g.data.num_classes
    draw = jax.jit(functools.partial(generate, g))

    def decode(z: jax.Array, label: np.ndarray) -> np.ndarray:
        return np.asarray(draw(state, z, jnp.asarray(label, jnp.int32)))

    index, rng = jnp.arange(_POPULATION), stream(seed, Stream.FINISH)
    return attributes.compare(
        draw_z(config, fold_in_each(rng, index)), decode, trained.classify, num_classes,
        np.asarray(index % num_classes) if config.class_conditional else None,
    )


def make_pictures(
    g: Game, features: Features, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw interpolations between z, and samples above their nearest training images.

    For a set of points in the plane it plots the points instead.

    Args:
        g: the game.
        features: those that measure how near images are.
        state: the training state of both players.
        batch: not used.
        rng: one key.
    """
    del batch
    config, data = g.config, g.data
    draw = jax.jit(functools.partial(generate, g))
    if synthetic.modes(data) is not None:
        z = draw_z(config, fold_in_each(rng, jnp.arange(2000)))
        points = draw(state, z, jnp.arange(2000) % data.num_classes)
        x = pipeline.first_images(data, 2000).reshape(-1, 2)
        return {'points': plotting.scatter(
            x, np.asarray(points).reshape(-1, 2),
            axes=('first value of a point (level)', 'second value of a point (level)'),
        )}
    ends = draw_z(config, fold_in_each(rng, jnp.arange(16)))
    z = latent.interpolate(
        ends[:8], ends[8:], 10, spherical=config.prior == 'normal'
    ).swapaxes(0, 1)
    label = jnp.repeat(jnp.arange(8) % max(data.num_classes, 1), 10)
    x = np.asarray(draw(state, z.reshape(-1, config.latent_dim), label))
    return {
        'interpolations': plotting.interpolations(x, 10, 'z'),
        'nearest': scores.nearest_images(x[::10], data, features),
    }
