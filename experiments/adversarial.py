"""What the adversarial experiments share; not an experiment itself.

A generator draws x = G(z), a discriminator (or critic) scores x, and a game of two
losses trains both: the algorithm of Goodfellow et al. 2014, Generative Adversarial
Networks, https://arxiv.org/abs/1406.2661, with the losses as arguments.
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

from experiments import classifier
from gm_jax import plotting
from gm_jax.data import binarize, image_set, pipeline, sources, synthetic
from gm_jax.errors import UserError
from gm_jax.evaluation import (
    alarms,
    frechet,
    kernel_distance,
    modes,
    moments,
    neighbours,
    precision_recall,
)
from gm_jax.losses import adversarial
from gm_jax.sampling import latent
from gm_jax.training import config as config_lib
from gm_jax.training import game, loop, optimizer
from gm_jax.training import state as state_lib
from gm_jax.training.config import field

# Training images among which the nearest to a sample are searched.
_SEARCHED = 60_000


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
        10_000, 'most samples, and most images, that an evaluation compares', low=2,
        free=True,
    )
    classifier: str = field(
        '', 'work directory of experiments.classifier on the same set, whose features '
        'evaluations compare; none: pixels', free=True,
    )


class Losses(NamedTuple):
    """The rules of the game; all losses are to be minimised."""

    discriminator: Callable[[jax.Array, jax.Array], jax.Array]  # of real, fake scores
    generator: Callable[[jax.Array], jax.Array]  # of fake scores
    penalty: float = 0.0  # weight of the gradient penalty
    clip: float = 0.0  # largest weight of the discriminator; 0: no limit
    # The least healthy loss of a discriminator; a critic's has no such value.
    saturated_below: float = -np.inf


class Features(NamedTuple):
    """What samples and images are compared by."""

    name: str
    compute: Callable[[np.ndarray], np.ndarray]  # uint8 [N, H, W, C] -> [N, F]


class Networks(NamedTuple):
    """The players, as Flax modules."""

    generator: nn.Module  # (z, [label,] train, axis_name) -> x in [-1, 1]
    discriminator: nn.Module  # (x, [label,] dropout_rngs, train, axis_name) -> [B]
    convolutional: bool = True  # see loop.Experiment


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
    networks, losses = make_networks(config, data), make_losses(config)
    turns = make_turns(config, data, networks, losses)
    tx = game.optimizers(turns, make_optimizers(config))
    features = Features('pixel', pixels)
    if config.classifier:
        compute = classifier.load_features(config.classifier, data)
        features = Features('classifier', compute)

    def init(rng: jax.Array) -> state_lib.TrainState:
        params, stats = {}, {}
        z, x = jnp.zeros((1, config.latent_dim)), jnp.zeros((1, *data.image_shape))
        label = (jnp.zeros(1, jnp.int32),) if config.class_conditional else ()
        for name, seen in (('generator', z), ('discriminator', x)):
            player_rng = jax.random.fold_in(rng, len(params))
            variables = getattr(networks, name).init(player_rng, seen, *label)
            params[name] = variables['params']
            stats[name] = variables.get('batch_stats', {})
        return state_lib.create(
            params, tx, model_state={'batch_stats': stats}, ema=config.ema > 0
        )

    def generate(
        state: state_lib.TrainState, z: jax.Array, label: jax.Array
    ) -> jax.Array:
        variables = {
            'params': state.eval_params['generator'],
            'batch_stats': state.model_state['batch_stats']['generator'],
        }
        labels = (label,) if config.class_conditional else ()
        x = networks.generator.apply(variables, z, *labels)
        return jnp.round(255 * (x + 1) / 2).astype(jnp.uint8)

    def sample(
        state: state_lib.TrainState, rngs: jax.Array, index: jax.Array
    ) -> jax.Array:
        return generate(state, draw_z(config, rngs), index % max(data.num_classes, 1))

    def pictures(
        state: state_lib.TrainState, batch: Any, rng: jax.Array
    ) -> dict[str, np.ndarray]:
        if synthetic.modes(data.name) is not None:
            rngs = state_lib.fold_in_each(rng, jnp.arange(2000))
            points = jax.jit(sample)(state, rngs, jnp.arange(2000))
            x = pipeline.first_images(data, 2000)
            points, x = np.asarray(points).reshape(-1, 2), x.reshape(-1, 2)
            return {'points': plotting.scatter(x, points)}
        ends = draw_z(config, state_lib.fold_in_each(rng, jnp.arange(16)))
        z = jax.vmap(lambda a, b: latent.interpolate(a, b, 10))(ends[:8], ends[8:])
        label = jnp.repeat(jnp.arange(8) % max(data.num_classes, 1), 10)
        x = jax.jit(generate)(state, z.reshape(-1, config.latent_dim), label)
        samples = np.asarray(x)[::10]
        return {
            'interpolations': plotting.image_grid(np.asarray(x), columns=10),
            'nearest': nearest_images(samples, data, features),
        }

    return loop.Experiment(
        init=init,
        train_step=game.make_game_step(turns, ema_decay=config.ema),
        score=functools.partial(score, config=config, data=data, features=features),
        sample=sample,
        sampler='z from the prior, G(z)',
        pictures=pictures,
        alarms=functools.partial(ring, losses, data),
        convolutional=networks.convolutional,
        minibatches=config.k,
    )


def make_optimizers(config: Config) -> dict[str, optax.GradientTransformation]:
    """Makes each player's optimizer; the discriminator's counts k updates a step."""
    rate = config.discriminator_learning_rate or config.learning_rate
    of_discriminator = dataclasses.replace(config, learning_rate=rate)
    return {
        'generator': optimizer.make(config),
        'discriminator': optimizer.make(of_discriminator, updates_per_step=config.k),
    }


def make_turns(
    config: Config, data: sources.ImageSet, networks: Networks, losses: Losses
) -> list[game.Turn]:
    """Makes the moves of a step: k of the discriminator, then one of the generator."""

    def play(name: str, params: Any, model_state: Any, *seen: Any, **mode: Any) -> Any:
        stats = model_state['batch_stats']
        y, updated = getattr(networks, name).apply(
            {'params': params[name], 'batch_stats': stats[name]}, *seen,
            train=True, mutable=['batch_stats'], **mode,
        )
        stats = stats | {name: updated.get('batch_stats', {})}
        return y, {'batch_stats': stats}

    def discriminator_loss(params, model_state, batch, rngs, *, step, axis_name):
        del step
        z_rngs, pixel_rngs, real_rngs, fake_rngs, point_rngs = _split_each(rngs, 5)
        label = (batch['label'],) if config.class_conditional else ()
        real = to_tanh_range(pixel_rngs, batch['image'], data)
        # BatchNorm's running averages are the generator's own affair: not kept here.
        fake, _ = play(
            'generator', params, model_state, draw_z(config, z_rngs), *label,
            axis_name=axis_name,
        )
        # Apart: together, BatchNorm would tell the discriminator how many are fake.
        real_scores, model_state = play(
            'discriminator', params, model_state, real, *label, dropout_rngs=real_rngs,
            axis_name=axis_name,
        )
        fake_scores, model_state = play(
            'discriminator', params, model_state, fake, *label, dropout_rngs=fake_rngs,
            axis_name=axis_name,
        )
        loss = losses.discriminator(real_scores, fake_scores)
        metrics = {
            'real_score': real_scores.mean(), 'fake_score': fake_scores.mean(),
        }
        if losses.penalty:
            def critic(x: jax.Array) -> jax.Array:
                return play('discriminator', params, model_state, x, *label)[0]

            penalty = adversarial.gradient_penalty(critic, point_rngs, real, fake)
            loss, metrics['gradient_penalty'] = loss + losses.penalty * penalty, penalty
        return state_lib.LossOutput(loss, metrics, model_state)

    def generator_loss(params, model_state, batch, rngs, *, step, axis_name):
        del step
        z_rngs, rngs = _split_each(rngs, 2)
        label = (batch['label'],) if config.class_conditional else ()
        fake, model_state = play(
            'generator', params, model_state, draw_z(config, z_rngs), *label,
            axis_name=axis_name,
        )
        scores, _ = play(
            'discriminator', params, model_state, fake, *label, dropout_rngs=rngs,
            axis_name=axis_name,
        )
        # What the loss is about: how much a better score of a sample is worth.
        loss, slopes = jax.value_and_grad(losses.generator)(scores)
        metrics = {'generator_slope': jnp.sum(jnp.abs(slopes))}
        return state_lib.LossOutput(loss, metrics, model_state)

    def clipped(params: Any) -> Any:
        if not losses.clip:
            return params
        return jax.tree.map(lambda w: jnp.clip(w, -losses.clip, losses.clip), params)

    return [
        game.Turn('discriminator', ('discriminator',), discriminator_loss, i, clipped)
        for i in range(config.k)
    ] + [game.Turn('generator', ('generator',), generator_loss)]


def check_unconditional(config: Config) -> None:
    """Raises UserError for a network that sees no labels and is to."""
    if config.class_conditional:
        raise UserError(
            '--class_conditional: only the networks of convolutions alone, those of '
            'dcgan, see labels.'
        )


def check_sides(data: sources.ImageSet, divisor: int) -> None:
    """Raises UserError unless the images' sides can be halved as often as need be."""
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
    x = binarize.integers(rngs, image, data).astype(jnp.float32)
    return 2 * x / (binarize.num_values(data) - 1) - 1


