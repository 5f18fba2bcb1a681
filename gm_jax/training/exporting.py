"""A trained model as files that anyone can read: arrays, settings and a model card.

    gm-jax export --workdir=DIR --to=OUT

`model.safetensors` has the variables that evaluation uses, by their names joined with
slashes; `config.json`, `data.json` and `results.json` are those of the run. The card,
`README.md`, says what the model is, its number and how to read it, and has the SHA-256
of the arrays. There is no pickle anywhere.
"""

import hashlib
import json
import os
import re
import shutil
import sys
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import gm_jax
from gm_jax.data import files
from gm_jax.errors import UserError
from gm_jax.training import checkpoints
from gm_jax.training.train_state import TrainState

__all__ = [
    'ARRAYS', 'checkpoint_of', 'is_exported', 'LOCAL', 'read', 'results', 'Trained',
    'variables', 'write',
]

ARRAYS = 'model.safetensors'
# Settings that name what lies on the machine of a run; they are left out.
LOCAL = 'data_dir', 'given', 'first_layer', 'classifier', 'inception'
_CARD = 'README.md'
_ERROR = '_standard_error'
# The name of the step among the metadata, by the checkpoint. Older versions had one for
# both.
_STEP = {'last': 'last_step', 'best': 'best_step'}
_OLD_STEP = 'step'


_HALF = (
    'The arrays are stored as float16, in half the size, and gm_jax computes with them '
    'in float32.'
)
_ROUNDED = 'The numbers above are of the arrays before they were rounded.'


class Trained(NamedTuple):
    """The arrays of a trained model.

    Attributes:
        variables: 'params' and the other collections, with NumPy arrays.
        step: the training step.
    """

    variables: dict[str, Any]
    step: int


def is_exported(directory: str) -> bool:
    """Return whether a directory holds an exported model."""
    return os.path.isfile(os.path.join(directory, ARRAYS))


def variables(workdir: str, shapes: TrainState, checkpoint: str = 'last') -> Trained:
    """Read the variables that evaluation uses, of a run or of an exported model.

    Each process reads by itself: it waits for no other one.

    Args:
        workdir: the directory of either.
        shapes: the shapes of a training state.
        checkpoint: 'last' or 'best'; an exported model is of one of them.

    Raises:
        UserError: there are none, or they are damaged, of another model, or of another
            checkpoint.
    """
    if is_exported(workdir):
        checkpoint_of(workdir, checkpoint)
        return read(workdir, shapes.eval_variables)
    found = checkpoints.restore(workdir, shapes, checkpoint, alone=True)
    if found is None:
        raise UserError(f'{workdir} has no checkpoint yet.')
    for warning in found.warnings:
        print(f'WARNING: {warning}; the one before it is used.', file=sys.stderr)
    return Trained(found.state.eval_variables, found.step)


def checkpoint_of(directory: str, wanted: str) -> str:
    """Return the checkpoint, 'last' or 'best', that an exported model is of.

    Args:
        directory: what `write` has made.
        wanted: the one that is asked for, 'last' if none is.

    Raises:
        UserError: the best is asked for, and it is not that; or it is damaged.
    """
    path = os.path.join(directory, ARRAYS)
    try:
        with safe_open(path, framework='np') as file:
            about = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        _check_digest(directory, path)  # it says what to do
        raise UserError(f'{path} cannot be used: {error}.') from None
    found, step = wanted, about.get(_OLD_STEP, '')
    for checkpoint, name in _STEP.items():
        found = checkpoint if name in about else found
    if step.isdecimal():
        found = results(directory, int(step)).get('checkpoint', wanted)
    if wanted == 'best' != found:
        raise UserError(
            f'{directory} holds an exported model, which is of the last checkpoint '
            f'alone: ask for no other.'
        )
    return found


