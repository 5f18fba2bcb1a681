"""Values drawn from the logistic mixture: the inverse of its likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

from gm_jax.losses import likelihoods
from gm_jax.losses.likelihoods import LogisticMixture
from tests.losses import mixtures

SHARP = 1 - 2.0 ** -24  # The largest float32 below 1.

quantile = jax.jit(
    likelihoods.logistic_mixture_quantile, static_argnames='num_values'
)
sample = jax.jit(likelihoods.logistic_mixture_sample, static_argnames='num_values')


def _quantile_reference(mixture, x, noise, num_values):
    """Return how many edges have a float64 cdf of at most u, for u above 0."""
    logits = np.asarray(mixture.logits, np.float64)
    cumulative = np.cumsum(scipy.special.softmax(logits, axis=-1), axis=-1)
    component = np.sum(cumulative[..., :-1] <= noise[..., :1], axis=-1)
    means, scales = (
        np.take_along_axis(a, component[..., None, None], axis=-1)
        for a in mixtures.means_and_scales(mixture, x, num_values)
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
    """Catch bins half a level off, and a component drawn for each channel."""
    mixture = mixtures.mixture((2, 20, 20), channels=channels)
    x = mixtures.data(mixture, num_values)
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
    """Catch 1 - u for u, and a value above V-1 or below 0 at the ends."""
    mixture = mixtures.repeat(mixtures.mixture(num_components=1), 1, 1, 201)
    x = np.zeros((1, 1, 201, 3), np.int32)
    grid = np.concatenate([np.linspace(0, 0.99, 200), [SHARP]]).astype(np.float32)
    noise = np.repeat(grid, 4).reshape(1, 1, 201, 4)
    out = np.asarray(quantile(mixture, x, noise))
    assert np.diff(out, axis=2).min() >= 0 and len(np.unique(out)) > 10
    assert out.min() >= 0 and out.max() <= 255


def test_quantile_extremes():
    """Catch inf * 0, and the lowest value drawn at u = 0 however improbable."""
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
    """Catch a cumulative sum that rounds to below 1, or <= in the place of <."""
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
    """Catch a sampler that reads what it has not drawn yet."""
    mixture = mixtures.mixture((1, 8, 8))
    noise = np.random.default_rng(0).uniform(size=(1, 8, 8, 4)).astype(np.float32)
    x = mixtures.data(mixture, 256)
    out = quantile(mixture, x, noise)
    for c in range(3):
        changed = x.copy()
        changed[..., c] = 255 - x[..., c]
        same = np.asarray(quantile(mixture, changed, noise) == out)
        assert same[..., :c + 1].all()
        assert not any(same[..., later].all() for later in range(c + 1, 3))


def test_a_pixel_is_its_own():
    """Catch arithmetic across pixels: one alone has to give the same value."""
    mixture = mixtures.mixture((2, 3, 3))
    noise = np.random.default_rng(0).uniform(size=(2, 3, 3, 4)).astype(np.float32)
    x = mixtures.data(mixture, 256)
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
    """Catch a sampler and a likelihood that are of two distributions."""
    mixture = mixtures.mixture((1, 1, 1), channels=1)._replace(
        means=np.float32([-1.1, -0.2, 0.7]).reshape(1, 1, 1, 1, 3),
        log_scales=np.float32([-2, -5.5, -3]).reshape(1, 1, 1, 1, 3),
    )
    values = np.arange(256, dtype=np.int32)[:, None, None, None]
    log_probs = mixtures.log_prob(mixtures.repeat(mixture, 256, 1, 1), values)
    probs = np.exp(np.float64(log_probs))
    x = sample(rng, mixtures.repeat(mixture, 2, 150, 200))
    assert x.shape == (2, 150, 200, 1) and x.dtype == jnp.int32
    counts = np.bincount(np.ravel(x), minlength=256)
    assert _chi_square(counts, probs) > 1e-3
    assert np.all(counts[[0, 255]] > 50)


def test_colour_samples_have_the_probabilities_of_the_likelihood(rng):
    """Catch channels drawn apart, or given another component's means."""
    mixture = mixtures.mixture((1, 1, 1), seed=1)
    mixture = mixture._replace(log_scales=mixture.log_scales / 2)
    probs = mixtures.joint(mixture, 4)
    x = np.asarray(sample(rng, mixtures.repeat(mixture, 2, 100, 150), num_values=4))
    x = x.reshape(-1, 3)
    counts = np.zeros((4, 4, 4))
    np.add.at(counts, tuple(x.T), 1)
    assert _chi_square(counts, probs) > 1e-3
    # Not the product of its marginals, so that independent channels would be seen.
    apart = np.einsum('i,j,k', probs.sum((1, 2)), probs.sum((0, 2)), probs.sum((0, 1)))
    assert _chi_square(counts, apart) < 1e-9


def test_a_sample_is_its_own(rng):
    """Catch noise drawn for the batch: it would change with the batch's size."""
    mixture = mixtures.repeat(mixtures.mixture(), 5, 4, 4)
    every = np.asarray(sample(rng, mixture))
    some = sample(rng, mixtures.repeat(mixture, 2, 4, 4))
    np.testing.assert_array_equal(every[:2], some)
    assert len(np.unique(every.reshape(5, -1), axis=0)) == 5
    assert len(np.unique(every[0].reshape(16, 3), axis=0)) > 1


def test_temper():
    """Catch a temperature of the logits alone, or of scales that are not in force."""
    mixture = mixtures.mixture()
    mixture.log_scales[..., 0] = -20
    warm = likelihoods.logistic_mixture_temper(mixture, 4.0)
    np.testing.assert_allclose(warm.logits, mixture.logits / 4)
    floored = np.maximum(mixture.log_scales, -7)
    np.testing.assert_allclose(np.exp(warm.log_scales), 4 * np.exp(floored), rtol=1e-5)
    np.testing.assert_array_equal(warm.means, mixture.means)
    np.testing.assert_array_equal(warm.coeffs, mixture.coeffs)
    x = mixtures.data(mixture, 256)
    same = likelihoods.logistic_mixture_temper(mixture, 1.0)
    expected = mixtures.log_prob(mixture, x)
    np.testing.assert_array_equal(mixtures.log_prob(same, x), expected)
    for temperature in (0, -1.0):
        with pytest.raises(ValueError, match='positive'):
            likelihoods.logistic_mixture_temper(mixture, temperature)