def score(
    draw: Callable[[int], np.ndarray],
    examples: image_set.Examples,
    last: bool,
    *,
    config: Config,
    data: sources.ImageSet,
    features: Features,
) -> dict[str, float]:
    """Compares generated samples with images.

    Args:
        draw: n -> [n, H, W, C] uint8.
        examples: a split of the image set.
        last: whether to compute the numbers that take a while too.
        config: how many.
        data: the image set.
        features: what is compared.

    Returns:
        The Frechet distance of the features, as `loss` too, and how many of each were
        compared; where the modes are known, how many are covered; at last the kernel
        distance, precision, recall, density and coverage.
    """
    num = min(config.score_samples, len(examples))
    images = examples.fetch(np.arange(num))['image']
    real = plotting.to_uint8(images, num_values=data.num_values)
    fake = draw(num)
    real_features, fake_features = features.compute(real), features.compute(fake)
    distance = frechet.frechet_distance(*(
        moments.update(moments.empty(x.shape[1]), x)
        for x in (real_features, fake_features)
    ))
    numbers = {
        'loss': distance, f'{features.name}_frechet_distance': distance,
        'num_real': num, 'num_fake': num,
        **alarms.diversity(real_features, fake_features),
    }
    if last:
        numbers |= careful_scores(features.name, real_features, fake_features)
    known = synthetic.modes(data.name)
    if known is not None:
        points = fake.reshape(num, -1).astype(np.float64)
        numbers |= modes.mode_coverage(points, known.centres, known.std)
    return numbers


