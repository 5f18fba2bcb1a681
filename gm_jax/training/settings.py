"""One frozen, validated dataclass per experiment; flags, presets and JSON come from it.

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Config(settings.Config):
        latent_dim: int = field(20, 'size of z', low=1)
        hidden: Sizes = field((256, 256), 'widths of the layers')

    config = Config(latent_dim=5, hidden='512,256')
"""

import contextlib
import dataclasses
import json
import os
import sys
import types
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from gm_jax.data import files
from gm_jax.data.binarize import WAYS
from gm_jax.data.decoding import background_colour
from gm_jax.data.image_set import SPECS
from gm_jax.errors import UserError, did_you_mean

__all__ = [
    'alike', 'changed', 'check_utf8', 'Config', 'field', 'load', 'MOST_DECAY',
    'MOST_LAYERS', 'MOST_SIDE', 'MOST_UNITS', 'Origin', 'origin', 'plain', 'Sizes',
    'text', 'to_json',
]

# Positive whole numbers, written as 200,200 on the command line and in JSON. Where the
# default is (), the experiment chooses them.
Sizes = tuple[int, ...]

# Far more than any network has: a mistyped number must not fill the memory, or the
# time, in which a network is built.
MOST_LAYERS = 1000  # or blocks
MOST_UNITS = 2**20  # or feature maps, of a layer
MOST_SIDE = 255  # of a kernel
# Adam divides by 1 - decay, which is 0 in float32 from here on.
MOST_DECAY = 0.9999999
# Steps and indices are int32 in programs, and other numbers float32.
_MOST = 2**31 - 1
_LEAST_FLOAT, _MOST_FLOAT = 1.2e-38, 3.4e38


def field(
    default: Any,
    help: str,
    *,
    choices: Sequence[str] = (),
    low: float | None = None,
    high: float | None = None,
    free: bool = False,
    evaluation_only: bool = False,
) -> Any:
    """Declare a setting: its default, its meaning and its allowed values.

    Args:
        default: the default; its type is the setting's: bool, int, float, str or, for
            `Sizes`, a tuple.
        help: one phrase for `--help`.
        choices: the only values allowed, for a string.
        low: the least number allowed.
        high: the greatest number allowed; None: what int32 or float32 holds, and for
            `Sizes` the most units of a layer.
        free: whether it may change when a run is resumed or evaluated, because the
            trained parameters do not depend on it.
        evaluation_only: whether it may change with --mode=eval but not when a run is
            resumed, so that all evaluations of one run are comparable.

    Returns:
        A dataclass field.
    """
    if high is None:
        high = {int: _MOST, tuple: MOST_UNITS}.get(type(default))
    metadata = dict(
        help=help, choices=choices, low=low, high=high, free=free,
        evaluation_only=evaluation_only,
    )
    return dataclasses.field(default=default, metadata=types.MappingProxyType(metadata))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """The settings that every experiment has."""

    dataset: str = field('digits', ' | '.join(SPECS))
    data_dir: str = field('', 'directory of prepared TFDS sets', free=True)
    image_size: int = field(
        0, 'side to which images:DIR and TFDS sets are resized; 0: not resized', low=0,
        high=2**14,
    )
    background: str = field(
        'white', 'colour behind transparent images of images:DIR and TFDS sets: white, '
        'black or #rrggbb',
    )
    binarize: str = field(
        'none',
        'make pixels 0 or 1: one fixed draw (static), a fresh draw at each step '
        '(dynamic), or x >= V/2 (threshold)',
        choices=WAYS,
    )
    validation: bool = field(
        False, 'hold out a tenth of the training images as the validation split, which '
        'chooses the best checkpoint; for sets without one',
    )
    seed: int = field(
        0, 'number from which all randomness is derived', low=0, high=2**32 - 1
    )
    begin_with: str = field(
        '', 'work directory of the same experiment, or its exported model, whose '
        'parameters training begins with; only the network must be the same'
    )
    num_steps: int = field(1000, 'training steps', low=1)
    batch_size: int = field(
        128, 'examples per step, over all devices of all processes', low=1
    )
    eval_every: int = field(500, 'steps between evaluations', low=1, free=True)
    checkpoint_every: int = field(500, 'steps between checkpoints', low=1, free=True)
    log_every: int = field(100, 'steps between lines of metrics', low=1, free=True)
    num_samples: int = field(64, 'images to generate', low=1, free=True)
    eval_batch_size: int = field(
        0, 'examples per evaluation step; 0: the batch size', low=0, free=True
    )
    test_examples: int = field(
        0, 'examples from all over the test set in the final evaluation; 0: all',
        low=0, free=True,
    )
    steps_per_dispatch: int = field(
        0, 'training steps in one compiled loop; 0: chosen by model and backend',
        low=0, free=True,
    )
    cpu_devices: int = field(
        0, 'virtual devices of a CPU, which share each batch; 0: one per core for '
        'models that train faster so, and one for others', low=0, high=1024, free=True,
    )
    learning_rate: float = field(1e-3, 'peak learning rate', low=0.0)
    schedule: str = field(
        'cosine',
        'learning rate over the run: constant, cosine or linear to zero, or the eight '
        'stages of Burda et al. 2016 (1e-3 to 1e-4, stage i lasting 3^i)',
        choices=('constant', 'cosine', 'linear', 'stages'),
    )
    warmup_steps: int = field(0, 'steps of linear learning-rate warm-up', low=0)
    optimizer: str = field(
        'adam', 'adam; muon for kernels and adam for all other parameters; or sgd, '
        'steps along the gradient', choices=('adam', 'muon', 'sgd'),
    )
    adam_b1: float = field(
        0.9, 'decay of the average of gradients', low=0.0, high=MOST_DECAY
    )
    adam_b2: float = field(
        0.999, 'decay of the average of squared gradients', low=0.0, high=MOST_DECAY
    )
    adam_eps: float = field(1e-8, 'constant in the denominator of Adam', low=1e-30)
    weight_decay: float = field(
        0.0, 'each step shrinks kernels by the share learning_rate * weight_decay',
        low=0.0,
    )
    grad_clip: float = field(0.0, 'largest gradient norm; 0: no limit', low=0.0)
    ema: float = field(
        0.0, 'decay of the parameter average that evaluation uses; 0: none',
        low=0.0, high=1.0,
    )
    dtype: str = field(
        'float32', 'dtype of the network; likelihoods stay float32',
        choices=('float32', 'bfloat16'),
    )

    def __post_init__(self) -> None:
        """Raise UserError for the first setting that is not allowed."""
        for setting in dataclasses.fields(self):
            value = getattr(self, setting.name)
            if isinstance(setting.default, tuple):
                value = _sizes(setting, value)
                object.__setattr__(self, setting.name, value)
            else:
                if type(setting.default) is int and isinstance(value, float):
                    # 1000.0 in JSON is a whole number.
                    value = int(value) if value.is_integer() else value
                    object.__setattr__(self, setting.name, value)
                _check(setting, value)
        background_colour(self.background)

    @property
    def spread_over_run(self) -> tuple[str, ...]:
        """The flags by which each step depends on how many there are in all."""
        return () if self.schedule == 'constant' else (f'--schedule={self.schedule}',)

    @property
    def without_effect(self) -> dict[str, str]:
        """The settings that change nothing beside the others, and why, by name.

        On the command line they are an error, unless they are the default.
        """
        # Muon has one constant for the denominators of both its parts.
        names = {'sgd': ('adam_b1', 'adam_b2', 'adam_eps'), 'muon': ('adam_eps',)}
        why = f'is not used by --optimizer={self.optimizer}'
        return dict.fromkeys(names.get(self.optimizer, ()), why)

    @property
    def of_the_network(self) -> tuple[str, ...]:
        """The settings that change the network, but not the sizes of its arrays.

        --begin_with asks for the same, since it compares the sizes alone.
        """
        return ()

    @property
    def gains_from_cpu_devices(self) -> bool:
        """Whether a CPU trains the model faster with one virtual device per core."""
        return False

    @property
    def smallest_share(self) -> int:
        """The number of examples of a batch that must stay together on a device."""
        return 1

    @property
    def eval_batch(self) -> int:
        """The number of examples per evaluation step."""
        return self.eval_batch_size or self.batch_size


