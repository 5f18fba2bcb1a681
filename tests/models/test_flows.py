"""Flows against dense Jacobians, closed forms and integrals in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import checks
from gm_jax.layers import coupling
from gm_jax.losses import likelihoods
from gm_jax.models.dequantizer import Dequantizer
from gm_jax.models.nice import NICE
from gm_jax.models.real_nvp import RealNVP

NARROW = dict(features=3, num_blocks=1)
MODELS = {
    'nice': (NICE, (4, 2, 1), dict(num_couplings=3, hidden=(5,))),
    'nice, odd colours': (NICE, (1, 3, 3), dict(num_couplings=4, hidden=(5,))),
    'real_nvp': (
        RealNVP, (4, 4, 1),
        dict(checkerboard=1, channelwise=(2,), last=1, **NARROW),
    ),
    'real_nvp, whole scale, colours': (
        RealNVP, (2, 2, 3),
        dict(checkerboard=0, channelwise=(2,), last=0, whole_scales=1, alpha=1e-5,
             **NARROW),
    ),
}


@pytest.fixture(name='model', scope='module', params=MODELS)
def make_model(request):
    """Return (module, float64 module, variables, y): parameters far from the start."""
    kind, shape, sizes = MODELS[request.param]
    y = jax.random.uniform(jax.random.key(0), (2, *shape))
    model = kind(image_shape=shape, **sizes)
    variables = _moved(jax.jit(model.init)(jax.random.key(1), y))
    return model, kind(image_shape=shape, dtype=jnp.float64, **sizes), variables, y


def _moved(variables, size=0.2):
    rng = np.random.default_rng(2)
    return jax.tree.map(
        lambda a: a + size * rng.normal(size=a.shape).astype(np.float32), variables
    )


def _in_float64(tree):
    return jax.tree.map(lambda a: jnp.asarray(np.asarray(a), jnp.float64), tree)


def _maps(model, variables):
    forward = jax.jit(functools.partial(model.apply, variables))
    inverse = jax.jit(functools.partial(model.apply, variables, method='inverse'))
    return forward, inverse


def test_whole_flow_is_invertible_with_its_log_det(model):
    """Catch a layer that the inverse leaves out, and a log-determinant it forgets."""
    module, precise, variables, y = model
    forward, inverse = _maps(module, variables)
    checks.assert_invertible(
        lambda y: forward(y)[0], lambda z: inverse(z)[0], y, atol=1e-5
    )
    with jax.enable_x64(True):
        forward, inverse = _maps(precise, _in_float64(variables))
        y = jnp.asarray(np.asarray(y), jnp.float64)
        checks.assert_invertible(forward, lambda z: inverse(z)[0], y, atol=1e-10)
        z, log_det = forward(y)
        np.testing.assert_allclose(inverse(z)[1], -log_det, atol=1e-10)


@pytest.mark.long
@pytest.mark.parametrize('by_channel', [True, False])
def test_couplings_with_a_context(by_channel):
    """Catch a coupling that moves what its network sees, or whose context moves."""
    x = jax.random.normal(jax.random.key(0), (2, 2, 3, 3))
    context = jax.random.normal(jax.random.key(3), (1, 2, 3, 2))
    sizes = dict(by_channel=by_channel, flip=True, **NARROW)
    init = jax.jit(coupling.Coupling(**sizes).init)
    variables = _moved(init(jax.random.key(1), x[:1], context))
    with jax.enable_x64(True):
        layer = coupling.Coupling(dtype=jnp.float64, **sizes)
        x, context, variables = _in_float64((x, context, variables))

        @functools.partial(jax.jit, static_argnums=1)
        def apply(x, inverse=False):
            given = jnp.broadcast_to(context, (len(x), *context.shape[1:]))
            return layer.apply(variables, x, given, inverse=inverse)

        checks.assert_invertible(apply, lambda y: apply(y, True)[0], x, atol=1e-10)
        other = layer.apply(variables, x, jnp.concatenate([-context] * 2))
        assert np.abs(other[0] - apply(x)[0]).max() > 1e-3


@pytest.mark.parametrize('shape', [
    pytest.param((2, 2, 1), marks=pytest.mark.long),  # which is squeezed
    (1, 3, 2),
])
def test_dequantizer(shape):
    """Catch noise that is not uniform at first, or whose density is another's."""
    u = jax.random.uniform(jax.random.key(0), (2, *shape))
    u = u.at[0, 0, :2, 0].set(jnp.array([0.0, 1 - 2.0**-24]))  # the least and greatest
    x = jnp.broadcast_to(jnp.arange(u[0].size).reshape(1, *shape) % 4, u.shape)
    model = Dequantizer(shape, 4, num_couplings=2, features=3)
    variables = jax.jit(model.init)(jax.random.key(1), u, x)
    v, log_det = jax.jit(model.apply)(variables, u, x)
    np.testing.assert_allclose(v, u, atol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-4)
    with jax.enable_x64(True):
        precise = Dequantizer(shape, 4, 2, 3, dtype=jnp.float64)
        variables, u = _in_float64((_moved(variables), u[1:]))
        forward = jax.jit(lambda u: precise.apply(variables, u, x[:len(u)]))
        v, log_det = forward(u)
        assert np.abs(v - u).max() > 0.01
        jacobian = jax.jit(jax.vmap(jax.jacfwd(lambda one: forward(one[None])[0][0])))
        size = u[0].size
        exact = np.linalg.slogdet(np.asarray(jacobian(u)).reshape(-1, size, size))[1]
        np.testing.assert_allclose(log_det, exact, atol=1e-10)


