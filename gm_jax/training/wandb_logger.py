"""A logger for Weights & Biases, `pip install 'gm_jax[wandb]'`.

    python -m experiments.vae --workdir=DIR --logger=gm_jax.training.wandb_logger

A work directory is one run there: it keeps the id in wandb_id.txt, and goes on with it.
The variables of the environment that wandb knows choose the project and so on;
WANDB_MODE=offline needs no network, and `wandb sync DIR/wandb/offline-run-*` sends the
lines later.
"""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gm_jax.errors import UserError
from gm_jax.training.writers import MetricWriter, write_atomically

try:
    import wandb
except ImportError:
    raise UserError("wandb is not installed: pip install 'gm_jax[wandb]'.") from None

__all__ = ['make']

# An alarm sends a message; one of the same title again only after this many seconds.
_ALARM_AGAIN = 3600
_LONGEST_TITLE = 64


def make(workdir: str, settings: Mapping[str, Any], first_step: int) -> MetricWriter:
    """Begin the run of a work directory, or go on with it.

    Args:
        workdir: the work directory.
        settings: the settings, the config of the run.
        first_step: the step from which training goes on.
    """
    path, known = os.path.join(workdir, 'wandb_id.txt'), None
    if os.path.exists(path):
        with open(path, encoding='utf-8') as file:
            known = file.read().strip()
    run = wandb.init(
        project=os.environ.get('WANDB_PROJECT', 'gm_jax'),
        name=os.environ.get('WANDB_NAME', os.path.basename(os.path.abspath(workdir))),
        dir=os.environ.get('WANDB_DIR', workdir),
        id=known, resume='allow',
        settings=wandb.Settings(console='off'),  # the screen has a progress bar
    )
    write_atomically(path, run.id)
    # A run that goes on may have other settings of the kind that changes no result.
    run.config.update(dict(settings), allow_val_change=True)
    run.define_metric('step')
    run.define_metric('*', step_metric='step')
    return _Logger(run)


class _Logger:
    """Writes to a run of Weights & Biases."""

    def __init__(self, run: Any) -> None:
        self._run = run
        self._finished = False

    def write(
        self,
        step: int,
        split: str,
        scalars: Mapping[str, float],
        alarms: Sequence[str] = (),
        **timing: float,
    ) -> None:
        named = {f'{split}/{name}': x for name, x in {**scalars, **timing}.items()}
        self._run.log({'step': step, **named})
        for sentence in alarms:
            # What comes after the first clause has numbers, which change.
            title = re.split('[:,]', sentence)[0][:_LONGEST_TITLE]
            self._run.alert(
                title, f'step {step}: {sentence}', wait_duration=_ALARM_AGAIN
            )

    def picture(self, step: int, name: str, image: np.ndarray) -> None:
        self._run.log({'step': step, name: wandb.Image(image)})

    def final(
        self, step: int, numbers: Mapping[str, Any], pictures: Mapping[str, np.ndarray]
    ) -> None:
        """Write the numbers and texts as the summary, and the pictures."""
        shown = {f'final/{name}': wandb.Image(x) for name, x in pictures.items()}
        self._run.log({'step': step, **shown})
        self._run.summary.update({
            f'final/{name}': value for name, value in numbers.items()
            if isinstance(value, (int, float, str))
        })
        self._finished = True

    def sync(self) -> None:
        """Do nothing: wandb keeps what it was given, and sends it in the background."""

    def close(self) -> None:
        """End the run, which counts as failed if training has not come to its end."""
        self._run.finish(exit_code=0 if self._finished else 1)
