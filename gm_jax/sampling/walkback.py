"""Chains of generative stochastic networks: corrupt, denoise, draw, and again.

A step takes an image x and a hidden state h of the network to the next ones,

    x~ ~ C(x~|x)            salt-and-pepper noise
    logits, h' = denoise(x~, h)
    x' ~ P(x'|x~, h)        independent bits with these logits

If P is p(x|x~) of the data, the chain draws the data in the long run. `chain` is both
the sampler and, started at the data, walkback training: the logits of its first steps
are the reconstructions whose cross-entropy with the clean x is minimised. Then
P converges to p(x|x~) for noise that is a few steps of the chain itself, which has the
same stationary distribution, mixes faster, and is trained where the sampler goes.

    state, logits = chain(rngs, denoise, State(x, h), 5, rate=0.4)  # [5, B, D]

NOTE: P(x|x~), a product over bits, can equal p(x|x~) only in the limit of little noise.
What is lost otherwise grows with the noise, and walkback adds noise: for an Ising model
of 8 bits, KL(data || chain) is 0.001 nats at rate 0.05, 0.03 at 0.2, and 0.04 at 0.05
with three walkbacks (exact; tests/sampling/test_walkback.py). All of this holds for a
chain without memory: a hidden state that starts at zero in training has another
distribution in the long run.

References:
    Bengio et al. 2013, Generalized Denoising Auto-Encoders as Generative Models, sec. 3
    and 4. https://arxiv.org/abs/1305.6663
    Bengio et al. 2014, Deep Generative Stochastic Networks Trainable by Backprop.
    https://arxiv.org/abs/1306.1091
"""

from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import Use, derive, fold_in_each, per_example
from gm_jax.sampling.gibbs import uniforms

__all__ = ['chain', 'Denoise', 'fair_coins', 'salt_and_pepper', 'State']


class Denoise(Protocol):
    """The denoising distribution P(x|x~, h), which a network computes."""

    def __call__(
        self, rngs: jax.Array, x: jax.Array, hidden: Any, /
    ) -> tuple[jax.Array, Any]:
        """Compute the distribution of the clean image, and the next hidden state.

        Args:
            rngs: [B] keys, for noise in the hidden units.
            x: [B, D] the corrupted image x~, in [0, 1].
            hidden: h, a pytree of arrays [B, ...].

        Returns:
            The log-odds [B, D] of ones, and the next h.
        """


class State(NamedTuple):
    """The state of B chains.

    Attributes:
        x: [B, D] images in [0, 1].
        hidden: a pytree of arrays [B, ...]; () for a network without memory.
    """

    x: jax.Array
    hidden: Any


def salt_and_pepper(rng: jax.Array, x: jax.Array, rate: float) -> jax.Array:
    """Replace each value by a fair coin with probability `rate`.

    Args:
        rng: one key, or [B] keys, one per example.
        x: [B, D] in [0, 1].
        rate: the share of values that are replaced, half of them by 0, half by 1.

    Returns:
        [B, D], of the type of x.

    Raises:
        AssertionError: x is not of rank 2, or `rng` is neither of the two.
    """
    chex.assert_rank(x, 2)
    u = uniforms(per_example(rng, len(x)), x.shape[1])
    # One draw says both whether a value is replaced and by what.
    return jnp.where(u < rate, (u < rate / 2).astype(x.dtype), x)


def fair_coins(rng: jax.Array, num_dims: int, *, batch: int | None = None) -> jax.Array:
    """Draw images of independent bits with probability 1/2, where chains may start.

    Args:
        rng: [B] keys, one per image; or one key, with `batch`.
        num_dims: D.
        batch: B, if one key is given.

    Returns:
        [B, D] float32, 0 or 1.
    """
    return (uniforms(per_example(rng, batch), num_dims) < 0.5).astype(jnp.float32)


def chain(
    rng: jax.Array,
    denoise: Denoise,
    state: State,
    num: int,
    *,
    rate: float,
    burn_in: int = 0,
    every: int = 1,
    known: jax.Array | None = None,
) -> tuple[State, jax.Array]:
    """Run B chains for burn_in + num * every steps.

    Gradients flow through the hidden states, and not through what is drawn.

    Args:
        rng: one key, or [B] keys, one per chain. Step t has the key fold_in(rng, t).
        denoise: the network.
        state: where the chains start.
        num: how many of the steps are returned.
        rate: the share of values that are corrupted.
        burn_in: the steps before the first `every`.
        every: the steps between two that are returned.
        known: [B, D] bool, the values that keep what they are in `state`. The chain
            then draws the others given these, as far as `denoise` is p(x|x~).

    Returns:
        The last state, and the logits [num, B, D] of each of the steps returned.

    Raises:
        AssertionError: a shape is wrong, or `rng` is neither of the two.
    """
    chex.assert_rank(state.x, 2)
    if known is not None:
        chex.assert_equal_shape([known, state.x])
    rngs = per_example(rng, len(state.x))

    def step(t: jax.Array, state: State) -> tuple[State, jax.Array]:
        step_rngs = fold_in_each(rngs, t)
        corrupted = salt_and_pepper(derive(step_rngs, Use.CORRUPTION), state.x, rate)
        logits, hidden = denoise(derive(step_rngs, Use.NOISE), corrupted, state.hidden)
        chex.assert_equal_shape([logits, state.x])
        u = uniforms(derive(step_rngs, Use.DRAW), logits.shape[1])
        x = (u < jax.nn.sigmoid(logits)).astype(state.x.dtype)
        if known is not None:
            x = jnp.where(known, state.x, x)
        return State(x, hidden), logits

    def skip(state: State, first: Any, num_steps: int) -> State:
        if not num_steps:
            return state
        # Bounds that do not depend on `first`: with others there is no gradient.
        last: State = jax.lax.fori_loop(
            0, num_steps, lambda i, state: step(first + i, state)[0], state
        )
        return last

    def steps(state: State, first: jax.Array) -> tuple[State, jax.Array]:
        return step(first + every - 1, skip(state, first, every - 1))

    firsts = burn_in + jnp.arange(num) * every
    return jax.lax.scan(steps, skip(state, 0, burn_in), firsts)
