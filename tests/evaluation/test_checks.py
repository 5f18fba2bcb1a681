"""The checks pass a density that is right, and name what is wrong with the others."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import checks

SHAPE = (2, 2, 2, 2)  # B, H, W, C
DIMS = 8
PERMUTED = np.array([5, 0, 7, 2, 1, 6, 3, 4])
WEIGHTS = np.random.default_rng(0).normal(size=(DIMS, DIMS)).astype(np.float32)


def _mask(order=range(DIMS)):
    """Return [D, D] ones where the second index is generated before the first."""
    rank = np.argsort(order)
    return (rank[:, None] > rank[None, :]).astype(np.float32)


def _changed(at, value):
    """Return the raster mask with one entry changed."""
    mask = _mask()
    mask[at] = value
    return mask


def _terms_fn(mask, activation=lambda x: x):
    """Return x -> the terms of a Bernoulli with logits (mask * WEIGHTS) x."""
    def terms_fn(x):
        values = x.reshape(len(x), -1)
        logits = activation(values) @ (mask * WEIGHTS).T
        return (values * logits - jax.nn.softplus(logits)).reshape(x.shape)

    return terms_fn


def _log_prob_fn(mask):
    def log_prob_fn(x):
        return jnp.sum(_terms_fn(mask)(x.astype(jnp.float32)), axis=(1, 2, 3))

    return log_prob_fn


def _mass_reference(mask):
    """Return the sum of the probabilities of all binary images, in float64."""
    x = np.array(list(itertools.product([0, 1], repeat=DIMS)), np.float64)
    logits = x @ (mask * WEIGHTS).astype(np.float64).T
    return np.exp(np.sum(x * logits - np.logaddexp(logits, 0), axis=1)).sum()


def _fails(message):
    return pytest.raises(AssertionError, match=re.escape(message))


def _numbers(caught):
    """Return the numbers in the message of an error."""
    return [float(n) for n in re.findall(r'-?\d[\d.]*|nan', str(caught.value))]


@pytest.mark.parametrize('order', [None, PERMUTED], ids=['raster', 'permuted'])
def test_a_causal_density_passes(order):
    """Catch a check that no model can pass, and one that knows raster order only."""
    mask = _mask() if order is None else _mask(order)
    checks.assert_causal(_terms_fn(mask), SHAPE, order=order)
    checks.assert_normalized(_log_prob_fn(mask), SHAPE[1:], 2)


def test_a_path_hidden_at_some_points_passes():
    """Catch a blind spot claimed from one point: a ReLU hides 3 in 10 values."""
    terms_fn = _terms_fn(_mask(), lambda x: jax.nn.relu(x - 0.3))
    checks.assert_causal(terms_fn, SHAPE)
    checks.assert_causal(terms_fn, SHAPE, rng=jax.random.key(1))


def test_a_future_value_is_found():
    """Catch a leak that is missed, misplaced or given with a wrong derivative."""
    def terms_fn(x):
        return _terms_fn(_mask())(x).at[:, 0, 1, 0].add(-0.125 * x[:, 1, 0, 1])

    with _fails(
        'log p of (row 0, column 1, channel 0) depends on '
        '(row 1, column 0, channel 1), which comes later: derivative 0.125'
    ):
        checks.assert_causal(terms_fn, SHAPE)


def test_a_leak_between_channels_is_found():
    """Catch an order of pixels alone, in which the R of a pixel may see its G."""
    with _fails(
        'log p of (row 1, column 0, channel 0) depends on '
        '(row 1, column 0, channel 1), which comes later'
    ):
        checks.assert_causal(_terms_fn(_changed((4, 5), 1)), SHAPE)


def test_another_image_is_found():
    """Catch a check of one image: a mean over the batch keeps the order within."""
    def terms_fn(x):
        return _terms_fn(_mask())(x).at[:, 1, 1, 1].add(jnp.mean(x[:, 0, 1, 0]))

    with _fails(
        'log p of (row 1, column 1, channel 1) of image 0 depends on '
        '(row 0, column 1, channel 0) of image 1: derivative 0.5'
    ):
        checks.assert_causal(terms_fn, SHAPE)


def test_the_same_value_of_another_image_is_found():
    """Catch the exception for a term's own value made in every image."""
    def terms_fn(x):
        return _terms_fn(_mask())(x) + 0.25 * x[::-1]

    with _fails('of image 1: derivative 0.25'):
        checks.assert_causal(terms_fn, SHAPE)