ConfigT = TypeVar('ConfigT', bound=Config)


def text(value: Any) -> Any:
    """Return a setting as it is written on the command line and in JSON."""
    return ','.join(map(str, value)) if isinstance(value, tuple) else value


class Origin(NamedTuple):
    """Where a config is from.

    Attributes:
        experiment: the name of the experiment.
        module: its module, or the path of its file; '' if it has none.
    """

    experiment: str
    module: str


def origin(path: str) -> Origin | None:
    """Return the experiment that a file names; None if an older version wrote it.

    Raises:
        UserError: the file is missing or damaged.
    """
    found = files.read_object(path, 'a config')
    names = [found[name] for name in Origin._fields if isinstance(found.get(name), str)]
    return Origin(*names) if len(names) == len(Origin._fields) else None


def load(path: str, config_class: type[ConfigT], experiment: str = '') -> ConfigT:
    """Read a config from JSON.

    Args:
        path: the file.
        config_class: the class of the settings.
        experiment: the name of the experiment, if the file must be of none other.

    Raises:
        UserError: the file is missing, damaged or of another experiment.
    """
    settings = files.read_object(path, 'a config')
    found = settings.pop('experiment', experiment)
    settings.pop('module', '')
    if experiment and found != experiment:
        raise UserError(
            f'{path} is of the experiment {found!r}, not of {experiment}.'
        )
    unknown = sorted(
        set(settings) - {f.name for f in dataclasses.fields(config_class)}
    )
    if unknown:
        raise UserError(f'{path} has settings unknown here: '
                        f'{", ".join(map(repr, unknown))}.')
    return config_class(**settings)


def plain(config: Config) -> dict[str, Any]:
    """Return the settings by name, as they are in JSON."""
    return {name: text(value) for name, value in vars(config).items()}


