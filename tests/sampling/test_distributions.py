"""The distribution of a pixel's values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.losses.likelihoods import LogisticMixture
from gm_jax.sampling import distributions


@pytest.mark.parametrize('num_values', [2, 4])
@pytest.mark.parametrize('temperature', [0.5, 2.0])
def test_temperature_is_a_power(num_values, temperature):
    """Catch a temperature in the wrong direction: p(x) becomes p(x)^(1 / T) / Z."""
    pixel = distributions.discrete(num_values, 1)
    shape = (1, 1, 1, 1) if num_values == 2 else (1, 1, 1, 1, num_values)
    logits = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    xs = [jnp.full((1, 1, 1, 1), value) for value in range(num_values)]
    log_p = np.array([pixel.log_prob(logits, x)[0] for x in xs], np.float64)
    tempered = pixel.temper(logits, temperature)
    got = np.exp([float(pixel.log_prob(tempered, x)[0]) for x in xs])
    expected = np.exp(log_p / temperature)
    np.testing.assert_allclose(got, expected / expected.sum(), rtol=1e-5)


def test_a_temperature_is_positive_and_may_be_traced():
    """Catch the first value where the likeliest is meant, and a test of a tracer."""
    zero = jnp.zeros((1, 1, 1, 1))
    mixture = LogisticMixture(zero, zero[..., None], zero[..., None])
    for pixel, params in (
        (distributions.discrete(2, 1), zero),
        (distributions.logistic_mixture(4, 1), mixture),
    ):
        for wrong in (0.0, -1, np.nan):
            with pytest.raises(ValueError, match='temperature must be positive'):
                pixel.temper(params, wrong)
        expected = pixel.temper(params, 0.5)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            jax.jit(pixel.temper)(params, 0.5), expected,
        )


def test_noise_of_each_kind():
    """Catch a mixture without the noise of its component."""
    assert distributions.discrete(4, 3).num_noise == 3
    assert distributions.logistic_mixture(4, 3).num_noise == 4