def test_a_blind_spot_is_found_unless_it_is_allowed():
    """Catch a model that conditions on too little, where that is not by design."""
    terms_fn = _terms_fn(_changed((6, 1), 0))
    with _fails(
        'log p of (row 1, column 1, channel 0) does not depend on '
        '(row 0, column 0, channel 1), which comes earlier (blind spot)'
    ):
        checks.assert_causal(terms_fn, SHAPE)
    visible = np.ones((DIMS, DIMS), bool)
    visible[6, 1] = False
    checks.assert_causal(terms_fn, SHAPE, visible=visible)
    with _fails('blind spot'):
        checks.assert_causal(terms_fn, SHAPE, visible=visible.T)


def test_visible_lifts_no_other_demand():
    """Catch an entry of False that lets the future in."""
    visible = np.zeros((DIMS, DIMS), bool)
    with _fails('which comes later'):
        checks.assert_causal(_terms_fn(_changed((2, 3), 1)), SHAPE, visible=visible)


def test_a_wrong_order_is_found():
    """Catch an order that is ignored, or inverted: neither is the other here."""
    assert not np.array_equal(PERMUTED, np.argsort(PERMUTED))
    for mask, order in (
        (_mask(), PERMUTED), (_mask(PERMUTED), None),
        (_mask(PERMUTED), np.argsort(PERMUTED)),
    ):
        with _fails('which comes later'):
            checks.assert_causal(_terms_fn(mask), SHAPE, order=order)


def test_a_value_that_sees_itself_is_not_normalized():
    """Catch what the Jacobian cannot: a term may depend on its own value."""
    mask = _changed((3, 3), 1)
    checks.assert_causal(_terms_fn(mask), SHAPE)
    mass = _mass_reference(mask)
    assert abs(mass - 1) > 0.01
    with _fails('the probabilities of all 256 images sum to') as caught:
        checks.assert_normalized(_log_prob_fn(mask), SHAPE[1:], 2)
    np.testing.assert_allclose(_numbers(caught)[1], mass, rtol=1e-6)


@pytest.mark.parametrize('planted', [0, 0.125])
def test_every_row_of_a_large_jacobian(planted):
    """Catch rows lost where they do not fit in memory at once."""
    shape = (2, 12, 12, 1)
    weights = np.tril(np.ones((144, 144), np.float32), -1)

    def terms_fn(x):
        terms = (x.reshape(2, 144) @ weights.T).reshape(shape)
        return terms.at[1, 11, 10].add(planted * x[1, 11, 11])

    if not planted:
        return checks.assert_causal(terms_fn, shape)
    with _fails(
        'log p of (row 11, column 10, channel 0) depends on '
        '(row 11, column 11, channel 0), which comes later: derivative 0.125'
    ):
        checks.assert_causal(terms_fn, shape)


def _receptive_field(kernels, height, width):
    """Return [D, D], whether a path through the 3x3 kernels leads from j to i."""
    reach = np.eye(height * width)
    for kernel in kernels:
        step = np.zeros_like(reach)
        for row, column, i, j in itertools.product(
            range(height), range(width), range(3), range(3)
        ):
            to = row + i - 1, column + j - 1
            if 0 <= to[0] < height and 0 <= to[1] < width:
                step[row * width + column, to[0] * width + to[1]] = kernel[i, j]
        reach = step @ reach
    return reach > 0


