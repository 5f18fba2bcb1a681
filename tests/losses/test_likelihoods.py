"""Likelihoods against float64 references, at extremes, and under every transform."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from gm_jax.losses import dequantization, likelihoods


def _keys(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def _softplus(t):
    return np.logaddexp(t, 0)


def _bernoulli_reference(logits, x):
    logits = np.asarray(logits, np.float64)
    terms = np.where(np.asarray(x) == 1, -_softplus(-logits), -_softplus(logits))
    return terms.reshape(len(terms), -1).sum(axis=1)


def _categorical_reference(logits, x):
    logits = np.asarray(logits, np.float64)
    log_probs = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    out = np.zeros(len(logits))
    for at in np.ndindex(*x.shape):
        out[at[0]] += log_probs[at][x[at]]
    return out


def _gaussian_reference(mean, logvar, x):
    mean, logvar, x = (np.asarray(a, np.float64) for a in (mean, logvar, x))
    std = np.exp(logvar / 2)
    terms = -np.log(std * np.sqrt(2 * np.pi)) - ((x - mean) / std) ** 2 / 2
    return terms.reshape(len(terms), -1).sum(axis=1)


def _logistic_reference(mean, log_scale, x):
    mean, log_scale, x = (np.asarray(a, np.float64) for a in (mean, log_scale, x))
    terms = stats.logistic.logpdf(x, mean, np.exp(log_scale))
    return terms.reshape(len(terms), -1).sum(axis=1)


def _inputs(name, shape=(3, 2, 2, 1)):
    """Return the function, its float64 reference and random arguments."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(2, *shape)).astype(np.float32)
    if name == 'bernoulli':
        args = 5 * normal[0], rng.integers(2, size=shape, dtype=np.uint8)
        return likelihoods.bernoulli_log_prob, _bernoulli_reference, args
    if name == 'categorical':
        logits = 3 * rng.normal(size=(*shape, 5)).astype(np.float32)
        args = logits, rng.integers(5, size=shape, dtype=np.uint8)
        return likelihoods.categorical_log_prob, _categorical_reference, args
    args = *normal, rng.normal(size=shape).astype(np.float32)
    if name == 'logistic':
        return likelihoods.logistic_log_prob, _logistic_reference, args
    return likelihoods.gaussian_log_prob, _gaussian_reference, args


NAMES = ['bernoulli', 'categorical', 'gaussian', 'logistic']


@pytest.mark.parametrize('name', NAMES)
def test_equals_the_float64_reference(name):
    """Catch a wrong sign, a lost constant, a sum over the batch."""
    log_prob, reference, args = _inputs(name)
    out = log_prob(*args)
    assert out.shape == (3,) and out.dtype == jnp.float32
    np.testing.assert_allclose(out, reference(*args), rtol=2e-6)


@pytest.mark.parametrize('name', NAMES)
def test_bfloat16_inputs_are_summed_in_float32(name):
    """Catch a sum in bfloat16, which loses whole nats over 784 pixels."""
    log_prob, reference, args = _inputs(name, shape=(2, 28, 28, 1))
    narrow = [
        jnp.asarray(a, jnp.bfloat16) if a.dtype == np.float32 else a for a in args
    ]
    out = log_prob(*narrow)
    assert out.dtype == jnp.float32
    rounded = [np.asarray(a, old.dtype) for a, old in zip(narrow, args)]
    np.testing.assert_allclose(out, reference(*rounded), rtol=3e-6)


def test_bits_of_a_density_are_not_those_of_bfloat16():
    """Catch a constant of thousands of nats in 8 bits."""
    found = dequantization.log_prob(jnp.zeros(1, jnp.bfloat16), 784, num_values=256)
    np.testing.assert_allclose(found, [-784 * np.log(256)], rtol=1e-6)


def test_bernoulli_sums_to_one():
    """Catch any error that leaves the terms plausible but not a distribution."""
    x = np.array(list(itertools.product([0, 1], repeat=4)), np.int32)
    logits = jnp.tile(jnp.array([-3.0, 0.0, 0.5, 9.0]), (16, 1))
    total = jnp.sum(jnp.exp(likelihoods.bernoulli_log_prob(logits, x)))
    np.testing.assert_allclose(total, 1, rtol=1e-5)


def test_categorical_sums_to_one():
    """Catch a normaliser over the wrong axis."""
    x = np.array(list(itertools.product(range(4), repeat=2)), np.int32)
    logits = 3 * jax.random.normal(jax.random.key(1), (2, 4))
    tiled = jnp.tile(logits[None], (16, 1, 1))
    total = jnp.sum(jnp.exp(likelihoods.categorical_log_prob(tiled, x)))
    np.testing.assert_allclose(total, 1, rtol=1e-5)


