"""The logistic mixture against float64 references, by enumeration, and its samples."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from jax.test_util import check_grads

from gm_jax.losses import likelihoods
from gm_jax.losses.likelihoods import LogisticMixture

SHARP = 1 - 2.0 ** -24  # The largest float32 below 1.

log_prob = jax.jit(
    likelihoods.logistic_mixture_log_prob, static_argnames='num_values'
)
quantile = jax.jit(
    likelihoods.logistic_mixture_quantile, static_argnames='num_values'
)
sample = jax.jit(likelihoods.logistic_mixture_sample, static_argnames='num_values')


def _mixture(shape=(2, 2, 2), channels=3, num_components=3, seed=0):
    """Return random parameters whose scales span less than and more than a bin."""
    rng = np.random.default_rng(seed)

    def normal(*more):
        return rng.normal(size=(*shape, *more)).astype(np.float32)

    k = num_components
    coeffs = normal(3, k) if channels == 3 else None
    return LogisticMixture(
        normal(k), normal(channels, k), 2 * normal(channels, k) - 2, coeffs
    )


def _data(mixture, num_values, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(num_values, size=mixture.means.shape[:-1], dtype=np.int32)


def _repeat(mixture, *shape):
    """Return the parameters of the first pixel at every pixel of the shape."""
    def repeat(a):
        return np.broadcast_to(a[0, 0, 0], (*shape, *a[0, 0, 0].shape))

    return jax.tree.map(repeat, mixture)


def _means_and_scales(mixture, x, num_values):
    """Return float64 [..., C, K] means given the channels before, and scales."""
    x = 2 * np.asarray(x, np.float64)[..., None] / (num_values - 1) - 1
    means = np.array(mixture.means, np.float64)
    if mixture.coeffs is not None:
        c = np.moveaxis(np.tanh(np.asarray(mixture.coeffs, np.float64)), -2, 0)
        means[..., 1, :] += c[0] * x[..., 0, :]
        means[..., 2, :] += c[1] * x[..., 0, :] + c[2] * x[..., 1, :]
    return means, np.exp(np.maximum(np.asarray(mixture.log_scales, np.float64), -7))


def _reference(mixture, x, num_values):
    """Return log p(x) [B, H, W] from logistic cdfs, in the tail that is the shorter."""
    means, scales = _means_and_scales(mixture, x, num_values)
    x = np.asarray(x, np.float64)[..., None]
    low = np.where(x == 0, -np.inf, (2 * x - num_values) / (num_values - 1))
    high = np.where(
        x == num_values - 1, np.inf, (2 * x + 2 - num_values) / (num_values - 1)
    )
    low, high = (low - means) / scales, (high - means) / scales
    low, high = np.where(low > 0, -high, low), np.where(low > 0, -low, high)
    below, above = scipy.stats.logistic.logcdf(low), scipy.stats.logistic.logcdf(high)
    bins = above + np.log(-np.expm1(below - above))
    logits = scipy.special.log_softmax(np.asarray(mixture.logits, np.float64), axis=-1)
    return scipy.special.logsumexp(logits + bins.sum(axis=-2), axis=-1)


@pytest.mark.parametrize('channels', [1, 2, 3])
@pytest.mark.parametrize('num_values', [2, 4, 256])
def test_equals_the_float64_reference(channels, num_values):
    """Catches a wrong edge, scaling, order of coefficients, or a component chosen for
    each channel."""
    mixture = _mixture(channels=channels)
    x = _data(mixture, num_values)
    out = log_prob(mixture, x.astype(np.uint8), num_values=num_values)
    assert out.shape == (2,) and out.dtype == jnp.float32
    exact = _reference(mixture, x, num_values).sum(axis=(1, 2))
    np.testing.assert_allclose(out, exact, rtol=3e-6)


def test_both_tails_and_any_width_are_exact():
    """Catches a difference of sigmoids that cancels, or a density in its place."""
    means = [-4, -1, -0.2, 0.3, 1, 4]
    values = itertools.product(means, np.linspace(-9, 12, 22), [1, 100, 254])
    means, log_scales, x = np.array(list(values)).T[:, :, None, None, None]
    logits = np.zeros_like(x)
    mixture = LogisticMixture(logits, means[..., None], log_scales[..., None])
    exact = _reference(mixture, x, 256)[:, 0, 0]
    with jax.enable_x64(True):
        out = log_prob(mixture, x.astype(np.int32))
    np.testing.assert_allclose(out, exact, rtol=1e-8)
    out = log_prob(jax.tree.map(np.float32, mixture), x.astype(np.int32))
    # An edge is rounded on the scale of 1, so to more of a sharp logistic's.
    atol = 1e-7 * np.exp(-np.maximum(log_scales, -7)).ravel()
    assert np.all(np.abs(out - exact) <= 2e-6 * np.abs(exact) + atol)


def test_bfloat16_inputs_are_summed_in_float32():
    """Catches a sum in bfloat16, which loses whole nats over 784 pixels."""
    mixture = jax.tree.map(jnp.bfloat16, _mixture((1, 28, 28)))
    x = _data(mixture, 256)
    out = log_prob(mixture, x)
    assert out.dtype == jnp.float32
    wide = jax.tree.map(np.float32, mixture)
    exact = _reference(wide, x, 256).sum(axis=(1, 2))
    np.testing.assert_allclose(out, exact, rtol=3e-6)


@pytest.mark.parametrize('num_values', [2, 4, 17, 256])
def test_sums_to_one_whatever_the_parameters(num_values):
    """Catches closed tails, edges that do not meet, an approximation of the mass."""
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
    probs = np.exp(np.float64(log_prob(mixture, x, num_values=num_values)))
    totals = probs.reshape(num, num_values).sum(axis=1)
    np.testing.assert_allclose(totals, 1, rtol=0, atol=2e-6)


def _joint(mixture, num_values):
    """Return [V, V, V], the probabilities of all colours of the first pixel."""
    colours = list(itertools.product(range(num_values), repeat=3))
    x = np.array(colours, np.int32)[:, None, None]
    repeated = _repeat(mixture, len(x), 1, 1)
    out = np.float64(log_prob(repeated, x, num_values=num_values))
    return np.exp(out).reshape([num_values] * 3)


@pytest.mark.parametrize('num_values', [3, 4])
def test_colours_sum_to_one(num_values):
    """Catches a mean that is shifted by its own channel or by a later one."""
    for seed, factor in itertools.product(range(3), [1, 30]):
        mixture = jax.tree.map(lambda a: factor * a, _mixture((1, 1, 1), seed=seed))
        total = _joint(mixture, num_values).sum()
        np.testing.assert_allclose(total, 1, rtol=0, atol=2e-6)


def test_marginals_depend_on_their_own_coefficients():
    """Catches G following B: p(r) knows no coefficient, p(r, g) the first alone."""
    mixture = _mixture((1, 1, 1))
    joint = _joint(mixture, 4)
    for c in range(3):
        coeffs = mixture.coeffs.copy()
        coeffs[..., c, :] += 1
        other = _joint(mixture._replace(coeffs=coeffs), 4)
        assert np.abs(other - joint).max() > 1e-3
        red, pair = np.abs((other - joint).sum((1, 2))), np.abs((other - joint).sum(2))
        assert red.max() < 1e-6
        assert pair.max() > 1e-3 if c == 0 else pair.max() < 1e-6


@pytest.mark.parametrize('num_values', [2, 256])
def test_extremes(num_values):
    """Catches log(0), exp overflow, inf * 0, and a width that underflows to no mass and
    no gradient."""
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
        functools.partial(log_prob, x=x, num_values=num_values), mixture
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
    """Catches data of another V, which would get the masses of no bins."""
    mixture = _repeat(_mixture(), 4, 1, 1)
    x = np.zeros((4, 1, 1, 3), np.int32)
    x[:, 0, 0, 1] = [3, 4, -1, 0]
    out = log_prob(mixture, x, num_values=4)
    np.testing.assert_array_equal(np.isnan(out), [False, True, True, False])


def test_transforms_change_nothing():
    """Catches checks or Python branches that need concrete values."""
    mixture = _mixture((16, 1, 2))
    x = _data(mixture, 256)
    expected = _reference(mixture, x, 256).sum(axis=(1, 2))
    split = jax.tree.map(lambda a: a.reshape(8, 2, *a.shape[1:]), (mixture, x))
    for out in (jax.vmap(log_prob)(*split), jax.pmap(log_prob)(*split)):
        np.testing.assert_allclose(out.reshape(-1), expected, rtol=3e-6)


@pytest.mark.parametrize('x', [0, 1, 3])
def test_gradients(x):
    """Catches a gradient that is not that of the value, and float64 taken down."""
    with jax.enable_x64(True):
        mixture = jax.tree.map(np.float64, _mixture((1, 1, 1)))
        data = np.full((1, 1, 1, 3), x)
        out = log_prob(mixture, data, num_values=4)
        np.testing.assert_allclose(out, _reference(mixture, data, 4).ravel(), 1e-12)
        value_fn = functools.partial(log_prob, x=data, num_values=4)
        check_grads(value_fn, (mixture,), order=1, modes=['rev'])


def _quantile_reference(mixture, x, noise, num_values):
    """Return how many edges have a float64 cdf of at most u, for u above 0."""
    logits = np.asarray(mixture.logits, np.float64)
    cumulative = np.cumsum(scipy.special.softmax(logits, axis=-1), axis=-1)
    component = np.sum(cumulative[..., :-1] <= noise[..., :1], axis=-1)
    means, scales = (
        np.take_along_axis(a, component[..., None, None], axis=-1)
        for a in _means_and_scales(mixture, x, num_values)
    )
    edges = (2 * np.arange(1, num_values) - num_values) / (num_values - 1)
    cdfs = scipy.stats.logistic.cdf((edges - means) / scales)
    out = [np.searchsorted(c, u, side='right') for c, u in zip(
        cdfs.reshape(-1, num_values - 1), noise[..., 1:].ravel()
    )]
    return np.array(out).reshape(x.shape)


@pytest.mark.parametrize('channels', [1, 3])
@pytest.mark.parametrize('num_values', [2, 256])
def test_quantile_inverts_the_cdf(channels, num_values):
    """Catches bins half a level off, and a component drawn for each channel."""
    mixture = _mixture((2, 20, 20), channels=channels)
    x = _data(mixture, num_values)
    noise = np.random.default_rng(1).uniform(size=(2, 20, 20, channels + 1))
    exact = _quantile_reference(mixture, x, noise, num_values)
    with jax.enable_x64(True):
        wide = jax.tree.map(np.float64, mixture)
        out = quantile(wide, x, noise, num_values=num_values)
    assert out.dtype == jnp.int32
    np.testing.assert_array_equal(out, exact)
    # In float32 a value within rounding of an edge may come out on its other side.
    out = quantile(mixture, x, np.float32(noise), num_values=num_values)
    assert np.mean(out != exact) < 2e-3 and np.abs(out - exact).max() <= 1


def test_quantile_rises_with_the_noise():
    """Catches 1 - u for u, and a value above V-1 or below 0 at the ends."""
    mixture = _repeat(_mixture(num_components=1), 1, 1, 201)
    x = np.zeros((1, 1, 201, 3), np.int32)
    grid = np.concatenate([np.linspace(0, 0.99, 200), [SHARP]]).astype(np.float32)
    noise = np.repeat(grid, 4).reshape(1, 1, 201, 4)
    out = np.asarray(quantile(mixture, x, noise))
    assert np.diff(out, axis=2).min() >= 0 and len(np.unique(out)) > 10
    assert out.min() >= 0 and out.max() <= 255


def test_quantile_extremes():
    """Catches inf * 0, and the lowest value drawn at u = 0 however improbable."""
    values = itertools.product([100, -100, 0], [100, -100], [0, 0.5, SHARP], [0, SHARP])
    means, log_scales, u, u0 = np.float32(list(values)).T[:, :, None, None, None]
    mixture = LogisticMixture(
        np.broadcast_to(np.float32([100, -100]), (*means.shape[:-1], 2)),
        means[..., None] * np.float32([1, -1]),
        log_scales[..., None] * np.float32([1, 1]),
    )
    x = np.zeros(means.shape, np.int32)
    out = np.asarray(quantile(mixture, x, np.concatenate([u0, u], axis=-1))).ravel()
    means, log_scales, u = (a.ravel() for a in (means, log_scales, u))
    sharp, middle = log_scales == -100, means == 0
    np.testing.assert_array_equal(out[sharp & (means == 100)], 255)
    np.testing.assert_array_equal(out[sharp & (means == -100)], 0)
    np.testing.assert_array_equal(out[~sharp & (u == 0)], 0)
    np.testing.assert_array_equal(out[~sharp & (u == np.float32(SHARP))], 255)
    np.testing.assert_array_equal(out[middle & (u == 0.5)], 128)


def test_a_component_of_probability_zero_never_comes():
    """Catches a cumulative sum that rounds to below 1, or <= in the place of <."""
    logits = np.float32([-np.inf, 0, -np.inf, 0.1, 0.2, -np.inf])
    means = np.float32([-1, 1, -1, 1, 1, -1])
    u = np.concatenate([np.linspace(0, 0.99, 100), [SHARP]])[None, None, :, None]
    mixture = LogisticMixture(
        np.broadcast_to(logits, (1, 1, 101, 6)),
        np.broadcast_to(means, (1, 1, 101, 1, 6)),
        np.full((1, 1, 101, 1, 6), -7, np.float32),
    )
    noise = np.concatenate([u, np.full_like(u, 0.5)], axis=-1).astype(np.float32)
    out = quantile(mixture, np.zeros((1, 1, 101, 1), np.int32), noise)
    np.testing.assert_array_equal(out, 255)


def test_a_channel_depends_on_those_before_it_alone():
    """Catches a sampler that reads what it has not drawn yet."""
    mixture = _mixture((1, 8, 8))
    noise = np.random.default_rng(0).uniform(size=(1, 8, 8, 4)).astype(np.float32)
    x = _data(mixture, 256)
    out = quantile(mixture, x, noise)
    for c in range(3):
        changed = x.copy()
        changed[..., c] = 255 - x[..., c]
        same = np.asarray(quantile(mixture, changed, noise) == out)
        assert same[..., :c + 1].all()
        assert not any(same[..., later].all() for later in range(c + 1, 3))


def test_a_pixel_is_its_own():
    """Catches arithmetic across pixels: one alone has to give the same value."""
    mixture = _mixture((2, 3, 3))
    noise = np.random.default_rng(0).uniform(size=(2, 3, 3, 4)).astype(np.float32)
    x = _data(mixture, 256)
    out = quantile(mixture, x, noise)
    for at in np.ndindex(3, 3):
        pixel = (slice(None), *(slice(i, i + 1) for i in at))
        alone = quantile(
            jax.tree.map(lambda a: a[pixel], mixture), x[pixel], noise[pixel]
        )
        np.testing.assert_array_equal(alone, out[pixel])


def _chi_square(counts, probs):
    """Return the p-value, with values of an expectation below 5 taken together."""
    expected = probs.ravel() / probs.sum() * counts.sum()
    counts, rare = counts.ravel(), expected < 5
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    kept = expected > 0
    return scipy.stats.chisquare(counts[kept], expected[kept]).pvalue


def test_grey_samples_have_the_probabilities_of_the_likelihood(rng):
    """Catches a sampler and a likelihood that are of two distributions."""
    mixture = _mixture((1, 1, 1), channels=1)._replace(
        means=np.float32([-1.1, -0.2, 0.7]).reshape(1, 1, 1, 1, 3),
        log_scales=np.float32([-2, -5.5, -3]).reshape(1, 1, 1, 1, 3),
    )
    values = np.arange(256, dtype=np.int32)[:, None, None, None]
    probs = np.exp(np.float64(log_prob(_repeat(mixture, 256, 1, 1), values)))
    x = sample(rng, _repeat(mixture, 2, 150, 200))
    assert x.shape == (2, 150, 200, 1) and x.dtype == jnp.int32
    counts = np.bincount(np.ravel(x), minlength=256)
    assert _chi_square(counts, probs) > 1e-3
    assert np.all(counts[[0, 255]] > 50)


def test_colour_samples_have_the_probabilities_of_the_likelihood(rng):
    """Catches channels drawn apart, or given another component's means."""
    mixture = _mixture((1, 1, 1), seed=1)
    mixture = mixture._replace(log_scales=mixture.log_scales / 2)
    probs = _joint(mixture, 4)
    x = np.asarray(sample(rng, _repeat(mixture, 2, 100, 150), num_values=4))
    x = x.reshape(-1, 3)
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, tuple(x.T), 1)
    assert _chi_square(counts, probs) > 1e-3
    # Not the product of its marginals, so that independent channels would be seen.
    apart = np.einsum('i,j,k', probs.sum((1, 2)), probs.sum((0, 2)), probs.sum((0, 1)))
    assert _chi_square(counts, apart) < 1e-9


