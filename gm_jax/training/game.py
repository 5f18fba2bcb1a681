"""The training step of a game: players, each with a loss, are updated in turn.

    turns = [Turn('discriminator', ('discriminator',), d_loss, minibatch=i)
             for i in range(k)]
    turns += [Turn('generator', ('generator',), g_loss)]
    tx = optimizers(turns, {'discriminator': d_optimizer, 'generator': g_optimizer})
    state = train_state.create({'discriminator': .., 'generator': ..}, tx)
    step = make_game_step(turns)

is algorithm 1 of Goodfellow et al. 2014, https://arxiv.org/abs/1406.2661: k steps of
the discriminator, each on a minibatch and noise of its own, then one of the generator.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gm_jax.keys import example_rngs, fold_in_each
from gm_jax.training.train_state import (
    Batch,
    LossFn,
    LossOutput,
    Metrics,
    Params,
    TrainState,
    TrainStep,
    finish_step,
)

__all__ = ['make_game_step', 'optimizers', 'Turn']


class Turn(NamedTuple):
    """One turn: a gradient step on the parameters of some players.

    Attributes:
        name: its name; turns of one name share an optimizer and its state.
        players: those whose parameters are updated; all others stay as they are.
        loss_fn: the loss, a function of the parameters of all players.
        minibatch: the index of the minibatch it sees, among those of the step.
        project: changes the updated parameters after the gradient step.
    """

    name: str
    players: tuple[str, ...]
    loss_fn: LossFn
    minibatch: int = 0
    project: Callable[[Params], Params] = lambda params: params


def optimizers(
    turns: Sequence[Turn], by_name: Mapping[str, optax.GradientTransformation]
) -> optax.GradientTransformation:
    """Return the optimizers of all turns as one, whose state is a dict by name.

    Args:
        turns: the turns of a step.
        by_name: the optimizer of each name.

    Returns:
        A transformation whose `update` takes and returns {name: {player: gradient}} for
        any of the names, and leaves the state of the others as it is.
    """
    players = {turn.name: turn.players for turn in turns}
    for turn in turns:
        if turn.players != players[turn.name]:
            raise ValueError(f'{turn.name} has two sets of players: {turns}')

    def own(params: Params, name: str) -> Params:
        return {player: params[player] for player in players[name]}

    def init(params: Params) -> Any:
        return {name: by_name[name].init(own(params, name)) for name in players}

    def update(grads: Any, opt_state: Any, params: Params) -> tuple[Any, Any]:
        updates, opt_state = {}, dict(opt_state)
        for name in grads:
            updates[name], opt_state[name] = by_name[name].update(
                grads[name], opt_state[name], own(params, name)
            )
        return updates, opt_state

    return optax.GradientTransformation(init, update)


def make_game_step(turns: Sequence[Turn], *, ema_decay: float = 0.0) -> TrainStep:
    """Make the training step of a game.

    All turns of a step are kept or, if the loss or gradient of one is not finite, none.
    The metrics are means over the turns of a name; its loss is called `NAME_loss` and
    its gradient norm `NAME_grad_norm`.

    Args:
        turns: the turns of a step, in order.
        ema_decay: as in `train_state.make_train_step`.

    Returns:
        The step; the arrays of its batch are [M, B, ...], M minibatches.
    """

    def train_step(
        state: TrainState,
        batch: Batch,
        rng: jax.Array,
        *,
        axis_name: str | None = None,
    ) -> tuple[TrainState, Metrics]:
        new = state
        results: dict[str, list[Metrics]] = {}
        for number, turn in enumerate(turns):
            part = jax.tree.map(lambda a, i=turn.minibatch: a[i], batch)
            turn_rng = fold_in_each(rng, number)
            rngs = example_rngs(turn_rng, state.step, part['index'])
            new, values = _move(new, turn, part, rngs, axis_name)
            results.setdefault(turn.name, []).append(values)
        # A mean is not finite if any one of its turns was not.
        metrics: Metrics = {}
        for same in results.values():
            metrics |= jax.tree.map(lambda *x: sum(x) / len(x), *same)
        finite = jnp.all(jnp.isfinite(jnp.stack(list(metrics.values()))))
        return finish_step(state, new, finite, ema_decay), metrics

    return train_step


def _move(
    state: TrainState, turn: Turn, batch: Batch, rngs: jax.Array, axis_name: str | None
) -> tuple[TrainState, Metrics]:
    def objective(own: Params) -> tuple[jax.Array, LossOutput]:
        output = turn.loss_fn(
            state.params | own, state.model_state, batch, rngs,
            step=state.step, axis_name=axis_name,
        )
        return output.loss, output

    own = {player: state.params[player] for player in turn.players}
    grads, output = jax.grad(objective, has_aux=True)(own)
    metrics = {**output.metrics, f'{turn.name}_loss': output.loss}
    if axis_name is not None:
        grads, metrics = jax.lax.pmean((grads, metrics), axis_name)
    metrics[f'{turn.name}_grad_norm'] = optax.tree.norm(grads)
    updates, opt_state = state.tx.update(
        {turn.name: grads}, state.opt_state, state.params
    )
    own = turn.project(optax.apply_updates(own, updates[turn.name]))
    state = state.replace(
        params=state.params | own, opt_state=opt_state, model_state=output.model_state
    )
    return state, metrics
