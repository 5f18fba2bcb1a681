"""Losses of the two players of an adversarial game; each is to be minimised.

Goodfellow et al. 2014, Generative Adversarial Networks, https://arxiv.org/abs/1406.2661
play the minimax game

    min_G max_D V(D, G) = E_x[log D(x)] + E_z[log(1 - D(G(z)))]

with D = sigmoid(logits):

    d_loss = adversarial.discriminator_loss(d(x), d(g(z)))       # -V
    g_loss = adversarial.generator_loss_minimax(d(g(z)))         # G's part of V
    g_loss = adversarial.generator_loss_non_saturating(d(g(z)))  # the same fixed point

Training takes two gradients, each with respect to the parameters of one player. So the
other player's parameters need no stop_gradient.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from gm_jax.keys import per_example
from gm_jax.losses import numerics

__all__ = [
    'Critic', 'critic_generator_loss', 'critic_loss', 'discriminator_loss',
    'generator_loss_minimax', 'generator_loss_non_saturating', 'gradient_penalty',
    'hinge_loss', 'r1_penalty',
]

Critic = Callable[[jax.Array], jax.Array]


def discriminator_loss(
    real_logits: jax.Array, fake_logits: jax.Array, smoothing: float = 0.0
) -> jax.Array:
    """Compute -mean log D(x) - mean log(1 - D(G(z))): -V of the minimax game.

    It is log 4 if D = 1/2 everywhere, when D cannot tell data from generated samples.
    With one-sided label smoothing s the target of data is 1 - s in place of 1:

        -mean [(1 - s) log D(x) + s log(1 - D(x))] - mean log(1 - D(G(z)))

    so that a discriminator that is too sure of data pays for it.

    Args:
        real_logits: [B] logits of data.
        fake_logits: [B'] logits of generated samples.
        smoothing: s, in [0, 1).

    Returns:
        Scalar, at least float32.

    Raises:
        AssertionError: an array is not of rank 1.

    Examples:
        >>> undecided = jnp.zeros(4)
        >>> print(f'{discriminator_loss(undecided, undecided):.3f}')
        1.386

    References:
        Goodfellow et al. 2014, eq. 1; Salimans et al. 2016, Improved Techniques for
        Training GANs, sec. 3.4, https://arxiv.org/abs/1606.03498
    """
    real, fake = _scores(real_logits, fake_logits)
    # -log(1 - D(x)) = softplus(x) = softplus(-x) + x.
    of_real = jax.nn.softplus(-real) + smoothing * real
    return jnp.mean(of_real) + jnp.mean(jax.nn.softplus(fake))


def generator_loss_minimax(fake_logits: jax.Array) -> jax.Array:
    """Compute mean log(1 - D(G(z))): what the generator minimises in the game.

    Its gradient with respect to a logit is -D(G(z)) / B: it vanishes where the
    discriminator is sure that a sample is fake, just where there is most to learn.

    Args:
        fake_logits: [B] logits of generated samples.

    Returns:
        Scalar, at least float32, never above 0.

    Raises:
        AssertionError: the array is not of rank 1.

    Examples:
        >>> print(jax.grad(generator_loss_minimax)(jnp.array([-5.0, 0.0])).round(3))
        [-0.003 -0.25 ]

    References:
        Goodfellow et al. 2014, eq. 1.
    """
    fake, = _scores(fake_logits)
    return -jnp.mean(jax.nn.softplus(fake))


def generator_loss_non_saturating(fake_logits: jax.Array) -> jax.Array:
    """Compute -mean log D(G(z)): the same fixed point with a gradient from the start.

    Its gradient with respect to a logit is -(1 - D(G(z))) / B.

    Args:
        fake_logits: [B] logits of generated samples.

    Returns:
        Scalar, at least float32, never below 0.

    Raises:
        AssertionError: the array is not of rank 1.

    Examples:
        >>> logits = jnp.array([-5.0, 0.0])
        >>> print(jax.grad(generator_loss_non_saturating)(logits).round(3))
        [-0.497 -0.25 ]

    References:
        Goodfellow et al. 2014, sec. 3.
    """
    fake, = _scores(fake_logits)
    return jnp.mean(jax.nn.softplus(-fake))


def critic_loss(real_scores: jax.Array, fake_scores: jax.Array) -> jax.Array:
    """Compute mean f(G(z)) - mean f(x): minus the estimated Wasserstein distance.

    It estimates the distance only if the critic is 1-Lipschitz: the norm of its
    gradient is nowhere above 1.

    Args:
        real_scores: [B] scores of data.
        fake_scores: [B'] scores of generated samples.

    Returns:
        Scalar, at least float32.

    Raises:
        AssertionError: an array is not of rank 1.

    Examples:
        >>> print(critic_loss(jnp.array([2.0, 4.0]), jnp.array([1.0])))
        -2.0

    References:
        Arjovsky, Chintala and Bottou 2017, Wasserstein GAN, eq. 3.
        https://arxiv.org/abs/1701.07875
    """
    real, fake = _scores(real_scores, fake_scores)
    return jnp.mean(fake) - jnp.mean(real)


def critic_generator_loss(fake_scores: jax.Array) -> jax.Array:
    """Compute -mean f(G(z)), the generator's part of the Wasserstein and hinge losses.

    Args:
        fake_scores: [B] scores of generated samples.

    Returns:
        Scalar, at least float32.

    Raises:
        AssertionError: the array is not of rank 1.

    Examples:
        >>> print(critic_generator_loss(jnp.array([1.0, 3.0])))
        -2.0

    References:
        Arjovsky, Chintala and Bottou 2017, Wasserstein GAN, algorithm 1.
    """
    fake, = _scores(fake_scores)
    return -jnp.mean(fake)


def hinge_loss(real_scores: jax.Array, fake_scores: jax.Array) -> jax.Array:
    """Compute mean max(0, 1 - f(x)) + mean max(0, 1 + f(G(z))).

    A sample that is beyond the margin on its side adds no loss and no gradient.

    Args:
        real_scores: [B] scores of data.
        fake_scores: [B'] scores of generated samples.

    Returns:
        Scalar, at least float32, never below 0.

    Raises:
        AssertionError: an array is not of rank 1.

    Examples:
        >>> print(hinge_loss(jnp.array([2.0, 0.0]), jnp.array([-1.0, 0.0])))
        1.0

    References:
        Lim and Ye 2017, Geometric GAN, https://arxiv.org/abs/1705.02894; Miyato et al.
        2018, Spectral Normalization for GANs, eq. 16, https://arxiv.org/abs/1802.05957
    """
    real, fake = _scores(real_scores, fake_scores)
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def gradient_penalty(
    critic_fn: Critic, rng: jax.Array, real: jax.Array, fake: jax.Array
) -> jax.Array:
    """Compute mean (|grad f(y)| - 1)^2 at points y = x + u (G(z) - x), u uniform.

    There is one u and one norm per example. A critic that compares examples, such as
    one with BatchNorm, has no gradient for one example alone: use another
    normalisation in it.

    Args:
        critic_fn: f, [B, ...] -> [B].
        rng: one key, or [B] keys, one per example.
        real: [B, ...] data.
        fake: [B, ...] generated samples.

    Returns:
        Scalar, at least float32, without the weight (10 in the paper). Its gradient is
        finite where the critic's is zero.

    Raises:
        AssertionError: the shapes differ, f does not return [B], or `rng` is neither
            one key nor [B] keys.

    Examples:
        A critic of slope 3:

        >>> real, fake, rng = jnp.ones((4, 2)), jnp.zeros((4, 2)), jax.random.key(0)
        >>> print(gradient_penalty(lambda x: 3 * x[:, 0], rng, real, fake))
        4.0

    References:
        Gulrajani et al. 2017, Improved Training of Wasserstein GANs, eq. 3.
        https://arxiv.org/abs/1704.00028
    """
    chex.assert_equal_shape([real, fake])
    real, fake = numerics.upcast(real, fake)
    batch = len(real)
    u = jax.vmap(jax.random.uniform)(per_example(rng, batch))
    u = u.astype(real.dtype).reshape(batch, *[1] * (real.ndim - 1))

    square = _square_slope(critic_fn, real + u * (fake - real))
    # The square root has no derivative at 0; there the norm's gradient is taken as 0.
    norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
    return jnp.mean(jnp.square(norm - 1))


def r1_penalty(critic_fn: Critic, real: jax.Array) -> jax.Array:
    """Compute mean |grad f(x)|^2 over data x: the R1 penalty.

    Near the equilibrium a discriminator with a gradient at the data makes the generator
    oscillate around them; the penalty drives this gradient to zero. Such a
    discriminator has no BatchNorm: see `gradient_penalty`.

    Args:
        critic_fn: f, [B, ...] -> [B]: the logits of D.
        real: [B, ...] data.

    Returns:
        Scalar, at least float32, without the weight (gamma / 2 in the paper).

    Raises:
        AssertionError: f does not return [B].

    Examples:
        A critic of slope 3:

        >>> print(r1_penalty(lambda x: 3 * x[:, 0], jnp.ones((4, 2))))
        9.0

    References:
        Mescheder, Geiger and Nowozin 2018, Which Training Methods for GANs do actually
        Converge?, eq. 9. https://arxiv.org/abs/1801.04406
    """
    real, = numerics.upcast(real)
    return jnp.mean(_square_slope(critic_fn, real))


def _square_slope(critic_fn: Critic, y: jax.Array) -> jax.Array:
    """Return |grad f(y)|^2 [B] of the points y [B, ...]."""
    def total(y: jax.Array) -> jax.Array:
        scores = critic_fn(y)
        chex.assert_shape(scores, y.shape[:1])
        return jnp.sum(scores)

    gradient, = numerics.flatten_events(jax.grad(total)(y))
    return jnp.sum(jnp.square(gradient), axis=1)


def _scores(*scores: jax.Array) -> tuple[jax.Array, ...]:
    chex.assert_rank(scores, 1)
    return numerics.upcast(*scores)
