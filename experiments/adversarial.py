"""What the adversarial experiments share; not an experiment itself.

A generator draws x = G(z), a discriminator (or critic) scores x, and a game of two
losses trains both: the algorithm of Goodfellow et al. 2014, Generative Adversarial
Networks, https://arxiv.org/abs/1406.2661, with losses and optimizers as arguments.

NOTE: with --ema samples are drawn with the averaged parameters and with BatchNorm's
running averages, which are of the parameters as they are.
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

from experiments import attributes, classifier, scores
from gm_jax import plotting
from gm_jax.data import binarize, pipeline, sources, synthetic
from gm_jax.errors import UserError
from gm_jax.evaluation import inception
from gm_jax.losses import adversarial
from gm_jax.models import dcgan, infogan
from gm_jax.sampling import latent
from gm_jax.training import config as config_lib
from gm_jax.training import game, loop, optimizer
from gm_jax.training import state as state_lib
from gm_jax.training.config import field

# Samples whose codes are combined.
_POPULATION = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(config_lib.Config):
    """Settings of every adversarial experiment."""

    batch_size: int = field(
        64, 'examples of each minibatch, over all devices of all processes', low=1
    )
    learning_rate: float = field(2e-4, 'peak learning rate', low=0.0)
    schedule: str = field(
        'constant', 'learning rate over the run',
        choices=('constant', 'cosine', 'stages'),
    )
    adam_b1: float = field(0.5, 'decay of the gradient average', low=0.0, high=1.0)
    discriminator_learning_rate: float = field(
        0.0, 'of the discriminator; 0: the same', low=0.0
    )
    k: int = field(
        1, 'discriminator steps, each on a minibatch of its own, for one of the '
        'generator', low=1,
    )
    latent_dim: int = field(64, 'size of z', low=1)
    prior: str = field(
        'uniform', 'of each unit of z: uniform on (-1, 1), or normal',
        choices=('uniform', 'normal'),
    )
    class_conditional: bool = field(False, 'both networks see the label')
    score_samples: int = field(
        10_000, 'most samples, and most images, that an evaluation compares', low=5,
        of_evaluation=True,
    )
    classifier: str = field(
        '', 'work directory of experiments.classifier on the same set, whose features '
        'evaluations compare; none: pixels', of_evaluation=True,
    )
    inception: str = field(
        '', 'weight file of gm_jax.evaluation.inception, whose features evaluations '
        "compare in place of a classifier's", of_evaluation=True,
    )


class Losses(NamedTuple):
    """The rules of the game; all losses are to be minimised."""

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]  # of real, fake scores
    generator: Callable[[jax.Array], jax.Array]  # of fake scores
    penalty: float = 0.0  # weight of the gradient penalty
    clip: float = 0.0  # largest weight of the discriminator; 0: no limit
    # The least healthy loss of a discriminator; a critic's has no such value.
    saturated_below: float = -np.inf


class Networks(NamedTuple):
    """The players, as Flax modules."""

    generator: nn.Module  # (z, [label,] train, axis_name) -> x in [-1, 1]
    discriminator: nn.Module  # (x, [label,] dropout_rngs, train, axis_name) -> [B]
    convolutional: bool = True  # see loop.Experiment


class Game(NamedTuple):
    """All that a step and its pictures are made of."""

    config: Config
    data: sources.ImageSet
    networks: Networks
    losses: Losses


def build(
    config: Config,
    data: sources.ImageSet,
    *,
    make_networks: Callable[[Config, sources.ImageSet], Networks],
    make_losses: Callable[[Config], Losses],
) -> loop.Experiment:
    """Makes the pure functions of an adversarial experiment."""
    if config.class_conditional and not data.num_classes:
        raise UserError(f'--class_conditional needs labels, and {data.name} has none.')
    scores.check_splits(data)
    rules = Game(config, data, make_networks(config, data), make_losses(config))
    turns = make_turns(rules)
    features, trained = scores.PIXELS, None
    # Sampling needs no more than a checkpoint: then there are no splits.
    if config.classifier and data.splits:
        trained = classifier.load(config.classifier, data)
        features = scores.Features('classifier', trained.features)
    if config.inception and data.splits:
        weights = inception.load(config.inception)
        features = scores.Features(
            'inception', functools.partial(inception.features, weights)
        )

    def sample(
        state: state_lib.TrainState, rngs: jax.Array, index: jax.Array
    ) -> jax.Array:
        z = draw_z(config, rngs)
        return generate(rules, state, z, index % max(data.num_classes, 1))

    return loop.Experiment(
        init=functools.partial(init, rules, game.optimizers(
            turns, make_optimizers(config)
        )),
        train_step=game.make_game_step(turns, ema_decay=config.ema),
        score=functools.partial(
            scores.score, most=config.score_samples, data=data, features=features
        ),
        sample=sample,
        sampler='z from the prior, G(z)',
        pictures=functools.partial(make_pictures, rules, features),
        finish=functools.partial(compare_attributes, rules, trained)
        if trained else None,
        alarms=functools.partial(
            scores.find_alarms, saturated_below=rules.losses.saturated_below, data=data
        ),
        convolutional=rules.networks.convolutional,
        minibatches=config.k,
    )


def init(
    rules: Game, tx: optax.GradientTransformation, rng: jax.Array
) -> state_lib.TrainState:
    """Starts both players."""
    config, data = rules.config, rules.data
    z, x = jnp.zeros((1, config.latent_dim)), jnp.zeros((1, *data.image_shape))
    label = (jnp.zeros(1, jnp.int32),) if config.class_conditional else ()
    params, stats = {}, {}
    for name, seen in (('generator', z), ('discriminator', x)):
        player_rng = jax.random.fold_in(rng, len(params))
        variables = getattr(rules.networks, name).init(player_rng, seen, *label)
        params[name] = variables['params']
        stats[name] = variables.get('batch_stats', {})
    return state_lib.create(
        params, tx, model_state={'batch_stats': stats}, ema=config.ema > 0
    )


def generate(
    rules: Game, state: state_lib.TrainState, z: jax.Array, label: jax.Array
) -> jax.Array:
    """Returns G(z), of the labels [B] where it sees them, as uint8 [B, H, W, C]."""
    variables = {
        'params': state.eval_params['generator'],
        'batch_stats': state.model_state['batch_stats']['generator'],
    }
    labels = (label,) if rules.config.class_conditional else ()
    x = rules.networks.generator.apply(variables, z, *labels)
    return jnp.round(255 * (x + 1) / 2).astype(jnp.uint8)


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """Makes each player's optimizer; the discriminator's counts k updates a step."""
    rate = config.discriminator_learning_rate or config.learning_rate
    of_discriminator = dataclasses.replace(config, learning_rate=rate)
    return {
        'generator': optimizer.make(config),
        'discriminator': optimizer.make(of_discriminator, updates_per_step=config.k),
    }


def make_turns(rules: Game) -> list[game.Turn]:
    """Makes the moves of a step: k of the discriminator, then one of the generator."""
    k, clip = rules.config.k, rules.losses.clip

    def clipped(params: Any) -> Any:
        return jax.tree.map(lambda w: jnp.clip(w, -clip, clip), params)

    of_discriminator = game.Turn(
        'discriminator', ('discriminator',),
        functools.partial(discriminator_loss, rules),
    )
    if clip:
        of_discriminator = of_discriminator._replace(project=clipped)
    return [of_discriminator._replace(minibatch=i) for i in range(k)] + [
        game.Turn('generator', ('generator',), functools.partial(generator_loss, rules))
    ]


def play(
    rules: Game, name: str, params: Any, model_state: Any, *seen: Any, **mode: Any
) -> tuple[jax.Array, Any]:
    """Applies a player in training; returns its output and the new BatchNorm state."""
    stats = model_state['batch_stats']
    y, updated = getattr(rules.networks, name).apply(
        {'params': params[name], 'batch_stats': stats[name]}, *seen,
        train=True, mutable=['batch_stats'], **mode,
    )
    return y, {'batch_stats': stats | {name: updated.get('batch_stats', {})}}


def discriminator_loss(
    rules: Game,
    params: Any,
    model_state: Any,
    batch: state_lib.Batch,
    rngs: jax.Array,
    *,
    step: jax.Array,
    axis_name: str | None,
) -> state_lib.LossOutput:
    """Computes the discriminator's loss of a minibatch; see `state.LossFn`."""
    del step
    config, losses = rules.config, rules.losses
    z_rngs, pixel_rngs, *dropout_rngs, point_rngs = state_lib.split_each(rngs, 5)
    label = (batch['label'],) if config.class_conditional else ()
    real = to_tanh_range(pixel_rngs, batch['image'], rules.data)
    # BatchNorm's running averages are the generator's own affair: not kept here.
    fake, _ = play(
        rules, 'generator', params, model_state, draw_z(config, z_rngs), *label,
        axis_name=axis_name,
    )
    scores = []
    # Apart: together, BatchNorm would tell the discriminator how many are fake.
    for x, x_rngs in zip((real, fake), dropout_rngs, strict=True):
        score, model_state = play(
            rules, 'discriminator', params, model_state, x, *label,
            dropout_rngs=x_rngs, axis_name=axis_name,
        )
        scores.append(score)
    loss = losses.discriminator(*scores)
    metrics = {'real_score': scores[0].mean(), 'fake_score': scores[1].mean()}
    if losses.penalty:
        def critic(x: jax.Array) -> jax.Array:
            return play(rules, 'discriminator', params, model_state, x, *label)[0]

        penalty = adversarial.gradient_penalty(critic, point_rngs, real, fake)
        loss, metrics['gradient_penalty'] = loss + losses.penalty * penalty, penalty
    return state_lib.LossOutput(loss, metrics, model_state)


