"""An experiment as a command: its flags, its sentences for errors, its exit status."""

import dataclasses
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any, Generic, NamedTuple

from gm_jax import memory
from gm_jax.data.image_set import ImageSet
from gm_jax.errors import UserError
from gm_jax.training import (
    cpu_devices,
    distributed,
    flags,
    loop,
    orbax_errors,
    parallel,
    processes,
    progress,
    screen,
    settings,
    signals,
    watch,
)
from gm_jax.training.contracts import Experiment
from gm_jax.training.settings import ConfigT
from gm_jax.training.signals import Stopped
from gm_jax.training.writers import Make

__all__ = ['Command']


class Command(NamedTuple, Generic[ConfigT]):
    """An experiment as a command: `main = Command(...)`, `main(sys.argv[1:])`.

    Attributes:
        name: the name of the module, such as 'vae'.
        about: its docstring, for `--help`; None with `python -OO`.
        config_class: the class of its settings.
        presets: its named settings.
        build: makes the experiment from settings and an image set.
    """

    name: str
    about: str | None
    config_class: type[ConfigT]
    presets: Mapping[str, ConfigT]
    build: Callable[[ConfigT, ImageSet], Experiment]

    def __call__(
        self, argv: list[str], program: str = '', *, logger: Make | None = None
    ) -> int:
        """Run the experiment.

        Args:
            argv: the flags.
            program: how it was started; '': `python -m` with the module.
            logger: makes a writer of the metrics of training, in place of --logger.

        Returns:
            The exit status: 0, 2 for a mistake of the user, 1 for a run that diverged,
            128 plus the signal's number for a run that was told to stop.
        """
        with screen.tolerant():
            return _exit_status(self.name, argv, lambda: self._closed(
                argv, program, logger
            ))

    def _closed(self, argv: list[str], program: str, logger: Make | None) -> None:
        """Run, and close what bars are left before the reason is told."""
        with progress.closed():
            self._run(argv, program, logger)

    def _run(self, argv: list[str], program: str, logger: Make | None) -> None:
        program = program or _module_command(self.name)
        about = self.about or ''  # `python -OO` drops docstrings
        # The commands in the docstring are those in a clone of the repository.
        about = about.replace(f'python -m experiments.{self.name}', program)
        here = program.removesuffix(self.name)
        if here.endswith(('.', ' ')):
            about = about.replace('python -m experiments.', here)
        run, config = flags.parse(
            argv, self.config_class, presets=self.presets, program=program, about=about,
            origin=settings.Origin(self.name, _home(self)),
        )
        run = dataclasses.replace(run, logger=logger or run.logger)
        if run.logger is not None and run.mode != 'train':
            raise UserError('a logger is for --mode=train: other modes train nothing.')
        with signals.ending(), orbax_errors.quiet_threads():
            distributed.initialize(
                run.coordinator_address, run.num_processes, run.process_id
            )
            settled = cpu_devices.settle(
                config, os.path.join(run.workdir, 'config.json')
            )
            if run.mode == 'train':  # what is evaluated does not depend on it
                if told := cpu_devices.warning(config, settled):
                    print(f'WARNING: {told}', file=sys.stderr)
                config = settled
            parallel.check_devices()
            try:
                loop.start(run, config, self.name, self.build)
            except Stopped as stopped:
                if stopped.agreed:
                    watch.part('stopped')
                raise
            watch.part('done')


def _home(command: 'Command[Any]') -> str:
    """Return the module that made this command, or the path of its file; or ''."""
    having = [
        (name, module) for name, module in list(sys.modules.items())
        if getattr(module, 'main', None) is command
        and name != '__mp_main__'  # what multiprocessing calls `__main__` too
    ]
    if not having:
        return ''
    # A script that imports the command has it too, and so may other modules: to import
    # them would run what else they do.
    name, module = min(having, key=lambda found: (
        found[1].__doc__ is not command.about, found[0] == '__main__'
    ))
    spec = getattr(module, '__spec__', None)
    found = spec.name if name == '__main__' and spec is not None else name
    # A module outside a package is only found again by its file.
    if '.' in found:
        return found
    file = getattr(module, '__file__', None)  # a notebook has none
    return os.path.abspath(file) if file else ''


def _module_command(name: str) -> str:
    """Return how Python runs the module of an experiment."""
    spec = sys.modules['__main__'].__spec__
    if spec is None and os.path.basename(sys.argv[0]) == f'{name}.py':
        return f'python {sys.argv[0]}'
    started = [spec.name] if spec is not None else []
    for module in (*started, f'experiments.{name}', f'gm_jax.experiments.{name}'):
        if module in (*started, *sys.modules) and module.endswith(f'.{name}'):
            return f'python -m {module}'
    return f'python -m experiments.{name}'


def _exit_status(name: str, argv: list[str], act: Callable[[], None]) -> int:
    """Act; turn errors that a user can fix into one sentence and an exit status."""
    try:
        act()
        return 0
    except UserError as error:
        message, status = str(error), 2
    except FloatingPointError as error:
        message, status = str(error), 1
    except Stopped as stopped:
        message, status = stopped.args[0], 128 + stopped.args[1]
    except KeyboardInterrupt:
        message, status = 'interrupted: the same command resumes the run.', 130
    except Exception as error:
        found = _what_ran_out(error)
        if found is None:
            if processes.several():
                watch.fail()
            raise
        message, status = found, 2
    print(f'{name}: {message}', file=sys.stderr, flush=True)
    if status == 2:
        distributed.report(flags.place(argv), message)
    return watch.leave(status)


def _what_ran_out(error: Exception) -> str | None:
    """Return a sentence for an error that says that disk, files or memory ran out."""
    if orbax_errors.disk_is_full(error):
        return (
            'there is no space left on the disk: make some, and the same command '
            'resumes from the last checkpoint.'
        )
    if orbax_errors.too_many_open(error):
        return (
            'too many open files: raise the limit (ulimit -n). A bucket that gcsfuse '
            'has mounted says the same where it may not rename the directory of a '
            'checkpoint: mount it with --rename-dir-limit=1000.'
        )
    if memory.is_exhausted(error):
        reason = (str(error).splitlines() or ['MemoryError'])[0].rstrip('.')
        return (
            f'there is too little memory ({reason[:200]}): lower --batch_size, '
            f'--eval_batch_size, --num_samples, the sizes of the network, or what an '
            f'evaluation holds at once, such as --ais_chains.'
        )
    return None