def ring(
    losses: Losses, data: sources.ImageSet, split: str, metrics: dict[str, float]
) -> list[str]:
    """Returns the alarms of a line of metrics."""
    if split == 'train':
        return alarms.of_training(metrics, saturated_below=losses.saturated_below)
    known = synthetic.modes(data.name)
    return alarms.of_samples(metrics, num_modes=len(known.centres) if known else 0)


def careful_scores(
    name: str, real: np.ndarray, fake: np.ndarray
) -> dict[str, float]:
    """Returns the kernel distance, and precision and recall, of features [N, F]."""
    mean, error = kernel_distance.kernel_distance(
        real, fake, subset_size=min(1000, len(real) // 2)
    )
    return {
        f'{name}_kernel_distance': mean, f'{name}_kernel_distance_error': error,
        **precision_recall.precision_recall(real, fake),
    }


def pixels(images: np.ndarray) -> np.ndarray:
    """Returns uint8 images [N, H, W, C] as [N, H W C] in [0, 1]."""
    return images.reshape(len(images), -1) / 255


def nearest_images(
    samples: np.ndarray, data: sources.ImageSet, features: Features
) -> np.ndarray:
    """Draws samples over the training images nearest to them, as the lecture does.

    Args:
        samples: [N, H, W, C] uint8.
        data: the image set; of a large one the first images are searched.
        features: by which they are compared, besides pixels.

    Returns:
        [H', W', C] uint8: the samples, the nearest by pixels, the nearest by features.
    """
    images = plotting.to_uint8(
        pipeline.first_images(data, _SEARCHED), num_values=data.num_values
    )
    rows = {'samples': samples}
    for name, compute in {'pixels': pixels, 'features': features.compute}.items():
        if compute is not pixels or name == 'pixels':
            index, _ = neighbours.nearest(compute(samples), compute(images))
            rows[f'nearest by {name}'] = images[index[:, 0]]
    return plotting.labelled_rows(np.stack(list(rows.values())), list(rows))


def _split_each(rngs: jax.Array, num: int) -> jax.Array:
    return jax.vmap(lambda rng: jax.random.split(rng, num), out_axes=1)(rngs)
