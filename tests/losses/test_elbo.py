"""Bounds against closed forms: divergences, and a model whose log p(x) is known.

In the linear-Gaussian model z ~ N(0, I), x | z ~ N(W z + m, v I) (probabilistic PCA),
log p(x) and the posterior are exact, so every bound has a number to be held against.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gm_jax.losses import elbo, likelihoods


def _kl_reference(mean_q, logvar_q, mean_p, logvar_p):
    """KL of diagonal Gaussians from their standard deviations, in float64."""
    mean_q, logvar_q, mean_p, logvar_p = (
        np.asarray(a, np.float64) for a in (mean_q, logvar_q, mean_p, logvar_p)
    )
    std_q, std_p = np.exp(logvar_q / 2), np.exp(logvar_p / 2)
    distance = (std_q**2 + (mean_q - mean_p) ** 2) / (2 * std_p**2)
    return np.sum(np.log(std_p / std_q) + distance - 0.5, axis=1)


def _normal(num, shape=(3, 4), seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num, *shape)).astype(np.float32)


def test_kl_equals_the_float64_reference():
    """Catch a wrong sign or factor, and q and p exchanged."""
    args = _normal(4)
    zero = np.zeros_like(args[0])
    kl = elbo.gaussian_kl(*args[:2])
    assert kl.shape == (3,) and kl.dtype == jnp.float32
    np.testing.assert_allclose(kl, _kl_reference(*args[:2], zero, zero), rtol=1e-5)
    per_unit = elbo.gaussian_kl_per_unit(*args[:2])
    np.testing.assert_allclose(per_unit.sum(axis=1), kl, rtol=1e-6)
    between = elbo.gaussian_kl_between(*args)
    np.testing.assert_allclose(between, _kl_reference(*args), rtol=1e-5)


def test_kl_is_the_expected_log_ratio():
    """Catch a closed form that does not fit gaussian_log_prob; 5 standard errors."""
    args = [np.tile(a, (20_000, 1)) for a in _normal(4, shape=(1, 2))]
    rngs = jax.random.split(jax.random.key(0), 20_000)
    z = likelihoods.gaussian_sample(rngs, *args[:2])
    log_q = likelihoods.gaussian_log_prob(*args[:2], z)
    log_ratio = np.asarray(log_q - likelihoods.gaussian_log_prob(*args[2:], z))
    error = 5 * float(log_ratio.std()) / np.sqrt(20_000)
    kl = elbo.gaussian_kl_between(*args)[0]
    np.testing.assert_allclose(log_ratio.mean(), kl, atol=error)


def test_kl_of_an_unused_unit_keeps_its_precision():
    """Catch exp(s) - 1 - s by subtraction: it gives 0 or 1e-7 here, not 5e-9."""
    logvar = jnp.full((1, 1), 1e-4)
    exact = (np.expm1(np.float64(np.float32(1e-4))) - np.float32(1e-4)) / 2
    kl = elbo.gaussian_kl(jnp.zeros((1, 1)), logvar)[0]
    np.testing.assert_allclose(kl, exact, atol=1e-11)


@pytest.mark.parametrize('logvar', [60.0, -60.0, 100.0, -100.0, 1e4, -1e4])
def test_kl_extremes(logvar):
    """Catch overflow, and a saturation that turns the gradient round."""
    mean, logvars = (np.full((1, 50), v, np.float32) for v in (100, logvar))
    for kl_fn in (
        elbo.gaussian_kl,
        lambda m, s: elbo.gaussian_kl_between(m, s, 0 * m, 0 * s),
        lambda m, s: elbo.gaussian_kl_between(0 * m, 0 * s, m, -s),
    ):
        value, gradients = jax.jit(
            jax.value_and_grad(lambda m, s: kl_fn(m, s)[0], (0, 1))
        )(mean, logvars)
        assert np.isfinite(value) and value > 0
        assert all(np.isfinite(g).all() for g in gradients)
    gradient = jax.grad(lambda s: elbo.gaussian_kl(mean, s)[0])(logvars)
    assert np.all(np.sign(gradient) == np.sign(logvar))


def test_iwae_bound_of_extreme_weights():
    """Catch exp without its maximum taken out, and a sum instead of a mean."""
    log_w = np.array([[-1e4, 100.0, 0.0], [-1e4, -100.0, 1e4]], np.float32)
    exact = np.logaddexp.reduce(log_w.astype(np.float64), axis=0) - np.log(2)
    np.testing.assert_allclose(elbo.iwae_bound(log_w), exact, rtol=1e-6)
    gradient = jax.grad(lambda log_w: elbo.iwae_bound(log_w).sum())(log_w)
    np.testing.assert_allclose(gradient, [[0.5, 1, 0], [0.5, 0, 1]], atol=1e-6)


def test_iwae_bound_of_bfloat16_is_float32():
    """Catch a log-mean-exp in bfloat16, whose steps at 90 nats are half a nat."""
    log_w = jnp.full((1000, 2), -90.0, jnp.bfloat16)
    out = elbo.iwae_bound(log_w)
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, [-90, -90], rtol=1e-6)


def test_elbo_weighs_the_kl():
    """Catch beta on the wrong term, or not traceable for warm-up."""
    log_px, kl = jnp.array([-3.0, -5.0]), jnp.array([1.0, 2.0])
    np.testing.assert_allclose(elbo.elbo(log_px, kl), [-4, -7])
    warm = jax.jit(lambda beta: elbo.elbo(log_px, kl, beta=beta))(0.5)
    np.testing.assert_allclose(warm, [-3.5, -6])


def test_free_bits():
    """Catch a minimum per example rather than per unit of the batch's mean."""
    kl = jnp.array([[0.0, 1.0, 0.1], [0.4, 3.0, 0.1]])
    out, gradient = jax.value_and_grad(lambda kl: elbo.free_bits(kl, 0.15))(kl)
    np.testing.assert_allclose(out, 0.2 + 2 + 0.15, rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.5, 0.5, 0], [0.5, 0.5, 0]])
    np.testing.assert_allclose(elbo.free_bits(kl, 0.0), 2.3, rtol=1e-6)


