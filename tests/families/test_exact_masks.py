"""Which masks of given values leave the samples of the rest exact."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.families import given, setting
from gm_jax.losses.likelihoods import LogisticMixture
from gm_jax.sampling import distributions
from gm_jax.sampling.autoregressive import incremental
from tests.models import densities


def _model(distribution, order=None, rank=None):
    return setting.Model(None, None, None, distribution, order=order, rank=rank)


def _grid(num_dims):
    return np.array(list(itertools.product((0, 1), repeat=num_dims)), np.int32)


def _conditional(p, x, known, values):
    """Return p(x | the known values of an image), by enumeration."""
    p = np.where((x == values)[:, known].all(axis=1), p, 0)
    return p / p.sum()


def _laws(terms, x, known, values):
    """Return p(x | known) and the law of samples of x, [M] each.

    A sampler multiplies p(x_i | x_<i) of the missing values alone.
    """
    exact = _conditional(np.exp(terms.sum(axis=1)), x, known, values)
    fits = (x == values)[:, known].all(axis=1)
    return exact, np.where(fits, np.exp(terms[:, ~known].sum(axis=1)), 0)


def _check_every_mask(model, terms, x):
    """Check that `inexact` is silent for those masks whose samples are exact."""
    values = np.random.default_rng(0).integers(0, 2, (3, x.shape[1]))
    found, silent = [], []
    for known in _grid(x.shape[1]).astype(bool):
        laws = [_laws(terms, x, known, row) for row in values]
        found.append(all(np.abs(p - q).sum() < 1e-6 for p, q in laws))
        silent.append(not given.inexact(model, known.reshape(1, 1, 1, -1)))
    np.testing.assert_array_equal(silent, found)
    assert 2 < sum(found) < len(found)


@pytest.mark.parametrize('name', ['nade', 'gated_pixel_cnn'])
def test_silent_for_exact_masks_alone(name):
    """Catch raster order where the model has another, on a 2 x 2 model.

    Every mask is compared with enumeration.
    """
    density = densities.make(name, (2, 2, 1), 2, scale=2.0)
    x = _grid(4)
    images = x.reshape(16, 2, 2, 1)
    terms = np.float64(jax.jit(density.terms)(images.astype(np.float32), images))
    model = _model(distributions.discrete(2, 1), density.order)
    _check_every_mask(model, terms.reshape(16, 4), x)


def test_values_of_one_rank_are_independent():
    """Catch a sentence about given values that no missing one depends on."""
    pixel = distributions.discrete(2, 1)
    model = _model(pixel, np.array([0, 2, 1, 3]), np.array([0, 1, 1, 2]))
    for known, exact in (
        ((1, 1, 0, 0), True), ((1, 0, 1, 0), True), ((1, 1, 0, 1), False),
        ((0, 1, 1, 1), False), ((0, 0, 0, 0), True), ((1, 1, 1, 1), True),
    ):
        mask = np.array(known, bool).reshape(1, 2, 2, 1)
        assert (not given.inexact(model, mask)) == exact
    both = np.array([[1, 1, 0, 0], [0, 0, 0, 1]], bool).reshape(2, 2, 2, 1)
    assert given.inexact(model, both)  # one of two images


def test_samples_of_an_exact_mask_have_the_enumerated_frequencies():
    """Catch a claim about samplers that do something else.

    The noise of two missing bits runs over a grid: their frequencies are those of the
    sampler to 1/128 each.
    """
    density = densities.make('nade', (2, 2, 1), 2, scale=3.0)
    order, x = density.order, _grid(4)
    model = _model(distributions.discrete(2, 1), order)
    p = np.exp(np.float64(density.log_prob(jnp.asarray(x.reshape(16, 2, 2, 1)))))
    sample = jax.jit(functools.partial(
        incremental, density.network, density.quantile, order=order
    ))
    axis = (np.arange(64) + 0.5) / 64
    distances = []
    for places in ((0, 1), (2, 3)):  # the known ones come first, or last
        known = np.zeros(4, bool)
        known[order[list(places)]] = True
        uniform = np.zeros((64, 64, 4), np.float32)
        uniform[..., ~known] = np.stack(np.meshgrid(axis, axis), axis=-1)
        shape = (4096, 2, 2, 1)
        mask = np.broadcast_to(known.reshape(2, 2, 1), shape)
        for values in ((0, 0, 0, 0), (1, 1, 1, 1)):
            given_values = np.broadcast_to(np.reshape(values, (2, 2, 1)), shape)
            drawn = sample(uniform.reshape(shape), given_values, mask)
            index = np.asarray(drawn).reshape(4096, 4) @ [8, 4, 2, 1]
            law = np.bincount(index, minlength=16) / 4096
            exact = _conditional(p, x, known, np.array(values))
            distances.append(np.abs(law - exact).sum() / 2)
        assert bool(given.inexact(model, mask)) == (places == (2, 3))
    assert max(distances[:2]) < 1 / 64 and max(distances[2:]) > 2 / 64


def test_pixels_of_a_mixture_that_are_known_in_part():
    """Catch silence where the colours of a pixel share a component.

    Red 3 says that the component is the bright one; its draw does not know that.
    """
    pixel = distributions.logistic_mixture(4, 3)
    means = jnp.broadcast_to(jnp.array([-1.0, 1.0]), (1, 3, 2))
    mixture = LogisticMixture(
        jnp.zeros((1, 2)), means, jnp.full((1, 3, 2), -4.0), jnp.zeros((1, 3, 2))
    )
    u = jnp.array([[0.2, 0.5, 0.5, 0.5]])
    drawn = jax.jit(pixel.quantile)(mixture, jnp.array([[3, 0, 0]]), u)
    assert drawn[0, 1] == 0  # impossible given a red of 3
    known = np.zeros((1, 1, 2, 3), bool)
    known[..., 0, :1] = True
    assert 'in part' in given.inexact(_model(pixel), known)
    assert not given.inexact(_model(distributions.discrete(4, 3)), known)
    known[..., 0, :] = True
    assert not given.inexact(_model(pixel), known)
    known[..., 1, 1] = True
    assert given.inexact(_model(distributions.discrete(4, 3)), known)


def test_the_half_that_pictures_show_is_exact():
    """Catch the upper half for a model that generates in another order."""
    pixel = distributions.discrete(2, 1)
    order = np.random.default_rng(0).permutation(15)
    for model in (_model(pixel), _model(pixel, order)):
        half = given.first_half(model, (5, 3, 1))
        assert half.sum() in (6, 7) and not given.inexact(model, half[None])
    np.testing.assert_array_equal(
        given.first_half(_model(pixel), (5, 3, 1))[..., 0],
        np.repeat(np.arange(5) < 2, 3).reshape(5, 3),
    )
