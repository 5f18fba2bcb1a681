"""The parameters of another run with which training begins."""

import hashlib

import jax
import numpy as np

from gm_jax.errors import UserError
from gm_jax.training import processes
from gm_jax.training.contracts import Experiment
from gm_jax.training.train_state import Params

__all__ = ['read']


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
    problem, params = '', {}
    try:
        params = experiment.pretrained()
    except UserError as error:
        if not processes.several():
            raise
        problem = str(error)
    processes.check_alike({'parameters to begin with, of': _digest(params)}, problem)
    return experiment._replace(pretrained=lambda: params)


def _digest(params: Params) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f'{path} {array.dtype} {array.shape}'.encode())
        digest.update(array.data)
    return f'digest {digest.hexdigest()[:16]}'