def test_free_bits_over_devices():
    """Catch a mean over one device's part of the batch, in value or gradient."""
    mean, logvar = _normal(2, shape=(16, 3))
    mean *= np.array([0.1, 1, 3], np.float32)

    def loss(scale, mean, logvar, axis_name=None):
        kl = elbo.gaussian_kl_per_unit(scale * mean, logvar)
        return elbo.free_bits(kl, 1.0, axis_name=axis_name)

    def step(scale, mean, logvar):
        out = jax.value_and_grad(loss)(scale, mean, logvar, 'devices')
        return jax.lax.pmean(out, 'devices')

    expected = jax.value_and_grad(loss)(1.0, mean, logvar)
    # The minimum must bite on some units only, or the test shows nothing.
    units = np.asarray(elbo.gaussian_kl_per_unit(mean, logvar)).mean(axis=0)
    assert units.min() < 1 < units.max()
    out = jax.pmap(step, 'devices', in_axes=(None, 0, 0))(
        1.0, mean.reshape(8, 2, 3), logvar.reshape(8, 2, 3)
    )
    for shards, whole in zip(out, expected):
        np.testing.assert_allclose(shards, np.full(8, whole), rtol=1e-5)


zeros = jnp.zeros


@pytest.mark.parametrize('call', [
    lambda: elbo.gaussian_kl(zeros((4, 3)), zeros((4, 1))),
    lambda: elbo.gaussian_kl(zeros((4,)), zeros((4,))),
    lambda: elbo.gaussian_kl(zeros((4, 3, 2)), zeros((4, 3, 2))),
    lambda: elbo.gaussian_kl_per_unit(zeros((4, 3)), zeros((1, 3))),
    lambda: elbo.gaussian_kl_between(*[zeros((4, 3))] * 3, zeros((1, 3))),
    lambda: elbo.gaussian_kl_between(*[zeros((4,))] * 4),
    lambda: elbo.elbo(zeros((4,)), zeros((4, 1))),
    lambda: elbo.elbo(zeros((4,)), zeros(())),
    lambda: elbo.elbo(zeros((5, 4)), zeros((5, 4))),
    lambda: elbo.elbo(zeros((4,)), zeros((4,)), beta=zeros((4,))),
    lambda: elbo.iwae_bound(zeros((4,))),
    lambda: elbo.iwae_bound(zeros((5, 4, 1))),
    lambda: elbo.free_bits(zeros((4,)), 1.0),
])
def test_wrong_shapes_raise(call):
    """Catch silent broadcasting, which gives a number and no error."""
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize('function, num_args, batch_axis', [
    (elbo.gaussian_kl, 2, 0),
    (elbo.gaussian_kl_per_unit, 2, 0),
    (elbo.gaussian_kl_between, 4, 0),
    (elbo.iwae_bound, 1, 1),
    (lambda a: elbo.elbo(a[:, 0], a[:, 1]), 1, 0),
])
def test_transforms_change_nothing(function, num_args, batch_axis):
    """Catch checks or Python branches that need concrete values."""
    args = _normal(num_args, shape=(16, 16))
    expected = function(*args)
    split = [np.stack(np.split(a, 8, axis=batch_axis)) for a in args]
    np.testing.assert_allclose(jax.jit(function)(*args), expected, rtol=1e-5)
    for transform in (jax.vmap, jax.pmap):
        out = transform(function)(*split)
        np.testing.assert_allclose(np.concatenate(out), expected, rtol=1e-5)


