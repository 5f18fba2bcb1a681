"""Distributions of a pixel's values, as the pure functions that a density needs.

    pixel = distributions.discrete(num_values=256, channels=3)
    log_px = pixel.log_prob(logits, x)  # [B]
    x = pixel.quantile(pixel.temper(logits, 0.9), x, u)  # u uniform, [..., num_noise]
"""

import functools
from typing import Any, NamedTuple, Protocol

import jax

from gm_jax.losses import likelihoods, numerics

__all__ = [
    'discrete', 'Distribution', 'logistic_mixture', 'LogProb', 'Quantile', 'Temper',
]


class LogProb(Protocol):
    """The log-probability of images."""

    def __call__(self, params: Any, x: jax.Array, /) -> jax.Array:
        """Compute log p(x) [B], in nats, for integers x [B, H, W, C]."""


class Quantile(Protocol):
    """The values that given noise draws."""

    def __call__(self, params: Any, x: jax.Array, u: jax.Array, /) -> jax.Array:
        """Compute integers [..., C].

        Args:
            params: the parameters of pixels, with any leading shape.
            x: [..., C] the values there; colour c depends on x[..., :c] at most.
            u: [..., N] noise, uniform in [0, 1).
        """


class Temper(Protocol):
    """A change of temperature."""

    def __call__(self, params: Any, temperature: jax.typing.ArrayLike, /) -> Any:
        """Return the parameters at a temperature above 0: sharper below 1."""


class Distribution(NamedTuple):
    """The conditional distribution of a pixel's values.

    Attributes:
        log_prob: computes log p(x) of images under parameters [B, H, W, ...].
        quantile: computes the values that noise draws.
        temper: changes the temperature.
        num_noise: N, the number of uniform numbers per pixel that `quantile` takes.
    """

    log_prob: LogProb
    quantile: Quantile
    temper: Temper
    num_noise: int


def discrete(num_values: int, channels: int) -> Distribution:
    """Return a Bernoulli (V = 2) or a categorical distribution of every value.

    Args:
        num_values: V.
        channels: C.
    """
    binary = num_values == 2
    log_prob, quantile = (
        (likelihoods.bernoulli_log_prob, likelihoods.bernoulli_quantile) if binary else
        (likelihoods.categorical_log_prob, likelihoods.categorical_quantile)
    )
    return Distribution(
        log_prob=log_prob,
        quantile=lambda logits, x, u: quantile(logits, u),
        temper=_temper_logits,
        num_noise=channels,
    )


def _temper_logits(logits: jax.Array, temperature: jax.typing.ArrayLike) -> jax.Array:
    numerics.check_temperature(temperature)
    return logits / temperature


def logistic_mixture(num_values: int, channels: int) -> Distribution:
    """Return mixtures of discretized logistics, over all colours of a pixel together.

    Args:
        num_values: V.
        channels: C.
    """
    return Distribution(
        log_prob=functools.partial(
            likelihoods.logistic_mixture_log_prob, num_values=num_values
        ),
        quantile=functools.partial(
            likelihoods.logistic_mixture_quantile, num_values=num_values
        ),
        temper=likelihoods.logistic_mixture_temper,
        num_noise=1 + channels,
    )
