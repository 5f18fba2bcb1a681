"""One training step: what it changes, and that devices only share the work."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm_jax.keys import example_rngs
from gm_jax.training import train_state

TX = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1))


def _loss_fn(params, model_state, batch, rngs, *, step, axis_name):
    """Least squares on noisy inputs; NaN wherever an input is."""
    noise = jax.vmap(lambda rng: jax.random.normal(rng, (3,)))(rngs)
    error = (batch['x'] + 0.1 * noise) @ params['w'] - batch['y']
    loss = jnp.mean(error**2)
    stats = {'mean': batch['x'].mean(0)}
    if axis_name is not None:
        stats = jax.lax.pmean(stats, axis_name)
    return train_state.LossOutput(loss, {'error': jnp.abs(error).mean()}, stats)


def _start(ema=True):
    params = {'w': jnp.array([1.0, -2.0, 0.5])}
    return train_state.create(params, TX, model_state={'mean': jnp.ones(3)}, ema=ema)


def _batch(num=16):
    rng = np.random.default_rng(0)
    return {
        'x': jnp.asarray(rng.normal(size=(num, 3)), jnp.float32),
        'y': jnp.asarray(rng.normal(size=num), jnp.float32),
        'index': jnp.arange(num, dtype=jnp.int32),
    }


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_skipped_step_changes_only_the_counters(bad):
    """Catch a NaN that reaches a parameter, a moment, or the average."""
    step = jax.jit(train_state.make_train_step(_loss_fn, ema_decay=0.9))
    state, _ = step(_start(), _batch(), jax.random.key(0))
    batch = _batch()
    batch['x'] = batch['x'].at[3, 1].set(bad)
    new = state
    for times in (1, 2):
        new, metrics = step(new, batch, jax.random.key(0))
        assert not np.isfinite(metrics['loss'])
        assert (int(new.skipped), int(new.skipped_total)) == (times, times)
        assert int(new.step) == 1 + times
        chex.assert_trees_all_equal(
            new.replace(step=state.step, skipped=state.skipped,
                        skipped_total=state.skipped_total), state
        )
    new, _ = step(new, _batch(), jax.random.key(0))
    assert (int(new.skipped), int(new.skipped_total), int(new.step)) == (0, 2, 4)
    assert not np.array_equal(new.params['w'], state.params['w'])


def test_evaluation_uses_the_average():
    """Catch evaluations of the parameters in place of their average."""
    step = jax.jit(train_state.make_train_step(_loss_fn, ema_decay=0.9))
    state, _ = step(_start(), _batch(), jax.random.key(0))
    variables = state.eval_variables
    chex.assert_trees_all_equal(variables['params'], state.ema_params)
    chex.assert_trees_all_equal(variables['mean'], state.model_state['mean'])
    assert not np.array_equal(state.ema_params['w'], state.params['w'])
    plain = _start(ema=False)
    chex.assert_trees_all_equal(plain.eval_variables['params'], plain.params)


@pytest.mark.parametrize('micro_batch', [1, 4, 16])
def test_parts_add_up_to_the_batch(micro_batch):
    """Catch a sum for a mean, noise keyed by the part, and moments of one part."""
    whole, metrics = jax.jit(train_state.make_train_step(_loss_fn, ema_decay=0.9))(
        _start(), _batch(), jax.random.key(0)
    )
    step = train_state.make_train_step(_loss_fn, ema_decay=0.9, micro_batch=micro_batch)
    parts, others = jax.jit(step)(_start(), _batch(), jax.random.key(0))
    chex.assert_trees_all_close(parts, whole, rtol=1e-5, atol=1e-6)
    chex.assert_trees_all_close(others, metrics, rtol=1e-5)


def test_parts_that_do_not_divide_the_batch():
    """Catch examples that are left out."""
    step = train_state.make_train_step(_loss_fn, micro_batch=3)
    with pytest.raises(ValueError, match='3 does not divide a batch of 16'):
        step(_start(ema=False), _batch(), jax.random.key(0))


def test_gradient_that_is_not_finite_is_skipped():
    """Catch a check of the loss alone: sqrt at 0 has a loss and no gradient."""
    def loss_fn(params, model_state, batch, rngs, *, step, axis_name):
        return train_state.LossOutput(jnp.sqrt(jnp.sum(0 * params['w'])), {}, {})

    state = train_state.create({'w': jnp.ones(3)}, TX)
    step = train_state.make_train_step(loss_fn)
    new, metrics = step(state, {'index': jnp.arange(2)}, jax.random.key(0))
    assert metrics['loss'] == 0 and int(new.skipped) == 1
    np.testing.assert_array_equal(new.params['w'], state.params['w'])


def test_average_of_the_parameters():
    """Catch a decay on the wrong side, and a start that weighs too much."""
    step = jax.jit(train_state.make_train_step(_loss_fn, ema_decay=0.3))
    state = _start()
    ema = np.asarray(state.params['w'], np.float64)
    for t in range(6):
        state, _ = step(state, _batch(), jax.random.key(0))
        d = min(0.3, (1 + t) / (10 + t))
        ema = d * ema + (1 - d) * np.asarray(state.params['w'], np.float64)
        np.testing.assert_allclose(state.ema_params['w'], ema, rtol=1e-6)
    assert state.eval_params is state.ema_params
    assert _start(ema=False).eval_params['w'][0] == 1


def test_devices_average_to_the_gradient_of_the_batch():
    """Catch a sum instead of a mean, and a step that differs between devices."""
    step = train_state.make_train_step(_loss_fn, ema_decay=0.9)
    state, batch, rng = _start(), _batch(), jax.random.key(1)
    one, expected = jax.jit(step)(state, batch, rng)
    parts = jax.tree.map(lambda x: x.reshape(8, 2, *x.shape[1:]), batch)
    many, metrics = jax.pmap(
        lambda state, batch, rng: step(state, batch, rng, axis_name='i'),
        axis_name='i', in_axes=(None, 0, None),
    )(state, parts, rng)
    for device in range(8):
        here = jax.tree.map(lambda x: x[device], many)
        chex.assert_trees_all_close(here, one, rtol=1e-5)
        got = jax.tree.map(lambda x: x[device], metrics)
        chex.assert_trees_all_close(got, expected, rtol=1e-5)


def test_keys_belong_to_the_example_and_the_step():
    """Catch keys that depend on the device, are repeated, or skip the step."""
    rng = jax.random.key(3)
    index = jnp.arange(16)
    keys = jax.random.key_data(example_rngs(rng, jnp.int32(5), index))
    part = example_rngs(rng, jnp.int32(5), index[6:9])
    np.testing.assert_array_equal(jax.random.key_data(part), keys[6:9])
    later = example_rngs(rng, jnp.int32(6), index)
    both = np.concatenate([keys, jax.random.key_data(later)])
    assert len(np.unique(both, axis=0)) == 32
    expected = jax.random.fold_in(jax.random.fold_in(rng, 5), 2)
    np.testing.assert_array_equal(jax.random.key_data(expected), keys[2])
