"""The step of a game: who moves, on which minibatch, and with which optimizer."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm_jax.keys import example_rngs
from gm_jax.training import game, train_state
from gm_jax.training.game import Turn

K = 3


def _noise(rngs):
    return jax.vmap(lambda rng: jax.random.normal(rng, ()))(rngs)


def _hunter_loss(params, model_state, batch, rngs, *, step, axis_name):
    """Move to the data; both players' parameters have a gradient."""
    gap = params['hunter']['w'] - batch['x'] - 0.1 * _noise(rngs)
    loss = jnp.mean(gap**2) + params['hare']['w'] * params['hunter']['w']
    calls = jax.tree.map(lambda n: n + 1, model_state['calls'])
    return train_state.LossOutput(loss, {'gap': gap.mean()}, {'calls': calls})


def _hare_loss(params, model_state, batch, rngs, *, step, axis_name):
    """Move away from the hunter."""
    loss = -jnp.mean((params['hare']['w'] - params['hunter']['w'] + _noise(rngs))**2)
    return train_state.LossOutput(loss, {}, model_state)


def _turns(k=K, hunter_loss=_hunter_loss):
    turns = [Turn('hunt', ('hunter',), hunter_loss, minibatch=i) for i in range(k)]
    return [*turns, Turn('flee', ('hare',), _hare_loss)]


TX = {'hunt': optax.adam(0.1), 'flee': optax.sgd(0.01, momentum=0.9)}


def _start(turns, ema=False):
    params = {'hunter': {'w': jnp.float32(1.0)}, 'hare': {'w': jnp.float32(-2.0)}}
    return train_state.create(
        params, game.optimizers(turns, TX), model_state={'calls': jnp.int32(0)}, ema=ema
    )


def _batch(num=16):
    x = np.random.default_rng(0).normal(size=(K, num))
    index = np.broadcast_to(np.arange(num, dtype=np.int32), (K, num))
    return {'x': jnp.asarray(x, jnp.float32), 'index': jnp.asarray(index)}


def test_equals_the_algorithm_by_hand():
    """Catch a shared minibatch or noise, a frozen player that moves, a lost turn."""
    turns, batch, rng = _turns(), _batch(), jax.random.key(3)
    state = _start(turns, ema=True)
    new, metrics = jax.jit(game.make_game_step(turns, ema_decay=0.5))(state, batch, rng)
    params = state.params
    hunt, flee = TX['hunt'].init(params['hunter']), TX['flee'].init(params['hare'])
    for i, turn in enumerate(turns):
        name, tx, opt = (
            ('hunter', TX['hunt'], hunt) if i < K else ('hare', TX['flee'], flee)
        )
        part = {name: value[turn.minibatch] for name, value in batch.items()}
        rngs = example_rngs(jax.random.fold_in(rng, i), 0, part['index'])

        def objective(own, name=name, turn=turn, part=part, rngs=rngs, params=params):
            return turn.loss_fn(
                {**params, name: own}, state.model_state, part, rngs,
                step=0, axis_name=None,
            ).loss

        updates, opt = tx.update(jax.grad(objective)(params[name]), opt, params[name])
        params = {**params, name: optax.apply_updates(params[name], updates)}
        hunt, flee = (opt, flee) if i < K else (hunt, opt)
    chex.assert_trees_all_close(new.params, params, rtol=1e-6)
    chex.assert_trees_all_close(
        new.opt_state['hunt'][0].mu['hunter'], hunt[0].mu, rtol=1e-5
    )
    assert int(new.step) == 1 and int(new.model_state['calls']) == K
    assert int(new.opt_state['hunt'][0].count) == K
    half = jax.tree.map(lambda e, p: e + 0.9 * (p - e), state.params, new.params)
    chex.assert_trees_all_close(new.ema_params, half, rtol=1e-6)
    assert set(metrics) == {
        'gap', 'hunt_loss', 'hunt_grad_norm', 'flee_loss', 'flee_grad_norm'
    }