def generator_loss(
    rules: Game,
    params: Any,
    model_state: Any,
    batch: state_lib.Batch,
    rngs: jax.Array,
    *,
    step: jax.Array,
    axis_name: str | None,
) -> state_lib.LossOutput:
    """Computes the generator's loss, of fresh noise; see `state.LossFn`."""
    del step
    z_rngs, dropout_rngs = state_lib.split_each(rngs, 2)
    label = (batch['label'],) if rules.config.class_conditional else ()
    fake, model_state = play(
        rules, 'generator', params, model_state, draw_z(rules.config, z_rngs), *label,
        axis_name=axis_name,
    )
    score, _ = play(
        rules, 'discriminator', params, model_state, fake, *label,
        dropout_rngs=dropout_rngs, axis_name=axis_name,
    )
    # What the loss is about: how much a better score of a sample is worth.
    loss, slopes = jax.value_and_grad(rules.losses.generator)(score)
    metrics = {'generator_slope': jnp.sum(jnp.abs(slopes))}
    return state_lib.LossOutput(loss, metrics, model_state)


def dcgan_networks(
    config: Config, data: sources.ImageSet, features: tuple[int, ...], *,
    kernel_size: int, norm: str,
) -> Networks:
    """Makes the players of convolutions alone, which may see labels."""
    _check_sides(data, 2 ** len(features))
    parts = dict(
        kernel_size=kernel_size, dtype=jnp.dtype(config.dtype),
        num_classes=data.num_classes if config.class_conditional else 0,
    )
    return Networks(
        dcgan.Generator(data.image_shape, features[::-1], **parts),
        dcgan.Discriminator(features, norm=norm, **parts),
    )


