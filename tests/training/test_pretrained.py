"""Parameters with which training begins."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gm_jax.errors import UserError
from gm_jax.training import pretrained, processes, train_state
from gm_jax.training.contracts import Experiment


def _experiment(read):
    return Experiment(None, None, True, None, pretrained=read)


def test_is_read_once():
    """Catch a run that begins again with what has changed meanwhile."""
    values = iter([{'a': np.ones(2)}])
    experiment = pretrained.read(_experiment(lambda: next(values)))
    for _ in range(2):
        np.testing.assert_array_equal(experiment.pretrained()['a'], np.ones(2))
    assert pretrained.read(_experiment(None)).pretrained is None


@pytest.mark.parametrize('other, said', [
    ({'a': np.zeros(2)}, 'process 1 has parameters to begin with, of digest'),
    (None, 'process 1 cannot start: nowhere'),
])
def test_processes_begin_alike(monkeypatch, other, said):
    """Catch processes that begin with different parameters, and one that waits."""
    def fail():
        raise UserError('nowhere')

    monkeypatch.setattr(processes, 'several', lambda: True)
    texts = []
    monkeypatch.setattr(processes, '_texts', lambda mine: texts.append(mine) or texts)
    pretrained.read(_experiment(lambda: {'a': np.ones(2)}))
    assert json.loads(texts[0])['problem'] == ''
    with pytest.raises(UserError, match=said):
        pretrained.read(_experiment(fail if other is None else lambda: other))


def test_begins_with_some_of_the_parameters():
    """Catch an average of other parameters, and arrays that share a buffer."""
    params = {'a': jnp.zeros(2), 'b': jnp.full(3, 5.0)}
    create = functools.partial(train_state.create, params, optax.sgd(0.1))
    state = train_state.begin_with(create(ema=True), {'a': jnp.ones(2)})
    for found in (state.params, state.ema_params):
        np.testing.assert_array_equal(found['a'], np.ones(2))
        np.testing.assert_array_equal(found['b'], np.full(3, 5.0))
    pointers = [
        x.unsafe_buffer_pointer()
        for x in jax.tree.leaves((state.params, state.ema_params))
    ]
    assert len(set(pointers)) == len(pointers)
    assert train_state.begin_with(create(), {'a': jnp.ones(2)}).ema_params is None
    with pytest.raises(AssertionError):
        train_state.begin_with(create(), {'a': jnp.ones(3)})