def test_a_sample_is_its_own(rng):
    """Catches noise drawn for the batch: it would change with the batch's size."""
    mixture = _repeat(_mixture(), 5, 4, 4)
    every = np.asarray(sample(rng, mixture))
    some = sample(rng, _repeat(mixture, 2, 4, 4))
    np.testing.assert_array_equal(every[:2], some)
    assert len(np.unique(every.reshape(5, -1), axis=0)) == 5
    assert len(np.unique(every[0].reshape(16, 3), axis=0)) > 1


def test_temper():
    """Catches a temperature of the logits alone, or of scales that are not in force."""
    mixture = _mixture()
    mixture.log_scales[..., 0] = -20
    warm = likelihoods.logistic_mixture_temper(mixture, 4.0)
    np.testing.assert_allclose(warm.logits, mixture.logits / 4)
    floored = np.maximum(mixture.log_scales, -7)
    np.testing.assert_allclose(np.exp(warm.log_scales), 4 * np.exp(floored), rtol=1e-5)
    np.testing.assert_array_equal(warm.means, mixture.means)
    np.testing.assert_array_equal(warm.coeffs, mixture.coeffs)
    x = _data(mixture, 256)
    same = likelihoods.logistic_mixture_temper(mixture, 1.0)
    np.testing.assert_array_equal(log_prob(same, x), log_prob(mixture, x))
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match='positive'):
            likelihoods.logistic_mixture_temper(mixture, temperature)


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
    """Catches silent broadcasting, which gives a number and no error."""
    mixture = _mixture()
    for call in _calls(change(mixture), _data(mixture, 256)):
        with pytest.raises(AssertionError):
            call()