@pytest.mark.parametrize('function, num_args', [
    (elbo.gaussian_kl, 2), (elbo.gaussian_kl_between, 4), (elbo.iwae_bound, 1)
])
def test_gradients(function, num_args):
    """Catch a gradient that is not that of the value."""
    with jax.enable_x64(True):
        args = tuple(_normal(num_args, shape=(2, 2)).astype(np.float64))
        check_grads(jax.jit(function), args, order=2, modes=['rev'])


class LinearGaussian(NamedTuple):
    """z ~ N(0, I), x | z ~ N(W z + m, v I), W with orthogonal columns.

    Attributes:
        weight: [D, Z] W.
        mean: [D] m.
        variance: v.
    """

    weight: np.ndarray
    mean: np.ndarray
    variance: float

    def log_px(self, x):
        """Return log N(x; m, W W' + v I) [B], without any of the code under test."""
        covariance = self.weight @ self.weight.T
        covariance += self.variance * np.eye(len(self.mean))
        centred = x - self.mean
        distance = np.einsum(
            'bi,ij,bj->b', centred, np.linalg.inv(covariance), centred
        )
        _, log_det = np.linalg.slogdet(2 * np.pi * covariance)
        return -0.5 * (log_det + distance)

    def posterior(self, x):
        """Return mean and logvar [B, Z] of p(z|x): diagonal, as W'W is."""
        precision = np.sum(self.weight**2, axis=0) + self.variance
        mean = (x - self.mean) @ self.weight / precision
        logvar = np.broadcast_to(np.log(self.variance / precision), mean.shape)
        return mean, logvar

    def log_px_given_z(self, z, x):
        """Return log p(x|z) [B]."""
        mean = z @ self.weight.T + self.mean[None]
        logvar = jnp.full(mean.shape, jnp.log(self.variance))
        return likelihoods.gaussian_log_prob(mean, logvar, x)

    def log_w(self, rngs, q_mean, q_logvar, x):
        """Return log p(x|z) + log p(z) - log q(z|x) [B] for z drawn from q."""
        z = likelihoods.gaussian_sample(rngs, q_mean, q_logvar)
        zero = jnp.zeros_like(z)
        prior = likelihoods.gaussian_log_prob(zero, zero, z)
        posterior = likelihoods.gaussian_log_prob(q_mean, q_logvar, z)
        return self.log_px_given_z(z, x) + prior - posterior

    def elbo(self, q_mean, q_logvar, x):
        """Return E_q[log p(x|z)] - KL(q || p(z)) [B], with no sampling."""
        # That at the mean of q, less the spread that q adds to W z.
        spread = np.exp(q_logvar) @ np.sum(self.weight**2, axis=0)
        log_px = self.log_px_given_z(q_mean, x) - spread / (2 * self.variance)
        return elbo.elbo(log_px, elbo.gaussian_kl(q_mean, q_logvar))


