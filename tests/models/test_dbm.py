"""The deep Boltzmann machine against the enumeration of all its units."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from gm_jax.losses import energy
from gm_jax.models import dbm
from gm_jax.models.dbm import DBM
from tests.losses.test_energy import states

D, H1, H2 = 4, 3, 2


def _machine(scale=1.0) -> DBM:
    rng = np.random.default_rng(0)
    shapes = (D, H1), (H1, H2), (D,), (H1,), (H2,)
    return DBM(*(
        jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in shapes
    ))


def _log_joint(machine) -> np.ndarray:
    """Return -E of all states [2^D, 2^H1, 2^H2], in float64."""
    w1, w2, b, c1, c2 = (np.asarray(x, np.float64) for x in machine)
    v, h1, h2 = states(D), states(H1), states(H2)
    return (
        (v @ w1 @ h1.T + (v @ b)[:, None])[:, :, None]
        + (h1 @ w2 @ h2.T + (h1 @ c1)[:, None] + (h2 @ c2)[None])[None]
    )


def test_it_is_an_rbm_between_the_middle_layer_and_the_others():
    """Catch a layer that is left out, or weights that are not transposed."""
    machine = _machine()
    joint = _log_joint(machine)
    rbm = dbm.as_rbm(machine)
    found = energy.log_partition_exact(rbm)
    np.testing.assert_allclose(found, special.logsumexp(joint), rtol=1e-6)
    v, h2 = np.meshgrid(np.arange(2**D), np.arange(2**H2), indexing='ij')
    u = np.concatenate([states(D)[v.ravel()], states(H2)[h2.ravel()]], axis=1)
    free = energy.free_energy(rbm, jnp.asarray(u, jnp.float32))
    expected = special.logsumexp(joint, axis=1).ravel()
    np.testing.assert_allclose(free, -expected, atol=1e-5)


def _bounds(machine, num_steps) -> tuple[np.ndarray, np.ndarray]:
    """Return the bound on log p(v) of all v, and log p(v)."""
    v = jnp.asarray(states(D), jnp.float32)
    u, entropy = jax.jit(dbm.infer, static_argnums=2)(machine, v, num_steps)
    rbm, joint = dbm.as_rbm(machine), _log_joint(machine)
    log_z = special.logsumexp(joint)
    bound = np.asarray(entropy - energy.free_energy(rbm, u), np.float64) - log_z
    return bound, special.logsumexp(joint, axis=(1, 2)) - log_z


@pytest.mark.parametrize('scale', [0.03, 2.0])
def test_bound_is_below_and_rises_with_every_step(scale):
    """Catch an entropy that is missing, and an update of the wrong layer."""
    machine = _machine(scale)
    before = -np.inf
    for num in (0, 1, 2, 20):
        bound, exact = _bounds(machine, num)
        assert (bound < exact + 1e-5).all() and (bound > before - 1e-5).all()
        before = bound
    gap = (exact - bound).mean()
    assert gap < 1e-3 if scale == 0.03 else 0.01 < gap < 1


def test_bound_is_the_expected_energy_and_the_entropy_of_both_layers():
    """Catch a bound of another distribution than the one that is inferred."""
    machine = _machine(2.0)
    bound, _ = _bounds(machine, 3)
    w1, w2, b, c1, c2 = (np.asarray(x, np.float64) for x in machine)
    v = states(D)
    u, _ = dbm.infer(machine, jnp.asarray(v, jnp.float32), 3)
    q2 = np.asarray(u[:, D:], np.float64)
    q1 = special.expit(v @ w1 + c1 + q2 @ w2.T)
    minus_energy = (
        v @ b + ((v @ w1 + c1) * q1).sum(1) + ((q1 @ w2 + c2) * q2).sum(1)
    )
    entropy = sum(
        (special.entr(q) + special.entr(1 - q)).sum(1) for q in (q1, q2)
    )
    log_z = special.logsumexp(_log_joint(machine))
    np.testing.assert_allclose(bound, minus_energy + entropy - log_z, atol=1e-4)


def test_first_machine_is_nearly_independent():
    """Catch parameters of other shapes, and a layer that has no weights."""
    bias = jnp.linspace(-1, 1, D)
    machine = dbm.init(jax.random.key(0), bias, H1, H2)
    expected = (D, H1), (H1, H2), (D,), (H1,), (H2,)
    assert tuple(x.shape for x in machine) == expected
    weights = dbm.as_rbm(machine).weights
    assert 0 < np.abs(weights).min() and np.abs(weights).max() < 0.1