def to_json(config: Config, origin: Origin | None = None) -> str:
    """Return the config as JSON that `load` reads back to an equal config."""
    about = {} if origin is None else origin._asdict()
    return json.dumps({**about, **plain(config)}, indent=2) + '\n'


def changed(old: Config, new: Config, mode: str) -> list[str]:
    """List the settings that differ and must not in this mode, as sentences.

    A run whose steps do not depend on their total number may be resumed with more.
    """
    spread = old.spread_over_run
    longer = not new.spread_over_run and new.num_steps > old.num_steps
    free = {'num_steps'} if longer and mode == 'train' else set()
    free |= set(old.without_effect) & set(new.without_effect)
    found = []
    for f in dataclasses.fields(new):
        was, now = (text(getattr(config, f.name)) for config in (old, new))
        if f.name == 'dataset' and files.kind(was) == files.kind(now):
            continue  # the content of its files is compared, not where they lie
        fixed = not (f.metadata['free'] or f.name in free) and not (
            f.metadata['evaluation_only'] and mode != 'train'
        )
        if fixed and was != now:
            found.append(f'--{f.name} was {was!r} and is now {now!r}' + (
                f', on which every step depends because of {" and ".join(spread)}'
                if f.name == 'num_steps' and spread else ''
            ))
    return found


def alike(config: Config) -> dict[str, str]:
    """Return the settings that all processes of a run must share, as text by flag.

    Only the place of the data is a matter of each host; its content is compared apart.
    """
    found = {
        f'--{f.name}': text(getattr(config, f.name))
        for f in dataclasses.fields(config) if f.name != 'data_dir'
    }
    return {**found, '--dataset': files.kind(config.dataset)}


def check_utf8(given: str) -> None:
    """Raise UserError for text from bytes that are not UTF-8, such as an old path."""
    try:
        given.encode()
    except UnicodeEncodeError:
        shown = given.encode(errors='backslashreplace').decode()
        with contextlib.suppress(UnicodeError):
            os.fsencode(given).decode()  # it is UTF-8, but not for this locale
            raise UserError(
                f"'{_shown(shown)}' cannot be read in this locale: set LC_ALL=C.UTF-8 "
                f'or PYTHONUTF8=1.'
            ) from None
        raise UserError(
            f"'{_shown(shown)}' is not UTF-8, which the files of a run are written in: "
            f'rename it.'
        ) from None


def _sizes(setting: dataclasses.Field[Any], value: Any) -> Sizes:
    """Read sizes such as '200,200'; a tuple is taken as it is."""
    name, high = setting.name, setting.metadata['high']
    if value in ('', ()) and not setting.default:
        return ()
    parts = text(value).split(',') if isinstance(value, (str, tuple)) else ['']
    given = f'--{name}={_shown(text(value))}'
    if len(parts) > MOST_LAYERS:
        raise UserError(f'--{name} has {len(parts)} sizes: at most {MOST_LAYERS}.')
    # By their length first: Python refuses to read a number of many digits.
    digits = [part.lstrip('0') for part in parts if _is_whole(part)]
    if len(digits) < len(parts) or not all(digits):
        raise UserError(f'{given} must be sizes such as 200,200.')
    if any(len(part) > len(str(high)) or int(part) > high for part in digits):
        raise UserError(f'{given}: a size is at most {high}.')
    return tuple(map(int, digits))


def _is_whole(part: str) -> bool:
    return part.isascii() and part.isdecimal()


def _shown(value: Any) -> str:
    """Return a value as text that fits into a sentence."""
    found = str(value)
    return found if len(found) <= 60 else f'{found[:57]}...'


def _check(setting: dataclasses.Field[Any], value: Any) -> None:
    name, rule = setting.name, setting.metadata
    kind = type(setting.default)
    given, low, high = _shown(value), rule['low'], rule['high']
    right_type = isinstance(value, (int, float) if kind is float else kind)
    if not right_type or (isinstance(value, bool) and kind is not bool):
        raise UserError(
            f'--{name} must be of type {kind.__name__}, got {_shown(repr(value))}.'
        )
    if kind is str:
        check_utf8(value)
    # Whole numbers may be too large to be a float at all.
    if kind is float and not abs(value) <= sys.float_info.max:
        raise UserError(f'--{name} must be a finite number, got {given}.')
    if rule['choices'] and value not in rule['choices']:
        raise UserError(
            f'--{name}={given} is not one of {", ".join(rule["choices"])}'
            f'{did_you_mean(value, rule["choices"]) or "."}'
        )
    if low is not None and value < low:
        raise UserError(f'--{name} must be at least {low}, got {given}.')
    if high is not None and value > high:
        raise UserError(f'--{name} must be at most {high}, got {given}.')
    if kind is float and value and not _LEAST_FLOAT <= abs(value) <= _MOST_FLOAT:
        raise UserError(
            f'--{name}={given} is not a number of float32: these are 0, and '
            f'{_LEAST_FLOAT} to {_MOST_FLOAT}.'
        )
