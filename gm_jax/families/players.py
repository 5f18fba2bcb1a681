"""The players of a game: networks by name, each with its parameters and BatchNorm.

The parameters of a training state are {name: parameters}; its model state holds
{'batch_stats': {name: running moments}} for the players that have BatchNorm.
"""

from collections.abc import Mapping
from typing import Any

import jax

from gm_jax.keys import fold_in_each
from gm_jax.models.players import Player
from gm_jax.training.train_state import ModelState, Params, TrainState

__all__ = ['init', 'play', 'Players', 'train']

Players = Mapping[str, Player]


def init(
    players: Players, seen: Mapping[str, tuple[jax.Array, ...]], rng: jax.Array
) -> tuple[Params, ModelState]:
    """Initialise all players; `seen` holds example arguments for each network."""
    params, stats = {}, {}
    for i, (name, player) in enumerate(players.items()):
        variables = player.init(fold_in_each(rng, i), *seen[name])
        params[name] = variables['params']
        if 'batch_stats' in variables:
            stats[name] = variables['batch_stats']
    return params, {'batch_stats': stats} if stats else {}


def play(players: Players, name: str, state: TrainState, *seen: jax.Array) -> Any:
    """Apply a player in evaluation, with its parameters in `state`."""
    variables = _variables(state.eval_params, state.model_state, name)
    return players[name].apply(variables, *seen)


def train(
    players: Players, name: str, params: Params, model_state: ModelState,
    *seen: jax.Array, **mode: Any,
) -> tuple[Any, ModelState]:
    """Apply a player in training; return its output and the new model state."""
    output, updated = players[name].apply(
        _variables(params, model_state, name), *seen,
        train=True, mutable=['batch_stats'], **mode,
    )
    if 'batch_stats' not in updated:
        return output, model_state
    stats = model_state['batch_stats'] | {name: updated['batch_stats']}
    return output, model_state | {'batch_stats': stats}


def _variables(params: Params, model_state: ModelState, name: str) -> dict[str, Any]:
    stats = model_state.get('batch_stats', {})
    own = {'batch_stats': stats[name]} if name in stats else {}
    return {'params': params[name], **own}
