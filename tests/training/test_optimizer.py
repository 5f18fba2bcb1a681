"""Learning rates at the steps where they are known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gm_jax.training import optimizer
from gm_jax.training.settings import Config


def _rates(steps, **settings) -> np.ndarray:
    schedule = optimizer.learning_rate(Config(**settings))
    return np.array([float(schedule(jnp.int32(step))) for step in steps])


def test_stages():
    """Catch a stage too many, one step off, or of another length."""
    # Stage i of 3^i steps: 3280 in all.
    starts = [(3**i - 1) // 2 for i in range(9)]
    assert starts[8] == 3280
    settings = dict(schedule='stages', learning_rate=1e-3, num_steps=3280)
    expected = 1e-3 * 10 ** (-np.arange(8) / 7)
    np.testing.assert_allclose(_rates(starts[:8], **settings), expected, rtol=1e-6)
    ends = np.array(starts[1:]) - 1
    np.testing.assert_allclose(_rates(ends, **settings), expected, rtol=1e-6)
    np.testing.assert_allclose(expected[[0, 7]], [1e-3, 1e-4])
    # A run ten times as long has the same shape.
    settings['num_steps'] = 32800
    np.testing.assert_allclose(_rates(10 * ends, **settings), expected, rtol=1e-6)


def test_cosine():
    """Catch a schedule that ends before or after the run."""
    settings = dict(schedule='cosine', learning_rate=0.2, num_steps=100)
    rates = _rates([0, 25, 50, 100], **settings)
    expected = 0.1 * (1 + np.cos(np.pi * np.array([0, 0.25, 0.5, 1])))
    np.testing.assert_allclose(rates, expected, rtol=1e-5, atol=1e-9)


def test_linear():
    """Catch a rate that does not reach zero, or a step that is not along it."""
    settings = dict(schedule='linear', learning_rate=0.2, num_steps=100)
    np.testing.assert_allclose(_rates([0, 25, 100], **settings), [0.2, 0.15, 0])
    tx = optimizer.make(Config(optimizer='sgd', **settings))
    grads, state = jnp.array([3.0, -4.0]), tx.init(jnp.zeros(2))
    for rate in (0.2, 0.198):
        updates, state = tx.update(grads, state, jnp.zeros(2))
        np.testing.assert_allclose(updates, -rate * grads, rtol=1e-5)


def test_warmup():
    """Catch a warm-up that jumps, or that makes the schedule after it too long."""
    settings = dict(learning_rate=0.2, num_steps=100, warmup_steps=10)
    rates = _rates([0, 5, 10, 99], schedule='constant', **settings)
    np.testing.assert_allclose(rates, [0, 0.1, 0.2, 0.2], rtol=1e-6)
    rates = _rates([5, 10, 55, 100], schedule='cosine', **settings)
    np.testing.assert_allclose(rates, [0.1, 0.2, 0.1, 0], rtol=1e-5, atol=1e-9)


def test_adam_follows_the_settings():
    """Catch a constant that is not passed on, and clipping after the moments."""
    config = Config(
        learning_rate=0.1, adam_b1=0.5, adam_b2=0.75, adam_eps=0.01, grad_clip=1.0
    )
    params, grads = jnp.zeros(2), jnp.array([3.0, 4.0])
    tx = optimizer.make(config)
    updates, _ = tx.update(grads, tx.init(params), params)
    g = np.array([0.6, 0.8])  # of norm 1; Adam's first step corrects the moments to g
    np.testing.assert_allclose(updates, -0.1 * g / (g + 0.01), rtol=1e-5)
    tx = optimizer.make(dataclasses.replace(config, grad_clip=0.0))
    updates, _ = tx.update(grads, tx.init(params), params)
    g = np.array([3.0, 4.0])
    np.testing.assert_allclose(updates, -0.1 * g / (g + 0.01), rtol=1e-5)
    tx = optimizer.make(config)
    state, moments = tx.init(params), np.zeros((2, 2))
    for t, scale in enumerate((0.1, 0.05), start=1):
        g = scale * np.array([3.0, 4.0])
        moments[0] = 0.5 * moments[0] + 0.5 * g
        moments[1] = 0.75 * moments[1] + 0.25 * g**2
        updates, state = tx.update(jnp.asarray(g, jnp.float32), state, params)
        m, v = moments[0] / (1 - 0.5**t), moments[1] / (1 - 0.75**t)
        np.testing.assert_allclose(updates, -0.1 * m / (v**0.5 + 0.01), rtol=1e-4)


def test_muon_steps_by_orthogonal_matrices():
    """Catch a kernel taken for another matrix, a bias that is none, and the scale."""
    config = Config(
        learning_rate=0.1, optimizer='muon', schedule='constant'
    )
    rng = np.random.default_rng(0)
    u, _, v = np.linalg.svd(rng.normal(size=(2 * 3 * 4, 5)), full_matrices=False)
    # Of very different singular values, of which the step must not depend.
    gradient = (u * np.geomspace(1, 0.05, 5)) @ v
    grads = {
        'kernel': jnp.asarray(gradient.reshape(2, 3, 4, 5), jnp.float32),
        'bias': jnp.array([3.0, -4.0]),
    }
    params = jax.tree.map(jnp.zeros_like, grads)
    tx = optimizer.make(config)
    updates, _ = tx.update(grads, tx.init(params), params)
    # Adam with Nesterov's momentum, whose first step looks one further ahead.
    first = 0.1 * (1 + 0.9 * 0.1 / (1 - 0.9**2))
    np.testing.assert_allclose(updates['bias'], [-first, first], rtol=1e-5)
    step = np.asarray(updates['kernel']).reshape(24, 5) / (-0.1 * 0.2 * 24**0.5)
    # Five Newton-Schulz iterations bring singular values near 1, not to it.
    values = np.diag(u.T @ step @ v.T)
    assert (values > 0.6).all() and (values < 1.3).all()
    np.testing.assert_allclose(u.T @ step @ v.T, np.diag(values), atol=0.02)


@pytest.mark.parametrize('name', ['adam', 'muon', 'sgd'])
def test_weight_decay_is_of_kernels(name):
    """Catch a decay of biases, and one that goes through the moments."""
    params = {'kernel': jnp.full((4, 3), 2.0), 'bias': jnp.full((3,), 2.0)}
    grads = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), params)

    def step(decay):
        config = Config(
            learning_rate=0.1, schedule='constant', optimizer=name, weight_decay=decay
        )
        tx = optimizer.make(config)
        return tx.update(grads, tx.init(params), params)[0]

    without, with_decay = step(0.0), step(0.5)
    np.testing.assert_array_equal(with_decay['bias'], without['bias'])
    difference = with_decay['kernel'] - without['kernel']
    np.testing.assert_allclose(difference, np.full((4, 3), -0.1 * 0.5 * 2), rtol=1e-4)


def test_several_updates_a_step_share_its_learning_rate():
    """Catch a schedule that runs k times as fast for who moves k times a step."""
    config = Config(learning_rate=1.0, num_steps=4, adam_eps=1e-20)
    tx = optimizer.make(config, updates_per_step=3)
    params = {'w': jnp.zeros((1, 1))}
    state, moves = tx.init(params), []
    for _ in range(12):
        # Adam's updates by a constant gradient are as long as the learning rate.
        updates, state = tx.update({'w': jnp.ones((1, 1))}, state, params)
        moves.append(-float(updates['w'][0, 0]))
    expected = np.repeat(_rates(range(4), learning_rate=1.0, num_steps=4), 3)
    np.testing.assert_allclose(moves, expected, rtol=1e-4)
