"""The multi-scale PixelCNN is a density, and its samplers agree, in both kinds."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import multiscale_pixel_cnn
from gm_jax.data import image_set
from gm_jax.evaluation import checks
from gm_jax.families.autoregressive import generate_and_sweep
from gm_jax.functions import functions
from gm_jax.layers.pixels import join, quarters
from gm_jax.losses import likelihoods
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.models.multiscale_pixel_cnn import ParallelStage
from gm_jax.sampling import autoregressive

both_kinds = pytest.mark.parametrize('stages', ['parallel', 'raster'])


def _make(
    stages, image_shape, num_values, num_stages=1, dtype='float32', features=24
):
    """Return (model, variables) away from where training starts."""
    config = vars(multiscale_pixel_cnn.Config(
        stages=stages, num_stages=num_stages, features=features, num_layers=1,
        head=features,
    ))
    data = image_set.ImageSet(
        name='none', image_shape=image_shape, num_values=num_values, num_classes=0,
        splits={},
    )
    model = multiscale_pixel_cnn.make_model(
        types.SimpleNamespace(**{**config, 'dtype': dtype}), data
    )
    x = jnp.zeros((1, *image_shape), jnp.int32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, None)
    rng = np.random.default_rng(0)

    def draw(shape):
        values = 0.2 * np.cos(np.arange(shape.size)).reshape(shape.shape)
        if len(shape.shape) > 1:
            fan_in = shape.size / shape.shape[-1]
            values += 2 * rng.normal(size=shape.shape) / fan_in ** 0.5
        return jnp.asarray(values, dtype)

    return model, jax.tree.map(draw, shapes)


def _logits(model, variables):
    return lambda x: model.apply(variables, x, None, rngs=None, step=0, chunk=0)


@pytest.mark.parametrize('channels, num_values', [(1, 2), (3, 4)])
@both_kinds
def test_sees_the_past_and_nothing_else(stages, channels, num_values):
    """Catch a group that sees itself, mixed colours, and a group left out."""
    shape = (2, 4, 4, channels)
    model, variables = _make(stages, shape[1:], num_values)
    logits = _logits(model, variables)

    def terms(x):
        out = logits(x)
        if num_values == 2:
            return out - jax.nn.softplus(out)
        return jax.nn.log_softmax(out)[..., 1]

    visible = None
    if stages == 'parallel':
        rank = np.argsort(model.order)
        groups = 4 * rank // len(rank)  # of equal size
        pixels = np.arange(np.prod(shape[1:])) // channels
        visible = groups[:, None] > groups
        # In the small image, and among the colours of a pixel.
        visible |= (groups[:, None] == 0) & (rank[:, None] > rank)
        visible |= (pixels[:, None] == pixels) & (rank[:, None] > rank)
        assert (model.rank[:, None] > model.rank)[visible].all()
        assert len(np.unique(model.rank)) < len(rank)
    checks.assert_causal(terms, shape, order=model.order, visible=visible)


@pytest.mark.parametrize('shape, num_values', [((2, 2, 1), 2), ((2, 2, 1), 4),
                                               ((2, 2, 3), 2)])
@both_kinds
def test_is_normalised(stages, shape, num_values):
    """Catch a factor that is counted twice, or not at all."""
    model, variables = _make(stages, shape, num_values, features=6)
    logits = _logits(model, variables)
    checks.assert_normalized(
        lambda x: model.distribution.log_prob(logits(x), x), shape, num_values
    )


def test_planted_group_that_sees_itself_is_found(monkeypatch):
    """Catch a check that would pass pixels that are generated from themselves."""
    original = ParallelStage.logits
    monkeypatch.setattr(
        ParallelStage, 'logits', lambda self, n, y, x: original(self, n, y + x, x)
    )
    model, variables = _make('parallel', (2, 2, 1), 2)
    logits = _logits(model, variables)
    with pytest.raises(AssertionError):
        checks.assert_normalized(
            lambda x: model.distribution.log_prob(logits(x), x), (2, 2, 1), 2
        )


@pytest.mark.parametrize('shape, num_values, num_stages', [
    ((8, 8, 1), 2, 2), pytest.param((4, 8, 3), 256, 1, marks=pytest.mark.long),
])
@both_kinds
def test_same_integers(stages, shape, num_values, num_stages):
    """Catch noise that goes to another pixel, and given pixels that are not kept."""
    with jax.enable_x64(True):
        model, variables = _make(stages, shape, num_values, num_stages, 'float64')
        generate, sweep = map(jax.jit, generate_and_sweep(model))
        rngs, rng = jax.random.split(jax.random.key(2), 3), np.random.default_rng(3)
        uniform = autoregressive.noise(rngs, shape, model.distribution.num_noise)
        x = rng.integers(0, num_values, (3, *shape), np.int32)
        half = rng.random(x.shape) < 0.5
        for known in (np.zeros_like(half), half):
            expected = autoregressive.ancestral(
                lambda x: sweep(variables, x, uniform), x, known, order=model.order
            )
            solved, _ = autoregressive.fixed_point(
                lambda x: sweep(variables, x, uniform), np.where(known, x, 0), known
            )
            np.testing.assert_array_equal(solved, expected)
            got = generate(variables, x, known, uniform)
            np.testing.assert_array_equal(got, expected)
            np.testing.assert_array_equal(expected[known], x[known])


def test_quarters():
    """Catch rows that are taken for columns."""
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    parts = quarters(x)
    np.testing.assert_array_equal(parts[1], x[:, ::2, 1::2])
    np.testing.assert_array_equal(join(parts), x)


def _tiny(stages, num_stages):
    """Return the experiment, all images of its size as bits, and sharp variables."""
    side = 2 ** num_stages
    num_dims = side * side
    x = (np.arange(2 ** num_dims)[:, None] >> np.arange(num_dims)) & 1
    x = x.reshape(-1, side, side, 1).astype(np.uint8)
    examples = image_set.ArrayExamples(x, np.zeros(len(x), np.int32))
    data = image_set.ImageSet(
        name='bits', image_shape=x.shape[1:], num_values=2, num_classes=0,
        splits={'train': examples, 'test': examples},
    )
    config = multiscale_pixel_cnn.Config(
        stages=stages, num_stages=num_stages, features=6, num_layers=1, head=6
    )
    experiment = multiscale_pixel_cnn.main.build(config, data)
    _, variables = _make(stages, x.shape[1:], 2, num_stages, features=6)
    return functions(experiment, data, config), experiment, x, variables


@both_kinds
def test_results_are_exact_and_of_all_pixels(stages):
    """Catch the likelihood of a part of the pixels, or of a mean instead of them."""
    pure, experiment, x, variables = _tiny(stages, 2)
    log_px = np.float64(jax.jit(pure.log_prob)(variables, jax.random.key(0), x))
    np.testing.assert_allclose(np.exp(log_px).sum(), 1, atol=1e-4)
    numbers = experiment.evaluation.summarize({'log_px': log_px[:, None]})
    assert numbers['estimator'] == 'exact'
    np.testing.assert_allclose(numbers['nats_per_image'], -log_px.mean())
    bits = -log_px.mean() / 16 / np.log(2)
    np.testing.assert_allclose(numbers['bits_per_dim'], bits, rtol=1e-6)


@both_kinds
def test_each_factor_is_a_distribution(stages):
    """Catch factors that are only together normalised: they mean nothing alone."""
    pure, _, x, variables = _tiny(stages, 1)
    log_px = np.float64(jax.jit(pure.log_prob)(variables, jax.random.key(0), x))
    base = GatedPixelCNN(
        (1, 1, 1), 2, features=6, num_layers=1, kernel_sizes=(3,), head=6
    )
    small = x[:, ::2, ::2]
    logits = base.apply({'params': variables['params']['base']}, small)
    log_small = np.float64(likelihoods.bernoulli_log_prob(logits, small))
    assert abs(np.exp(log_small[0]) - 0.5) > 0.01
    for value in (0, 1):  # p(x | small image) of the eight images that have it
        rest = (log_px - log_small)[small[:, 0, 0, 0] == value]
        np.testing.assert_allclose(np.exp(rest).sum(), 1, atol=1e-5)


@both_kinds
def test_samples_are_as_frequent_as_their_probability(stages):
    """Catch a sampler of another model than the one whose likelihood is told."""
    pure, _, x, variables = _tiny(stages, 1)
    num = 20_000
    p = np.exp(np.float64(
        jax.jit(pure.log_prob)(variables, jax.random.key(0), x)
    ))
    rngs = jax.random.split(jax.random.key(1), num)
    drawn = np.asarray(jax.jit(pure.sample)(variables, rngs)) // 255
    place = drawn.reshape(num, -1) @ (1 << np.arange(4))
    counts = np.bincount(place, minlength=16)
    assert stats.chisquare(counts, num * p / p.sum()).pvalue > 1e-3
    assert stats.chisquare(counts).pvalue < 1e-6  # it would find other frequencies
