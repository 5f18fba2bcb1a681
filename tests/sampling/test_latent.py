"""Latent-space walks: where they start and end, and what they keep on the way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from gm_jax.sampling import latent


def _decode(z):
    """Return an image [N, 1, Z] that is the latent itself."""
    return z[:, None, :]


def test_prior_sample_is_its_own():
    """Catch noise drawn for the whole batch, or one draw shared by all."""
    rngs = jax.random.split(jax.random.key(0), 6)
    z = latent.prior_sample(rngs, 3)
    assert z.shape == (6, 3) and z.dtype == jnp.float32
    np.testing.assert_array_equal(latent.prior_sample(rngs[2:4], 3), z[2:4])
    assert len(np.unique(z)) == 18


def test_prior_sample_moments():
    """Catch a wrong mean or scale; tolerances are 5 standard errors."""
    z = latent.prior_sample(jax.random.split(jax.random.key(0), 10_000), 1)
    np.testing.assert_allclose(z.mean(), 0, atol=5 / 100)
    np.testing.assert_allclose(z.std(), 1, atol=5 / np.sqrt(2) / 100)


def test_manifold_grid_is_even_in_probability():
    """Catch values even in z, and a grid that is turned over or transposed."""
    grid = np.asarray(latent.manifold_grid(5, low=0.1, high=0.9)).reshape(5, 5, 2)
    quantiles = stats.norm.cdf(grid)
    even = np.linspace(0.1, 0.9, 5)
    np.testing.assert_allclose(quantiles[..., 0], np.tile(even, (5, 1)), atol=1e-6)
    upwards = np.tile(even[::-1, None], (1, 5))
    np.testing.assert_allclose(quantiles[..., 1], upwards, atol=1e-6)
    # The median is the prior's mode.
    np.testing.assert_allclose(grid[2, 2], [0, 0], atol=1e-6)


def test_manifold_decodes_the_grid_in_its_order():
    """Catch rows taken for columns."""
    pictures = latent.manifold(_decode, 3)
    assert pictures.shape == (3, 3, 1, 2)
    grid = latent.manifold_grid(3).reshape(3, 3, 1, 2)
    np.testing.assert_array_equal(pictures, grid)


def test_traverse_changes_one_coordinate():
    """Catch a change that is added, or that stays for the next coordinate."""
    z, values = jnp.array([1.0, 2.0, 3.0]), jnp.array([-5.0, 0.0])
    out = np.asarray(latent.traverse(_decode, z, [2, 0], values))[:, :, 0]
    expected = [[[1, 2, -5], [1, 2, 0]], [[-5, 2, 3], [0, 2, 3]]]
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize('spherical', [False, True])
def test_interpolation_keeps_both_ends(spherical):
    """Catch a path that stops a step early, or runs backwards."""
    z0, z1 = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    out = latent.interpolate(z0, z1, 7, spherical=spherical)
    assert out.shape == (7, 4, 3)
    np.testing.assert_allclose(out[0], z0, atol=1e-6)
    np.testing.assert_allclose(out[-1], z1, atol=1e-6)
    back = latent.interpolate(z1, z0, 7, spherical=spherical)
    np.testing.assert_allclose(out, back[::-1], atol=1e-6)


def test_line_has_equal_steps():
    """Catch a line that is not one."""
    out = latent.interpolate(jnp.array([0.0, 4.0]), jnp.array([4.0, 0.0]), 5)
    np.testing.assert_allclose(out, [[0, 4], [1, 3], [2, 2], [3, 1], [4, 0]])


def test_arc_keeps_norm_and_has_equal_angles():
    """Catch a line, and an angle that is not measured on unit vectors."""
    z0, z1 = jnp.array([2.0, 0.0, 0.0]), jnp.array([0.0, -2.0, 0.0])
    out = np.asarray(latent.interpolate(z0, z1, 7, spherical=True))
    np.testing.assert_allclose(np.linalg.norm(out, axis=1), np.full(7, 2.0), rtol=1e-6)
    cosines = np.sum(out[1:] * out[:-1], axis=1) / 4
    np.testing.assert_allclose(cosines, np.full(6, np.cos(np.pi / 12)), rtol=1e-6)


@pytest.mark.parametrize('z1', [[3.0, 4.0], [6.0, 8.0], [0.0, 0.0], [-3.0, -4.0]])
def test_arc_of_vectors_without_one_is_the_line(z1):
    """Catch 0 / 0 for parallel, zero and opposite vectors."""
    z0, z1 = jnp.array([3.0, 4.0]), jnp.array(z1)
    out = latent.interpolate(z0, z1, 5, spherical=True)
    np.testing.assert_allclose(out, latent.interpolate(z0, z1, 5), atol=1e-5)
    slope = jax.grad(
        lambda z0, z1: latent.interpolate(z0, z1, 5, spherical=True).sum(), (0, 1)
    )
    assert np.all(np.isfinite(slope(z0, z1)))


@pytest.mark.parametrize('angle', [1e-4, np.pi - 1e-3])
def test_arc_of_nearly_parallel_or_opposite_vectors(angle):
    """Catch arccos: near pi its error makes the arc's middle several per cent off."""
    z0, z1 = jnp.array([1.0, 0.0]), jnp.array([np.cos(angle), np.sin(angle)])
    out = np.asarray(latent.interpolate(z0, z1, 3, spherical=True))
    middle = [np.cos(angle / 2), np.sin(angle / 2)]
    np.testing.assert_allclose(out[1], middle, atol=1e-3)


