"""PixelVAE: exact marginals by integration, and a decoder that z reaches everywhere."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

from experiments import pixel_vae
from gm_jax.data import image_set
from gm_jax.evaluation import checks
from gm_jax.families import autoregressive, variational
from gm_jax.models.gated_pixel_cnn import GatedHead, GatedPixelCNN, from_h
from gm_jax.models.pixel_vae import Encoder
from gm_jax.sampling import autoregressive as samplers

GRID = np.linspace(-8, 8, 161)


def _make(image_shape, num_values=2, latent_dim=1, dtype='float32'):
    """Return (networks, model, variables) away from where training starts."""
    config = vars(pixel_vae.Config(
        latent_dim=latent_dim, encoder=(6,), features=12, decoder_layers=2, head=12,
        first_kernel=3,
    ))
    config = types.SimpleNamespace(**{**config, 'dtype': dtype})
    data = image_set.ImageSet(
        name='none', image_shape=image_shape, num_values=num_values, num_classes=0,
        splits={},
    )
    networks = pixel_vae.make_networks(config, data)
    x = jnp.zeros((1, *image_shape), jnp.int32)
    shapes = jax.eval_shape(networks.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)

    def draw(shape):
        values = 0.2 * np.cos(np.arange(shape.size)).reshape(shape.shape)
        if len(shape.shape) > 1:
            fan_in = shape.size / shape.shape[-1]
            values += 1.5 * rng.normal(size=shape.shape) / fan_in ** 0.5
        return jnp.asarray(values, dtype)

    variables = jax.tree.map(draw, shapes)
    # A posterior wider than the true one, so that no weight is far from the others.
    dense = variables['params']['encoder']['GaussianLayer_0']['Dense_0']
    dense['bias'] += jnp.arange(2 * latent_dim) // latent_dim
    return networks, pixel_vae.make_model(config, data), variables


def _all_images(height=2, width=2):
    bits = np.indices((2,) * (height * width)).reshape(height * width, -1).T
    return bits.reshape(-1, height, width, 1).astype(np.int32)


def _exact_log_px(networks, variables, x, latent_dim):
    """Integrate p(x, z) over a grid of z, [B]."""
    axes = np.meshgrid(*[GRID] * latent_dim, indexing='ij')
    z = np.stack(axes, -1).reshape(-1, latent_dim)

    @jax.jit
    def log_px(z):
        each = jnp.repeat(x, len(z), axis=0)
        logits = networks.apply(
            variables, each, jnp.tile(z, (len(x), 1)), method='decode'
        )
        terms = (2 * each - 1) * logits
        return jax.nn.log_sigmoid(terms).sum((1, 2, 3)).reshape(len(x), len(z))

    found = np.concatenate(
        [log_px(jnp.asarray(part, jnp.float32)) for part in np.array_split(z, 161)], 1
    )
    log_prior = stats.norm.logpdf(z).sum(-1)
    step = np.log(GRID[1] - GRID[0]) * latent_dim
    return special.logsumexp(np.float64(found) + log_prior, axis=1) + step


@pytest.mark.parametrize('latent_dim', [1, pytest.param(2, marks=pytest.mark.long)])
def test_many_samples_approach_the_exact_likelihood(latent_dim):
    """Catch a term of log w that is missing, and codes paired with another image."""
    networks, _, variables = _make((2, 2, 1), latent_dim=latent_dim)
    x = _all_images()
    exact = _exact_log_px(networks, variables, x, latent_dim)
    np.testing.assert_allclose(np.exp(exact).sum(), 1, rtol=1e-5)
    q, num = networks.apply(variables, x, method='encode'), 3000
    assert np.ptp(q.mean, axis=0).min() > 0.2

    @jax.jit
    def terms():
        def log_px(z):
            each = jnp.repeat(x, num, axis=0)
            logits = networks.apply(variables, each, z, method='decode')
            return jax.nn.log_sigmoid((2 * each - 1) * logits).sum((1, 2, 3))

        rngs = jax.random.split(jax.random.key(0), len(x))
        return variational.sampled_terms(q, log_px, rngs, num)

    found = terms()
    log_w = np.float64(found.log_w)
    estimate = special.logsumexp(log_w, axis=1) - np.log(num)
    error = np.exp(log_w - exact[:, None]).std(axis=1) / np.sqrt(num)
    assert error.max() < 0.1 and np.ptp(exact) > 0.3
    assert found.log_px.std(axis=1).min() > 0.1
    assert (np.abs(estimate - exact) < 6 * error + 1e-4).all()
    # The bound of one sample is in expectation below, by more than the error.
    bound = np.asarray(found.log_px.mean(1) - found.kl.sum(1))
    assert (bound < exact).all() and (exact - bound).max() > 10 * error.max()


@pytest.mark.parametrize('channels, num_values', [(1, 2), (3, 4)])
def test_given_z_the_future_is_not_seen(channels, num_values):
    """Catch a leak through the way of z, and a past pixel that is not seen."""
    shape = (2, 3, 4, channels)
    networks, _, variables = _make(shape[1:], num_values, latent_dim=3)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)))

    def terms(x):
        logits = networks.apply(variables, x, z, method='decode')
        if num_values == 2:
            return jax.nn.log_sigmoid(logits)
        return jax.nn.log_softmax(logits)[..., 1]

    checks.assert_causal(terms, shape)


def _ways_of_z(params, path=()):
    """Yield the path of every linear map of z in the decoder."""
    for name, value in params.items():
        if name.split('_')[-1] == 'h' or name.startswith('gates_h'):
            yield (*path, name)
        elif isinstance(value, dict):
            yield from _ways_of_z(value, (*path, name))


def test_z_enters_every_gate():
    """Catch a gate without z: with its way alone, z must still matter."""
    networks, _, variables = _make((3, 3, 1), latent_dim=2)
    ways = list(_ways_of_z(variables['params']['decoder']))
    # Two stacks of the first layer and two others, and two gates of the output.
    assert len(ways) == 2 * 3 + 2
    x = jnp.asarray(np.random.default_rng(0).integers(0, 2, (1, 3, 3, 1)))
    for way in ways:
        decoder = jax.tree_util.tree_map_with_path(
            lambda path, a: a if (
                names := tuple(key.key for key in path)
            )[:len(way)] == way or names[:-1] not in ways else 0 * a,
            variables['params']['decoder'],
        )
        params = {**variables['params'], 'decoder': decoder}
        slope = jax.jacobian(
            lambda z: networks.apply({'params': params}, x, z, method='decode')
        )(jnp.ones((1, 2)))
        # Through the vertical stack it comes only from rows above: all is seen there.
        assert (np.abs(np.asarray(slope))[0, 1:] > 1e-6).all(), way


@pytest.mark.parametrize('channels, num_values', [(1, 2), (3, 4)])
def test_samplers_draw_the_same_integers_given_z(channels, num_values):
    """Catch a z that reaches rows or pixels otherwise than the whole image."""
    shape = (4, 5, channels)
    with jax.enable_x64(True):
        _, model, variables = _make(shape, num_values, 3, 'float64')
        generate, sweep = map(
            jax.jit, autoregressive.generate_and_sweep(model)
        )
        rng = np.random.default_rng(1)
        z, nothing = rng.normal(size=(6, 3)), np.zeros((6, *shape), np.int32)
        rngs = jax.random.split(jax.random.key(2), 6)
        uniform = samplers.noise(rngs, shape, model.distribution.num_noise)
        expected = samplers.ancestral(
            lambda x: sweep(variables, x, uniform, z), nothing, nothing > 0
        )
        solved, _ = samplers.fixed_point(
            lambda x: sweep(variables, x, uniform, z), nothing, nothing > 0
        )
        got = generate(variables, nothing, nothing > 0, uniform, z)
        np.testing.assert_array_equal(solved, expected)
        np.testing.assert_array_equal(got, expected)
        other = generate(variables, nothing, nothing > 0, uniform, z[::-1])
        assert not np.array_equal(other, expected)


def test_planted_gate_without_z_is_found(monkeypatch):
    """Catch a test that would pass an output that z does not reach."""
    context = GatedHead.context

    def without(self, h):
        first, second = context(self, h)
        return first, 0 * second

    monkeypatch.setattr(GatedHead, 'context', without)
    with pytest.raises(AssertionError, match='gates_h_1'):
        test_z_enters_every_gate()


@pytest.mark.parametrize('shape', [(28, 28, 1), (7, 5, 3), (1, 1, 1)])
def test_encoder_takes_every_size(shape):
    """Catch sides that are rounded down to nothing, and another network than theirs."""
    encoder = Encoder((32, 64, 64), 16)
    q, variables = jax.eval_shape(
        encoder.init_with_output, jax.random.key(0), jnp.ones((2, *shape))
    )
    assert q.mean.shape == q.logvar.shape == (2, 16)
    sizes = [
        a['kernel'].shape for name, a in sorted(variables['params'].items())
        if name.startswith('Conv')
    ]
    if shape == (28, 28, 1):
        maps = [1, 32, 32, 32, 64, 64, 64, 64, 64]
        assert sizes == [(3, 3, *pair) for pair in zip(maps, maps[1:])]
        dense = variables['params']['GaussianLayer_0']['Dense_0']['kernel']
        assert dense.shape == (4 * 4 * 64, 32)


def test_z_starts_weak():
    """Catch noise of z that holds up the decoder; classes are as they were."""
    networks, _, variables = _make((3, 3, 1))
    assert networks.bind(variables).decoder.h_scale < 1 == GatedPixelCNN.h_scale
    dense = from_h(256, 0.3, jnp.float32)
    kernel = dense.init(jax.random.key(0), jnp.zeros((1, 64)))['params']['kernel']
    np.testing.assert_allclose(kernel.std(), 0.3 / 8, rtol=0.05)
