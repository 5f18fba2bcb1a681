"""Evaluation and pictures of the codes of adversarial autoencoders.

Their prior, clusters as classes, arithmetic, and pictures.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from gm_jax import plotting
from gm_jax.data import binarize, image_set, pipeline
from gm_jax.data.image_set import Examples, ImageSet
from gm_jax.families import attributes, scores
from gm_jax.families.classifier import Trained
from gm_jax.keys import Use, derive, fold_in_each
from gm_jax.models.adversarial_autoencoder import Code
from gm_jax.training import evaluate, parallel
from gm_jax.training.contracts import HostBatch, Pictures, Say
from gm_jax.training.train_state import Batch, TrainState

__all__ = [
    'Coder', 'compare_attributes', 'draw_integers', 'draw_mixture', 'log_odds',
    'make_pictures', 'name_clusters',
]

# The mixture prior: Gaussians on a ring.
_COMPONENTS, _RADIUS, _STD = 10, 4.0, 0.5
# Training images that name the clusters; test images for arithmetic on codes; the most
# categories that a picture or a line has room for.
_NAMED_BY, _POPULATION, _SHOWN = 10_000, 2_000, 40


def draw_mixture(rngs: jax.Array, z: jax.Array) -> jax.Array:
    """Map standard normal z [B, 2] to a ring of Gaussians, one key [B] per code.

        z' = 4 (cos a, sin a) + 0.5 z      a = 2 pi k / 10      k uniform in 0 ... 9
    """
    chex.assert_shape(z, (len(rngs), 2))
    component = draw_integers(rngs, _COMPONENTS)
    angle = 2 * math.pi * component / _COMPONENTS
    return _RADIUS * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1) + _STD * z


def draw_integers(rngs: jax.Array, below: int) -> jax.Array:
    """Draw an integer from 0 to below - 1 with each key [B]."""
    return jax.vmap(lambda rng: jax.random.randint(rng, (), 0, below))(rngs)


class Coder(NamedTuple):
    """A trained encoder and decoder, as functions of a training state.

    Attributes:
        data: the image set.
        encode: (state, x [B, H, W, C] in [0, 1]) -> Code.
        decode: (state, z [B, Z], y [B, K]) -> [B, H, W, C] in [0, 1].
        draw_z: keys [B] -> z [B, Z] from the prior.
        num_categories: K.
    """

    data: ImageSet
    encode: Callable[[TrainState, jax.Array], Code]
    decode: Callable[[TrainState, jax.Array, jax.Array], jax.Array]
    draw_z: Callable[[jax.Array], jax.Array]
    num_categories: int

    def observe(self, batch: Mapping[str, Any], rng: jax.Array) -> jax.Array:
        """Return the images of a batch in [0, 1], keyed by their index in the set."""
        rngs = fold_in_each(rng, batch['index'])
        return binarize.to_unit_range(
            derive(rngs, Use.PIXELS), batch['image'], self.data
        )


def compare_attributes(
    coder: Coder, trained: Trained, state: TrainState
) -> tuple[dict[str, float], Pictures]:
    """Do arithmetic on the codes (z, y) of test images; see `attributes.compare`."""
    data = coder.data
    rows = image_set.spread(len(data.splits['test']), _POPULATION)
    x = scores.as_seen(data.splits['test'], rows, data).astype(np.float32) / 255
    code = jax.jit(coder.encode)(state, x)
    compiled, size = jax.jit(coder.decode), code.z.shape[1]

    def decode(codes: jax.Array, label: np.ndarray) -> np.ndarray:
        del label  # y holds what the code knows of the class
        x = compiled(state, codes[:, :size], codes[:, size:])
        return plotting.to_uint8(np.asarray(x))

    codes = jnp.concatenate([code.z, code.y], axis=1)
    return attributes.compare(codes, decode, trained.classify, data.num_classes)


def log_odds(logits: jax.Array) -> jax.Array:
    """Compute log q / (1 - q) of each category, q = softmax(logits).

    It orders images where q itself cannot: above 1 - 2^-25, q is 1 in float32.

    Args:
        logits: [B, K].

    Returns:
        [B, K], infinite if K = 1.
    """
    chex.assert_rank(logits, 2)
    log_q = jax.nn.log_softmax(logits)
    likeliest = jax.nn.one_hot(jnp.argmax(logits, axis=1), logits.shape[1], dtype=bool)
    # Of the likeliest category, 1 - q is the sum of the others; elsewhere q <= 1/2.
    others = jax.nn.logsumexp(
        log_q, axis=1, keepdims=True, b=1.0 - likeliest.astype(log_q.dtype)
    )
    log_rest = jnp.log1p(-jnp.exp(jnp.where(likeliest, -jnp.inf, log_q)))
    return log_q - jnp.where(likeliest, others, log_rest)


def name_clusters(
    coder: Coder, state: TrainState, rng: jax.Array, batch_size: int, say: Say
) -> dict[str, float]:
    """Score clusters as classes: each gets the class of its surest training image.

    Args:
        coder: the autoencoder.
        state: the trained state.
        rng: the key for binarization, if the set is binarized.
        batch_size: images at a time.
        say: prints the names.

    Returns:
        {'error_rate': the share of test images whose cluster has another class,
        'purity': the share of test images with the most frequent class of their
        cluster, which uses the labels of all}.

    References:
        Makhzani et al. 2015, sec. 6, where validation images name them.
    """
    def step(state: TrainState, batch: Batch, rng: jax.Array) -> dict[str, jax.Array]:
        code = coder.encode(state, coder.observe(batch, rng))
        return {'log_odds': log_odds(code.logits), 'label': batch['label']}

    compiled = parallel.eval_many(step, 'the encoder')

    def categories(
        examples: Examples, rng: jax.Array
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the log odds of q(y|x) [N, K] and the labels [N]."""
        found = evaluate.over_examples(compiled, state, examples, rng, batch_size)
        return found['log_odds'], found['label'][:, 0]

    train = coder.data.splits['train']
    some = pipeline.example_order(0, 0, min(len(train), _NAMED_BY), len(train))
    batch = train.fetch(np.sort(some))
    odds, labels = categories(
        image_set.ArrayExamples(batch['image'], batch['label']),
        derive(rng, Use.TRAINING_IMAGES),
    )
    names = labels[np.argmax(odds, axis=0)]
    odds, labels = categories(coder.data.splits['test'], rng)
    cluster = np.argmax(odds, axis=1)
    counts = np.zeros((odds.shape[1], coder.data.num_classes), int)
    np.add.at(counts, (cluster, labels), 1)
    shown = ', '.join(map(str, names[:_SHOWN])) + ', ...' * (len(names) > _SHOWN)
    say(f'  the clusters are named [{shown}]')
    return {
        'error_rate': float(np.mean(names[cluster] != labels)),
        'purity': float(counts.max(axis=1).sum() / len(cluster)),
    }


