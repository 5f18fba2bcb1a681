"""Generators and discriminators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.models import dcgan, gan, infogan

GENERATORS = {
    'gan': gan.Generator((8, 12, 3), hidden=(16,)),
    'dcgan': dcgan.Generator((8, 12, 3), features=(8, 4)),
    'infogan': infogan.Generator((8, 12, 3)),
}
DISCRIMINATORS = {
    'gan': gan.Discriminator(hidden=(16,)),
    'critic': gan.Critic(hidden=(16,)),
    'critic spectral': gan.Critic(hidden=(16,), spectral=True),
    'dcgan': dcgan.Discriminator(features=(4, 8)),
    'dcgan spectral': dcgan.Discriminator(features=(4, 8), norm='spectral'),
    'infogan none': infogan.Discriminator(norm='none'),
}


@pytest.mark.parametrize('name', GENERATORS)
def test_an_image_belongs_to_its_z(name, rng):
    """Catch images that depend on those drawn with them, or leave [-1, 1]."""
    z = jax.random.normal(rng, (4, 5))
    x, variables = jax.jit(GENERATORS[name].init_with_output)(rng, z)
    assert x.shape == (4, 8, 12, 3) and x.dtype == jnp.float32
    assert jnp.abs(x).max() <= 1 and jnp.std(x) > 0
    alone = jax.jit(GENERATORS[name].apply)(variables, z[:2])
    np.testing.assert_allclose(alone, x[:2], atol=1e-6)


@pytest.mark.parametrize('name', DISCRIMINATORS)
def test_a_score_belongs_to_its_image(name, rng):
    """Catch scores that depend on the batch outside training."""
    x = jax.random.uniform(rng, (4, 8, 12, 3), minval=-1)
    scores, variables = jax.jit(DISCRIMINATORS[name].init_with_output)(rng, x)
    assert scores.shape == (4,) and scores.dtype == jnp.float32
    alone = jax.jit(DISCRIMINATORS[name].apply)(variables, x[:2])
    np.testing.assert_allclose(alone, scores[:2], atol=1e-6)


def test_maxout_is_the_largest_piece(rng):
    """Catch pieces that are mixed between units."""
    x = jax.random.normal(rng, (3, 4))
    y, variables = gan.Maxout(features=2, pieces=3).init_with_output(rng, x)
    kernel = np.asarray(variables['params']['Dense_0']['kernel'])
    for unit in range(2):
        pieces = np.asarray(x) @ kernel[:, 3 * unit:3 * unit + 3]
        np.testing.assert_allclose(y[:, unit], pieces.max(1), rtol=1e-5)


def test_spectral_norm_bounds_the_slope(rng):
    """Catch a kernel that is left out: no two scores further apart than points."""
    critic = gan.Critic(hidden=(32, 32), spectral=True)
    x = 5 * jax.random.normal(rng, (64, 2, 2, 1))
    variables = critic.init(rng, x)
    kernels = jax.tree.map(lambda w: 4 * w, variables['params'])
    variables = {**variables, 'params': kernels}
    for _ in range(60):
        _, updated = critic.apply(variables, x, train=True, mutable=['batch_stats'])
        variables = {**variables, **updated}
    slopes = jax.vmap(jax.grad(lambda x: critic.apply(variables, x[None])[0]))(x)
    norms = jnp.linalg.norm(slopes.reshape(64, -1), axis=1)
    assert 0.01 < norms.max() < 1.001


@pytest.mark.parametrize('name', ['dcgan', 'infogan'])
def test_moments_of_the_batch_are_those_of_all_devices(name, rng):
    """Catch BatchNorm that takes each device's part for the batch."""
    generator, z = GENERATORS[name], jax.random.normal(rng, (16, 5))
    variables = generator.init(rng, z)
    whole, stats = generator.apply(variables, z, train=True, mutable=['batch_stats'])

    def on_device(z):
        return generator.apply(
            variables, z, train=True, axis_name='i', mutable=['batch_stats']
        )

    parts, others = jax.pmap(on_device, axis_name='i')(z.reshape(8, 2, 5))
    np.testing.assert_allclose(parts.reshape(whole.shape), whole, atol=1e-5)
    for one, other in zip(jax.tree.leaves(stats), jax.tree.leaves(others)):
        np.testing.assert_allclose(other[3], one, atol=1e-5)


def test_labels_are_seen(rng):
    """Catch a label that does not reach a network."""
    z = jnp.tile(jax.random.normal(rng, (1, 5)), (2, 1))
    label = jnp.array([0, 1])
    generator = dcgan.Generator((8, 8, 1), features=(8, 4), num_classes=2)
    x, _ = generator.init_with_output(rng, z, label)
    assert jnp.abs(x[0] - x[1]).max() > 1e-5
    discriminator = dcgan.Discriminator(features=(4, 8), num_classes=2)
    scores, _ = discriminator.init_with_output(rng, x[:1].repeat(2, 0), label)
    assert abs(scores[0] - scores[1]) > 1e-6