@pytest.mark.parametrize('x', [
    jnp.zeros((2, 2, 2, 1), int),
    jnp.zeros((1, 2, 2, 3), int),
    jnp.zeros((2, 2, 3), int),
    jnp.zeros((2, 2, 2, 3)),
])
def test_wrong_data_raises(x):
    """Catches data that broadcast, and pixels that are already scaled."""
    for call in _calls(_mixture(), x)[2:]:
        with pytest.raises(AssertionError):
            call()


def test_wrong_noise_or_keys_raise():
    """Catches noise with no place for the component, and a key for each image."""
    mixture = _mixture()
    x = _data(mixture, 256)
    for shape in [(2, 2, 2, 3), (2, 2, 2, 1), (1, 2, 2, 4), (2, 2, 4)]:
        with pytest.raises(AssertionError):
            likelihoods.logistic_mixture_quantile(mixture, x, jnp.zeros(shape))
    with pytest.raises(AssertionError):
        keys = jax.random.split(jax.random.key(0), 2)
        likelihoods.logistic_mixture_sample(keys, mixture)


def test_wrong_coefficients_or_number_of_values_raise():
    """Catches colours that are modelled apart because the coefficients got lost."""
    colour, pair = _mixture(), _mixture(channels=2)
    for mixture in (
        colour._replace(coeffs=None), pair._replace(coeffs=colour.coeffs)
    ):
        for call in _calls(mixture, _data(mixture, 256)):
            with pytest.raises(ValueError, match='coeffs'):
                call()
    with pytest.raises(ValueError, match='num_values'):
        likelihoods.logistic_mixture_log_prob(colour, _data(colour, 1), num_values=1)