def test_the_blind_spot_of_masked_convolutions():
    """Catch a field of the wrong size: it is exactly what the kernels can reach."""
    mask_a = np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0]], np.float32)
    mask_b = np.array([[1, 1, 1], [1, 1, 0], [0, 0, 0]], np.float32)
    kernels = [mask_a, mask_b, mask_b]

    def terms_fn(x):
        for kernel in kernels:
            x = jax.lax.conv_general_dilated(
                x, kernel[..., None, None], (1, 1), 'SAME',
                dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
            )
        return x

    visible = _receptive_field(kernels, 4, 4)
    checks.assert_causal(terms_fn, (2, 4, 4, 1), visible=visible)
    # Pixels above and to the right, further than the kernels lead.
    assert not visible[8, 3] and not visible[4, 2]
    more = visible.copy()
    more[4, 2] = True
    with _fails(
        'log p of (row 1, column 0, channel 0) does not depend on '
        '(row 0, column 2, channel 0)'
    ):
        checks.assert_causal(terms_fn, (2, 4, 4, 1), visible=more)


@pytest.mark.parametrize('num_values, shape', [(3, (2, 2, 1)), (3, (2, 2, 2))])
def test_every_image_is_summed_once(num_values, shape):
    """Catch images lost or repeated: each has its own probability in a table."""
    num_dims = np.prod(shape)
    powers = num_values**np.arange(num_dims)
    table = np.random.default_rng(0).normal(size=num_values**num_dims)
    table = (table - np.log(np.exp(table).sum())).astype(np.float32)

    def log_prob_fn(x):
        return jnp.asarray(table)[x.reshape(len(x), -1) @ powers]

    checks.assert_normalized(log_prob_fn, shape, num_values)


def test_a_constant_too_much_is_found():
    """Catch a tolerance for the mean of log p: 1e-4 nats are found."""
    log_prob_fn = _log_prob_fn(_mask())
    with _fails('sum to 1.0001'):
        checks.assert_normalized(lambda x: log_prob_fn(x) + 1e-4, SHAPE[1:], 2)
    checks.assert_normalized(
        lambda x: log_prob_fn(x) + 1e-4, SHAPE[1:], 2, atol=2e-4
    )


@pytest.mark.parametrize('value, message', [(np.nan, 'nan'), (1e4, 'inf')])
def test_numbers_that_are_none_are_not_normalized(value, message):
    """Catch a comparison that is false for NaN, and a warning in its place."""
    with _fails(f'sum to {message}'):
        checks.assert_normalized(
            lambda x: jnp.full(len(x), value, jnp.float32), (2, 1, 1), 2
        )


def test_derivatives_that_are_no_numbers_are_found():
    """Catch NaN taken for a dependence: the square root of 0 has no derivative."""
    def terms_fn(x):
        return _terms_fn(_mask())(x).at[:, 1, 1, 1].add(jnp.sqrt(0 * x[:, 0, 1, 0]))

    with _fails('log p by (row 0, column 1, channel 0) is not finite'):
        checks.assert_causal(terms_fn, SHAPE)


LINEAR = np.array([[2, 1, 0], [0, -0.5, 3], [1, 0, 1]], np.float32)


def _x():
    return jax.random.normal(jax.random.key(0), (4, 3, 1, 1))


def _forward(x):
    """Compute z = A sinh(x): log |det| = log |det A| + sum log cosh(x)."""
    flat = x.reshape(len(x), 3)
    log_det = np.log(2) + jnp.sum(jnp.log(jnp.cosh(flat)), axis=1)  # det A = 2
    return (jnp.sinh(flat) @ LINEAR.T).reshape(x.shape), log_det


def _inverse(z):
    flat = z.reshape(len(z), 3)
    return jnp.arcsinh(flat @ np.linalg.inv(LINEAR).T).reshape(z.shape)


def test_an_invertible_map_passes():
    """Catch a check that no flow can pass, with and without a determinant."""
    assert np.isclose(np.linalg.det(LINEAR), 2)
    checks.assert_invertible(_forward, _inverse, _x())
    checks.assert_invertible(lambda x: _forward(x)[0], _inverse, _x())