# One compilation for all tests: [S, B] keys in, [S, B] weights out.
_log_w = jax.jit(jax.vmap(LinearGaussian.log_w, in_axes=(None, 0, None, None, None)))


@pytest.fixture
def model():
    """Return a model whose posterior is known."""
    rng = np.random.default_rng(0)
    columns, _ = np.linalg.qr(rng.normal(size=(5, 2)))
    return LinearGaussian(columns * [2.0, 1.0], rng.normal(size=5), 0.3)


@pytest.fixture
def x(model):
    """Return four draws from the model."""
    rng = np.random.default_rng(1)
    z, noise = rng.normal(size=(4, 2)), rng.normal(size=(4, 5))
    return z @ model.weight.T + model.mean + np.sqrt(model.variance) * noise


def test_three_terms_make_the_log_likelihood(model, x):
    """Catch an error in a KL, the ELBO or the likelihood: the lecture's identity.

    Nothing is sampled, so no error is small enough to hide.
    """
    with jax.enable_x64(True):
        q = _normal(2, shape=(4, 2)).astype(np.float64)
        gap = elbo.gaussian_kl_between(*q, *model.posterior(x))
        assert np.all(gap > 0.1)
        np.testing.assert_allclose(
            model.elbo(*q, x) + gap, model.log_px(x), rtol=1e-12
        )


def test_true_posterior_makes_the_bounds_exact(model, x):
    """Catch any inconsistent term of log w: it must not vary with z at all."""
    with jax.enable_x64(True):
        posterior, exact = model.posterior(x), model.log_px(x)
        rngs = jax.random.split(jax.random.key(0), (4096, 4))
        log_w = _log_w(model, rngs, *posterior, x)
        np.testing.assert_allclose(log_w, np.tile(exact, (4096, 1)), rtol=1e-10)
        np.testing.assert_allclose(elbo.iwae_bound(log_w), exact, rtol=1e-11)
        np.testing.assert_allclose(model.elbo(*posterior, x), exact, rtol=1e-12)


def test_iwae_rises_from_elbo_to_log_likelihood(model, x):
    """Catch a bound that is not one: a sum for the mean, a max, the mean of logs."""
    with jax.enable_x64(True):
        mean, logvar = model.posterior(x)
        q, exact = (mean + 0.3, logvar + 0.5), model.log_px(x)
        rngs = jax.random.split(jax.random.key(1), (4096, 4))
        log_w = _log_w(model, rngs, *q, x)
        iwae_bound, gaps = jax.jit(elbo.iwae_bound), []
        # 4096 weights per image, cut into 4096 / k bounds of k samples each.
        for k in (1, 8, 64, 4096):
            bounds = iwae_bound(log_w.reshape(k, -1)).reshape(-1, 4)
            gaps.append(np.mean(exact - bounds.mean(axis=0)))
        # k = 1 is the ELBO, up to 5 standard errors of 16384 draws.
        error = 5 * float(log_w.std(axis=0).mean()) / np.sqrt(log_w.size)
        np.testing.assert_allclose(
            gaps[0], np.mean(exact - model.elbo(*q, x)), atol=error
        )
        assert gaps[0] > gaps[1] > gaps[2] > -0.01
        # The gap closes like var(w) / 2k.
        assert gaps[2] < gaps[0] / 16 and abs(gaps[3]) < 0.02
