"""One frozen, validated dataclass per experiment; flags, presets and JSON come from it.

Usage:
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(config_lib.Config):
        latent_dim: int = config_lib.field(20, 'size of z', low=1)

    run, config = config_lib.parse(
        argv, Config, presets={}, module='vae', about=__doc__
    )
"""

import dataclasses
import json
import os
import shlex
import shutil
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from gm_jax.errors import UserError


def field(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    free: bool = False,
    of_evaluation: bool = False,
) -> Any:
    """Declares a setting: its default, what it means and what it may be.

    Args:
        default: the default; its type is the setting's type (bool, int, float, str).
        help: one phrase for `--help`.
        choices: the only values allowed, for a string.
        low: the least number allowed.
        high: the greatest number allowed.
        free: may differ when a run goes on or is evaluated, because the parameters
            that training reaches do not depend on it.
        of_evaluation: may differ when a run is evaluated, but not when it goes on: the
            evaluations of one run are to be of one kind.

    Returns:
        A dataclass field.
    """
    metadata = dict(
        help=help, choices=choices, low=low, high=high, free=free,
        of_evaluation=of_evaluation,
    )
    return dataclasses.field(default=default, metadata=types.MappingProxyType(metadata))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that every experiment has."""

    dataset: str = field(
        'digits',
        'digits | a TFDS name such as mnist | idx:DIR | images:DIR | npz:FILE | '
        'synthetic:NAME',
    )
    data_dir: str = field('', 'where prepared TFDS sets lie', free=True)
    image_size: int = field(
        0, 'side to resize images:DIR and TFDS sets to; 0 keeps it', low=0
    )
    binarize: str = field(
        'none',
        'make pixels 0 or 1: one fixed draw (static), a fresh draw at each step '
        '(dynamic), or x >= V/2 (threshold)',
        choices=('none', 'static', 'dynamic', 'threshold'),
    )
    seed: int = field(0, 'what all randomness derives from', low=0, high=2**32 - 1)
    num_steps: int = field(1000, 'training steps', low=1)
    batch_size: int = field(
        128, 'examples a step, over all devices of all processes', low=1
    )
    eval_every: int = field(500, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(500, 'steps between checkpoints', low=1, free=True)
    log_every: int = field(100, 'steps between lines of metrics', low=1, free=True)
    num_samples: int = field(64, 'images to generate', low=1, free=True)
    eval_batch_size: int = field(
        0, 'examples an evaluation step; 0: the batch size', low=0, free=True
    )
    steps_per_dispatch: int = field(
        0, 'training steps in one compiled loop; 0: by model and backend', low=0,
        free=True,
    )
    learning_rate: float = field(1e-3, 'peak learning rate', low=0.0)
    schedule: str = field(
        'cosine',
        'learning rate over the run: constant, cosine to zero, or the eight stages '
        'of Burda et al. 2016 (1e-3 to 1e-4, stage i lasting 3^i)',
        choices=('constant', 'cosine', 'stages'),
    )
    warmup_steps: int = field(0, 'steps of linear warm-up', low=0)
    optimizer: str = field(
        'adam', 'adam, or muon for kernels and adam for what else there is',
        choices=('adam', 'muon'),
    )
    adam_b1: float = field(0.9, 'decay of the gradient average', low=0.0, high=1.0)
    adam_b2: float = field(0.999, 'decay of the squares', low=0.0, high=1.0)
    adam_eps: float = field(1e-8, 'what Adam adds to the root', low=0.0)
    weight_decay: float = field(
        0.0, 'share of a kernel that a step of learning rate 1 would take off', low=0.0
    )
    grad_clip: float = field(0.0, 'largest gradient norm; 0: no limit', low=0.0)
    ema: float = field(
        0.0, 'decay of the parameter average that evaluation uses; 0: none',
        low=0.0, high=1.0,
    )
    dtype: str = field(
        'float32', 'what the network computes in; likelihoods stay float32',
        choices=('float32', 'bfloat16'),
    )

    def __post_init__(self) -> None:
        """Raises UserError for the first setting that is not allowed."""
        for setting in dataclasses.fields(self):
            _check_setting(setting, getattr(self, setting.name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What to do with a config; not part of it, since it changes no number."""

    workdir: str
    mode: str = 'train'
    checkpoint: str = 'last'
    command: str = ''
    # Of the processes of the run; see distributed.initialize.
    coordinator_address: str = ''
    num_processes: int = 0
    process_id: int = -1


