"""The conservative sampling-based likelihood of a chain (CSL).

A chain that draws x from P(x|h_s), with hidden states h_s, s = 1 ... M, is scored by

    CSL_M(x) = log (1/M) sum_s P(x|h_s)

By Jensen's inequality its expectation is at most log E_h P(x|h), the likelihood of the
images that the chain draws, and it rises with M: for independent h_s always, for a
chain if it is long. Unlike a Parzen window it has no width to choose. But in many
dimensions it is far below the likelihood at any M that can be afforded, tens of nats
for MNIST at M = 10^4, so it is a curve over M, not a number.

    curve = csl.curve(x, logits, (10, 100, 1000))  # [N, 3]

References:
    Bengio, Yao and Cho 2014, Bounding the Test Log-Likelihood of Generative Models.
    https://arxiv.org/abs/1311.6184
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp

from gm_jax.losses import numerics

__all__ = ['curve']


def curve(x: jax.Array, logits: jax.Array, sizes: Sequence[int]) -> jax.Array:
    """Compute log (1/m) sum_(s <= m) P(x|h_s) for several m, P of independent bits.

    Args:
        x: [N, D] in {0, 1}. A value outside [0, 1] gives NaN.
        logits: [M, D] finite log-odds of ones given the states of the chain.
        sizes: K numbers m, ascending, from 1 to M.

    Returns:
        [N, K] in nats, at least float32.

    Raises:
        AssertionError: x or logits is not of rank 2, or of different D.
        ValueError: the sizes are not ascending, or not from 1 to M.
    """
    chex.assert_rank([x, logits], 2)
    chex.assert_equal_shape_suffix([x, logits], 1)
    ends = [0, *sizes]
    if any(a >= b for a, b in zip(ends, ends[1:])) or ends[-1] > len(logits):
        raise ValueError(
            f'sizes must ascend from 1 to {len(logits)}, got {list(sizes)}'
        )
    x, logits = numerics.upcast(x, logits)
    positive, tail = numerics.softplus_parts(logits)
    x = jnp.where((x >= 0) & (x <= 1), x, jnp.nan)
    # A sum of 784 logits in the reduced precision of a GPU would be off by nats.
    products = jnp.matmul(x, logits.T, precision=jax.lax.Precision.HIGHEST)
    log_px = products - jnp.sum(positive + tail, axis=1)[None]
    parts = [
        jax.nn.logsumexp(log_px[:, begin:end], axis=1)
        for begin, end in zip(ends, ends[1:])
    ]
    totals = parts[:1]
    for part in parts[1:]:
        totals.append(jnp.logaddexp(totals[-1], part))
    return jnp.stack(totals, axis=1) - jnp.log(jnp.asarray(sizes))[None]