@pytest.mark.parametrize('num_values', [2, 3, 17, 256])
def test_categorical_of_any_number_of_values(num_values):
    """Catch a number of values that is built in."""
    logits = 5 * jax.random.normal(jax.random.key(1), (1, num_values))
    tiled = jnp.tile(logits[None], (num_values, 1, 1))
    log_px = likelihoods.categorical_log_prob(tiled, jnp.arange(num_values)[:, None])
    expected = _categorical_reference(
        np.asarray(tiled), np.arange(num_values)[:, None]
    )
    # A likely value's log is a difference of numbers near 10.
    np.testing.assert_allclose(log_px, expected, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(jnp.sum(jnp.exp(log_px)), 1, rtol=1e-5)


def test_gaussian_integrates_to_one():
    """Catch a variance taken for a standard deviation."""
    x = np.linspace(-30, 30, 6001, dtype=np.float32)[:, None]
    mean, logvar = np.full_like(x, 0.7), np.full_like(x, 2.1)
    density = np.exp(likelihoods.gaussian_log_prob(mean, logvar, x))
    np.testing.assert_allclose(density.sum() * 0.01, 1, rtol=1e-5)


def test_gaussian_per_unit_keeps_the_axes():
    """Catch units that are mixed, or summed."""
    _, _, (mean, logvar, x) = _inputs('gaussian')
    found = likelihoods.gaussian_log_prob_per_unit(mean, logvar, x)
    expected = stats.norm.logpdf(*map(np.float64, (x, mean, np.exp(logvar / 2))))
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize('x', [0, 1])
@pytest.mark.parametrize('logit', [0.0, 20.0, -20.0, 100.0, -100.0, 1e4, -1e4])
def test_bernoulli_extremes(logit, x):
    """Catch log(0), exp overflow, a NaN gradient at 0, and lost precision.

    Cancellation would take it from confident right guesses.
    """
    logits, data = jnp.full((1, 3), logit), jnp.full((1, 3), x)
    value, gradient = jax.value_and_grad(
        lambda logits: likelihoods.bernoulli_log_prob(logits, data)[0]
    )(logits)
    exact = _bernoulli_reference(logits, data)[0]
    np.testing.assert_allclose(value, exact, rtol=1e-6, atol=1e-37)
    sigmoid = np.exp(-_softplus(-np.float64(logit)))
    np.testing.assert_allclose(gradient, np.full((1, 3), x - sigmoid), atol=1e-7)


@pytest.mark.parametrize('double', [False, True])
def test_bernoulli_derivatives(double):
    """Catch a derivative at a logit of 0, where max and abs have a kink, or far away.

    log p(x) is smooth: its derivatives are x - s(l) and -s(l) (1 - s(l)).
    """
    logits = np.array([0, -0.0, 1e-3, 1, -1, 15, -15, 80, -80, 100, -100, 1e4, -1e4])
    x = np.arange(13) % 2
    sigmoid, rest = np.exp(-_softplus(-logits)), np.exp(-_softplus(logits))
    first, second = np.where(x == 1, rest, -sigmoid), -sigmoid * rest
    with jax.enable_x64(double):
        t, v = jnp.asarray(logits), jnp.linspace(1, 2, 13)

        def log_prob(t):
            return likelihoods.bernoulli_log_prob(t[None], x[None])[0]

        gradient = jax.grad(log_prob)
        rtol, atol = (1e-13, 1e-15) if double else (2e-5, 1e-7)
        np.testing.assert_allclose(gradient(t), first, rtol, atol)
        slope = jax.jvp(log_prob, (t,), (v,))[1]
        np.testing.assert_allclose(slope, np.sum(first * v), rtol)
        atol = 1e-300 if double else 1e-37
        hessian = jax.jit(jax.hessian(log_prob))(t)
        np.testing.assert_allclose(hessian, np.diag(second), rtol, atol)
        product = jax.vjp(gradient, t)[1](v)[0]
        np.testing.assert_allclose(product, second * np.asarray(v), rtol, atol)


@pytest.mark.parametrize('x', [0, 4])
@pytest.mark.parametrize('logit', [100.0, -100.0, 1e4, -1e4])
def test_categorical_extremes(logit, x):
    """Catch a softmax that overflows or takes the log of 0."""
    logits = jnp.zeros((1, 2, 5)).at[..., 0].set(logit)
    data = jnp.full((1, 2), x, jnp.int32)
    value, gradient = jax.value_and_grad(
        lambda logits: likelihoods.categorical_log_prob(logits, data)[0]
    )(logits)
    exact = _categorical_reference(logits, np.asarray(data))[0]
    np.testing.assert_allclose(value, exact, rtol=1e-6, atol=1e-37)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize('logvar', [60.0, -60.0, 100.0, -100.0, 1e4, -1e4])
def test_gaussian_extremes(logvar):
    """Catch exp overflow, 0 * inf at x = mean, and a gradient that saturates.

    A runaway log variance would have no gradient then, or one of the wrong sign.
    """

    def log_prob(mean, logvar, x):
        return likelihoods.gaussian_log_prob(mean, logvar, x)[0]

    shape = (1, 784)
    mean, x = jnp.zeros(shape), jnp.ones(shape).at[0, 0].set(0)
    value, gradients = jax.value_and_grad(log_prob, (0, 1))(
        mean, jnp.full(shape, logvar), x
    )
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)
    # Off the mean, log p rises towards the variance that explains the distance.
    assert np.all(np.sign(gradients[1][0, 1:]) == -np.sign(logvar))
    if abs(logvar) <= 60:
        exact = _gaussian_reference(mean, np.full(shape, logvar), x)[0]
        np.testing.assert_allclose(value, exact, rtol=1e-5)


