"""The conservative likelihood against the likelihood of a chain, by enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from gm_jax.evaluation import csl
from gm_jax.losses import likelihoods

BITS = np.arange(8)[:, None] >> np.arange(3) & 1
_RNG = np.random.default_rng(3)
# A chain of four states h: its stationary q(h), and P(x|h).
Q = np.array([0.4, 0.3, 0.2, 0.1])
LOGITS = jnp.asarray(2 * _RNG.normal(size=(4, 3)), jnp.float32)
LOG_P = np.stack([
    likelihoods.bernoulli_log_prob(jnp.broadcast_to(row, (8, 3)), jnp.asarray(BITS))
    for row in LOGITS
]).astype(np.float64)


def test_its_expectation_is_a_lower_bound_that_rises():
    """Catch a sum for the mean, or a bound from above: all draws of M states."""
    x, exact = jnp.asarray(BITS, jnp.float32), special.logsumexp(LOG_P.T, b=Q, axis=1)
    draws = np.array(list(itertools.product(range(4), repeat=3)))
    values = jax.vmap(lambda rows: csl.curve(x, LOGITS[rows], (1, 2, 3)))(draws)
    means = (np.prod(Q[draws], axis=1) @ np.asarray(values).reshape(64, -1))
    means = means.reshape(8, 3).T
    np.testing.assert_allclose(means[0], Q @ LOG_P, rtol=1e-5)
    assert np.all(np.diff(means, axis=0) > 0) and np.all(means[-1] < exact)
    # What is averaged are probabilities.
    np.testing.assert_allclose(np.exp(special.logsumexp(LOG_P, axis=1)), 1, rtol=1e-5)


def test_many_states_give_the_likelihood():
    """Catch a bound that is not tight in the limit."""
    rows = np.repeat(np.arange(4), (400, 300, 200, 100))
    got = csl.curve(jnp.asarray(BITS), LOGITS[rows], (1000,))[:, 0]
    exact = special.logsumexp(LOG_P.T, b=Q, axis=1)
    np.testing.assert_allclose(got, exact, rtol=1e-5)


def test_the_curve_is_that_of_the_first_states():
    """Catch a part of the states that counts twice, or is divided by another M."""
    logits = jnp.asarray(40 * _RNG.normal(size=(50, 3)), jnp.float32)
    x = jnp.asarray(BITS)
    sizes = (1, 7, 50)
    curve = csl.curve(x, logits, sizes)
    for column, size in zip(curve.T, sizes):
        each = np.stack([
            likelihoods.bernoulli_log_prob(jnp.broadcast_to(row, (8, 3)), x)
            for row in logits[:size]
        ]).astype(np.float64)
        wanted = special.logsumexp(each, axis=0) - np.log(size)
        np.testing.assert_allclose(column, wanted, rtol=1e-5, atol=1e-5)


def test_refusals():
    """Catch a grey image that has no such likelihood, and sizes that are not there."""
    x = jnp.asarray(BITS, jnp.float32)
    assert np.isnan(csl.curve(x + 0.5, LOGITS, (4,))[-1]).all()
    for sizes in ((5,), (2, 2), (0, 1), (3, 1)):
        with pytest.raises(ValueError, match='sizes'):
            csl.curve(x, LOGITS, sizes)
    with pytest.raises(AssertionError):
        csl.curve(x[:, :1], LOGITS, (1,))
