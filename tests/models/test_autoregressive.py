"""The networks are autoregressive densities, in both of their faces."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import checks
from gm_jax.layers import causal, lstm
from gm_jax.losses import likelihoods
from gm_jax.models import made, nade, pixel_cnn, pixel_cnn_pp, pixel_rnn
from tests.models import densities

every_model = pytest.mark.parametrize('name', densities.NAMES)


def _reached(name, height, width, channels):
    """Return [D, D]: the values that two layers reach after a 3 x 3 mask A.

    All but the first may stay at the pixel (mask B).
    """
    rows, columns = np.divmod(np.arange(height * width), width)
    down, right = rows[:, None] - rows, columns[:, None] - columns
    stay = np.eye(height * width, dtype=bool)

    def around(half):
        left = (down == 0) & (right >= 1) & (right <= half)
        return left, (down == 1) & (abs(right) <= half)

    left, above = around(1)
    reached = (above | left).astype(int)
    left, above = around(2 if name == 'row_lstm_5' else 1)
    if name == 'pixel_cnn':
        layer = above | left | stay
    else:  # from row to row as far as there are rows: a triangle
        layer = np.linalg.matrix_power(stay + above, height) @ (stay + left)
    for _ in range(2):
        reached = np.minimum(layer @ reached, 1)
    earlier = np.tril(np.ones((channels, channels)), -1)
    others = np.kron(reached, np.ones((channels, channels)))
    return others + np.kron(stay, earlier) > 0


def _visible(name, shape):
    """Return what a model must see of what comes before; None for all of it."""
    if name in ('pixel_cnn', 'row_lstm', 'row_lstm_5'):  # which have their blind spots
        return _reached(name, *shape)
    if name == 'pixel_cnn_pp' and shape[2] > 1:  # whose mixture links the colours
        pixels = np.arange(np.prod(shape)) // shape[2]
        return pixels[:, None] > pixels
    return None


@pytest.mark.parametrize('channels, num_values', [(1, 2), (3, 4)])
@every_model
def test_sees_the_past_and_nothing_else(name, channels, num_values):
    """Catch a wrong shift, swapped masks, mixed colours, and a blind spot."""
    shape = (2, 4, 4, channels)
    model = densities.make(name, shape[1:], num_values)
    target = np.random.default_rng(0).integers(0, num_values, shape)
    checks.assert_causal(
        lambda x: model.terms(x, target), shape, order=model.order,
        visible=_visible(name, shape[1:]),
    )


def test_blind_spot():
    """Catch a check that does not look for it: the PixelCNN cannot see up right."""
    shape = (2, 3, 4, 1)
    model = densities.make('pixel_cnn', shape[1:], 2)
    with pytest.raises(AssertionError, match='blind spot'):
        checks.assert_causal(lambda x: model.terms(x, np.ones(shape, int)), shape)


@pytest.mark.parametrize('shape, num_values', [((2, 2, 1), 2), ((1, 2, 1), 4),
                                               ((1, 1, 3), 4), ((1, 2, 3), 2)])
@every_model
def test_is_normalised(name, shape, num_values):
    """Catch a pixel or a colour that sees itself, which is no future."""
    model = densities.make(name, shape, num_values)
    checks.assert_normalized(model.log_prob, shape, num_values)


@pytest.mark.parametrize('kernel_size', [1, 2, 4])
def test_a_row_lstm_has_a_centre(kernel_size):
    """Catch a kernel that sees other columns than it says."""
    x = jnp.zeros((1, 2, 2, 1), jnp.int32)
    model = pixel_rnn.PixelRNN((2, 2, 1), 2, cell='row_lstm', kernel_size=kernel_size)
    with pytest.raises(ValueError, match=f'or more, not {kernel_size}'):
        model.init(jax.random.key(0), x)
    if kernel_size > 1:
        outside = lstm.States(*jnp.zeros((2, 1)))
        kernel = jnp.zeros((kernel_size, 1, 4))
        with pytest.raises(ValueError, match='has no centre'):
            lstm.over_rows(jnp.zeros((1, 2, 2, 4)), kernel, outside)


def _plant(monkeypatch, cls, **fields):
    """Make every instance of a layer ignore what it was told."""
    original = cls.__post_init__

    def changed(self):
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        original(self)

    monkeypatch.setattr(cls, '__post_init__', changed)


def _leaks(name, shape=(2, 3, 3, 3)):
    model = densities.make(name, shape[1:], 4)
    with pytest.raises(AssertionError, match='which comes later'):
        checks.assert_causal(
            lambda x: model.terms(x, np.ones(shape, int)), shape, order=model.order,
            visible=np.zeros((27, 27), bool),
        )


@pytest.mark.parametrize('name, layer, fields', [
    # The stacks are joined a row too early.
    ('gated_pixel_cnn', causal.Above, {'inclusive': True}),
    # Every colour sees the later ones.
    ('gated_pixel_cnn', causal.Here, {'channels': 1}),
    ('pixel_cnn', causal.Here, {'channels': 1}),
])
def test_planted_leaks_are_found(name, layer, fields, monkeypatch):
    """Catch a check that would pass anything."""
    _plant(monkeypatch, layer, **fields)
    _leaks(name)


@pytest.mark.parametrize('shift', ['shift_down', 'shift_right'])
def test_planted_lack_of_a_shift_is_found(shift, monkeypatch):
    """Catch a check that would pass a PixelCNN++ that sees the pixel itself."""
    monkeypatch.setattr(pixel_cnn_pp, shift, lambda x: x)
    if shift == 'shift_down':
        _leaks('pixel_cnn_pp')
    model = densities.make('pixel_cnn_pp', (1, 2, 1), 4)
    with pytest.raises(AssertionError):
        checks.assert_normalized(model.log_prob, (1, 2, 1), 4)


def test_planted_lack_of_the_shift_of_the_mirrored_copy_is_found(monkeypatch):
    """Catch a check that would pass what everyone forgets of the Diagonal BiLSTM."""
    monkeypatch.setattr(pixel_rnn, 'shift_down', lambda x: x)
    _leaks('diagonal_bilstm')


def test_skew():
    """Catch a row that is shifted by another number than its own."""
    x = np.arange(1, 25.0).reshape(2, 3, 4, 1)
    skewed = lstm.skew(x)
    expected = [[1, 2, 3, 4, 0, 0], [0, 5, 6, 7, 8, 0], [0, 0, 9, 10, 11, 12]]
    np.testing.assert_array_equal(skewed[0, ..., 0], expected)
    np.testing.assert_array_equal(lstm.unskew(skewed, 4), x)


@pytest.mark.parametrize('batch', [2, 3])
def test_images_side_by_side_do_not_meet(batch):
    """Catch a diagonal that carries the states of one image into the next."""
    layer = pixel_rnn.Diagonals(features=3)
    gates = jax.random.normal(jax.random.key(0), (batch, 4, 5, 12))
    params = layer.init(jax.random.key(1), gates)
    # Of states outside the image that are 0 nothing would be seen to be missing.
    params = jax.tree.map(lambda a: a + 0.5, params)
    alone = jnp.concatenate([layer.apply(params, x[None]) for x in gates])
    np.testing.assert_allclose(layer.apply(params, gates), alone, atol=1e-6)


def test_planted_degrees_are_found(monkeypatch):
    """Catch a check that would pass a MADE whose masks keep one degree too many."""
    mask = made.mask
    monkeypatch.setattr(made, 'mask', lambda m, m_next: mask(m, m_next + 1))
    _leaks('made')


def test_masks_and_orders_are_those_of_the_seed():
    """Catch a NumPy that draws others, with which no trained MADE or NADE is right.

    Checkpoints do not hold what is drawn from the seed.
    """
    masks = made.draw_masks(np.random.default_rng(0), 12, (6, 5), shuffle=True)
    assert masks.rank.tolist() == [9, 2, 7, 4, 5, 11, 0, 3, 6, 10, 8, 1]
    assert [units.tolist() for units in masks.degrees] == [
        [4, 9, 8, 1, 5, 10], [7, 1, 9, 9, 10]
    ]


def test_several_masks_of_made():
    """Catch masks that are nearly one, of which an average gains nothing."""
    rng = np.random.default_rng(0)
    masks = [made.draw_masks(rng, 4, (900,), shuffle=False) for _ in range(2)]
    first, second = (m.rank[:, None] < m.degrees[0] for m in masks)
    # Degrees 1, 2, 3 of D - 1 = 3: values 1 and 2 are seen by 2/3 and by 1/3 of the
    # units, and two masks differ at 2 p (1 - p) = 4/9 of these.
    differ = (first != second).mean(axis=1)
    np.testing.assert_allclose(differ, [0, 4 / 9, 4 / 9, 0], atol=0.06)
    model = made.MADE((2, 2, 1), 2, hidden=(900,))
    for mask in masks:
        x = jnp.zeros((1, 2, 2, 1), jnp.int32)
        variables = jax.tree.map(
            lambda a: a + 0.1 * jnp.cos(jnp.arange(a.size)).reshape(a.shape),
            model.init(jax.random.key(0), x, mask),
        )
        checks.assert_normalized(
            lambda x: likelihoods.bernoulli_log_prob(
                model.apply(variables, x, mask), x
            ), (2, 2, 1), 2,
        )


def test_made_without_direct_connections():
    """Catch a sum that lacks more than A: with A = 0 they may as well be left out."""
    rng = np.random.default_rng(0)
    masks = made.ascending(made.draw_masks(rng, 4, (6,), shuffle=True))
    model = made.MADE((2, 2, 1), 3, hidden=(6,))
    x = jnp.asarray(rng.integers(0, 3, (5, 2, 2, 1)))
    variables = jax.tree.map(
        lambda a: jnp.cos(jnp.arange(a.size)).reshape(a.shape),
        model.init(jax.random.key(0), x, masks),
    )
    without = {k: v for k, v in variables['params'].items() if k != 'a'}
    results = [
        (
            module.apply({'params': params}, x, masks),
            module.apply(
                {'params': params}, (jnp.ones((5, 6)),), (), x.reshape(5, 4, 1), 0,
                jnp.int32(2), masks, method='pixel',
            )[1],
        ) for module, params in (
            (model, {**without, 'a': 0 * variables['params']['a']}),
            (model.clone(direct=False), without),
        )
    ]
    chex.assert_trees_all_equal(*results)


@pytest.mark.parametrize('name', ['pixel_cnn', 'gated_pixel_cnn'])
def test_planted_mask_b_is_found(name, monkeypatch):
    """Catch mask B in the first layer: a colour that sees its own value."""
    _plant(monkeypatch, causal.Here, strict=False)
    model = densities.make(name, (1, 1, 3), 3)
    with pytest.raises(AssertionError):
        checks.assert_normalized(model.log_prob, (1, 1, 3), 3)


def test_planted_swap_of_masks_is_found(monkeypatch):
    """Catch masks A and B swapped, where there are no colours to tell."""
    setup = pixel_cnn.MaskedConv.setup

    def swapped(self):
        object.__setattr__(self, 'strict', not self.strict)
        setup(self)

    monkeypatch.setattr(pixel_cnn.MaskedConv, 'setup', swapped)
    model = densities.make('pixel_cnn', (2, 2, 1), 2)
    with pytest.raises(AssertionError):
        checks.assert_normalized(model.log_prob, (2, 2, 1), 2)


@pytest.mark.parametrize('name, channels, condition', [
    *((name, 1, None) for name in densities.NAMES),
    *((name, 3, 'class') for name in densities.NAMES),
    # Not convolutional, NADE and MADE have no place for a map.
    *((name, 1, 'map') for name in densities.NAMES if name not in ('nade', 'made')),
])
def test_rows_and_pixels_are_the_same_network(name, channels, condition):
    """Catch a cache that is a row or a pixel off, at any position."""
    shape = (5, 6, channels)
    h = {
        None: None,
        'class': jnp.eye(3)[jnp.array([0, 2])],
        'map': jax.random.normal(jax.random.key(5), (2, *shape[:2], 3)),
    }[condition]
    model = densities.make(name, shape, 4, h=h)
    x = np.random.default_rng(1).integers(0, 4, (2, *shape))
    expected = jax.tree.map(np.asarray, jax.jit(model.params)(x))
    if model.order is not None:  # the values are the columns of one row
        x = x.reshape(2, 1, -1, 1)[:, :, model.order]
        expected = expected.reshape(2, 1, -1, 1, 4)[:, :, model.order]
    rows, columns = np.indices(x.shape[1:3])
    state, first_left, features = model.network.start(2)
    row, pixel = jax.jit(model.network.row), jax.jit(model.network.pixel)
    for r in range(x.shape[1]):
        # What comes later must not matter.
        past = np.where((rows < r)[..., None], x, 3)
        state, context = jax.tree.map(np.asarray, row(state, features, past, r))
        left, seen = first_left, []
        for w in range(x.shape[2]):
            here = jax.tree.map(lambda a: a[:, w], context)
            past = np.where((columns[r] <= w)[:, None], x[:, r], 3)
            left, params, new = pixel(left, here, past, r, w)
            for got, want in zip(jax.tree.leaves(params), jax.tree.leaves(expected)):
                np.testing.assert_allclose(got, want[:, r, w], rtol=1e-5, atol=1e-5)
            seen.append(jax.tree.map(np.asarray, new))
        features = jax.tree.map(lambda *a: np.stack(a, axis=1), *seen)


@every_model
def test_condition_matters(name):
    """Catch a condition that reaches nothing, and an image of another shape."""
    shape = (4, 4, 1)
    model = densities.make(name, shape, 2, h=jnp.eye(2))
    params = jax.jit(model.params)(jnp.ones((2, *shape), jnp.int32))
    assert all(not np.allclose(a[0], a[1]) for a in jax.tree.leaves(params))
    with pytest.raises(AssertionError):
        model.params(jnp.ones((2, 3, 4, 1), jnp.int32))


def test_nade_drops_a_unit_for_all_values_of_an_image():
    """Catch a mask that changes from value to value, and one for all images."""
    model = nade.NADE((2, 3, 1), 2, hidden=1, dropout=0.5)
    x = np.random.default_rng(0).integers(0, 2, (64, 2, 3, 1))
    variables = model.init(jax.random.key(0), x)  # b = 0
    whole = model.apply(variables, x)
    dropped = model.apply(variables, x, None, jax.random.key(1))
    kept = np.asarray(dropped != 0).reshape(64, -1)
    assert (kept == kept[:, :1]).all() and 16 < kept[:, 0].sum() < 48
    np.testing.assert_allclose(dropped[kept[:, 0]], 2 * whole[kept[:, 0]], rtol=1e-5)