def write(
    workdir: str, out: str, trained: Trained, name: str, about: str = '', *,
    half: bool = False, checkpoint: str = 'last',
) -> None:
    """Export a model; the directory has its name only when it is complete.

    Args:
        workdir: the work directory of the run.
        out: the directory that is made.
        trained: its arrays.
        name: the name of the experiment.
        about: what it is, a sentence.
        half: store float32 as float16, in half the space.
        checkpoint: 'last' or 'best', the one that the arrays are of.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    out = os.path.abspath(os.path.expanduser(out))
    if os.path.lexists(out):
        raise UserError(f'{out} is there already: choose another --to.')
    exact = {
        key: np.asarray(x)
        for key, x in traverse_util.flatten_dict(trained.variables, sep='/').items()
    }
    # An exported model that is exported again stays in float16.
    half = half or is_exported(workdir) and _HALF in _read_card(workdir)
    arrays = {key: _stored(x, half) for key, x in exact.items()}
    rounded = any(not np.array_equal(arrays[key], exact[key]) for key in exact)
    contents = {
        'config.json': _settings(workdir),
        'data.json': files.read_object(os.path.join(workdir, 'data.json'), 'data'),
        'results.json': results(workdir, trained.step),
    }
    part = f'{out}.incomplete'
    try:
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        path = os.path.join(part, ARRAYS)
        # safetensors writes several in a random order, which would change the digest.
        save_file(arrays, path, metadata={_STEP[checkpoint]: str(trained.step)})
        os.chmod(path, 0o644)
        digest = _digest(path)
        remarks = _remarks(workdir, half, rounded)
        card = _card(contents, name, about, trained.step, arrays, digest, remarks)
        _write(os.path.join(part, _CARD), card)
        for file, content in contents.items():
            if content:
                text = json.dumps(content, indent=2)
                _write(os.path.join(part, file), f'{text}\n')
        os.rename(part, out)
    # safetensors says in its own way that the disk is full.
    except (OSError, SafetensorError) as error:
        raise UserError(f'{out} cannot be written: {error}.') from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(path: str, text: str) -> None:
    with open(path, 'w', encoding='utf-8') as file:
        file.write(text)


def _settings(workdir: str) -> dict[str, Any]:
    """Return the settings without what would be looked for on this machine only."""
    found = files.read_object(os.path.join(workdir, 'config.json'), 'a config')
    found |= {name: '' for name in LOCAL if name in found}
    if str(found.get('module', '')).endswith('.py'):
        found['module'] = ''
    return found


def _remarks(workdir: str, half: bool, rounded: bool) -> list[str]:
    """Return what a card says of the precision of the arrays."""
    # The results.json of an exported model is that of its card; one that is evaluated
    # again, and has no results.json, has numbers of what it holds.
    if is_exported(workdir) and os.path.exists(os.path.join(workdir, 'results.json')):
        rounded = rounded or _ROUNDED in _read_card(workdir)
    return [*([_HALF] if half else []), *([_ROUNDED] if rounded else [])]


def results(workdir: str, step: int) -> dict[str, Any]:
    """Return the numbers of the arrays of a step; {} if they have not been evaluated.

    Args:
        workdir: the directory of a run, or of an exported model.
        step: the training step of the arrays; results.json may be of another one.

    Raises:
        UserError: a file of results is damaged.
    """
    own = f'results_eval_step={step}'
    for name in ('results.json', f'{own}.json', f'{own}_best.json'):
        path = os.path.join(workdir, name)
        if not os.path.exists(path):
            continue
        found = files.read_object(path, 'results')
        if not isinstance(found.get('metrics'), dict):
            raise UserError(f'{path} is damaged: it has no metrics.')
        if found.get('step') == step:
            return found
    return {}


def _stored(x: np.ndarray, half: bool) -> np.ndarray:
    if half and x.dtype == np.float32:
        with np.errstate(over='ignore'):  # the next line finds it
            x, exact = x.astype(np.float16), x
        if not np.all(np.isfinite(x) == np.isfinite(exact)):
            raise UserError(
                'some arrays have values above 65504, the largest of float16: leave '
                'out --half.'
            )
    return np.ascontiguousarray(x)


def read(directory: str, template: dict[str, Any]) -> Trained:
    """Read an exported model; narrower floats are returned in those of the template.

    Args:
        directory: what `write` has made.
        template: variables of these shapes and types.

    Raises:
        UserError: it is damaged, or not of this model.
    """
    path = os.path.join(directory, ARRAYS)
    _check_digest(directory, path)
    shapes = traverse_util.flatten_dict(template)
    found = {}
    try:
        with safe_open(path, framework='np') as file:
            about = file.metadata()
            known = [name for name in (*_STEP.values(), _OLD_STEP) if name in about]
            step = int(about[known[0]])
            names = set(file.keys())
            for key, shape in shapes.items():
                x = file.get_tensor('/'.join(key))
                # float16 to float32, and to float64 where JAX_ENABLE_X64 is set.
                if 'f' == x.dtype.kind and np.can_cast(x.dtype, shape.dtype):
                    x = x.astype(shape.dtype)
                if (x.shape, x.dtype) != (shape.shape, shape.dtype):
                    raise ValueError(
                        f'{"/".join(key)} is {x.dtype}{list(x.shape)}, the model has '
                        f'{shape.dtype}{list(shape.shape)}'
                    )
                found[key] = x
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise UserError(f'{path} cannot be used: {error}.') from None
    if more := sorted(names - {'/'.join(key) for key in shapes}):
        raise UserError(f'{path} has arrays that the model has not: {more[0]}.')
    return Trained(traverse_util.unflatten_dict(found), step)


def _digest(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_digest(directory: str, path: str) -> None:
    """Compare the arrays with the digest in the card, if there is a card."""
    card = _read_card(directory)
    wanted = re.search(rf'`{ARRAYS}` \| SHA-256 `([0-9a-f]{{64}})`', card)
    if wanted is not None and _digest(path) != wanted[1]:
        raise UserError(
            f'{path} is not the file that {_CARD} beside it names: its SHA-256 is '
            f'another. Get it again.'
        )


def _read_card(directory: str) -> str:
    """Return the model card; '' if there is none that can be read."""
    try:
        with open(os.path.join(directory, _CARD), encoding='utf-8') as card:
            return card.read()
    except (OSError, UnicodeDecodeError):
        return ''


def _card(
    contents: dict[str, dict[str, Any]], name: str, about: str, step: int,
    arrays: dict[str, np.ndarray], digest: str, remarks: list[str],
) -> str:
    """Return the model card, in the convention of the Hugging Face hub."""
    results, data = contents['results.json'], contents['data.json']
    metrics = results.get('metrics', {})
    numbers = {
        key: value for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    dataset = results.get('dataset', data.get('name', ''))
    begun = contents['config.json'].get('begin_with', '')
    lines = [
        '---', 'library_name: gm_jax', 'tags:', '- jax', f'- {name}',
        *_model_index(name, str(dataset), numbers), '---', '',
        f'# {name} on {dataset}', '', *([about, ''] if about else []),
        f'A {name} of gm_jax {gm_jax.__version__}, trained for {step:,} steps: '
        f'{sum(x.size for x in arrays.values()):,} numbers in {len(arrays)} arrays.',
        *(['', f'Its training began with the parameters of {begun}.'] if begun else []),
        '', '| | |', '|---|---|',
        *(f'| {what} | {text} |' for what, text in _facts(results, data) if text),
        f'| `{ARRAYS}` | SHA-256 `{digest}` |', '',
        *_numbers(numbers, begun), '',
        '## Use', '', '```python', 'import gm_jax', '',
        "run = gm_jax.load('.')  # the directory of this file", 'print(run)', '```', '',
        'The arrays, without gm_jax:', '', '```python', *_LOADER.splitlines(), '```',
        '', *([' '.join(remarks), ''] if remarks else []),
    ]
    return '\n'.join(lines)


def _facts(results: dict[str, Any], data: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the rows of a card: the data, the protocol, the command, the machine."""
    shape = 'x'.join(map(str, data.get('image_shape', ())))
    digests = [
        f'{split} `{about.get("digest")}`'
        for split, about in sorted(data.get('splits', {}).items())
    ]
    rows = [
        ('data', f'{data.get("name")}, images {shape} of {data.get("num_values")} '
         f'values, binarize: {data.get("binarize")}'),
        ('digests of the splits', ', '.join(digests)),
    ]
    if not results:
        return rows
    return [
        *rows,
        ('evaluated on', f'{results.get("num_examples", 0):,} images of the '
         f'{results.get("split")} split, checkpoint: {results.get("checkpoint")}'),
        ('best checkpoint chosen on', results.get('best_checkpoint_chosen_on', '')),
        ('estimator', results.get('metrics', {}).get('estimator', '')),
        ('seed of training, of the noise',
         f'{results.get("seed")}, {results.get("noise_seed")}'),
        ('command', f'`{results.get("command")}`'),
        ('trained and evaluated in',
         f'{results.get("wall_seconds")} s on {results.get("devices")}'),
    ]


