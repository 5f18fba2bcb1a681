"""Command-line flags: how they make a run and its config, and `--help`."""

import dataclasses
import itertools
import os
import re
import shlex
import shutil
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import flags

from gm_jax.errors import UserError, did_you_mean
from gm_jax.training import loggers, settings
from gm_jax.training.settings import Config, ConfigT
from gm_jax.training.writers import Make

__all__ = ['parse', 'place', 'Run']


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What to do with a config; not part of it, since it does not change any number.

    Attributes:
        workdir: the directory for everything that the run writes.
        mode: train, eval or sample.
        checkpoint: last or best, the one that eval and sample read, and that is
            evaluated at the end of training.
        command: the command as it was given.
        experiment: the name of the experiment; '' if it is not known.
        module: its module, or the path of its file.
        seed: with mode eval or sample, the seed of their noise; None: the run's own.
        coordinator_address: like the next two, an argument of `distributed.initialize`.
        num_processes: the number of processes.
        process_id: the index of this process.
        logger: makes the user's own writer of metrics; None: there is none.
    """

    workdir: str
    mode: str = 'train'
    checkpoint: str = 'last'
    command: str = ''
    experiment: str = ''
    module: str = ''
    seed: int | None = None
    coordinator_address: str = ''
    num_processes: int = 0
    process_id: int = -1
    logger: Make | None = None


_RUN_FLAGS: tuple[tuple[str, str | int, str], ...] = (
    ('workdir', '', 'directory for everything the run writes (required)'),
    ('mode', 'train', 'train | eval | sample; the last two need only a checkpoint'),
    ('preset', '', 'start from these settings (listed below) instead of the defaults'),
    ('config', '', "start from a run's config.json"),
    ('checkpoint', 'last', 'last | best: which one eval and sample read, and which one '
     'is evaluated when training has ended; best had the lowest loss during training '
     'on the validation split or, if the set has none, on the test split, which makes '
     'its test numbers too optimistic: see --validation'),
    ('logger', '', 'MODULE:FUNCTION or FILE.py:FUNCTION [make]: a writer of your own '
     'beside metrics.jsonl and TensorBoard, such as gm_jax.training.wandb_logger; see '
     'docs/metrics.md'),
    ('coordinator_address', '', 'HOST:PORT of process 0, for a run of several '
     'processes; not needed on TPU pods, Slurm, Open MPI and Kubernetes, where JAX '
     'finds them by itself'),
    ('num_processes', 0, 'number of processes, with --coordinator_address'),
    ('process_id', -1, 'index of this process, from 0, with --coordinator_address'),
)


# What other programs call these flags.
_MEANT = {
    'lr': ('learning_rate',), 'bs': ('batch_size',), 'wd': ('weight_decay',),
    'steps': ('num_steps',), 'max_steps': ('num_steps',), 'iterations': ('num_steps',),
    'batch': ('batch_size',), 'output_dir': ('workdir',), 'out': ('workdir',),
    'output': ('workdir',), 'logdir': ('workdir',), 'dir': ('workdir',),
    'data': ('dataset',), 'n': ('num_samples',), 'samples': ('num_samples',),
    'clip': ('grad_clip',), 'warmup': ('warmup_steps',), 'z': ('latent_dim',),
    'z_dim': ('latent_dim', 'latent_dims'), 'epsilon': ('adam_eps',),
    'eps': ('adam_eps',), 'beta1': ('adam_b1',), 'beta2': ('adam_b2',),
    'log_interval': ('log_every',), 'save_every': ('checkpoint_every',),
}
_CHOICES = {'mode': ['train', 'eval', 'sample'], 'checkpoint': ['last', 'best']}


def parse(
    argv: Sequence[str],
    config_class: type[ConfigT],
    *,
    presets: Mapping[str, ConfigT],
    program: str,
    about: str,
    origin: settings.Origin = settings.Origin('', ''),
) -> tuple[Run, ConfigT]:
    """Make a run and its config from command-line flags.

    Each of these overrides those before it: defaults, `--preset`, `--config`, flags.
    With `--mode=eval|sample` the work directory's own config.json is the default, a
    preset or config must be the one that the run was trained with, and --seed is that
    of the noise.

    Args:
        argv: the flags, without the program's name.
        config_class: the experiment's config.
        presets: named configs.
        program: how the experiment was started, such as 'python -m experiments.vae'.
        about: the experiment's docstring, for `--help`.
        origin: the experiment.

    Returns:
        (run, config).

    Raises:
        UserError: a flag, a preset or a file is not what it should be.
        SystemExit: after `--help`.
    """
    values = _define(config_class)
    for arg in argv:
        settings.check_utf8(arg)
    try:
        rest = values([program, *argv])[1:]
    except flags.UnrecognizedFlagError as error:
        raise UserError(_unknown(error.flagname, [*values])) from None
    # ValueError: absl lets a few errors through, such as that of --nohelp=3.
    except (flags.Error, ValueError) as error:
        raise UserError(f'{str(error).rstrip(".")}. See --help.') from None
    if values.help:
        print(_help(config_class, presets, program, about))
        raise SystemExit(0)
    if rest:
        raise UserError(f'{rest[0]!r} is not a flag; flags look like --name=value.')
    if not values.workdir:
        raise UserError('--workdir=DIR is missing: name a directory for the run.')
    given: dict[str, Any] = {
        f.name: values[f.name].value
        for f in dataclasses.fields(config_class)
        if values[f.name].present
    }
    run = Run(
        # Orbax cannot write to //DIR, which a shell makes of $PREFIX/DIR.
        workdir=re.sub('^//+', '/', os.path.expanduser(values.workdir)),
        mode=values.mode,
        checkpoint=values.checkpoint, experiment=origin.experiment,
        module=origin.module,
        command=f'{program} {shlex.join(argv)}',
        coordinator_address=values.coordinator_address,
        num_processes=values.num_processes, process_id=values.process_id,
        logger=loggers.find(values.logger) if values.logger else None,
    )
    if run.mode == 'train':
        _check_directory(run.workdir)
    config = dataclasses.replace(_base_config(values, run, config_class, presets),
                                 **given)
    if run.mode == 'train':
        _check_effect(config, given)
        return run, config
    saved = _saved_config(run, config_class)
    whole = bool(values.preset or values.config)
    if whole:
        config = _with_free_settings(config, saved, given)
    if 'seed' in given:
        # The model is that of the run's own seed; only the noise is another.
        run = dataclasses.replace(run, seed=config.seed)
        config = dataclasses.replace(config, seed=saved.seed)
    if whole and (changes := settings.changed(saved, config, run.mode)):
        name = '--preset' if values.preset else '--config'
        raise UserError(
            f'{name} cannot change the run in {run.workdir}: {"; ".join(changes)}.'
        )
    return run, config


def _check_directory(workdir: str) -> None:
    """Raise UserError if the whole path cannot be that of pages and checkpoints."""
    if '://' in workdir:
        raise UserError(
            f'{workdir} is an address, and --workdir is a directory: mount the bucket.'
        )
    try:
        path = os.path.abspath(workdir)
    except OSError as error:  # the current directory is gone
        raise UserError(f'{workdir} cannot be written: {error}.') from None
    settings.check_utf8(path)
    # Orbax takes [...] for a pattern, and loses arrays; \\ is a slash to it.
    if re.search(r'\\|\[[^/]+\]', path):
        raise UserError(
            f'{path} has [...] or a backslash in it, where checkpoints cannot be '
            f'written: choose another --workdir.'
        )


def _check_effect(config: Config, given: Mapping[str, Any]) -> None:
    """Raise UserError for a flag that the others make meaningless."""
    default = {f.name: f.default for f in dataclasses.fields(config)}
    for name, why in config.without_effect.items():
        if name in given and getattr(config, name) != default[name]:
            raise UserError(f'--{name} {why}: leave it out.')


def place(argv: Sequence[str]) -> tuple[str, int, int] | None:
    """Return the address, number and index of the processes, if flags give all three.

    The other flags may be wrong.
    """
    found = {}
    for flag, following in itertools.pairwise([*argv, '']):
        name, equals, value = flag.lstrip('-').partition('=')
        found[name] = value if equals else following
    try:
        return (
            found['coordinator_address'], int(found['num_processes']),
            int(found['process_id']),
        )
    except (KeyError, ValueError):
        return None


def _define(config_class: type[Config]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_boolean('help', False, '', short_name='h', flag_values=values)
    for name, default, _ in _RUN_FLAGS:
        if name in _CHOICES:
            flags.DEFINE_enum(
                name, str(default), _CHOICES[name], '', flag_values=values
            )
        elif isinstance(default, int):
            _define_whole(name, default, '', flag_values=values)
        else:
            flags.DEFINE_string(name, default, '', flag_values=values)
    define: dict[type, Callable[..., Any]] = {
        bool: flags.DEFINE_boolean, int: _define_whole,
        float: flags.DEFINE_float, str: flags.DEFINE_string,
    }
    for f in dataclasses.fields(config_class):
        default = settings.text(f.default)
        define[type(default)](f.name, default, '', flag_values=values)
    return values


class _WholeNumber(flags.IntegerParser):
    """Reads 1000 and 1e3, but not 1.5."""

    def convert(self, argument: Any) -> int:
        try:
            return super().convert(argument)
        except ValueError:
            number = float(argument)
            if not number.is_integer():
                raise ValueError(f'{argument} is not a whole number') from None
            return int(number)


def _define_whole(
    name: str, default: int, help: str, flag_values: flags.FlagValues
) -> None:
    flags.DEFINE(
        _WholeNumber(), name, default, help, flag_values, flags.ArgumentSerializer()
    )


def _unknown(name: str, known: Sequence[str]) -> str:
    """Return a sentence for a flag that is not there, with the one that was meant."""
    start = f'Unknown command line flag {name!r}'
    if 'epoch' in name:
        return (
            f'{start}: --num_steps counts steps, and an epoch is as many steps as '
            f'there are training images, divided by --batch_size.'
        )
    meant = next((new for new in _MEANT.get(name, ()) if new in known), name)
    guess = did_you_mean(meant, known).replace('mean ', 'mean --')
    return f'{start}{guess or ". See --help."}'


def _base_config(
    values: flags.FlagValues,
    run: Run,
    config_class: type[ConfigT],
    presets: Mapping[str, ConfigT],
) -> ConfigT:
    if values.preset and values.config:
        raise UserError('--preset and --config exclude each other: pass one of them.')
    if values.preset and values.preset not in presets:
        known = ', '.join(sorted(presets)) or 'none here'
        guess = did_you_mean(values.preset, presets) or '.'
        raise UserError(
            f'--preset={values.preset} is unknown; there are: {known}{guess}'
        )
    if values.config:
        return settings.load(values.config, config_class, run.experiment)
    if values.preset:
        return presets[values.preset]
    return config_class() if run.mode == 'train' else _saved_config(run, config_class)


def _saved_config(run: Run, config_class: type[ConfigT]) -> ConfigT:
    """Return the settings of the run in the work directory."""
    path = os.path.join(run.workdir, 'config.json')
    if not os.path.exists(path):
        raise UserError(
            f'{run.workdir} holds no run (no config.json): train one there first, with '
            f'--mode=train.'
        )
    return settings.load(path, config_class, run.experiment)


def _with_free_settings(
    config: ConfigT, saved: ConfigT, given: Mapping[str, Any]
) -> ConfigT:
    """Take the settings that may change, and that no flag gives, from the run."""
    return dataclasses.replace(config, **{
        f.name: getattr(saved, f.name) for f in dataclasses.fields(config)
        if f.name not in given
        and (f.metadata['free'] or f.metadata['evaluation_only'])
    })


def _help(
    config_class: type[Config],
    presets: Mapping[str, Config],
    program: str,
    about: str,
) -> str:
    width = min(shutil.get_terminal_size((96, 24)).columns, 110)
    common = [f.name for f in dataclasses.fields(Config)]
    fields = {f.name: f for f in dataclasses.fields(config_class)}
    parts = [
        f'{program} --workdir=DIR [flags]', '', _paragraphs(about.strip(), width), '',
        'The run:', *(_entry(*flag, width) for flag in _RUN_FLAGS), '',
        'Every experiment:', *_settings([fields[name] for name in common], width), '',
        'This experiment:',
        *_settings([f for f in fields.values() if f.name not in common], width),
    ]
    if presets:
        title = 'Presets (their settings that differ from the defaults):'
        parts += ['', *_wrap(title, width)]
    for name, preset in presets.items():
        base = config_class()
        differences = ' '.join(
            f'{f}={settings.text(getattr(preset, f))}' for f in fields
            if getattr(preset, f) != getattr(base, f)
        )
        entry = _entry(f'preset={name}', '', differences, width)
        parts.append(entry.replace(f'{name}=', name, 1))
    return '\n'.join(parts)


def _settings(fields: Sequence[dataclasses.Field], width: int) -> list[str]:
    """Return an entry of the help for each setting."""
    entries = []
    for f in fields:
        choices = ' | '.join(f.metadata['choices'])
        explained = f.metadata['help'] + (f' [{choices}]' if choices else '')
        entries.append(_entry(f.name, settings.text(f.default), explained, width))
    return entries


def _entry(name: str, default: Any, explained: str, width: int) -> str:
    """Return a flag with its explanation beside it or, on a narrow screen, below it."""
    head = f'  --{name}={default}'
    margin = 34 if width >= 72 else 6
    lines = [' ' * margin + line for line in _wrap(explained, width - margin)]
    if lines and len(head) < margin - 1:
        lines[0] = head + lines[0][len(head):]
        return '\n'.join(lines)
    return '\n'.join([head, *lines])


def _paragraphs(text: str, width: int) -> str:
    """Wrap paragraphs that are too wide; commands, which are indented, stay."""
    parts = text.split('\n\n')
    for place, part in enumerate(parts):
        too_wide = max(map(len, part.splitlines()), default=0) > width
        if too_wide and not part.startswith(' '):
            parts[place] = '\n'.join(_wrap(' '.join(part.split()), width))
    return '\n\n'.join(parts)


def _wrap(text: str, width: int) -> list[str]:
    """Break lines between words only."""
    return textwrap.wrap(
        text, max(width, 1), break_long_words=False, break_on_hyphens=False
    )
