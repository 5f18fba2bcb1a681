"""Every public function that draws takes one key, or one key per example."""

import ast
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax import keys
from gm_jax.data import binarize
from gm_jax.layers.dropout import Dropout
from gm_jax.losses import adversarial, dequantization, likelihoods
from gm_jax.sampling import autoregressive, latent, walkback
from tests.losses import mixtures

X = jnp.asarray(np.random.default_rng(0).integers(1, 3, (3, 2, 2, 1)))
FLAT = X.reshape(3, 4) / 2.0
MIXTURE = mixtures.mixture(channels=1, shape=(3, 2, 2))
DRAWS = {
    'bernoulli_sample': lambda rng: likelihoods.bernoulli_sample(rng, FLAT),
    'categorical_sample': lambda rng: likelihoods.categorical_sample(rng, FLAT),
    'gaussian_sample': lambda rng: likelihoods.gaussian_sample(rng, FLAT, FLAT),
    'logistic_mixture_sample':
        lambda rng: likelihoods.logistic_mixture_sample(rng, MIXTURE),
    'gradient_penalty': lambda rng: adversarial.gradient_penalty(
        lambda y: jnp.sum(y**3, axis=1), rng, FLAT, 1 - FLAT
    ),
    'logistic_sample': lambda rng: likelihoods.logistic_sample(rng, FLAT, FLAT),
    'variational': lambda rng: dequantization.variational(
        rng, X, lambda u: (u, jnp.zeros(3)), num_values=4
    )[0],
    'dequantization': lambda rng: dequantization.uniform(rng, X, num_values=4),
    'binarize_dynamic': lambda rng: binarize.binarize_dynamic(rng, X, 4),
    'prior_sample': lambda rng: latent.prior_sample(
        rng, 2, batch=None if rng.ndim else 3
    ),
    'noise': lambda rng: autoregressive.noise(
        rng, (2, 2, 1), 1, batch=None if rng.ndim else 3
    ),
    'dropout': lambda rng: Dropout(0.5).apply({}, FLAT, rng=rng),
    'salt_and_pepper': lambda rng: walkback.salt_and_pepper(rng, FLAT, 0.5),
    'fair_coins': lambda rng: walkback.fair_coins(
        rng, 4, batch=None if rng.ndim else 3
    ),
    'chain': lambda rng: walkback.chain(
        rng, lambda rngs, x, hidden: (x, hidden), walkback.State(FLAT, ()), 2, rate=0.5
    )[0].x,
}


@pytest.mark.parametrize('name', DRAWS)
def test_one_key_is_a_key_per_example(name):
    """Catch one key that is broadcast over the examples, and a third convention."""
    draw, rng = DRAWS[name], jax.random.key(1)
    one, each = draw(rng), draw(keys.fold_in_each(rng, jnp.arange(3)))
    np.testing.assert_array_equal(one, each)
    assert np.any(np.asarray(one) != np.asarray(draw(jax.random.key(2))))


def _is_wrong(name, shape):
    # Of as many examples as there are keys.
    if name in ('prior_sample', 'noise', 'fair_coins'):
        return len(shape) > 1
    return (name, shape) != ('dropout', (1,))  # which is one example of three rows


@pytest.mark.parametrize('name, shape', [
    (name, shape) for name in DRAWS for shape in [(2,), (3, 1), (1,)]
    if _is_wrong(name, shape)
])
def test_wrong_keys_are_named(name, shape):
    """Catch keys of another number that broadcast, and an error that is not clear."""
    rng = jax.random.split(jax.random.key(0), shape)
    with pytest.raises(AssertionError, match='rng|divisible'):
        DRAWS[name](rng)


def test_a_wrong_shape_says_what_was_expected():
    """Catch an error that leaves the reader to guess."""
    two = jax.random.split(jax.random.key(0))
    with pytest.raises(AssertionError) as error:
        keys.per_example(two, 3, 'dropout_rng')
    assert str(error.value) == (
        'dropout_rng must be one key, or one key per example, [3]: '
        'got keys of shape [2]'
    )
    with pytest.raises(AssertionError, match=r'made by jax\.random\.key: got uint32'):
        keys.per_example(jax.random.PRNGKey(0), 3)
    with pytest.raises(AssertionError, match='with the number of examples'):
        keys.per_example(two[0], None)


def test_streams_differ():
    """Catch two uses of randomness, or two attempts, that share their noise."""
    drawn = {
        tuple(jax.random.key_data(keys.stream(seed, use, rollbacks=rollbacks)).tolist())
        for seed in (0, 1) for use in keys.Stream for rollbacks in (0, 1, 2)
    }
    assert len(drawn) == 2 * len(keys.Stream) * 3


def test_names_and_numbers_are_apart():
    """Catch a named child that is also the child of an example, a step or a split."""
    rng = jax.random.key(3)
    children = [keys.derive(rng, use) for use in keys.Use]
    children += [*keys.fold_in_each(rng, np.arange(100)), *jax.random.split(rng, 50)]
    found = {tuple(jax.random.key_data(child).tolist()) for child in children}
    assert len(found) == len(keys.Use) + 100  # split gives the first numbered children
    both = keys.derive(rng, keys.Use.REAL, keys.Use.DROPOUT)
    assert both == keys.derive(keys.derive(rng, keys.Use.REAL), keys.Use.DROPOUT)
    each = keys.derive(keys.fold_in_each(rng, np.arange(3)), keys.Use.PIXELS)
    assert each[2] == keys.derive(jax.random.fold_in(rng, 2), keys.Use.PIXELS)


@pytest.mark.parametrize('folder', [
    'experiments', 'gm_jax/families', 'gm_jax/training', 'gm_jax/data', 'gm_jax/models',
])
def test_one_rule_derives_all_keys(folder):
    """Catch a key that is made, split or numbered beside the tree of keys."""
    root = pathlib.Path(keys.__file__).parents[1]
    for path in sorted((root / folder).glob('*.py')):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                name = ast.unparse(node)
                assert name not in {
                    'jax.random.key', 'jax.random.PRNGKey', 'jax.random.split',
                    'jax.random.fold_in', 'jax.random.clone',
                }, f'{path}:{node.lineno} uses {name}'