def make_pictures(
    coder: Coder, state: TrainState, batch: HostBatch, rng: jax.Array
) -> Pictures:
    """Draw reconstructions, the plane of codes, and each style in all categories."""
    decode = jax.jit(coder.decode)
    x = coder.observe(batch, rng)
    code = coder.encode(state, x)
    pictures = {'reconstructions': plotting.reconstructions(
        np.asarray(x[:30]), np.asarray(decode(state, code.z, code.y)[:30])
    )}
    prior = coder.draw_z(fold_in_each(rng, jnp.arange(2000)))
    if prior.shape[1] == 2:
        pictures['codes'] = plotting.scatter(
            np.asarray(prior), np.asarray(code.z),
            names=('prior', 'codes of test images, coloured by class'),
            axes=('latent unit 0', 'latent unit 1'),
            labels=np.asarray(batch['label']),
        )
    num = min(coder.num_categories, _SHOWN)
    if num:
        categories = jnp.tile(jnp.arange(num), 8)
        y = jax.nn.one_hot(categories, coder.num_categories)
        z = jnp.repeat(prior[:8], num, axis=0)
        grid = plotting.image_grid(np.asarray(decode(state, z, y)), columns=num)
        pictures['styles'] = plotting.with_axes(
            grid, rows=[str(row) for row in range(8)],
            columns=[str(category) for category in range(num)], xlabel='category y',
            ylabel='number of the style z', title='Each z with every category' if (
                num == coder.num_categories
            ) else f'Each z with {num} of {coder.num_categories} categories',
        )
    return pictures