def test_interpolate_under_jit():
    """Catch branches on values: parallel rows sit in the same batch as others."""
    z0 = jnp.array([[1.0, 0.0], [1.0, 0.0]])
    z1 = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    out = jax.jit(lambda a, b: latent.interpolate(a, b, 3, spherical=True))(z0, z1)
    half = np.sqrt(0.5)
    np.testing.assert_allclose(out[1], [[half, half], [1, 0]], rtol=1e-6)


def test_arithmetic_averages_each_group():
    """Catch sums for means, and a sign on the wrong group."""
    a = jnp.array([[1.0, 0.0], [3.0, 0.0]])
    b = jnp.array([[1.0, 1.0]])
    c = jnp.array([[0.0, 5.0], [0.0, 7.0], [0.0, 9.0]])
    np.testing.assert_allclose(latent.arithmetic(a, b, c), [1, 6])


zeros = jnp.zeros


@pytest.mark.parametrize('call', [
    lambda: latent.prior_sample(jax.random.key(0), 2),
    lambda: latent.traverse(_decode, zeros((1, 3)), [0], [0.0]),
    lambda: latent.traverse(_decode, zeros((3,)), [0], 0.0),
    lambda: latent.interpolate(zeros((3,)), zeros((1, 3)), 2),
    lambda: latent.interpolate(zeros((4, 3)), zeros((1, 3)), 2),
    lambda: latent.interpolate(zeros(()), zeros(()), 2),
    lambda: latent.arithmetic(zeros((3,)), zeros((3,)), zeros((3,))),
    lambda: latent.arithmetic(zeros((2, 3)), zeros((2, 1)), zeros((2, 3))),
])
def test_wrong_shapes_raise(call):
    """Catch silent broadcasting."""
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize('call', [
    lambda: latent.manifold_grid(0),
    lambda: latent.manifold_grid(3, low=0.0),
    lambda: latent.manifold_grid(3, low=0.9, high=0.1),
    lambda: latent.traverse(_decode, zeros((3,)), [3], [0.0]),
    lambda: latent.traverse(_decode, zeros((3,)), [-1], [0.0]),
    lambda: latent.interpolate(zeros((3,)), zeros((3,)), 1),
])
def test_wrong_values_raise(call):
    """Catch infinite latents, and coordinates that are left out in silence."""
    with pytest.raises(ValueError):
        call()
