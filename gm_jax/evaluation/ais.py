r"""The partition function of an RBM by annealed importance sampling, from both sides.

A path leads from the independent visible units of a base model to the machine,

    p_k(v) = e^(-F_k(v)) / Z_k,   F_k(v) = -((1 - t) a + t b).v
                                           - sum_j log(1 + e^(t (c_j + (v W)_j)))

with t = k/K for k = 0 ... K. A chain that starts from p_0 and takes one Gibbs step at
each temperature has the weight w = Z_0 prod_k e^(F_{k-1}(v_k) - F_k(v_k)), whose mean
is Z. The mean of log w is therefore at most log Z, on average. Along the reverse path
from samples of the machine the mean of 1/w is 1/Z, so that of log w is at least log Z:

    forward = ais_log_partition(rng, rbm, base_visible_bias=a)
    reverse = reverse_ais_log_partition(rng2, rbm, v, base_visible_bias=a)
    bracket = forward.log_weights.mean(), reverse.log_weights.mean()

With too few temperatures log Z comes out too low, which flatters the model, and the
standard error does not show it; the bracket does. It holds if the
samples are exact samples of the machine.

References:
    Neal 2001, Annealed Importance Sampling. https://arxiv.org/abs/physics/9803008
    Salakhutdinov and Murray 2008, On the Quantitative Analysis of Deep Belief Networks.
    Burda, Grosse and Salakhutdinov 2015, Accurate and Conservative Estimates of MRF
    Log-Likelihood using Reverse Annealing. https://arxiv.org/abs/1412.8566
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import fold_in_each, per_example
from gm_jax.losses import energy, numerics
from gm_jax.losses.energy import RBM
from gm_jax.sampling.gibbs import uniforms

__all__ = [
    'AIS', 'ais_log_partition', 'reverse_ais_log_partition', 'warnings',
]

# Below this effective number of chains, or above this spread of the log weights, a few
# chains decide.
_FEW, _WIDE = 10, 2.0


class AIS(NamedTuple):
    """An estimate of log Z.

    Attributes:
        log_z: [] the estimate: log mean w forward, -log mean 1/w in reverse.
        standard_error: [] its standard error, to first order.
        effective_sample_size: [] (sum w)^2 / sum w^2 forward, of 1/w in reverse; from 1
            to the number of chains.
        log_weights: [chains] log w.
    """

    log_z: jax.Array
    standard_error: jax.Array
    effective_sample_size: jax.Array
    log_weights: jax.Array


def ais_log_partition(
    rng: jax.Array, rbm: RBM, *, base_visible_bias: jax.Array, num_chains: int = 100,
    num_temperatures: int = 10_000,
) -> AIS:
    """Estimate log Z from chains that start from the base model.

    Args:
        rng: one key; chain i has fold_in(rng, i).
        rbm: the machine, D visible units.
        base_visible_bias: [D] a; the log-odds of the data's means, smoothed, are a
            good choice.
        num_chains: how many chains.
        num_temperatures: K.

    Returns:
        The estimate; exp(log_z) is unbiased, so log_z is too low on average.

    Raises:
        AssertionError: the shapes do not fit.
    """
    rbm, base = _checked(rbm, base_visible_bias)
    rngs = per_example(rng, num_chains)
    u = uniforms(fold_in_each(rngs, 0), len(base))
    v = (u < jax.nn.sigmoid(base)[None]).astype(base.dtype)
    t = jnp.arange(num_temperatures + 1, dtype=base.dtype) / num_temperatures
    log_weights = _anneal(rngs, rbm, base, v, t[:-1], t[1:], t[1:])
    return AIS(*_mean_weight(log_weights), log_weights)


def reverse_ais_log_partition(
    rng: jax.Array, rbm: RBM, samples: jax.Array, *, base_visible_bias: jax.Array,
    num_temperatures: int = 10_000,
) -> AIS:
    """Estimate log Z from chains that start from samples of the machine.

    Args:
        rng: one key; chain i has fold_in(rng, i).
        rbm: the machine, D visible units.
        samples: [chains, D] bits; fair samples make the estimate too high on average.
        base_visible_bias: [D] a, as in `ais_log_partition`.
        num_temperatures: K.

    Returns:
        The estimate; the mean of its log weights is the upper end of the bracket.

    Raises:
        AssertionError: the shapes do not fit.
    """
    rbm, base = _checked(rbm, base_visible_bias)
    rngs = per_example(rng, len(samples))
    t = jnp.arange(num_temperatures, -1, -1, dtype=base.dtype) / num_temperatures
    v = samples.astype(base.dtype)
    log_weights = _anneal(rngs, rbm, base, v, t[1:], t[:-1], t[1:])
    log_inverse, error, size = _mean_weight(-log_weights)
    return AIS(-log_inverse, error, size, log_weights)


def _checked(rbm: RBM, base: jax.Array) -> tuple[RBM, jax.Array]:
    """Return both in the float type of the machine, at least float32."""
    rbm = RBM(*numerics.upcast(*rbm))
    base = jnp.asarray(base, rbm.visible_bias.dtype)
    chex.assert_equal_shape([base, rbm.visible_bias])
    return rbm, base


def _anneal(
    rngs: jax.Array, rbm: RBM, base: jax.Array, v: jax.Array, low: jax.Array,
    high: jax.Array, drawn_at: jax.Array,
) -> jax.Array:
    """Return log w [chains] of chains that pass the temperatures.

    Args:
        rngs: [chains] keys.
        rbm: the machine.
        base: [D] the biases of the base model.
        v: [chains, D] where the chains start.
        low: [K] t_{k-1} of each weight.
        high: [K] t_k of each weight.
        drawn_at: [K] the t of the Gibbs step after it.
    """
    num_visible, num_hidden = rbm.weights.shape

    def one(carry: tuple[jax.Array, ...], step: tuple[jax.Array, ...]) -> tuple:
        v, logits, total, lost = carry
        number, low, high, t = step
        # A sum, since a GPU or TPU would round the terms of a product with a vector.
        term = (high - low) * jnp.sum(v * (rbm.visible_bias - base)[None], axis=1)
        term += jnp.sum(_softplus_step(logits, low, high), axis=1)
        # Kahan's sum: ten thousand small terms would lose digits of a large total.
        term -= lost
        larger = total + term
        lost = (larger - total) - term
        u = uniforms(fold_in_each(rngs, number), num_hidden + num_visible)
        h = (u[:, :num_hidden] < jax.nn.sigmoid(t * logits)).astype(v.dtype)
        mixed = (1 - t) * base[None] + t * energy.visible_logits(rbm, h)
        v = (u[:, num_hidden:] < jax.nn.sigmoid(mixed)).astype(v.dtype)
        return (v, energy.hidden_logits(rbm, v), larger, lost), None

    zeros = jnp.zeros(len(v), v.dtype)
    numbers = 1 + jnp.arange(len(low))  # 0 is that of the start
    (_, _, total, _), _ = jax.lax.scan(
        one, (v, energy.hidden_logits(rbm, v), zeros, zeros),
        (numbers, low, high, drawn_at),
    )
    return total + jnp.sum(energy.softplus(base)) + num_hidden * jnp.log(2.0)


def _softplus_step(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Compute softplus(high x) - softplus(low x), low <= high, without cancellation."""
    # softplus(y + d) - softplus(y) = log(1 + s(y) (e^d - 1)), s the sigmoid, and for
    # positive d the same of -y and -d, plus d.
    size = jnp.abs(x)
    change = jax.nn.sigmoid(-low * size) * jnp.expm1((low - high) * size)
    return (high - low) * jnp.maximum(x, 0) + jnp.log1p(change)


def _mean_weight(log_w: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return log mean w, its standard error and the effective sample size."""
    num = len(log_w)
    log_mean = jax.nn.logsumexp(log_w) - jnp.log(num)
    w = jnp.exp(log_w - log_mean)  # of mean 1
    error = jnp.std(w, ddof=1) / jnp.sqrt(num)
    return log_mean, error, num / jnp.mean(jnp.square(w))


def warnings(
    effective_sample_size: float, deviation: float, num_chains: int
) -> list[str]:
    """Say why an estimate is not to be trusted, one sentence for each reason.

    Args:
        effective_sample_size: as in `AIS`.
        deviation: the standard deviation of the log weights, in nats.
        num_chains: how many there are.

    Returns:
        The sentences; none for an estimate that may be trusted.
    """
    found = []
    if not effective_sample_size >= _FEW:  # also if it is NaN
        found.append(
            f'log Z rests on few chains: the effective sample size is '
            f'{effective_sample_size:.1f} of {num_chains}'
        )
    if not deviation <= _WIDE:
        found.append(
            f'the log weights of log Z are wide: their standard deviation is '
            f'{deviation:.1f} nats'
        )
    return found
