"""Annealed importance sampling against enumeration."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from gm_jax.evaluation import ais
from gm_jax.losses.energy import RBM
from tests.losses.test_energy import log_joint, machine, states

CHAINS = 1000


def _forward(rbm, base, num_temperatures, num_chains=CHAINS, seed=0):
    run = functools.partial(
        ais.ais_log_partition, num_chains=num_chains, num_temperatures=num_temperatures
    )
    return jax.jit(run)(jax.random.key(seed), rbm, base_visible_bias=base)


def _reverse(rbm, base, num_temperatures, seed=1):
    p = special.softmax(special.logsumexp(log_joint(rbm), axis=1))
    rows = np.random.default_rng(seed).choice(len(p), size=CHAINS, p=p)
    v = jnp.asarray(states(len(base))[rows], jnp.uint8)
    run = functools.partial(
        ais.reverse_ais_log_partition, num_temperatures=num_temperatures
    )
    return jax.jit(run)(jax.random.key(seed), rbm, v, base_visible_bias=base)


def test_both_ways_give_the_exact_log_partition():
    """Catch a temperature, a term or a normaliser that is wrong."""
    rbm, base = machine(5, 4, scale=1.5), jnp.asarray([0.3, -1, 2, 0, 1.0])
    exact = special.logsumexp(log_joint(rbm))
    # Of few temperatures as well as of many: each is unbiased.
    for num in (3, 30):
        for found in (_forward(rbm, base, num), _reverse(rbm, base, num)):
            assert abs(found.log_z - exact) < 5 * found.standard_error + 1e-4, num
            assert 1 <= found.effective_sample_size <= CHAINS
    assert found.effective_sample_size > 0.7 * CHAINS


def test_a_machine_of_half_precision():
    """Catch temperatures that bfloat16 cannot tell apart."""
    rbm = RBM(*(a.astype(jnp.bfloat16) for a in machine(5, 4)))
    exact = special.logsumexp(log_joint(RBM(*(a.astype(jnp.float32) for a in rbm))))
    found = _forward(rbm, jnp.zeros(5), 300)
    assert found.log_weights.dtype == jnp.float32
    assert abs(found.log_z - exact) < 5 * found.standard_error + 1e-4


def test_the_means_of_the_log_weights_are_a_bracket():
    """Catch a reverse path that is not on the other side."""
    rbm, base = machine(5, 4, scale=1.5), jnp.zeros(5)
    exact, widths = special.logsumexp(log_joint(rbm)), []
    for num in (1, 3, 30):
        low = float(_forward(rbm, base, num).log_weights.mean())
        high = float(_reverse(rbm, base, num).log_weights.mean())
        assert low < exact < high
        widths.append(high - low)
    assert widths[0] > 2 * widths[1] > 8 * widths[2]


def test_the_numbers_of_an_estimate_are_those_of_its_weights():
    """Catch a mean of logs, and a standard error of log w in place of that of w."""
    rbm, base = machine(6, 5), jnp.zeros(6)
    found = _forward(rbm, base, 5, num_chains=200)
    w = np.exp(np.asarray(found.log_weights, np.float64))
    np.testing.assert_allclose(found.log_z, np.log(w.mean()), rtol=1e-5)
    error = w.std(ddof=1) / np.sqrt(200) / w.mean()
    np.testing.assert_allclose(found.standard_error, error, rtol=1e-3)
    size = w.sum() ** 2 / (w**2).sum()
    np.testing.assert_allclose(found.effective_sample_size, size, rtol=1e-4)


def test_independent_units_have_no_error_at_all():
    """Catch digits that ten thousand small terms lose of a large total."""
    rng = np.random.default_rng(0)
    b, c = (jnp.asarray(rng.normal(size=n) - 3, jnp.float32) for n in (100, 50))
    rbm = RBM(jnp.zeros((100, 50)), b, c)
    found = _forward(rbm, b, 10_000, num_chains=2)
    exact = sum(np.logaddexp(0, np.asarray(x, np.float64)).sum() for x in (b, c))
    np.testing.assert_allclose(found.log_weights, exact, rtol=3e-7)
    np.testing.assert_allclose(found.effective_sample_size, 2, rtol=1e-5)


def test_softplus_step_keeps_its_digits():
    """Catch a difference of two large and nearly equal numbers."""
    x = np.array([-300, -20, -1, -1e-3, 0, 1e-3, 1, 20, 300.0])
    for low, high in ((0, 1), (0.5, 0.5001), (0, 1e-4), (0.9999, 1)):
        low, high = np.float32(low), np.float32(high)
        found = ais._softplus_step(jnp.asarray(x, jnp.float32), low, high)
        low, high = np.float64(low), np.float64(high)
        exact = np.logaddexp(0, high * x) - np.logaddexp(0, low * x)
        np.testing.assert_allclose(found, exact, rtol=2e-4, atol=1e-9)


def test_warnings():
    """Catch an estimate of a few chains that nobody is told about."""
    assert ais.warnings(10.0, 2.0, 100) == []
    few, wide = ais.warnings(9.9, 2.1, 100)
    assert 'is 9.9 of 100' in few and 'is 2.1 nats' in wide
    assert len(ais.warnings(float('nan'), float('nan'), 100)) == 2
