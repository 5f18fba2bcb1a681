"""Adversarial losses against closed forms, and gradients of the right player."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from gm_jax.losses import adversarial

LOGITS = np.array([-3.0, -0.5, 0.0, 2.0])
OF_FAKES = (
    adversarial.generator_loss_minimax,
    adversarial.generator_loss_non_saturating,
    adversarial.critic_generator_loss,
)
OF_BOTH = (
    adversarial.discriminator_loss, adversarial.critic_loss, adversarial.hinge_loss,
)


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_values_equal_their_definitions_in_float64():
    """Catch a generator's loss with the sign or the label of the other one."""
    d, real = _sigmoid(LOGITS), LOGITS[::-1] + 1
    with jax.enable_x64(True):
        expected = {
            adversarial.generator_loss_minimax: np.log(1 - d).mean(),
            adversarial.generator_loss_non_saturating: -np.log(d).mean(),
            adversarial.critic_generator_loss: -LOGITS.mean(),
        }
        for fn, value in expected.items():
            np.testing.assert_allclose(fn(jnp.asarray(LOGITS)), value, rtol=1e-14)
        expected = {
            adversarial.discriminator_loss: -(
                np.log(_sigmoid(real)).mean() + np.log(1 - d).mean()
            ),
            adversarial.critic_loss: LOGITS.mean() - real.mean(),
            adversarial.hinge_loss: np.maximum(0, 1 - real).mean()
            + np.maximum(0, 1 + LOGITS).mean(),
        }
        for fn, value in expected.items():
            args = jnp.asarray(real), jnp.asarray(LOGITS)
            np.testing.assert_allclose(fn(*args), value, rtol=1e-14)


def test_smoothed_labels_are_a_cross_entropy_with_their_target():
    """Catch both labels smoothed, and a loss that rewards a discriminator too sure.

    The best D(x) for the target 1 - s is 1 - s; the loss of data is then the entropy.
    """
    s, real = 0.1, LOGITS[::-1] + 1
    d, d_real = _sigmoid(LOGITS), _sigmoid(real)
    of_real = (1 - s) * np.log(d_real) + s * np.log(1 - d_real)
    with jax.enable_x64(True):
        loss = adversarial.discriminator_loss(
            jnp.asarray(real), jnp.asarray(LOGITS), smoothing=s
        )
        np.testing.assert_allclose(
            loss, -of_real.mean() - np.log(1 - d).mean(), rtol=1e-14
        )
        best, sure = jnp.array([np.log((1 - s) / s)]), jnp.array([-1e3])
        least, slope = jax.value_and_grad(adversarial.discriminator_loss)(
            best, sure, smoothing=s
        )
    np.testing.assert_allclose(
        least, -s * np.log(s) - (1 - s) * np.log(1 - s), rtol=1e-14
    )
    np.testing.assert_allclose(slope, 0, atol=1e-15)


def test_an_ignorant_discriminator_pays_log_4():
    """Catch a mean over both halves: the value of the game at D = 1/2 is -log 4."""
    zeros = jnp.zeros(7)
    loss = adversarial.discriminator_loss(zeros, zeros[:3])
    np.testing.assert_allclose(loss, np.log(4), rtol=1e-6)
    half = adversarial.generator_loss_minimax(zeros)
    np.testing.assert_allclose(half, -np.log(2), rtol=1e-6)


def test_the_best_discriminator_gives_the_jensen_shannon_divergence():
    """Catch losses that belong to different games: V(D*) = 2 JS - log 4.

    Over three outcomes with D* = p / (p + q), every outcome weighed by its count.
    """
    p, q = np.array([5, 3, 2]), np.array([1, 3, 6])
    logits = np.log(p / q)
    with jax.enable_x64(True):
        value = -adversarial.discriminator_loss(
            jnp.asarray(np.repeat(logits, p)), jnp.asarray(np.repeat(logits, q))
        )
    p, q = p / 10, q / 10
    middle = (p + q) / 2
    js = (np.sum(p * np.log(p / middle)) + np.sum(q * np.log(q / middle))) / 2
    np.testing.assert_allclose(value, 2 * js - np.log(4), rtol=1e-13)


