"""A trained model in Python: settings, arrays, and pure functions.

    run = gm_jax.load('runs/vae')
    run.log_prob(x)                  # [N] nats; run.estimator says by which estimate
    run.sample(4, seed=1)            # the images of --mode=sample --seed=1
    run.decode(run.encode(x))
    jax.jit(run.functions.sample)(run.variables, rngs)

The data set is not needed, nothing is written, and no parameters are initialised.
"""

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gm_jax.errors import UserError
from gm_jax.functions import functions
from gm_jax.trained import Run
from gm_jax.training import evaluate, exporting, modules, pretrained, settings
from gm_jax.training.command import Command

__all__ = ['export', 'load']


def load(
    path: str | os.PathLike[str], *, checkpoint: str = 'last',
    experiment: Command | None = None,
) -> Run:
    """Load a trained model.

    Args:
        path: a work directory, or an exported model.
        checkpoint: 'last' or 'best'; an exported model has only one, and 'best' is an
            error where it is the last.
        experiment: the `main` of its module; by default config.json says which it is.

    Returns:
        The run. The module that config.json names is imported, which runs its code:
        load from other people only what you would run, or pass `experiment`.

    Raises:
        UserError: there is no such run, it is damaged, or it is of another experiment.
    """
    if experiment is not None and not isinstance(experiment, Command):
        raise UserError(
            f'experiment={experiment!r} is not a command: pass the `main` of a module.'
        )
    workdir = os.path.expanduser(os.fspath(path))
    config_path = pretrained.config_path(workdir)
    if checkpoint not in ('last', 'best'):
        raise UserError(f"checkpoint={checkpoint!r} is neither 'last' nor 'best'.")
    command = experiment or _find_command(settings.origin(config_path), config_path)
    found = pretrained.read_model(
        workdir, command.name, command.config_class, command.build, checkpoint
    )
    built, variables = found.experiment, found.variables
    results = exporting.results(workdir, found.step)
    names = evaluate.shared_names(built.evaluation, found.shapes)
    if shared := _recorded(results, names):
        variables = {**variables, 'shared': shared}
    variables = jax.tree.map(jnp.asarray, variables)
    return Run(
        command=command, config=found.config, data=found.data, results=results,
        step=found.step, experiment=built, variables=variables,
        shared_by=variables['params'] if shared else None,
        functions=functions(built, found.data, found.config),
    )


def _recorded(results: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the numbers of these names in results.json; {} unless all are there."""
    found = results.get('metrics', {})
    if not all(isinstance(found.get(name), (int, float)) for name in names):
        return {}
    return {name: np.float32(found[name]) for name in names}


def export(
    path: str | os.PathLike[str], to: str | os.PathLike[str], *,
    checkpoint: str = 'last', half: bool = False, experiment: Command | None = None,
) -> None:
    """Write a trained model as files that anyone can read; see `exporting`.

    Args:
        path: a work directory, or an exported model.
        to: the directory that is made.
        checkpoint: 'last' or 'best'.
        half: store float32 as float16, in half the space.
        experiment: as for `load`.

    Raises:
        UserError: as `load`, or the directory is there or cannot be written.
    """
    run = load(path, checkpoint=checkpoint, experiment=experiment)
    # results.json has what the images share.
    arrays = {name: x for name, x in run.variables.items() if name != 'shared'}
    variables = jax.tree.map(np.asarray, arrays)
    workdir = os.path.expanduser(os.fspath(path))
    if exporting.is_exported(workdir):
        checkpoint = exporting.checkpoint_of(workdir, checkpoint)
    found = exporting.Trained(variables, run.step)
    about = (run.command.about or '').partition('\n')[0]
    exporting.write(
        workdir, os.fspath(to), found, run.command.name, about, half=half,
        checkpoint=checkpoint,
    )


def _find_command(origin: settings.Origin | None, path: str) -> Command:
    """Return the command of the experiment that config.json names."""
    if origin is None:
        raise UserError(
            f'{path} does not name its experiment, as older versions did not: pass '
            f'experiment=, the `main` of its module.'
        )
    own = f'gm_jax.experiments.{origin.experiment}'  # where a wheel has it
    if origin.module.endswith('.py') and exporting.is_exported(os.path.dirname(path)):
        # Nobody should run a file because a model from elsewhere names it.
        origin = origin._replace(module='')
    reason: BaseException | None = None
    for name in (origin.module, f'experiments.{origin.experiment}', own):
        try:
            module = modules.load(name)
        # The module of other people may raise anything, even SystemExit.
        except (Exception, SystemExit) as error:
            reason = reason or error
            continue
        for value in vars(module).values():
            if isinstance(value, Command) and value.name == origin.experiment:
                return value
    where = origin.module or 'a notebook or file that is not named'
    raise UserError(
        f'{path} is of the experiment {origin.experiment} in {where}, which cannot be '
        f'imported here ({reason!r}): pass experiment=, the `main` of its module.'
    ) from reason
