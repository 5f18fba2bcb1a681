"""Maps of flows against dense Jacobians in float64, and their inverses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.evaluation import checks
from gm_jax.layers import transforms

SHAPE = (2, 4, 3)  # H, W, C


def _network(seen: jax.Array, flip: bool) -> tuple[jax.Array, jax.Array]:
    """Return a shift and a log-scale in which every output sees every input."""
    size = seen[0].size
    rng = np.random.default_rng(int(flip))
    weights = jnp.asarray(rng.normal(size=(2, size, size)) / size**0.5)
    shift, log_scale = (
        jnp.tanh(seen.reshape(len(seen), size) @ w).reshape(seen.shape) for w in weights
    )
    return 2 * shift, log_scale


def _channels(*, flip: bool) -> np.ndarray:
    """Return ones for the first half of the channels, or for the other."""
    later = np.arange(SHAPE[2]) >= SHAPE[2] // 2
    return (later == flip).astype(np.float32)[None, None]


def _couplings(affine: bool, mask_fn, x: jax.Array, inverse: bool):
    """Apply two couplings, in each of which the other half stays."""
    total = jnp.zeros(len(x))
    for flip in (True, False) if inverse else (False, True):
        stays = jnp.asarray(mask_fn(flip=flip), x.dtype)[None]
        shift, log_scale = ((1 - stays) * a for a in _network(stays * x, flip))
        name = ('affine' if affine else 'additive') + '_coupling'
        function = getattr(transforms, f'{name}_inverse' if inverse else name)
        x, log_det = function(x, shift, *([log_scale] if affine else []))
        total = total + log_det
    return x, total


def _first(function, x: jax.Array) -> jax.Array:
    return function(x)[0]


def _by_parameters(name: str, *shapes: tuple[int, ...]):
    """Return a map with fixed random parameters, and its inverse."""
    rng = np.random.default_rng(0)
    given = [jnp.asarray(rng.normal(size=shape)) for shape in shapes]
    maps = getattr(transforms, name), getattr(transforms, f'{name}_inverse')
    return tuple(lambda x, f=f: f(x, *given) for f in maps)


CHECKERBOARD = functools.partial(transforms.checkerboard_mask, *SHAPE[:2])
MAPS = {
    **{
        f'{"affine" if affine else "additive"}_{name}': lambda a=affine, m=mask: (
            functools.partial(_couplings, a, m, inverse=False),
            functools.partial(_couplings, a, m, inverse=True),
        )
        for affine in (False, True)
        for name, mask in {'checkerboard': CHECKERBOARD, 'channels': _channels}.items()
    },
    'diagonal_scale': lambda: _by_parameters('diagonal_scale', SHAPE),
    'actnorm': lambda: _by_parameters('actnorm', SHAPE[2:], SHAPE[2:]),
    'logit': lambda: (
        lambda x: transforms.logit(x, 0.05), lambda y: transforms.logit_inverse(y, 0.05)
    ),
    'sigmoid': lambda: (transforms.sigmoid, lambda y: transforms.logit(y, 1e-17)),
    'squeeze': lambda: (transforms.squeeze, transforms.unsqueeze),
    'alternative': lambda: tuple(
        functools.partial(f, order=transforms.ALTERNATIVE)
        for f in (transforms.squeeze, transforms.unsqueeze)
    ),
    'shuffle': lambda: (transforms.shuffle, transforms.shuffle_inverse),
}


@pytest.mark.parametrize('name', MAPS)
def test_log_det_is_that_of_the_dense_jacobian(name):
    """Catch a term of a log-determinant that is missing, and an inverse of another."""
    for x64, atol in ((True, 1e-10), (False, 1e-5)):
        with jax.enable_x64(x64):
            forward, inverse = map(jax.jit, MAPS[name]())
            x = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
            undo = functools.partial(_first, inverse)
            checks.assert_invertible(forward, undo, x, atol=atol)
            y, log_det = forward(x)
            np.testing.assert_allclose(inverse(y)[1], -log_det, atol=atol)


@pytest.mark.parametrize('plant, error', [
    (lambda y, log_det: (y, 0.9 * log_det), 'log_det'),
    (lambda y, log_det: (y + 1e-4, log_det), 'away from x'),
])
def test_planted_errors_are_found(plant, error):
    """Catch a check that is blind."""
    forward, inverse = map(jax.jit, MAPS['affine_checkerboard']())
    x = jax.random.uniform(jax.random.key(1), (2, *SHAPE))
    with pytest.raises(AssertionError, match=error):
        checks.assert_invertible(
            lambda x: plant(*forward(x)), lambda y: inverse(y)[0], x
        )


def test_masks_cover_each_value_once():
    """Catch halves that overlap, and two pixels of one colour side by side."""
    mask, other = (transforms.checkerboard_mask(3, 5, flip=x) for x in (False, True))
    np.testing.assert_array_equal(mask + other, np.ones_like(mask))
    assert set(np.unique(mask)) == {0, 1}
    board = transforms.checkerboard_mask(3, 5)[..., 0]
    assert board[0, 0] == 1 and not (board[1:] == board[:-1]).any()
    assert not (board[:, 1:] == board[:, :-1]).any()


def test_squeeze_keeps_blocks_and_pixels_together():
    """Catch channels of other pixels, and halves that are not on a diagonal."""
    x = jnp.arange(2 * 4 * 3, dtype=jnp.float32).reshape(1, 2, 4, 3)
    y, _ = transforms.squeeze(x)
    assert y.shape == (1, 1, 2, 12)
    for column in (0, 1):
        block = x[0, :, 2 * column:2 * column + 2]
        np.testing.assert_array_equal(y[0, 0, column], block.reshape(-1))
        first, second = np.split(
            transforms.squeeze(x, transforms.ALTERNATIVE)[0][0, 0, column], 2
        )
        np.testing.assert_array_equal(first, np.append(block[0, 0], block[1, 1]))
        np.testing.assert_array_equal(second, np.append(block[0, 1], block[1, 0]))


def test_shuffles_change_the_halves():
    """Catch a shuffle after which couplings split the channels as before."""
    x, halves = jnp.arange(8.0)[None], []
    for _ in range(3):
        halves.append(frozenset(np.asarray(x[0, :4], int).tolist()))
        x, _ = transforms.shuffle(x)
    assert halves == [{0, 1, 2, 3}, {0, 2, 4, 6}, {0, 4, 1, 5}]
    np.testing.assert_array_equal(x[0], np.arange(8.0))


def test_logit_at_the_ends():
    """Catch infinities at 0 and 1, and an alpha whose map has no inverse."""
    x = jnp.array([[0.0, 1.0, 0.5]])
    for alpha in (0.05, 1e-5, 2.0**-24):
        y, log_det = transforms.logit(x, alpha)
        end = np.log((1 - alpha) / alpha)
        np.testing.assert_allclose(y, [[-end, end, 0]], rtol=1e-6, atol=1e-6)
        slopes = jax.grad(lambda x, a=alpha: transforms.logit(x, a)[1].sum())(x)
        assert np.isfinite(log_det).all() and np.isfinite(slopes).all()
    for alpha in (0.0, 0.5, -0.1):
        with pytest.raises(ValueError, match='between 0 and 1/2'):
            transforms.logit(x, alpha)


@pytest.mark.parametrize('call', [
    lambda x: transforms.affine_coupling(x, x, x[:1]),
    lambda x: transforms.additive_coupling(x, x[..., 0]),
    lambda x: transforms.diagonal_scale(x, x),
    lambda x: transforms.actnorm(x, jnp.zeros(1), jnp.zeros(3)),
    lambda x: transforms.squeeze(x[:, 1:]),
    lambda x: transforms.unsqueeze(x),
])
def test_shapes_that_would_only_broadcast_are_refused(call):
    """Catch [B] against [B, 1], and an odd side that loses a row."""
    with pytest.raises(AssertionError):
        call(jnp.zeros((2, *SHAPE)))
