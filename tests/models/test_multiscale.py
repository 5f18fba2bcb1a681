"""The multi-scale PixelCNN is a density, and its samplers agree, in both kinds."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import multiscale_pixel_cnn
from gm_jax.data import image_set
from gm_jax.evaluation import checks
from gm_jax.families.autoregressive import generate_and_sweep
from gm_jax.layers.pixels import join, quarters
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
                                               ((2, 2, 3), 2), ((4, 4, 1), 2)])
@both_kinds
def test_is_normalised(stages, shape, num_values):
    """Catch a factor that is counted twice, or not at all."""
    num_stages = 2 if shape[0] == 4 else 1
    model, variables = _make(stages, shape, num_values, num_stages, features=6)
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