def test_gradients_of_the_lecture_s_picture():
    """Catch the non-saturating loss under the other's name.

    As a function of D(G(z)): -D for the minimax loss, which is flat where samples are
    seen to be fake, and -(1 - D) for the other, which is steepest there.
    """
    d = np.array([1e-4, 0.1, 0.5, 0.9, 1 - 1e-4])
    for fn, expected in (
        (adversarial.generator_loss_minimax, -d),
        (adversarial.generator_loss_non_saturating, -(1 - d)),
    ):
        with jax.enable_x64(True):
            gradient = len(d) * jax.grad(fn)(jnp.asarray(np.log(d / (1 - d))))
        np.testing.assert_allclose(gradient, expected, rtol=1e-11)


def test_second_derivatives_of_the_cross_entropies():
    """Catch a kink at a logit of 0, where a new discriminator is: D (1 - D) is 1/4."""
    logits = jnp.array([0.0, -2.0, 3.0])
    d = _sigmoid(np.asarray(logits, np.float64))
    for fn, sign in (
        (adversarial.generator_loss_minimax, -1),
        (adversarial.generator_loss_non_saturating, 1),
        (lambda t: adversarial.discriminator_loss(t, jnp.ones(1)), 1),
        (lambda t: adversarial.discriminator_loss(jnp.ones(1), t), 1),
    ):
        expected = np.diag(sign * d * (1 - d)) / 3
        np.testing.assert_allclose(
            jax.jit(jax.hessian(fn))(logits), expected, 1e-5, 1e-8
        )


def test_a_player_s_step_leaves_the_other_alone():
    """Catch a loss by which one optimizer trains both players."""
    params = {'d': jnp.array([0.3, -0.2]), 'g': jnp.array(0.7)}
    z, x = jnp.linspace(-1, 1, 5), jnp.linspace(0, 2, 5)

    def d_loss(d, g):
        real_logits, fake_logits = d[0] * x + d[1], d[0] * g * z + d[1]
        return adversarial.discriminator_loss(real_logits, fake_logits)

    frozen = jax.grad(lambda g: d_loss(params['d'], jax.lax.stop_gradient(g)))
    assert frozen(params['g']) == 0
    assert np.all(jax.grad(d_loss)(params['d'], params['g']) != 0)


@pytest.mark.parametrize('fn', OF_FAKES + OF_BOTH)
def test_extreme_logits(fn):
    """Catch log(sigmoid(x) + 1e-8): no gradient at -100, and infinities in others."""
    number = 2 if fn in OF_BOTH else 1
    for logit in (-1e4, -100.0, 100.0, 1e4):
        args = (jnp.array([logit, -logit]),) * number
        value, gradient = jax.value_and_grad(fn)(*args)
        assert np.isfinite(value) and np.all(np.isfinite(gradient))
    gradient = jax.grad(adversarial.generator_loss_non_saturating)(jnp.array([-100.0]))
    np.testing.assert_allclose(gradient, -1, rtol=1e-6)


@pytest.mark.parametrize('fn', OF_FAKES + OF_BOTH)
def test_bfloat16_and_wrong_ranks(fn):
    """Catch sums in half precision, and [B, 1], of which a mean would be right."""
    number = 2 if fn in OF_BOTH else 1
    assert fn(*(jnp.zeros(3, jnp.bfloat16),) * number).dtype == jnp.float32
    with pytest.raises(AssertionError):
        fn(*(jnp.zeros((3, 1)),) * number)


def _quadratic(y):
    return jnp.sum(jnp.square(y).reshape(len(y), -1), axis=1) / 2


def test_penalty_of_critics_whose_slope_is_known():
    """Catch one norm of the whole batch, and a norm without its root."""
    real, fake = (jax.random.normal(jax.random.key(n), (6, 2, 3, 1)) for n in (0, 1))
    for slope in (0.0, 0.25, 1.0, 3.0):

        def linear(y, slope=slope):
            direction = jnp.array([0.6, 0, 0, 0.8, 0, 0])
            return slope * y.reshape(len(y), -1) @ direction

        penalty = adversarial.gradient_penalty(linear, jax.random.key(2), real, fake)
        np.testing.assert_allclose(penalty, (slope - 1) ** 2, rtol=1e-5, atol=1e-6)
    # The gradient of |y|^2 / 2 is y itself.
    keys = jax.random.split(jax.random.key(3), 6)
    u = jax.vmap(jax.random.uniform)(keys).reshape(-1, 1, 1, 1)
    norms = np.linalg.norm((real + u * (fake - real)).reshape(6, -1), axis=1)
    penalty = adversarial.gradient_penalty(_quadratic, keys, real, fake)
    np.testing.assert_allclose(penalty, np.mean((norms - 1) ** 2), rtol=1e-5)