def _numbers(numbers: dict[str, float], begun: str) -> list[str]:
    """Return what the card says about the numbers, and about their limits."""
    if not numbers:
        return [
            'These arrays have not been evaluated on the test set: `--mode=eval` does '
            'that.'
        ]
    return [
        '| number | |', '|---|---|',
        *(f'| {key} | {_with_error(numbers, key)} |' for key in numbers
          if not key.endswith(_ERROR)), '',
        'The names of the numbers are explained in docs/metrics.md of gm_jax. A number '
        'is comparable with another of the same data, binarization, split and '
        'estimator only. The model has seen nothing but its training set' + (
            ', and what the model has seen with which it began.' if begun else '.'
        ),
    ]


def _with_error(numbers: dict[str, float], key: str) -> str:
    """Return a number and, where there is one, its standard error."""
    error = numbers.get(key.removesuffix('_per_image') + _ERROR)
    return f'{numbers[key]:.6g}' + ('' if error is None else f' +- {error:.2g}')


def _model_index(name: str, dataset: str, numbers: dict[str, float]) -> list[str]:
    """Return the results as the front matter of a card has them."""
    if not numbers:
        return []
    classifies = 'accuracy' in numbers
    task = 'image-classification' if classifies else 'unconditional-image-generation'
    return [
        'model-index:', f'- name: {name}', '  results:', '  - task:',
        f'      type: {task}', '    dataset:',
        f'      name: {json.dumps(dataset)}', f'      type: {json.dumps(dataset)}',
        '    metrics:',
        *(line for key, value in numbers.items() for line in (
            f'    - type: {key}', f'      value: {value!r}',
        )),
    ]


_LOADER = '''\
from safetensors.numpy import load_file

variables = {}
for name, array in load_file('model.safetensors').items():
    *path, last = name.split('/')
    at = variables
    for key in path:
        at = at.setdefault(key, {})
    at[last] = array
print(sorted(variables))'''
