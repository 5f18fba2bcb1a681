"""The likelihood of the logistic mixture: float64 references and enumeration."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gm_jax.losses import likelihoods
from gm_jax.losses.likelihoods import LogisticMixture
from tests.losses import mixtures


@pytest.mark.parametrize('channels', [1, 2, 3])
@pytest.mark.parametrize('num_values', [2, 4, 256])
def test_equals_the_float64_reference(channels, num_values):
    """Catch a wrong edge, scaling or order of coefficients, a component per channel."""
    mixture = mixtures.mixture(channels=channels)
    x = mixtures.data(mixture, num_values)
    out = mixtures.log_prob(mixture, x.astype(np.uint8), num_values=num_values)
    assert out.shape == (2,) and out.dtype == jnp.float32
    exact = mixtures.reference(mixture, x, num_values).sum(axis=(1, 2))
    np.testing.assert_allclose(out, exact, rtol=3e-6)


def test_both_tails_and_any_width_are_exact():
    """Catch a difference of sigmoids that cancels, or a density in its place."""
    means = [-4, -1, -0.2, 0.3, 1, 4]
    values = itertools.product(means, np.linspace(-9, 12, 22), [1, 100, 254])
    means, log_scales, x = np.array(list(values)).T[:, :, None, None, None]
    logits = np.zeros_like(x)
    mixture = LogisticMixture(logits, means[..., None], log_scales[..., None])
    exact = mixtures.reference(mixture, x, 256)[:, 0, 0]
    with jax.enable_x64(True):
        out = mixtures.log_prob(mixture, x.astype(np.int32))
    np.testing.assert_allclose(out, exact, rtol=1e-8)
    out = mixtures.log_prob(jax.tree.map(np.float32, mixture), x.astype(np.int32))
    # An edge is rounded on the scale of 1, so to more of a sharp logistic's.
    atol = 1e-7 * np.exp(-np.maximum(log_scales, -7)).ravel()
    assert np.all(np.abs(out - exact) <= 2e-6 * np.abs(exact) + atol)


def test_bfloat16_inputs_are_summed_in_float32():
    """Catch a sum in bfloat16, which loses whole nats over 784 pixels."""
    mixture = jax.tree.map(jnp.bfloat16, mixtures.mixture((1, 28, 28)))
    x = mixtures.data(mixture, 256)
    out = mixtures.log_prob(mixture, x)
    assert out.dtype == jnp.float32
    wide = jax.tree.map(np.float32, mixture)
    exact = mixtures.reference(wide, x, 256).sum(axis=(1, 2))
    np.testing.assert_allclose(out, exact, rtol=3e-6)


@pytest.mark.parametrize('num_values', [2, 4, 17, 256])
def test_sums_to_one_whatever_the_parameters(num_values):
    """Catch closed tails, edges that do not meet, an approximation of the mass."""
    rng, num = np.random.default_rng(0), 600
    edges = (2 * np.arange(num_values) - num_values) / (num_values - 1)
    extremes = [0, 1, -1, 4, -4, 10, -30, 100, -100]
    means = np.concatenate([rng.uniform(-1.5, 1.5, num), rng.choice(edges, num // 2)])
    means = np.concatenate([means, rng.choice(extremes, num // 2)])
    log_scales = rng.uniform(-9, 8, 2 * num)
    log_scales[::9] = rng.choice([100, -100, 20, 60], len(log_scales[::9]))
    logits = rng.uniform(-3, 3, 2 * num) + rng.choice([0, 100, -100], 2 * num)
    # Two components an image, at every value: images are [num * num_values].
    logits, means, log_scales = (
        np.repeat(rng.permutation(a).reshape(num, 2), num_values, axis=0)[:, None, None]
        for a in np.float32([logits, means, log_scales])
    )
    mixture = LogisticMixture(logits, means[..., None, :], log_scales[..., None, :])
    x = np.tile(np.arange(num_values, dtype=np.int32), num)[:, None, None, None]
    probs = np.exp(np.float64(mixtures.log_prob(mixture, x, num_values=num_values)))
    totals = probs.reshape(num, num_values).sum(axis=1)
    np.testing.assert_allclose(totals, 1, rtol=0, atol=2e-6)


@pytest.mark.parametrize('num_values', [3, 4])
def test_colours_sum_to_one(num_values):
    """Catch a mean that is shifted by its own channel or by a later one."""
    for seed, factor in itertools.product(range(3), [1, 30]):
        mixture = mixtures.mixture((1, 1, 1), seed=seed)
        mixture = jax.tree.map(lambda a: factor * a, mixture)
        total = mixtures.joint(mixture, num_values).sum()
        np.testing.assert_allclose(total, 1, rtol=0, atol=2e-6)


def test_marginals_depend_on_their_own_coefficients():
    """Catch G following B: p(r) knows no coefficient, p(r, g) the first alone."""
    mixture = mixtures.mixture((1, 1, 1))
    joint = mixtures.joint(mixture, 4)
    for c in range(3):
        coeffs = mixture.coeffs.copy()
        coeffs[..., c, :] += 1
        other = mixtures.joint(mixture._replace(coeffs=coeffs), 4)
        assert np.abs(other - joint).max() > 1e-3
        red, pair = np.abs((other - joint).sum((1, 2))), np.abs((other - joint).sum(2))
        assert red.max() < 1e-6
        assert pair.max() > 1e-3 if c == 0 else pair.max() < 1e-6


@pytest.mark.parametrize('num_values', [2, 256])
def test_extremes(num_values):
    """Catch log(0), exp overflow, inf * 0, and a width that underflows to no mass."""
    values = list(itertools.product(
        [100, -100], [100, 0, -100], [100, 0, -100], [100, -100],
        [0, num_values // 2, num_values - 1],
    ))
    logits, means, log_scales, coeffs, x = np.float32(values).T[:, :, None, None, None]
    full = np.ones((1, 1, 1, 3, 2), np.float32)
    mixture = LogisticMixture(
        logits * np.float32([1, -1]),
        means[..., None] * full,
        log_scales[..., None] * full,
        coeffs[..., None] * full,
    )
    x = np.broadcast_to(x, (*x.shape[:-1], 3)).astype(np.int32)
    out, gradient_fn = jax.vjp(
        functools.partial(mixtures.log_prob, x=x, num_values=num_values), mixture
    )
    gradients, = gradient_fn(jnp.ones_like(out))
    assert np.all(np.isfinite(out)) and np.all(out <= 0)
    assert all(np.isfinite(g).all() for g in gradients)
    by_scale = gradients.log_scales.sum(axis=(1, 2, 3, 4))
    # Of a wide logistic, a bin has a mass in proportion to 1 / scale.
    inner = (log_scales.ravel() == 100) & (x[:, 0, 0, 0] == 128)
    np.testing.assert_allclose(by_scale[inner], -3, rtol=1e-6)
    np.testing.assert_array_equal(by_scale[log_scales.ravel() == -100], 0)


def test_value_out_of_range_is_not_a_number():
    """Catch data of another V, which would get the masses of no bins."""
    mixture = mixtures.repeat(mixtures.mixture(), 4, 1, 1)
    x = np.zeros((4, 1, 1, 3), np.int32)
    x[:, 0, 0, 1] = [3, 4, -1, 0]
    out = mixtures.log_prob(mixture, x, num_values=4)
    np.testing.assert_array_equal(np.isnan(out), [False, True, True, False])


def test_transforms_change_nothing():
    """Catch checks or Python branches that need concrete values."""
    mixture = mixtures.mixture((16, 1, 2))
    x = mixtures.data(mixture, 256)
    expected = mixtures.reference(mixture, x, 256).sum(axis=(1, 2))
    split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (mixture, x))
    for transform in (jax.vmap, jax.pmap):
        out = transform(mixtures.log_prob)(*split)
        np.testing.assert_allclose(out.reshape(-1), expected, rtol=3e-6)


@pytest.mark.parametrize('x', [0, 1, 3])
def test_gradients(x):
    """Catch a gradient that is not that of the value, and float64 taken down."""
    with jax.enable_x64(True):
        mixture = jax.tree.map(np.float64, mixtures.mixture((1, 1, 1)))
        data = np.full((1, 1, 1, 3), x)
        out = mixtures.log_prob(mixture, data, num_values=4)
        exact = mixtures.reference(mixture, data, 4).ravel()
        np.testing.assert_allclose(out, exact, 1e-12)
        value_fn = functools.partial(mixtures.log_prob, x=data, num_values=4)
        check_grads(value_fn, (mixture,), order=1, modes=['rev'])


def test_second_derivative_where_an_edge_is_the_mean():
    """Catch a kink there: with one component, -sum over edges of s (1 - s) / scale^2.

    Of the values 0 ... 3, value 2 is between the edges 0 and 2/3 on [-1, 1].
    """
    def log_prob(mean):
        mixture = LogisticMixture(
            jnp.zeros((1, 1, 1, 1)), mean.reshape(1, 1, 1, 1, 1),
            jnp.full((1, 1, 1, 1, 1), np.log(0.5)),
        )
        x = jnp.full((1, 1, 1, 1), 2)
        return likelihoods.logistic_mixture_log_prob(mixture, x, num_values=4)[0]

    means = np.array([0, 2 / 3, 0.1], np.float32)
    s = 1 / (1 + np.exp(-(np.array([[0], [2 / 3]]) - means) / 0.5))
    expected = -np.sum(s * (1 - s), axis=0) / 0.25
    found = jax.jit(jax.vmap(jax.grad(jax.grad(log_prob))))(means)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def _calls(mixture, x):
    noise = jnp.zeros((*x.shape[:-1], x.shape[-1] + 1))
    return [
        lambda: likelihoods.logistic_mixture_sample(jax.random.key(0), mixture),
        lambda: likelihoods.logistic_mixture_temper(mixture, 1.0),
        lambda: likelihoods.logistic_mixture_log_prob(mixture, x),
        lambda: likelihoods.logistic_mixture_quantile(mixture, x, noise),
    ]


@pytest.mark.parametrize('change', [
    lambda m: m._replace(logits=m.logits[0]),
    lambda m: m._replace(logits=m.logits[:, :1]),
    lambda m: m._replace(logits=m.logits[..., :1]),
    lambda m: m._replace(means=m.means[:, :, :, 0]),
    lambda m: m._replace(means=m.means[..., :1]),
    lambda m: m._replace(log_scales=m.log_scales[..., :1]),
    lambda m: m._replace(log_scales=m.log_scales[:, :, :, :1]),
    lambda m: m._replace(coeffs=m.coeffs[:, :, :, :1]),
    lambda m: m._replace(coeffs=m.coeffs[..., :1]),
    lambda m: m._replace(coeffs=m.coeffs[:1]),
])
def test_wrong_shapes_of_parameters_raise(change):
    """Catch silent broadcasting, which gives a number and no error."""
    mixture = mixtures.mixture()
    for call in _calls(change(mixture), mixtures.data(mixture, 256)):
        with pytest.raises(AssertionError):
            call()


@pytest.mark.parametrize('x', [
    jnp.zeros((2, 2, 2, 1), int),
    jnp.zeros((1, 2, 2, 3), int),
    jnp.zeros((2, 2, 3), int),
    jnp.zeros((2, 2, 2, 3)),
])
def test_wrong_data_raises(x):
    """Catch data that broadcast, and pixels that are already scaled."""
    for call in _calls(mixtures.mixture(), x)[2:]:
        with pytest.raises(AssertionError):
            call()


def test_wrong_noise_raises():
    """Catch noise with no place for the component."""
    mixture = mixtures.mixture()
    x = mixtures.data(mixture, 256)
    for shape in [(2, 2, 2, 3), (2, 2, 2, 1), (1, 2, 2, 4), (2, 2, 4)]:
        with pytest.raises(AssertionError):
            likelihoods.logistic_mixture_quantile(mixture, x, jnp.zeros(shape))


def test_wrong_coefficients_or_number_of_values_raise():
    """Catch colours that are modelled apart because the coefficients got lost."""
    colour, pair = mixtures.mixture(), mixtures.mixture(channels=2)
    for mixture in (
        colour._replace(coeffs=None), pair._replace(coeffs=colour.coeffs)
    ):
        for call in _calls(mixture, mixtures.data(mixture, 256)):
            with pytest.raises(ValueError, match='coeffs'):
                call()
    with pytest.raises(ValueError, match='num_values'):
        x = mixtures.data(colour, 1)
        likelihoods.logistic_mixture_log_prob(colour, x, num_values=1)