_RUN_FLAGS = (
    ('workdir', '', 'DIR for everything the run writes (required)'),
    ('mode', 'train', 'train | eval | sample; the last two need only a checkpoint'),
    ('preset', '', 'start from these settings (listed below) instead of the defaults'),
    ('config', '', "start from a run's config.json"),
    ('checkpoint', 'last', 'last | best: which one eval and sample read; best had the '
     'least loss in training on the validation split, or where the set has none on the '
     'test split, so that its test numbers flatter'),
    ('coordinator_address', '', 'HOST:PORT of process 0, for several processes where '
     'JAX does not find them by itself, as it does on TPU pods, Slurm, Open MPI and '
     'Kubernetes'),
    ('num_processes', 0, 'how many processes there are then'),
    ('process_id', -1, 'which of them this is, from 0'),
)


def parse(
    argv: Sequence[str],
    config_class: type[Config],
    *,
    presets: Mapping[str, Config],
    module: str,
    about: str,
) -> tuple[Run, Config]:
    """Makes a run and its config from command-line flags.

    Later wins: defaults, `--preset`, `--config`, flags. With `--mode=eval|sample` the
    work directory's own config.json takes the place of the first three.

    Args:
        argv: the flags, without the program's name.
        config_class: the experiment's config.
        presets: named configs.
        module: the experiment's name, for messages.
        about: the experiment's docstring, for `--help`.

    Returns:
        (run, config).

    Raises:
        UserError: a flag, a preset or a file is not what it should be.
        SystemExit: after `--help`.
    """
    values = _define(config_class)
    try:
        rest = values([module, *argv])[1:]
    except flags.Error as error:
        raise UserError(f'{str(error).rstrip(".")}. See --help.') from None
    if values.help:
        print(_help(config_class, presets, module, about))
        raise SystemExit(0)
    if rest:
        raise UserError(f'{rest[0]!r} is not a flag; flags look like --name=value.')
    if not values.workdir:
        raise UserError('--workdir=DIR is missing: name a directory for the run.')
    given = {
        f.name: values[f.name].value
        for f in dataclasses.fields(config_class)
        if values[f.name].present
    }
    command = shlex.join(['python', '-m', f'experiments.{module}', *argv])
    run = Run(
        workdir=values.workdir, mode=values.mode, checkpoint=values.checkpoint,
        command=command, coordinator_address=values.coordinator_address,
        num_processes=values.num_processes, process_id=values.process_id,
    )
    return run, dataclasses.replace(
        _base_config(values, run, config_class, presets), **given
    )


def _define(config_class: type[Config]) -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_boolean('help', False, '', short_name='h', flag_values=values)
    for name, default, _ in _RUN_FLAGS:
        if name == 'mode':
            choices = ['train', 'eval', 'sample']
            flags.DEFINE_enum(name, default, choices, '', flag_values=values)
        elif name == 'checkpoint':
            flags.DEFINE_enum(name, default, ['last', 'best'], '', flag_values=values)
        elif isinstance(default, int):
            flags.DEFINE_integer(name, default, '', flag_values=values)
        else:
            flags.DEFINE_string(name, default, '', flag_values=values)
    define = {
        bool: flags.DEFINE_boolean, int: flags.DEFINE_integer,
        float: flags.DEFINE_float, str: flags.DEFINE_string,
    }
    for f in dataclasses.fields(config_class):
        define[type(f.default)](f.name, f.default, '', flag_values=values)
    return values


def _base_config(
    values: flags.FlagValues,
    run: Run,
    config_class: type[Config],
    presets: Mapping[str, Config],
) -> Config:
    if values.preset and values.config:
        raise UserError('--preset and --config exclude each other: pass one of them.')
    if values.preset and values.preset not in presets:
        known = ', '.join(sorted(presets)) or 'none here'
        raise UserError(f'--preset={values.preset} is unknown; there are: {known}.')
    if values.config:
        return load(values.config, config_class)
    if run.mode != 'train':
        path = os.path.join(run.workdir, 'config.json')
        if not os.path.exists(path):
            raise UserError(
                f'{run.workdir} holds no run (no config.json): train one there first, '
                f'with --mode=train.'
            )
        saved = load(path, config_class)
        if values.preset and presets[values.preset] != saved:
            raise UserError(f'--preset cannot change the run in {run.workdir}.')
        return saved
    return presets[values.preset] if values.preset else config_class()


def sizes(text: str, flag: str) -> tuple[int, ...]:
    """Reads a flag such as '200,200'.

    Raises:
        UserError: it is not a list of positive whole numbers.
    """
    parts = text.split(',')
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UserError(f'--{flag}={text} must be sizes such as 200,200.')
    return tuple(int(part) for part in parts)