def test_first_batch_is_normalised():
    """Catch moments over the wrong axes, or of the layer before."""
    x = 3 + 2 * jax.random.normal(jax.random.key(0), (8, 4, 4, 3))
    layer = coupling.ActNorm()
    y, _ = layer.apply(layer.init(jax.random.key(1), x), x)
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, rtol=1e-4)
    scale = coupling.DiagonalScale(std=1.5, least=0.1)
    x = x.at[:, 0].set(0.0)
    y, _ = scale.apply(scale.init(jax.random.key(1), x), x)
    np.testing.assert_allclose(y.std(0)[1:], 1.5, rtol=1e-4)
    assert np.isfinite(y).all()


def _density_of_pairs(forward, log_prior, side):
    """Integrate the density of a flow of two values over a square."""
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), -1).reshape(-1, 1, 2, 1))
    z, log_det = forward(grid)
    log_p = log_prior(z.reshape(-1, 2)) + log_det
    return float(jnp.exp(log_p).sum()) * (side[1] - side[0])**2


def test_density_of_nice_integrates_to_one():
    """Catch a scale that the log-determinant has with the wrong sign."""
    model = NICE((1, 2, 1), num_couplings=2, hidden=(4,))
    y = 2 * jax.random.normal(jax.random.key(0), (4, 1, 2, 1))
    variables = _moved(jax.jit(model.init)(jax.random.key(1), y), 0.5)

    def log_prior(z):
        return likelihoods.logistic_log_prob(0 * z, 0 * z, z)

    with jax.enable_x64(True):
        precise = NICE((1, 2, 1), 2, (4,), dtype=jnp.float64)
        forward, _ = _maps(precise, _in_float64(variables))
        mass = _density_of_pairs(forward, log_prior, np.linspace(-60, 60, 1201))
    np.testing.assert_allclose(mass, 1, rtol=1e-5)


def test_density_of_steps_integrates_to_one():
    """Catch a normalisation whose log-determinant counts the channels alone."""
    x = jax.random.normal(jax.random.key(0), (4, 1, 2, 1))
    layers = [coupling.Step(False, flip, **NARROW) for flip in (False, True)]
    variables = [_moved(f.init(jax.random.key(1), x), 0.3) for f in layers]

    def log_prior(z):
        return likelihoods.gaussian_log_prob(0 * z, 0 * z, z)

    with jax.enable_x64(True):
        bound = [
            functools.partial(f.clone(dtype=jnp.float64).apply, _in_float64(v))
            for f, v in zip(layers, variables)
        ]
        forward = jax.jit(lambda x: coupling.run(bound, x, jnp.zeros(len(x))))
        mass = _density_of_pairs(forward, log_prior, np.linspace(-20, 20, 401))
    np.testing.assert_allclose(mass, 1, rtol=1e-5)
