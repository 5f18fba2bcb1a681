"""A run of the real VAE that takes seconds, with everything in it that has a state."""

import json
import os
import pathlib
import re
from typing import Any

import numpy as np
import orbax.checkpoint as ocp

from gm_jax.training import checkpoints

# A dispatch of 5 steps divides none of the intervals.
FLAGS = (
    '--hidden=16', '--latent_dims=3', '--batch_size=16', '--num_steps=36',
    '--log_every=12', '--eval_every=18', '--checkpoint_every=12', '--num_samples=8',
    '--test_samples=2', '--eval_batch_size=64', '--steps_per_dispatch=5',
    '--binarize=dynamic', '--batch_norm', '--dropout=0.2', '--ema=0.9', '--grad_clip=5',
)
# Without what makes compilation slow.
PLAIN = (
    '--hidden=8', '--latent_dims=2', '--batch_size=8', '--num_steps=40',
    '--log_every=10', '--eval_every=40', '--checkpoint_every=10', '--num_samples=8',
    '--test_samples=1', '--steps_per_dispatch=10', '--binarize=threshold',
)


def final_arrays(workdir: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Return every array of the last checkpoint, by name."""
    path = os.path.abspath(
        os.path.join(workdir, 'checkpoints', str(checkpoints.last_step(str(workdir))))
    )
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            path, ocp.args.Composite(state=ocp.args.StandardRestore())
        )
    return {name: np.asarray(x) for name, x in restored['state'].items()}


def results(
    workdir: str | os.PathLike[str], name: str = 'results.json'
) -> dict[str, Any]:
    """Return results without what the clock and the directory's name decide."""
    with open(os.path.join(workdir, name), encoding='utf-8') as file:
        found = json.load(file)
    del found['wall_seconds']
    command = found['command'].replace(str(workdir), 'DIR')
    flags = r' --(coordinator_address|num_processes|process_id)=\S+'
    found['command'] = re.sub(flags, '', command)
    return found


def metrics(workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl."""
    with open(os.path.join(workdir, 'metrics.jsonl'), encoding='utf-8') as file:
        return [json.loads(line) for line in file]


def differences(
    one: str | os.PathLike[str], other: str | os.PathLike[str]
) -> list[str]:
    """Name what is not the same to the last bit at the end of two runs."""
    found = []
    arrays, others = final_arrays(one), final_arrays(other)
    if sorted(arrays) != sorted(others):
        found.append('names of the arrays')
    for name in sorted(set(arrays) & set(others)):
        a, b = arrays[name], others[name]
        if (a.dtype, a.shape, a.tobytes()) != (b.dtype, b.shape, b.tobytes()):
            found.append(name)
    texts = [
        pathlib.Path(workdir, 'metrics.jsonl').read_bytes() for workdir in (one, other)
    ]
    if texts[0] != texts[1]:
        found.append('metrics.jsonl')
    if results(one) != results(other):
        found.append('results.json')
    return found