def load(path: str, config_class: type[Config]) -> Config:
    """Reads a config from JSON.

    Raises:
        UserError: the file is missing, damaged or of another experiment.
    """
    try:
        with open(path, encoding='utf-8') as file:
            settings = json.load(file)
        if not isinstance(settings, dict):
            raise ValueError('it is not a JSON object')
        unknown = sorted(
            set(settings) - {f.name for f in dataclasses.fields(config_class)}
        )
    except FileNotFoundError:
        raise UserError(f'{path} does not exist.') from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f'{path} cannot be read as a config: {error}.') from None
    if unknown:
        raise UserError(f'{path} has settings unknown here: '
                        f'{", ".join(map(repr, unknown))}.')
    return config_class(**settings)


def to_json(config: Config) -> str:
    """Returns the config as JSON that `load` reads back to an equal config."""
    return json.dumps(dataclasses.asdict(config), indent=2) + '\n'


def changed(old: Config, new: Config, mode: str) -> list[str]:
    """Lists the settings that differ and must not in this mode, as sentences.

    A run may go on for more steps than it was to have where its learning rate is
    constant: every other schedule is a shape over all of them.
    """
    longer = new.schedule == 'constant' and new.num_steps > old.num_steps
    free = {'num_steps'} if longer and mode == 'train' else set()
    return [
        f'--{f.name} was {getattr(old, f.name)!r} and is now {getattr(new, f.name)!r}'
        for f in dataclasses.fields(new)
        if not f.metadata['free'] and f.name not in free
        and not (f.metadata['of_evaluation'] and mode != 'train')
        and getattr(old, f.name) != getattr(new, f.name)
    ]


def _check_setting(setting: dataclasses.Field, value: Any) -> None:
    name, rule = setting.name, setting.metadata
    kind = type(setting.default)
    right_type = isinstance(value, (int, float) if kind is float else kind)
    if not right_type or (isinstance(value, bool) and kind is not bool):
        raise UserError(f'--{name} must be of type {kind.__name__}, got {value!r}.')
    # Whole numbers may be too large to be a float at all.
    if kind is float and not abs(value) <= sys.float_info.max:
        raise UserError(f'--{name} must be a finite number, got {value}.')
    if rule['choices'] and value not in rule['choices']:
        raise UserError(
            f'--{name}={value} is not one of {", ".join(rule["choices"])}.'
        )
    if rule['low'] is not None and value < rule['low']:
        raise UserError(f'--{name} must be at least {rule["low"]}, got {value}.')
    if rule['high'] is not None and value > rule['high']:
        raise UserError(f'--{name} must be at most {rule["high"]}, got {value}.')


def _help(
    config_class: type[Config],
    presets: Mapping[str, Config],
    module: str,
    about: str,
) -> str:
    width = min(shutil.get_terminal_size((96, 24)).columns, 110)
    common = [f.name for f in dataclasses.fields(Config)]
    own = [f for f in dataclasses.fields(config_class) if f.name not in common]

    def entry(name: str, default: Any, text: str) -> str:
        head = f'  --{name}={default}'
        lines = textwrap.wrap(text, width - 34) or ['']
        first = f'{head:<33} {lines[0]}' if len(head) < 33 else head
        rest = lines[1:] if len(head) < 33 else lines
        return '\n'.join([first, *(' ' * 34 + line for line in rest)])

    def settings(fields: Sequence[dataclasses.Field]) -> list[str]:
        out = []
        for f in fields:
            choices = ' | '.join(f.metadata['choices'])
            text = f.metadata['help'] + (f' [{choices}]' if choices else '')
            out.append(entry(f.name, f.default, text))
        return out

    parts = [
        f'python -m experiments.{module} --workdir=DIR [flags]', '', about.strip(), '',
        'The run:', *(entry(*flag) for flag in _RUN_FLAGS), '',
        'Every experiment:',
        *settings([getattr(config_class, '__dataclass_fields__')[n] for n in common]),
        '', f'This experiment ({module}):', *settings(own),
    ]
    if presets:
        parts += ['', 'Presets (their settings that differ from the defaults):']
    for name, preset in presets.items():
        base = config_class()
        parts.append(entry(f'preset={name}', '', ' '.join(
            f'{f.name}={getattr(preset, f.name)}'
            for f in dataclasses.fields(preset)
            if getattr(preset, f.name) != getattr(base, f.name)
        )).replace(f'{name}=', name, 1))
    return '\n'.join(parts)