def small_networks(config: Config, data: sources.ImageSet, *, norm: str) -> Networks:
    """Makes the players of Lucic et al. 2018."""
    check_unconditional(config)
    _check_sides(data, 4)
    dtype = jnp.dtype(config.dtype)
    return Networks(
        infogan.Generator(data.image_shape, dtype=dtype),
        infogan.Discriminator(norm=norm, dtype=dtype),
    )


def check_unconditional(config: Config) -> None:
    """Raises UserError for a network that sees no labels and is to."""
    if config.class_conditional:
        raise UserError(
            '--class_conditional: only the networks of convolutions alone, those of '
            'dcgan, see labels.'
        )


def _check_sides(data: sources.ImageSet, divisor: int) -> None:
    height, width, _ = data.image_shape
    if height % divisor or width % divisor:
        raise UserError(
            f'the images of {data.name}, {height} x {width}, do not fit this network: '
            f'{divisor} must divide their sides; --image_size changes those of a '
            f'folder or a TFDS set.'
        )


def draw_z(config: Config, rngs: jax.Array) -> jax.Array:
    """Draws z of the prior, [B, Z], one key [B] an image."""
    if config.prior == 'normal':
        return latent.prior_sample(rngs, config.latent_dim)
    return jax.vmap(
        lambda rng: jax.random.uniform(rng, (config.latent_dim,), minval=-1.0)
    )(rngs)


def to_tanh_range(
    rngs: jax.Array, image: jax.Array, data: sources.ImageSet
) -> jax.Array:
    """Scales integers, binarized where the set says so, to [-1, 1]."""
    return 2 * binarize.to_unit_range(rngs, image, data) - 1


def compare_attributes(
    rules: Game, trained: classifier.Trained, state: state_lib.TrainState,
    say: Callable[[str], None],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Does arithmetic on the z of samples; see `attributes.compare`."""
    del say
    config, num_classes = rules.config, rules.data.num_classes
    draw = jax.jit(functools.partial(generate, rules))

    def decode(z: jax.Array, label: np.ndarray) -> np.ndarray:
        return np.asarray(draw(state, z, jnp.asarray(label, jnp.int32)))

    index = jnp.arange(_POPULATION)
    return attributes.compare(
        draw_z(config, state_lib.fold_in_each(jax.random.key(config.seed), index)),
        decode, trained.classify, num_classes,
        np.asarray(index % num_classes) if config.class_conditional else None,
    )


def make_pictures(
    rules: Game, features: scores.Features, state: state_lib.TrainState, batch: Any,
    rng: jax.Array,
) -> dict[str, np.ndarray]:
    """Draws walks from z to z, and samples over the training images nearest to them.

    Of points of the plane it draws the points.

    Args:
        rules: the game.
        features: by which images are near.
        state: the players.
        batch: not used.
        rng: one key.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    del batch
    config, data = rules.config, rules.data
    draw = jax.jit(functools.partial(generate, rules))
    if synthetic.modes(data.name) is not None:
        z = draw_z(config, state_lib.fold_in_each(rng, jnp.arange(2000)))
        points = draw(state, z, jnp.arange(2000) % data.num_classes)
        x = pipeline.first_images(data, 2000).reshape(-1, 2)
        return {'points': plotting.scatter(x, np.asarray(points).reshape(-1, 2))}
    ends = draw_z(config, state_lib.fold_in_each(rng, jnp.arange(16)))
    z = latent.interpolate(
        ends[:8], ends[8:], 10, spherical=config.prior == 'normal'
    ).swapaxes(0, 1)
    label = jnp.repeat(jnp.arange(8) % max(data.num_classes, 1), 10)
    x = np.asarray(draw(state, z.reshape(-1, config.latent_dim), label))
    return {
        'interpolations': plotting.image_grid(x, columns=10),
        'nearest': scores.nearest_images(x[::10], data, features),
    }
