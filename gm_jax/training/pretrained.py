"""A trained model, read again: to be used, or to begin another training with it."""

import dataclasses
import hashlib
import os
from collections.abc import Callable
from typing import Any, Generic, NamedTuple

import jax
import numpy as np

from gm_jax.data import image_set
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.keys import Stream, stream
from gm_jax.training import exporting, processes, settings, workdir
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import ConfigT
from gm_jax.training.train_state import TrainState

__all__ = ['beginning', 'config_path', 'Model', 'read', 'read_model']

# Collections of variables that training changes. Others, such as images of the training
# set, are this run's own.
_LEARNED = ('batch_stats', 'chains', 'offsets')


class Model(NamedTuple, Generic[ConfigT]):
    """A trained model.

    Attributes:
        config: the settings of its run.
        data: the facts of its image set, without images.
        experiment: what the settings make.
        shapes: a training state whose leaves are jax.ShapeDtypeStruct.
        variables: 'params' and the other collections, with NumPy arrays.
        step: the training step.
    """

    config: ConfigT
    data: ImageSet
    experiment: Experiment
    shapes: TrainState
    variables: dict[str, Any]
    step: int


def read_model(
    directory: str, name: str, config_class: type[ConfigT],
    build: Callable[[ConfigT, ImageSet], Experiment], checkpoint: str = 'last',
) -> Model[ConfigT]:
    """Read a trained model.

    Args:
        directory: a work directory, or an exported model.
        name: the experiment that it must be of.
        config_class: the class of its settings.
        build: makes the experiment.
        checkpoint: 'last' or 'best'.

    Returns:
        The model. Each process reads by itself: it waits for no other one.

    Raises:
        UserError: there is none, it is damaged, or it is of another experiment.
    """
    config = settings.load(config_path(directory), config_class, name)
    if getattr(config, 'given', ''):  # of a file that may not be there any more
        without: dict[str, Any] = {'given': ''}
        config = dataclasses.replace(config, **without)
    data = image_set.read_facts(workdir.facts_path(directory))
    experiment = build(config, data)
    shapes = jax.eval_shape(experiment.init, stream(config.seed, Stream.INIT))
    variables, step = exporting.variables(directory, shapes, checkpoint)
    return Model(config, data, experiment, shapes, variables, step)


def beginning(
    config: ConfigT, name: str, build: Callable[[ConfigT, ImageSet], Experiment],
    shapes: TrainState,
) -> dict[str, Any]:
    """Read the variables that --begin_with names.

    Args:
        config: the settings of the run that begins.
        name: its experiment, which that of the other run must be too.
        build: makes the experiment.
        shapes: the shapes of its training state.

    Returns:
        'params', and of the other collections that training changes those that have the
        same shapes.

    Raises:
        UserError: there are none, or they are of another network.
    """
    flag, directory = f'--begin_with={config.begin_with}', config.begin_with
    directory = os.path.expanduser(directory)
    try:
        model = read_model(directory, name, type(config), build)
    except UserError as error:
        raise UserError(f'{flag}: {error}') from error
    for setting in sorted({*config.of_the_network, *model.config.of_the_network}):
        was, now = (getattr(c, setting) for c in (model.config, config))
        if was != now:
            raise UserError(
                f'{flag} is another network: --{setting} is {was} there, and {now} by '
                f'the settings of this run.'
            )
    found = model.variables
    there, here = (_described(tree) for tree in (found['params'], shapes.params))
    for path in sorted({*there, *here}):
        if there.get(path) != here.get(path):
            raise UserError(
                f'{flag} is another network: {path} is {there.get(path, "missing")} '
                f'there, and {here.get(path, "missing")} by the settings of this run.'
            )
    return {'params': found['params'], **{
        collection: found[collection] for collection, tree in shapes.model_state.items()
        if collection in _LEARNED and collection in found
        and _described(found[collection]) == _described(tree)
    }}


def config_path(directory: str) -> str:
    """Return the path of config.json; raise UserError if a directory has none."""
    path = os.path.join(directory, 'config.json')
    if not os.path.exists(path):
        raise UserError(f'{directory} holds no run: it has no config.json.')
    return path


def _described(tree: Any) -> dict[str, str]:
    """Return shapes and dtypes by the names of the arrays, joined with slashes."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'):
            f'{x.dtype} {tuple(x.shape)}'
        for path, x in jax.tree.leaves_with_path(tree)
    }


def read(experiment: Experiment) -> Experiment:
    """Read what `experiment.pretrained` returns, before there is a work directory.

    It is kept, for a training that diverges before its first checkpoint and begins
    again.

    Args:
        experiment: the experiment of a run that has no checkpoint.

    Returns:
        The experiment, whose `pretrained` reads nothing any more.

    Raises:
        UserError: a process cannot read it, or has read something else than process 0.
    """
    if experiment.pretrained is None:
        return experiment
    problem, variables = '', {}
    try:
        variables = experiment.pretrained()
    except UserError as error:
        if not processes.several():
            raise
        problem = str(error)
    # NumPy arrays: those of JAX would be donated to the first step.
    variables = jax.tree.map(np.asarray, variables)
    processes.check_alike({'parameters to begin with, of': _digest(variables)}, problem)
    return experiment._replace(pretrained=lambda: variables)


def _digest(variables: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(variables):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path} {array.dtype} {array.shape}'.encode())
        digest.update(array.data)
    return f'digest {digest.hexdigest()[:16]}'