def test_a_player_who_has_no_turn_stays():
    """Catch a gradient that reaches the other player's parameters or moments."""
    turns = _turns()[:K]
    state = _start(_turns())
    new, _ = jax.jit(game.make_game_step(turns))(state, _batch(), jax.random.key(0))
    assert new.params['hare']['w'] == state.params['hare']['w']
    chex.assert_trees_all_equal(new.opt_state['flee'], state.opt_state['flee'])
    assert new.params['hunter']['w'] != state.params['hunter']['w']


@pytest.mark.parametrize('minibatch', range(K))
def test_nothing_of_a_step_is_kept_where_one_turn_is_not_finite(minibatch):
    """Catch a step that is kept in part, and a turn that is not looked at."""
    turns, batch = _turns(), _batch()
    state = _start(turns, ema=True)
    batch['x'] = batch['x'].at[minibatch, 2].set(jnp.nan)
    new, _ = jax.jit(game.make_game_step(turns))(state, batch, jax.random.key(0))
    assert (int(new.step), int(new.skipped), int(new.skipped_total)) == (1, 1, 1)
    chex.assert_trees_all_equal(
        new.replace(step=state.step, skipped=state.skipped,
                    skipped_total=state.skipped_total), state
    )


@pytest.mark.parametrize('turn', range(K + 1))
def test_a_loss_that_is_not_finite_is_seen_where_its_gradient_is(turn):
    """Catch a turn whose loss the next one of the same name hides."""
    def plant(planted):
        def loss_fn(*args, **kwargs):
            output = planted.loss_fn(*args, **kwargs)
            return output._replace(loss=output.loss + jnp.inf)
        return planted._replace(loss_fn=loss_fn)

    turns = [plant(t) if i == turn else t for i, t in enumerate(_turns())]
    state = _start(turns)
    new, metrics = jax.jit(game.make_game_step(turns))(
        state, _batch(), jax.random.key(0)
    )
    assert int(new.skipped) == 1
    assert not np.isfinite(list(map(float, metrics.values()))).all()
    chex.assert_trees_all_equal(new.params, state.params)


def test_turns_of_a_name_have_the_same_players():
    """Catch an optimizer whose state would be of other parameters."""
    turns = [*_turns(), Turn('hunt', ('hare',), _hare_loss)]
    with pytest.raises(ValueError, match='hunt has two sets of players'):
        game.optimizers(turns, TX)


def test_a_projection_follows_the_move():
    """Catch weights that are clipped before they are moved, or not at all."""
    turns = [
        turn._replace(project=lambda own: jax.tree.map(
            lambda w: jnp.clip(w, -0.25, 0.25), own
        )) if turn.name == 'hunt' else turn for turn in _turns()
    ]
    step = jax.jit(game.make_game_step(turns))
    new, _ = step(_start(turns), _batch(), jax.random.key(0))
    assert new.params['hunter']['w'] == 0.25  # from 1, by steps of at most 0.1
    assert new.params['hare']['w'] < -1


def test_devices_share_the_work():
    """Catch noise that belongs to a device, and gradients that are not averaged."""
    turns, batch, rng = _turns(), _batch(), jax.random.key(1)
    step, state = game.make_game_step(turns), _start(turns)
    one, expected = jax.jit(step)(state, batch, rng)
    parts = jax.tree.map(
        lambda x: jnp.moveaxis(x.reshape(K, 8, 2), 1, 0), batch
    )
    many, metrics = jax.pmap(
        lambda state, batch, rng: step(state, batch, rng, axis_name='i'),
        axis_name='i', in_axes=(None, 0, None),
    )(state, parts, rng)
    for device in range(8):
        here, got = jax.tree.map(lambda x: x[device], (many, metrics))
        chex.assert_trees_all_close(here, one, rtol=1e-5)
        chex.assert_trees_all_close(got, expected, rtol=1e-5)
