"""Energies, gradients and partition functions of RBMs against enumeration."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from gm_jax.losses import energy
from gm_jax.losses.energy import RBM
from gm_jax.sampling.gibbs import gibbs


def states(num) -> np.ndarray:
    """Return all bits [2^num, num]."""
    return np.array(list(itertools.product((0, 1), repeat=num)), np.float64)


def machine(num_visible=4, num_hidden=3, seed=0, scale=1.0) -> RBM:
    """Return a machine whose units depend on each other."""
    rng = np.random.default_rng(seed)
    shapes = (num_visible, num_hidden), (num_visible,), (num_hidden,)
    return RBM(*(
        jnp.asarray(scale * rng.normal(size=shape), jnp.float32) for shape in shapes
    ))


def log_joint(rbm) -> np.ndarray:
    """Return -E(v, h) of all states [2^D, 2^H], in float64."""
    weights, b, c = (np.asarray(x, np.float64) for x in rbm)
    v, h = states(len(b)), states(len(c))
    return v @ weights @ h.T + (v @ b)[:, None] + (h @ c)[None]


def exact_nats(rbm, weight_of_v) -> float:
    """Return minus the mean log p(v), v being weighted; differentiable."""
    v = jnp.asarray(states(len(rbm.visible_bias)), jnp.float32)
    log_p = -energy.free_energy(rbm, v)
    return jnp.sum(weight_of_v * (jax.nn.logsumexp(log_p) - log_p))


@pytest.mark.parametrize('sizes', [(4, 3), (3, 5), (1, 1), (11, 11)])
def test_free_energy_and_log_partition_are_those_of_the_enumeration(sizes):
    """Catch a side that is summed twice or not, and a chunk that is left out."""
    rbm = machine(*sizes)
    joint = log_joint(rbm)
    free = energy.free_energy(rbm, jnp.asarray(states(sizes[0]), jnp.int32))
    np.testing.assert_allclose(free, -special.logsumexp(joint, axis=1), atol=1e-5)
    log_z = jax.jit(energy.log_partition_exact)(rbm)
    np.testing.assert_allclose(log_z, special.logsumexp(joint), rtol=1e-6)


def test_large_logits_stay_finite():
    """Catch an exponential that overflows, and a gradient of infinities."""
    rbm = jax.tree.map(lambda x: 100 * jnp.sign(x), machine())
    v = jnp.asarray(states(4), jnp.float32)
    values, slopes = jax.value_and_grad(lambda r: energy.free_energy(r, v).sum())(rbm)
    assert np.isfinite(values)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(slopes))
    expected = special.logsumexp(log_joint(rbm))
    np.testing.assert_allclose(energy.log_partition_exact(rbm), expected, rtol=1e-6)


@pytest.mark.parametrize('shapes', [
    ((4, 3), (1,), (3,)), ((4, 3), (4,), (4,)), ((4,), (4,), (3,)),
])
def test_shapes_that_do_not_fit(shapes):
    """Catch biases that would only broadcast."""
    rbm = RBM(*(jnp.zeros(shape) for shape in shapes))
    with pytest.raises(AssertionError):
        energy.free_energy(rbm, jnp.zeros((2, 4)))
    with pytest.raises(AssertionError):
        energy.free_energy(machine(), jnp.zeros((2, 1)))


def test_too_many_units_to_enumerate():
    """Catch an enumeration that would never end."""
    rbm = RBM(jnp.zeros((30, 25)), jnp.zeros(30), jnp.zeros(25))
    with pytest.raises(ValueError, match=r'2\^25 states'):
        energy.log_partition_exact(rbm)


def _gradients(num_steps) -> tuple[RBM, RBM]:
    """Return the gradient of contrastive divergence and the exact one."""
    rbm, num = machine(scale=2.0), 4000
    v = states(4)
    weight = np.random.default_rng(1).dirichlet(np.ones(16))
    rows = np.random.default_rng(2).choice(16, size=num, p=weight)
    data = jnp.asarray(v[rows], jnp.float32)
    model = jax.jit(gibbs)(jax.random.key(3), rbm, data, num_steps)
    found = jax.grad(energy.contrastive_divergence)(rbm, data, model)
    counts = np.bincount(rows, minlength=16) / num
    return found, jax.grad(exact_nats)(rbm, jnp.asarray(counts, jnp.float32))


def test_many_steps_give_the_exact_gradient():
    """Catch a phase with the wrong sign, or of the hidden units of another step."""
    found, exact = _gradients(50)
    for a, b in zip(found, exact):
        np.testing.assert_allclose(a, b, atol=6 * 0.5 / np.sqrt(4000))
    few, _ = _gradients(1)  # is biased, which this many samples show
    assert max(np.abs(a - b).max() for a, b in zip(few, exact)) > 0.1


def test_centered_gradient_is_that_of_the_centered_parameters():
    """Catch an offset with the wrong sign or on the wrong side."""
    rbm, rng = machine(), np.random.default_rng(5)
    m, l, weight = (  # noqa: E741  As in the docstring.
        jnp.asarray(rng.uniform(size=n), jnp.float32) for n in (4, 3, 16)
    )

    def plain(weights, b, c):
        return RBM(weights, b - weights @ l, c - m @ weights)

    def loss(*parameters):
        return exact_nats(plain(*parameters), weight)

    own = rbm.weights, rbm.visible_bias + rbm.weights @ l, (
        rbm.hidden_bias + m @ rbm.weights
    )
    step = jax.grad(loss, argnums=(0, 1, 2))(*own)
    # How (W, b, c) moves along that step.
    _, moved = jax.jvp(plain, own, step)
    found = jax.grad(lambda r: exact_nats(energy.centered(r, m, l), weight))(rbm)
    for a, b in zip(found, moved):
        np.testing.assert_allclose(a, b, atol=1e-5)
    for a, b in zip(energy.centered(rbm, m, l), rbm):
        np.testing.assert_array_equal(a, b)


def test_centered_learning_does_not_care_which_value_is_1():
    """Catch a step that is another one for inverted images."""
    rbm, rng = machine(), np.random.default_rng(6)
    m, l, weight = (  # noqa: E741  As in the docstring.
        jnp.asarray(rng.uniform(size=n), jnp.float32) for n in (4, 3, 16)
    )

    def inverted(r):
        return RBM(-r.weights, -r.visible_bias, r.hidden_bias + r.weights.sum(0))

    def step(r, m, weight):
        gradient = jax.grad(exact_nats)(r, weight)
        centered = energy.center_gradient(gradient, m, l)
        return tuple(
            jax.tree.map(lambda x, y: x - 0.1 * y, r, g) for g in (centered, gradient)
        )

    centered, plain = step(rbm, m, weight)
    centered_, plain_ = step(inverted(rbm), 1 - m, weight[::-1])
    for a, b in zip(inverted(centered), centered_):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert np.abs(inverted(plain).weights - plain_.weights).max() > 0.01
