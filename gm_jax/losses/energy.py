r"""Restricted Boltzmann machines: energies, gradients and the exact partition function.

For visible units v in {0, 1}^D and hidden units h in {0, 1}^H,

    E(v, h) = -b.v - c.h - v.W h            p(v, h) = e^-E(v, h) / Z
    F(v) = -log sum_h e^-E(v, h) = -b.v - sum_j log(1 + e^(c_j + (v W)_j))

so that log p(v) = -F(v) - log Z. Training needs samples of the model, and no Z:

    v_model = gibbs(rng, rbm, chains, num_steps=1)          # gm_jax.sampling.gibbs
    loss = energy.contrastive_divergence(rbm, v, v_model)
    gradient = jax.grad(...)                                 # of the weights and biases

References:
    Hinton 2002, Training Products of Experts by Minimizing Contrastive Divergence.
    Tieleman 2008, Training Restricted Boltzmann Machines using Approximations to the
    Likelihood Gradient.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from gm_jax.losses import numerics

__all__ = [
    'center_gradient', 'centered', 'contrastive_divergence', 'free_energy',
    'hidden_logits', 'log_partition_exact', 'MOST_ENUMERATED', 'RBM', 'softplus',
    'visible_logits',
]

# The enumeration of 2^24 states takes minutes.
MOST_ENUMERATED = 24
_CHUNK = 10  # 2^10 states are enumerated at a time.


class RBM(NamedTuple):
    """A restricted Boltzmann machine; see the module.

    Attributes:
        weights: [D, H] W.
        visible_bias: [D] b.
        hidden_bias: [H] c.
    """

    weights: jax.Array
    visible_bias: jax.Array
    hidden_bias: jax.Array


def _check(rbm: RBM) -> RBM:
    """Return the machine in its float type, at least float32; check its shapes."""
    rbm = RBM(*numerics.upcast(*rbm))
    chex.assert_rank(rbm.weights, 2)
    num_visible, num_hidden = rbm.weights.shape
    chex.assert_shape(rbm.visible_bias, (num_visible,))
    chex.assert_shape(rbm.hidden_bias, (num_hidden,))
    return rbm


def softplus(t: jax.Array) -> jax.Array:
    """Compute log(1 + e^t).

    Args:
        t: finite numbers of any shape.

    Returns:
        Of the same shape.

    Examples:
        >>> print(softplus(jnp.array([-100.0, 100.0])))
        [  0. 100.]
    """
    positive, tail = numerics.softplus_parts(t)
    return positive + tail


def hidden_logits(rbm: RBM, v: jax.Array) -> jax.Array:
    """Compute c + v W: the log-odds of each hidden unit given v.

    Args:
        rbm: the machine.
        v: [B, D] bits, or their probabilities.

    Returns:
        [B, H], at least float32.

    Raises:
        AssertionError: the shapes do not fit.

    Examples:
        >>> rbm = RBM(jnp.eye(2), jnp.zeros(2), jnp.array([-1.0, -1.0]))
        >>> print(hidden_logits(rbm, jnp.array([[0, 1]])))
        [[-1.  0.]]
    """
    rbm = _check(rbm)
    chex.assert_shape(v, (None, len(rbm.visible_bias)))
    # A GPU or TPU would round the weights to fewer bits, and so change the model.
    product = jnp.matmul(
        v.astype(rbm.weights.dtype), rbm.weights, precision=jax.lax.Precision.HIGHEST
    )
    return product + rbm.hidden_bias[None]


def visible_logits(rbm: RBM, h: jax.Array) -> jax.Array:
    """Compute b + W h: the log-odds of each visible unit given h.

    Args:
        rbm: the machine.
        h: [B, H] bits, or their probabilities.

    Returns:
        [B, D], at least float32.

    Raises:
        AssertionError: the shapes do not fit.

    Examples:
        >>> rbm = RBM(jnp.eye(2), jnp.zeros(2), jnp.array([-1.0, -1.0]))
        >>> print(visible_logits(rbm, jnp.array([[0, 1]])))
        [[0. 1.]]
    """
    return hidden_logits(_transposed(rbm), h)


def _transposed(rbm: RBM) -> RBM:
    """Return the machine whose visible and hidden units have changed places."""
    return RBM(rbm.weights.T, rbm.hidden_bias, rbm.visible_bias)


def free_energy(rbm: RBM, v: jax.Array) -> jax.Array:
    """Compute F(v) = -b.v - sum_j log(1 + e^(c_j + (v W)_j)).

    Args:
        rbm: the machine.
        v: [B, D] bits. For probabilities q in place of bits the result is
            min_r E[E(v, h)] - entropy(r), with independent bits v ~ q and h ~ r.

    Returns:
        [B] in nats, at least float32: log p(v) = -F(v) - log Z.

    Raises:
        AssertionError: the shapes do not fit.

    Examples:
        Three hidden units without weights can be in 8 states:

        >>> rbm = RBM(jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(3))
        >>> print(jnp.exp(-free_energy(rbm, jnp.array([[0, 1]]))).round(3))
        [8.]
    """
    rbm = _check(rbm)
    logits = hidden_logits(rbm, v)
    linear = jnp.sum(v.astype(logits.dtype) * rbm.visible_bias[None], axis=1)
    return -linear - jnp.sum(softplus(logits), axis=1)


def log_partition_exact(rbm: RBM) -> jax.Array:
    """Compute log Z by the enumeration of all states of the smaller side.

    The other side is summed out: log Z = log sum_h e^(c.h + sum_i log(1 + e^(b_i +
    (W h)_i))). Each step of a loop enumerates 1024 states.

    Args:
        rbm: the machine, with at most 24 units on one of its sides.

    Returns:
        [] in nats, in the type of the machine, at least float32. The error is that of
        its rounding: 3e-5 for a log Z near 300 in float32.

    Raises:
        ValueError: both sides are larger.
        AssertionError: the shapes do not fit.

    Examples:
        The probabilities of all states of two visible units add to one:

        >>> rbm = RBM(jnp.array([[1.0], [-2.0]]), jnp.array([0.5, 0.0]), jnp.ones(1))
        >>> v = jnp.array([[0, 0], [0, 1], [1, 0], [1, 1]])
        >>> p = jnp.exp(-free_energy(rbm, v) - log_partition_exact(rbm))
        >>> print(f'{p.sum():.3f}')
        1.000
    """
    rbm = _check(rbm)
    num = min(rbm.weights.shape)
    if num > MOST_ENUMERATED:
        raise ValueError(
            f'an RBM of {rbm.weights.shape[0]} x {rbm.weights.shape[1]} units has '
            f'2^{num} states to enumerate: at most 2^{MOST_ENUMERATED} are.'
        )
    # Names as if the hidden side were the smaller one.
    rbm = rbm if num == rbm.weights.shape[1] else _transposed(rbm)
    size = 2 ** min(num, _CHUNK)

    def one_chunk(_: None, first: jax.Array) -> tuple[None, jax.Array]:
        state = first + jnp.arange(size)
        h = (state[:, None] >> jnp.arange(num)[None]) & 1
        log_weights = -free_energy(_transposed(rbm), h)
        return None, jax.nn.logsumexp(log_weights)

    _, parts = jax.lax.scan(one_chunk, None, jnp.arange(0, 2**num, size))
    return jax.nn.logsumexp(parts)


def contrastive_divergence(
    rbm: RBM, positive: jax.Array, negative: jax.Array
) -> jax.Array:
    """Compute mean F(positive) - mean F(negative).

    Its gradient is that of contrastive divergence,

        d/dW = <v p(h|v)>_negative - <v p(h|v)>_positive

    and alike for the biases: with samples of the model as `negative` an unbiased
    estimate of the gradient of -log p(positive). Both terms have the probabilities of
    the hidden units, not samples of them. Its value is not a likelihood: it only
    measures how well the machine separates the two.

    Args:
        rbm: the machine.
        positive: [B, D] data.
        negative: [M, D] the states that Gibbs sampling ended in; no gradient flows
            through them.

    Returns:
        Scalar in nats, to be minimised.

    Raises:
        AssertionError: the shapes do not fit.

    Examples:
        The gradient is zero where data and samples are alike:

        >>> rbm = RBM(jnp.ones((2, 1)), jnp.zeros(2), jnp.zeros(1))
        >>> v = jnp.array([[0.0, 1.0], [1.0, 1.0]])
        >>> gradient = jax.grad(contrastive_divergence)(rbm, v, v)
        >>> print(abs(gradient.weights).max())
        0.0
    """
    negative = jax.lax.stop_gradient(negative)
    return jnp.mean(free_energy(rbm, positive)) - jnp.mean(free_energy(rbm, negative))


def center_gradient(
    gradient: RBM, visible_offset: jax.Array, hidden_offset: jax.Array
) -> RBM:
    """Map a gradient to the step that the centered parametrisation makes of it.

    With offsets m of v and l of h,

        E(v, h) = -(v - m).b' - (h - l).c' - (v - m).W (h - l)

    is, but for a constant, the machine of biases b = b' - W l and c = c' - W^T m. A
    step along the gradient of (W, b', c') moves (W, b, c) along the result. So the
    parameters need not be changed when the offsets are.

    Args:
        gradient: of the loss in W, b and c.
        visible_offset: [D] m.
        hidden_offset: [H] l.

    Returns:
        The step in W, b and c.

    Raises:
        AssertionError: the shapes do not fit.

    Examples:
        >>> gradient = RBM(jnp.ones((2, 1)), jnp.zeros(2), jnp.zeros(1))
        >>> step = center_gradient(gradient, jnp.array([0.5, 0.5]), jnp.array([0.5]))
        >>> print(step.visible_bias, step.hidden_bias)
        [-0.5 -0.5] [-1.]

    References:
        Montavon and Mueller 2012, Deep Boltzmann Machines and the Centering Trick.
        Melchior, Fischer and Wiskott 2016, How to Center Deep Boltzmann Machines.
        https://jmlr.org/papers/v17/14-237.html
    """
    chex.assert_equal_shape([visible_offset, gradient.visible_bias])
    chex.assert_equal_shape([hidden_offset, gradient.hidden_bias])
    weights = (
        gradient.weights
        - visible_offset[:, None] * gradient.hidden_bias[None]
        - gradient.visible_bias[:, None] * hidden_offset[None]
    )
    return RBM(
        weights,
        gradient.visible_bias - weights @ hidden_offset,
        gradient.hidden_bias - visible_offset @ weights,
    )


@jax.custom_vjp
def centered(rbm: RBM, visible_offset: jax.Array, hidden_offset: jax.Array) -> RBM:
    """Return the machine as it is; its gradient is that of `center_gradient`.

        loss = contrastive_divergence(centered(rbm, m, l), v, v_model)

    Args:
        rbm: the machine.
        visible_offset: [D] m, such as a running average of v.
        hidden_offset: [H] l, such as a running average of p(h|v).

    Returns:
        The machine.

    Raises:
        AssertionError: in the gradient, if the shapes do not fit.

    References:
        As for `center_gradient`.
    """
    del visible_offset, hidden_offset
    return rbm


def _centered_forward(
    rbm: RBM, *offsets: jax.Array
) -> tuple[RBM, tuple[jax.Array, ...]]:
    return rbm, offsets


def _centered_backward(
    offsets: tuple[jax.Array, jax.Array], gradient: RBM
) -> tuple[RBM | jax.Array, ...]:
    zeros = (jnp.zeros_like(offset) for offset in offsets)
    return center_gradient(gradient, *offsets), *zeros


centered.defvjp(_centered_forward, _centered_backward)