@pytest.mark.parametrize('log_scale', [100.0, -100.0])
def test_logistic_extremes(log_scale):
    """Catch exp overflow, and a gradient that has no way back."""
    shape = (1, 784)
    mean, x = jnp.zeros(shape), jnp.ones(shape).at[0, 0].set(0)
    value, gradients = jax.value_and_grad(
        lambda *args: likelihoods.logistic_log_prob(*args)[0], (0, 1, 2)
    )(mean, jnp.full(shape, log_scale), x)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in gradients)
    assert np.all(np.sign(gradients[1][0, 1:]) == -np.sign(log_scale))


def test_categorical_value_out_of_range_is_not_a_number():
    """Catch an index that is clamped, so that wrong data trains on in silence."""
    x = jnp.array([[3], [4], [-1], [-5], [0]])
    out = likelihoods.categorical_log_prob(jnp.zeros((5, 1, 4)), x)
    np.testing.assert_array_equal(np.isnan(out), [False, True, True, True, False])


def test_bernoulli_value_out_of_range_is_not_a_number():
    """Catch bytes that are taken for bits, whose log p is no log p of anything."""
    x = jnp.array([[0.0], [0.5], [1.0], [255.0], [-1.0], [1.01]])
    out = likelihoods.bernoulli_log_prob(jnp.zeros((6, 1)), x)
    np.testing.assert_array_equal(np.isnan(out), [False] * 3 + [True] * 3)
    gradient = jax.grad(lambda t: likelihoods.bernoulli_log_prob(t, x[:3]).sum())
    assert np.isfinite(gradient(jnp.zeros((3, 1)))).all()


zeros = jnp.zeros


def ints(shape):
    """Return zeros of an integer type."""
    return jnp.zeros(shape, jnp.int32)


@pytest.mark.parametrize('call', [
    lambda: likelihoods.bernoulli_log_prob(zeros((4,)), zeros((4, 1))),
    lambda: likelihoods.bernoulli_log_prob(zeros((4, 3)), zeros((1, 3))),
    lambda: likelihoods.bernoulli_log_prob(zeros((4, 3)), zeros((3,))),
    lambda: likelihoods.bernoulli_log_prob(zeros(()), zeros(())),
    lambda: likelihoods.categorical_log_prob(zeros((4, 3, 5)), ints((4, 1))),
    lambda: likelihoods.categorical_log_prob(zeros((4, 3, 5)), ints((1, 3))),
    lambda: likelihoods.categorical_log_prob(zeros((4, 3, 5)), ints((4, 3, 1))),
    lambda: likelihoods.categorical_log_prob(zeros((4, 3, 5)), zeros((4, 3))),
    lambda: likelihoods.categorical_log_prob(zeros((5,)), ints(())),
    lambda: likelihoods.gaussian_log_prob(zeros((4, 3)), zeros((4, 1)), zeros((4, 3))),
    lambda: likelihoods.gaussian_log_prob(zeros((4, 3)), zeros((4, 3)), zeros((1, 3))),
    lambda: likelihoods.gaussian_log_prob(zeros((4,)), zeros((4,)), zeros((4, 1))),
    lambda: likelihoods.gaussian_log_prob(zeros(()), zeros(()), zeros(())),
    lambda: likelihoods.bernoulli_sample(_keys(1), zeros((4, 3))),
    lambda: likelihoods.categorical_sample(_keys(3), zeros((4, 3))),
    lambda: likelihoods.categorical_sample(_keys(4), zeros((4,))),
    lambda: likelihoods.gaussian_sample(_keys(4), zeros((4, 3)), zeros((4, 1))),
    lambda: likelihoods.gaussian_sample(_keys(3), zeros((4, 3)), zeros((4, 3))),
    lambda: likelihoods.bernoulli_quantile(zeros((4, 3)), zeros((4, 1))),
    lambda: likelihoods.bernoulli_quantile(zeros((4, 3)), zeros((3,))),
    lambda: likelihoods.categorical_quantile(zeros((4, 3)), zeros((4, 3))),
    lambda: likelihoods.categorical_quantile(zeros((4, 3)), zeros((1,))),
    lambda: likelihoods.categorical_quantile(zeros((4, 3)), zeros(())),
    lambda: likelihoods.categorical_quantile(zeros(()), zeros(())),
    lambda: likelihoods.bits_per_dim(zeros((4, 1)), 3),
    lambda: likelihoods.bits_per_dim(zeros(()), 3),
])
def test_wrong_shapes_raise(call):
    """Catch silent broadcasting, which gives a number and no error."""
    with pytest.raises(AssertionError):
        call()


