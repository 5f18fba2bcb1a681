"""PixelCNN and Gated PixelCNN are autoregressive densities, in both of their faces."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import checks
from gm_jax.layers import causal
from gm_jax.losses import likelihoods
from gm_jax.models.gated_pixel_cnn import GatedPixelCNN
from gm_jax.models.pixel_cnn import PixelCNN

# Wide enough that no ReLU hides all paths of a colour.
SMALL = dict(features=24, first_kernel=3, head=24)
MODELS = {
    'gated': lambda *args: GatedPixelCNN(
        *args, num_layers=2, kernel_sizes=(3,), **SMALL
    ),
    'pixel_cnn': lambda *args: PixelCNN(*args, num_blocks=2, **SMALL),
}
every_model = pytest.mark.parametrize('name', MODELS)


def _model(name, image_shape, num_values):
    """Returns a network and variables away from where training starts."""
    model, rng = MODELS[name](image_shape, num_values), jax.random.key(0)
    variables = jax.jit(model.init)(rng, jnp.zeros((1, *image_shape), jnp.int32))
    leaves, tree = jax.tree.flatten(variables)
    rngs = jax.random.split(rng, len(leaves))
    return model, jax.tree.unflatten(tree, [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, rngs)
    ])


def _terms(model, variables, target):
    """Returns x -> log p(target_i | x_1 ... x_{i-1}), differentiable in x."""
    def terms(x):
        logits = model.apply(variables, x)
        if model.num_values == 2:
            return target * logits - jax.nn.softplus(logits)
        return jnp.take_along_axis(
            jax.nn.log_softmax(logits), target[..., None], axis=-1
        )[..., 0]

    return terms


def _reached(height, width, channels, num_blocks):
    """Returns [D, D]: the values that masked 3 x 3 convolutions reach, layer on layer.

    All but the first may stay at the pixel (mask B).
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    step = ((down == 1) & (abs(right) <= 1)) | ((down == 0) & (right == 1))
    stay = np.eye(height * width, dtype=bool)
    reached = step.astype(int)
    for _ in range(num_blocks):
        reached = np.minimum((step | stay) @ reached + reached @ (step | stay), 1)
    earlier = np.tril(np.ones((channels, channels)), -1)
    others = np.kron(reached, np.ones((channels, channels)))
    return others + np.kron(stay, earlier) > 0


@pytest.mark.parametrize('channels, num_values', [(1, 2), (3, 4)])
@every_model
def test_sees_the_past_and_nothing_else(name, channels, num_values):
    """Catches a wrong shift, swapped masks, mixed colours, and a blind spot."""
    shape = (2, 4, 4, channels)
    model, variables = _model(name, shape[1:], num_values)
    target = np.random.default_rng(0).integers(0, num_values, shape)
    # The PixelCNN has its blind spot; the gated network sees everything before.
    visible = _reached(4, 4, channels, 2) if name == 'pixel_cnn' else None
    checks.assert_causal(_terms(model, variables, target), shape, visible=visible)


def test_blind_spot():
    """Catches a check that does not look for it: the PixelCNN cannot see up right."""
    shape = (2, 3, 4, 1)
    model, variables = _model('pixel_cnn', shape[1:], 2)
    with pytest.raises(AssertionError, match='blind spot'):
        checks.assert_causal(_terms(model, variables, np.ones(shape, int)), shape)


@pytest.mark.parametrize('shape, num_values', [((2, 2, 1), 2), ((1, 2, 1), 4),
                                               ((1, 1, 3), 4), ((1, 2, 3), 2)])
@every_model
def test_is_normalised(name, shape, num_values):
    """Catches a pixel or a colour that sees itself, which is no future."""
    model, variables = _model(name, shape, num_values)
    distribution = (
        likelihoods.bernoulli_log_prob if num_values == 2
        else likelihoods.categorical_log_prob
    )
    checks.assert_normalized(
        lambda x: distribution(model.apply(variables, x), x), shape, num_values
    )


def _plant(monkeypatch, cls, **fields):
    """Makes every instance of a layer ignore what it was told."""
    original = cls.__post_init__

    def changed(self):
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        original(self)

    monkeypatch.setattr(cls, '__post_init__', changed)


@pytest.mark.parametrize('layer, fields, message', [
    # The row itself is seen too early.
    (causal.Above, {'inclusive': True}, 'which comes later'),
    # Every colour sees the later ones.
    (causal.Here, {'channels': 1}, 'which comes later'),
])
def test_planted_leaks_are_found(monkeypatch, layer, fields, message):
    """Catches a check that would pass anything."""
    shape = (2, 3, 3, 3)
    _plant(monkeypatch, layer, **fields)
    model, variables = _model('gated', shape[1:], 4)
    with pytest.raises(AssertionError, match=message):
        checks.assert_causal(_terms(model, variables, np.ones(shape, int)), shape)


@every_model
def test_planted_mask_b_is_found(name, monkeypatch):
    """Catches mask B in the first layer: a colour that sees its own value."""
    _plant(monkeypatch, causal.Here, strict=False)
    model, variables = _model(name, (1, 1, 3), 3)
    with pytest.raises(AssertionError):
        checks.assert_normalized(
            lambda x: likelihoods.categorical_log_prob(model.apply(variables, x), x),
            (1, 1, 3), 3,
        )


@pytest.mark.parametrize('channels, conditional', [(1, False), (3, True)])
@every_model
def test_rows_and_pixels_are_the_same_network(name, channels, conditional):
    """Catches a cache that is a row or a pixel off, at any position."""
    shape, h = (5, 4, channels), None
    model, variables = _model(name, shape, 4)
    x = jnp.asarray(np.random.default_rng(1).integers(0, 4, (2, *shape)))
    if conditional:
        h = jnp.eye(3)[jnp.array([0, 2])]
        variables = jax.jit(model.init)(jax.random.key(5), x, h)
    expected = jax.jit(model.apply)(variables, x, h)
    state, first_left, features = model.apply(variables, 2, method='start')
    row = jax.jit(lambda *args: model.apply(variables, *args, h, method='row'))
    pixel = jax.jit(lambda *args: model.apply(variables, *args, method='pixel'))
    for r in range(5):
        # What comes later must not matter.
        state, context = row(state, features, x.at[:, r:].set(3), r)
        left, seen = first_left, []
        for w in range(4):
            here = jax.tree.map(lambda a: a[:, w], context)
            left, logits, new = pixel(left, here, x[:, r].at[:, w + 1:].set(3), r, w)
            np.testing.assert_allclose(logits, expected[:, r, w], rtol=1e-5, atol=1e-5)
            seen.append(new)
        features = jax.tree.map(lambda *a: jnp.stack(a, axis=1), *seen)


@every_model
def test_condition_matters(name):
    """Catches a condition that reaches neither stack."""
    shape = (4, 4, 1)
    model = MODELS[name](shape, 2)
    x = jnp.ones((2, *shape), jnp.int32)
    variables = jax.jit(model.init)(jax.random.key(0), x, jnp.eye(2))
    logits = jax.jit(model.apply)(variables, x, jnp.eye(2))
    assert not np.allclose(logits[0], logits[1])
    with pytest.raises(AssertionError):
        model.apply(variables, x[:, :3])