def test_r1_of_critics_whose_slope_is_known():
    """Catch a root, a distance from 1, and one norm of the whole batch."""
    real = jax.random.normal(jax.random.key(0), (6, 2, 3, 1))
    # The gradient of |y|^2 / 2 is y itself.
    norms = np.linalg.norm(np.asarray(real).reshape(6, -1), axis=1)
    penalty = adversarial.r1_penalty(_quadratic, real)
    np.testing.assert_allclose(penalty, np.mean(norms**2), rtol=1e-6)
    assert adversarial.r1_penalty(lambda y: 0 * _quadratic(y), real) == 0
    assert adversarial.r1_penalty(_quadratic, real.astype(jnp.bfloat16)).dtype == 'f4'
    with pytest.raises(AssertionError):
        adversarial.r1_penalty(lambda y: y[:, :1, 0, 0], real)
    with jax.enable_x64(True):
        x, w = (
            jax.random.normal(jax.random.key(n), (4, 4), dtype=float) for n in (1, 2)
        )

        def penalty_of(w):
            return adversarial.r1_penalty(lambda y: jnp.tanh(y @ w).sum(1), x)

        check_grads(penalty_of, (w,), order=1, modes=['rev'], rtol=1e-6)


def test_penalty_has_a_gradient_where_the_critic_is_flat():
    """Catch the root at 0, whose gradient is NaN."""
    x = jnp.ones((4, 3))

    def penalty(scale):
        return adversarial.gradient_penalty(
            lambda y: scale * _quadratic(y), jax.random.key(0), x, x
        )

    assert penalty(0.0) == 1 and np.isfinite(jax.grad(penalty)(0.0))
    # At y = 0 the gradient of |y|^2 / 2 is 0.
    zero = jnp.zeros((4, 3))
    gradient = jax.grad(
        lambda x: adversarial.gradient_penalty(_quadratic, jax.random.key(0), x, x)
    )(zero)
    assert np.all(np.isfinite(gradient))


def test_gradient_of_the_penalty():
    """Catch a second derivative that is lost on the way, by finite differences."""
    with jax.enable_x64(True):
        real, fake = (
            jax.random.normal(jax.random.key(n), (3, 4), dtype=float) for n in (0, 1)
        )

        def penalty(w):
            return adversarial.gradient_penalty(
                lambda y: jnp.tanh(y @ w).sum(1), jax.random.key(2), real, fake
            )

        w = jax.random.normal(jax.random.key(3), (4, 5), dtype=float)
        check_grads(penalty, (w,), order=1, modes=['rev'], rtol=1e-6)


def test_penalty_under_pmap_equals_that_of_one_device():
    """Catch u that depend on the device, by an average over two of them."""
    real, fake = (jax.random.normal(jax.random.key(n), (8, 3)) for n in (0, 1))
    keys = jax.random.split(jax.random.key(2), 8)

    def gradient(w, keys, real, fake):
        return jax.grad(
            lambda w: adversarial.gradient_penalty(
                lambda y: jnp.tanh(y @ w), keys, real, fake
            )
        )(w)

    def on_device(*args):
        return jax.lax.pmean(gradient(*args), 'devices')

    w = jnp.array([0.5, -1.0, 2.0])
    shards = (a.reshape(2, 4, *a.shape[1:]) for a in (keys, real, fake))
    halves = jax.pmap(on_device, 'devices', in_axes=(None, 0, 0, 0))(w, *shards)
    np.testing.assert_allclose(halves[0], gradient(w, keys, real, fake), rtol=1e-5)


def test_penalty_refuses_other_shapes():
    """Catch shapes that would only broadcast, and a critic of [B, 1]."""
    x = jnp.ones((4, 3))
    with pytest.raises(AssertionError):
        adversarial.gradient_penalty(_quadratic, jax.random.key(0), x, x[:1])
    with pytest.raises(AssertionError):
        adversarial.gradient_penalty(lambda y: y[:, :1], jax.random.key(0), x, x)