@pytest.mark.parametrize('name', NAMES)
def test_no_examples(name):
    """Catch a reshape that divides by the size of an empty batch."""
    log_prob, _, args = _inputs(name, shape=(2, 2, 2, 1))
    assert log_prob(*(a[:0] for a in args)).shape == (0,)


@pytest.mark.parametrize('name', NAMES)
def test_transforms_change_nothing(name):
    """Catch checks or Python branches that need concrete values."""
    log_prob, _, args = _inputs(name, shape=(16, 2, 2, 1))
    expected = log_prob(*args)
    split = [a.reshape(8, 2, *a.shape[1:]) for a in args]
    for out in (
        jax.jit(log_prob)(*args), jax.vmap(log_prob)(*split), jax.pmap(log_prob)(*split)
    ):
        np.testing.assert_allclose(out.reshape(-1), expected, rtol=1e-6)


@pytest.mark.parametrize('name', NAMES)
def test_gradients(name):
    """Catch a gradient that is not that of the value."""
    log_prob, _, args = _inputs(name, shape=(1, 2, 1, 1))
    x, params = args[-1], args[:-1]
    with jax.enable_x64(True):
        params = [p.astype(np.float64) for p in params]
        value_fn = jax.jit(lambda *params: log_prob(*params, x)[0])
        check_grads(value_fn, params, order=1, modes=['rev'])


def _sample(name, keys):
    num = len(keys)
    if name == 'bernoulli':
        logits = np.tile(np.array([-1, 0, 2], np.float32), (num, 1))
        return likelihoods.bernoulli_sample(keys, logits)
    if name == 'categorical':
        probs = np.array([[0.1, 0.2, 0.7]], np.float32)
        logits = np.log(np.tile(probs, (num, 2, 1)))
        return likelihoods.categorical_sample(keys, logits)
    mean, logvar = (np.full((num, 2), v, np.float32) for v in (3, np.log(4)))
    if name == 'logistic':
        return likelihoods.logistic_sample(keys, mean, logvar / 2)
    return likelihoods.gaussian_sample(keys, mean, logvar)


@pytest.mark.parametrize('name', NAMES)
def test_a_sample_is_its_own(name):
    """Catch noise drawn for the batch: it would change with the batch's size."""
    keys = _keys(64)
    every, some = _sample(name, keys), _sample(name, keys[2:4])
    np.testing.assert_array_equal(every[2:4], some)
    assert len(np.unique(np.asarray(every), axis=0)) > 1


def test_sample_moments():
    """Catch a wrong probability or scale; tolerances are 5 standard errors."""
    num = 20_000
    keys = _keys(num)
    x = np.asarray(_sample('bernoulli', keys))
    assert x.dtype == np.int32 and set(np.unique(x)) == {0, 1}
    probs = 1 / (1 + np.exp(-np.array([-1.0, 0.0, 2.0])))
    np.testing.assert_allclose(x.mean(axis=0), probs, atol=2.5 / np.sqrt(num))
    x = np.asarray(_sample('categorical', keys))
    assert x.dtype == np.int32 and x.shape == (num, 2)
    frequencies = np.bincount(x.ravel(), minlength=3) / x.size
    np.testing.assert_allclose(frequencies, [0.1, 0.2, 0.7], atol=2.5 / np.sqrt(num))
    x = np.asarray(_sample('gaussian', keys))
    np.testing.assert_allclose(x.mean(axis=0), 3, atol=10 / np.sqrt(num))
    np.testing.assert_allclose(x.std(axis=0), 2, atol=7.1 / np.sqrt(num))
    x = np.asarray(_sample('logistic', keys))
    assert stats.kstest(x.ravel(), stats.logistic(3, 2).cdf).pvalue > 1e-4


