"""What there is to see of the codes of adversarial autoencoders; no experiment itself.

Their prior, clusters as classes, arithmetic, and pictures. `rules` is the experiment's
Game.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import attributes, classifier, scores
from gm_jax import plotting
from gm_jax.data import binarize, image_set, pipeline
from gm_jax.sampling import latent
from gm_jax.training import evaluate, parallel
from gm_jax.training import state as state_lib

# The mixture prior: so many Gaussians on a ring.
_PETALS, _RADIUS, _STD = 10, 4.0, 0.5
# Training images by which clusters are named; test images whose codes are combined.
_NAMED_BY, _POPULATION = 10_000, 2_000


def draw_z(config: Any, rngs: jax.Array) -> jax.Array:
    """Draws z of the prior, [B, Z], one key [B] an image."""
    z = latent.prior_sample(rngs, config.latent_dim)
    if config.prior == 'normal':
        return z
    rngs = jax.vmap(jax.random.fold_in, (0, None))(rngs, 1)
    petal = draw_integers(rngs, _PETALS)
    angle = 2 * math.pi * petal / _PETALS
    return _RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) + _STD * z


def draw_integers(rngs: jax.Array, below: int) -> jax.Array:
    """Draws one of 0 ... below - 1 by each key [B]."""
    return jax.vmap(lambda rng: jax.random.randint(rng, (), 0, below))(rngs)


def observe(rules: Any, batch: state_lib.Batch, rng: jax.Array) -> jax.Array:
    """Returns the images of a batch in [0, 1], keyed by their place in the set."""
    rngs = state_lib.fold_in_each(rng, batch['index'])
    return binarize.to_unit_range(rngs, batch['image'], rules.data)


def measure(
    rules: Any, trained: classifier.Trained | None, state: state_lib.TrainState,
    say: Callable[[str], None],
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the error of clusters as classes; scores and picture of arithmetic."""
    numbers, pictures = {}, {}
    if rules.config.num_clusters and rules.data.num_classes:
        numbers |= name_clusters(rules, state, say)
    if trained is not None:
        more, pictures = compare_attributes(rules, trained, state)
        numbers |= more
    return numbers, pictures


def compare_attributes(
    rules: Any, trained: classifier.Trained, state: state_lib.TrainState
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Does arithmetic on the codes (z, y) of test images; see `attributes.compare`."""
    data, size = rules.data, rules.config.latent_dim
    rows = np.arange(min(len(data.splits['test']), _POPULATION))
    x = scores.as_seen(data.splits['test'], rows, data).astype(np.float32) / 255
    code = jax.jit(functools.partial(rules.play, 'encoder'))(state, x)
    play = jax.jit(functools.partial(rules.play, 'decoder'))

    def decode(codes: jax.Array, label: np.ndarray) -> np.ndarray:
        del label  # y says what of it the code knows
        x = play(state, codes[:, :size], codes[:, size:])
        return plotting.to_uint8(np.asarray(x))

    codes = jnp.concatenate([code.z, code.y], axis=1)
    return attributes.compare(codes, decode, trained.classify, data.num_classes)


def name_clusters(
    rules: Any, state: state_lib.TrainState, say: Callable[[str], None]
) -> dict[str, float]:
    """Measures the clusters as classes: each has that of its surest training image.

    Returns:
        {'error': the share of test images whose cluster has another class,
        'purity': the share whose class is the most frequent of their cluster, which
        takes the labels of all}.

    References:
        Makhzani et al. 2015, sec. 6, which names them by validation images.
    """
    config, data = rules.config, rules.data

    def categories(state, batch, rng):
        code = rules.play('encoder', state, observe(rules, batch, rng))
        return {'y': code.y, 'label': batch['label']}

    train = data.splits['train']
    some = pipeline.example_order(0, 0, min(len(train), _NAMED_BY), len(train))
    named = train.fetch(np.sort(some))
    categories = parallel.eval_many(categories)
    arrays = [
        evaluate.over_examples(
            categories, state, examples, jax.random.key(config.seed),
            config.eval_batch_size or config.batch_size,
        )
        for examples in (
            image_set.ArrayExamples(named['image'], named['label']), data.splits['test']
        )
    ]
    named, test = ((found['y'], found['label'][:, 0]) for found in arrays)
    names = named[1][np.argmax(named[0], axis=0)]
    cluster = np.argmax(test[0], axis=1)
    error = np.mean(names[cluster] != test[1])
    counts = np.zeros((test[0].shape[1], data.num_classes), int)
    np.add.at(counts, (cluster, test[1]), 1)
    say(f'  the clusters are named {names.tolist()}')
    purity = counts.max(axis=1).sum() / len(cluster)
    return {'error': float(error), 'purity': float(purity)}


def make_pictures(
    rules: Any, state: state_lib.TrainState, batch: state_lib.Batch, rng: jax.Array
) -> dict[str, np.ndarray]:
    """Draws reconstructions, the plane of codes, and each style in all categories.

    Args:
        rules: the game.
        state: the players.
        batch: of images [B, H, W, C].
        rng: one key.

    Returns:
        Pictures by name, uint8 [H, W, C] each.
    """
    decode = jax.jit(functools.partial(rules.play, 'decoder'))
    x = observe(rules, batch, rng)
    code = rules.play('encoder', state, x)
    x_hat = decode(state, code.z, code.y)
    pictures = {'reconstructions': plotting.reconstructions(
        np.asarray(x[:30]), np.asarray(x_hat[:30])
    )}
    prior = draw_z(rules.config, state_lib.fold_in_each(rng, jnp.arange(2000)))
    if rules.config.latent_dim == 2:
        pictures['codes'] = plotting.scatter(
            np.asarray(prior), np.asarray(code.z), names=('prior', 'codes'),
            labels=batch['label'],
        )
    num = rules.num_categories
    if num:
        z, y = jnp.repeat(prior[:8], num, axis=0), jnp.tile(jnp.eye(num), (8, 1))
        styles = np.asarray(decode(state, z, y))
        pictures['styles'] = plotting.image_grid(styles, columns=num)
    return pictures