def test_a_wrong_inverse_is_found():
    """Catch an error averaged away, or reported at another value."""
    def inverse_fn(z):
        return _inverse(z).at[2, 1, 0, 0].add(0.25).at[0, 2, 0, 0].add(-0.1)

    with _fails('inverse_fn(forward_fn(x)) is 0.25 away from x at [2, 1, 0, 0]'):
        checks.assert_invertible(_forward, inverse_fn, _x())
    with _fails('nan away from x at [0, 0, 0, 0]'):
        checks.assert_invertible(_forward, lambda z: z * np.nan, _x())


@pytest.mark.parametrize('planted', [
    lambda log_det: -log_det,
    lambda log_det: log_det + 1e-3,
    lambda log_det: log_det.at[3].set(jnp.nan),
    lambda log_det: log_det.at[3].set(log_det[2]),
], ids=['sign', 'constant', 'nan', 'another'])
def test_a_wrong_log_det_is_found(planted):
    """Catch a comparison of the mean, and determinants of some other example."""
    def forward_fn(x):
        z, log_det = _forward(x)
        return z, planted(log_det) if len(x) == 4 else log_det

    x = np.asarray(_x(), np.float64).reshape(4, 3)
    exact = np.linalg.slogdet(LINEAR[None] * np.cosh(x)[:, None, :])[1]
    given = np.asarray(planted(jnp.asarray(exact, jnp.float32)))
    i = np.argmax(~(np.abs(given - exact) < 1e-5))
    with _fails(f'log_det of example {i} is') as caught:
        checks.assert_invertible(forward_fn, _inverse, _x())
    numbers = _numbers(caught)[1:]
    np.testing.assert_allclose(numbers, [given[i], exact[i]], rtol=1e-5)


def test_a_singular_map_has_no_log_det():
    """Catch minus infinity taken for equal to itself."""
    with _fails('log_det of example 0 is -inf'):
        checks.assert_invertible(
            lambda x: (0 * x, jnp.full(len(x), -jnp.inf)), lambda z: _x(), _x()
        )


@pytest.mark.parametrize('call', [
    lambda: checks.assert_causal(_terms_fn(_mask()), (1, 2, 2, 2)),
    lambda: checks.assert_causal(_terms_fn(_mask()), (2, 2, 2)),
    lambda: checks.assert_causal(_terms_fn(_mask()), SHAPE, order=range(7)),
    lambda: checks.assert_causal(_terms_fn(_mask()), SHAPE, order=[0] * DIMS),
    lambda: checks.assert_normalized(_log_prob_fn(_mask()), (3, 7, 1), 2),
    lambda: checks.assert_normalized(_log_prob_fn(_mask()), (2, 2, 2), 0),
])
def test_what_cannot_be_checked_is_refused(call):
    """Catch a check that passes because it looked at nothing."""
    with pytest.raises(ValueError):
        call()


@pytest.mark.parametrize('call', [
    lambda: checks.assert_causal(lambda x: jnp.sum(x, axis=3), SHAPE),
    lambda: checks.assert_causal(
        _terms_fn(_mask()), SHAPE, visible=np.ones((1, DIMS), bool)
    ),
    lambda: checks.assert_causal(
        _terms_fn(_mask()), SHAPE, visible=np.ones((DIMS, DIMS))
    ),
    lambda: checks.assert_normalized(lambda x: jnp.zeros((len(x), 1)), (1, 1, 1), 1),
    lambda: checks.assert_invertible(lambda x: x, lambda z: z[:, 0], _x()),
    lambda: checks.assert_invertible(lambda x: (x, 0 * x), lambda z: z, _x()),
    lambda: checks.assert_invertible(lambda x: x, lambda z: z, jnp.ones((2, 3), int)),
])
def test_wrong_shapes_raise(call):
    """Catch silent broadcasting, which gives a number and no error."""
    with pytest.raises(AssertionError):
        call()