def test_gaussian_sample_is_reparameterized():
    """Catch a stopped gradient: dx/dm = 1 and dx/ds = (x - m) / 2."""
    keys, mean, logvar = _keys(2), jnp.ones((2, 3)), jnp.full((2, 3), -1.0)
    x, gradient_fn = jax.vjp(
        lambda m, s: likelihoods.gaussian_sample(keys, m, s), mean, logvar
    )
    by_mean, by_logvar = gradient_fn(jnp.ones_like(x))
    np.testing.assert_allclose(by_mean, jnp.ones_like(x))
    np.testing.assert_allclose(by_logvar, (x - mean) / 2, rtol=1e-6)


def test_bernoulli_quantile_is_the_definition():
    """Catch u < p, which falls as u rises, and an impossible value at the ends."""
    logits = np.repeat([-1e4, -2, 0, 3, 1e4], 101).astype(np.float32)
    u = np.tile(np.append(np.linspace(0, 0.99, 100), 1 - 2.0 ** -24), 5)
    u = u.astype(np.float32)
    out = likelihoods.bernoulli_quantile(logits, u)
    assert out.dtype == jnp.int32
    zero = np.exp(-_softplus(np.float64(logits)))
    np.testing.assert_array_equal(out, u >= zero)
    ends = np.asarray(out).reshape(5, 101)[[0, -1]]
    np.testing.assert_array_equal(ends, np.repeat([[0], [1]], 101, axis=1))
    x = likelihoods.bernoulli_quantile(jnp.full(4000, 1.0), np.arange(4000) / 4000)
    np.testing.assert_allclose(np.mean(x), 1 / (1 + np.exp(-1)), atol=1 / 4000)


@pytest.mark.parametrize('num_values', [1, 2, 37, 256])
def test_categorical_quantile_is_the_definition(num_values):
    """Catch a value off by one, and sums that lose precision along 256 values."""
    rng = np.random.default_rng(0)
    logits = 3 * rng.normal(size=(40, 50, num_values))
    u = rng.uniform(size=(40, 50))
    probs = np.exp(logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True))
    exact = np.sum(np.cumsum(probs, axis=-1)[..., :-1] <= u[..., None], axis=-1)
    with jax.enable_x64(True):
        out = jax.jit(likelihoods.categorical_quantile)(logits, u)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, exact)
    # In float32 a u within rounding of a cumulative sum may come out beyond it.
    out = likelihoods.categorical_quantile(np.float32(logits), np.float32(u))
    assert np.mean(out != exact) < 2e-3


def test_categorical_quantile_rises_and_has_the_frequencies():
    """Catch 1 - u for u: on a grid of u, the counts are the probabilities."""
    logits = np.tile(np.float32([0, 2, -1, 1, 1]), (4000, 1))
    x = np.asarray(likelihoods.categorical_quantile(logits, np.arange(4000) / 4000))
    assert np.diff(x).min() >= 0
    frequencies = np.bincount(x, minlength=5) / 4000
    probs = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose(frequencies, probs, atol=1 / 2000)


def test_categorical_quantile_draws_nothing_impossible():
    """Catch cumulative sums that end below 1, and a first value drawn at u = 0."""
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(500, 1, 37)).astype(np.float32)
    logits[rng.uniform(size=logits.shape) < 0.7] = -np.inf
    logits[..., 17] = 0
    u = np.append(np.linspace(0, 0.99, 20), 1 - 2.0 ** -24).astype(np.float32)
    x = np.asarray(jax.jit(likelihoods.categorical_quantile)(
        np.broadcast_to(logits, (500, 21, 37)), np.broadcast_to(u, (500, 21))
    ))
    drawn = np.take_along_axis(logits[:, 0], x, axis=-1)
    assert np.isfinite(drawn).all()


def test_bits_per_dim():
    """Catch nats called bits: a uniform byte costs 8 bits."""
    log_prob = likelihoods.categorical_log_prob(jnp.zeros((2, 12, 256)), ints((2, 12)))
    bits = likelihoods.bits_per_dim(log_prob, 12)
    np.testing.assert_allclose(bits, [8, 8], rtol=1e-6)
    with pytest.raises(ValueError, match='positive'):
        likelihoods.bits_per_dim(log_prob, 0)
