"""The distribution that block Gibbs sampling keeps, by enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from gm_jax.keys import fold_in_each
from gm_jax.losses import energy
from gm_jax.sampling.gibbs import gibbs
from tests.losses.test_energy import log_joint, machine, states

NUM = 4000
sample = jax.jit(gibbs)


def _numbers(v) -> np.ndarray:
    """Return the share of each state."""
    index = np.asarray(v, np.int64) @ (2 ** np.arange(v.shape[1])[::-1])
    return np.bincount(index, minlength=2 ** v.shape[1]) / len(v)


def test_the_distribution_of_the_machine_is_stationary():
    """Catch units that are drawn given a layer of another step."""
    rbm = machine(scale=2.0)
    p = special.softmax(special.logsumexp(log_joint(rbm), axis=1))
    rows = np.random.default_rng(0).choice(16, size=NUM, p=p)
    before = jnp.asarray(states(4)[rows], jnp.float32)
    after = sample(jax.random.key(1), rbm, before, 1)
    error = np.sqrt(p * (1 - p) / NUM)
    assert (np.abs(_numbers(after) - p) < 5 * error + 1e-3).all()
    # From anywhere else it is approached.
    end = sample(jax.random.key(2), rbm, jnp.zeros((NUM, 4)), 50)
    assert (np.abs(_numbers(end) - p) < 5 * error + 1e-3).all()
    assert np.abs(_numbers(sample(
        jax.random.key(2), rbm, jnp.zeros((NUM, 4)), 1
    )) - p).max() > 0.05


def test_one_step_has_the_transition_probabilities():
    """Catch a hidden layer that is not drawn but averaged."""
    rbm = machine(scale=2.0)
    h, v = states(3), states(4)
    p_h = special.softmax(log_joint(rbm)[5])  # of the fifth state
    logits = np.asarray(energy.visible_logits(rbm, jnp.asarray(h, jnp.float32)))
    p_v = np.exp(v @ logits.T - np.logaddexp(0, logits).sum(1)) @ p_h
    start = jnp.tile(jnp.asarray(v[5], jnp.uint8), (NUM, 1))
    end = sample(jax.random.key(0), rbm, start, 1)
    assert end.dtype == jnp.uint8
    assert (np.abs(_numbers(end) - p_v) < 5 * np.sqrt(p_v / NUM) + 1e-3).all()


def test_known_units_are_kept_and_the_others_drawn_given_them():
    """Catch a completion from the distribution without what is given."""
    rbm = machine(scale=2.0)
    known = jnp.asarray([[True, False, True, False]])
    start = jnp.tile(jnp.asarray([1.0, 0, 0, 0]), (NUM, 1))
    end = jax.jit(
        lambda rng: gibbs(rng, rbm, start, 50, known=known)
    )(jax.random.key(0))
    v = states(4)
    fits = (v[:, 0] == 1) & (v[:, 2] == 0)
    log_p = np.where(fits, special.logsumexp(log_joint(rbm), axis=1), -np.inf)
    p = special.softmax(log_p)
    error = 5 * np.sqrt(p * (1 - p) / NUM) + 1e-3 * fits
    assert (np.abs(_numbers(end) - p) <= error).all()


def test_a_chain_does_not_depend_on_the_others():
    """Catch noise that belongs to a place in the batch."""
    rbm, rng = machine(), jax.random.key(0)
    v = jnp.zeros((6, 4))
    one = sample(rng, rbm, v, 5)
    each = fold_in_each(rng, jnp.arange(6))
    np.testing.assert_array_equal(sample(each, rbm, v, 5), one)
    np.testing.assert_array_equal(sample(each[2:4], rbm, v[2:4], 5), one[2:4])
    np.testing.assert_array_equal(sample(rng, rbm, v, 0), v)
    with pytest.raises(AssertionError):
        gibbs(each[:2], rbm, v, 1)
