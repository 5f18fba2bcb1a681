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
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import gm_jax
from gm_jax.errors import UserError

__all__ = ['ARRAYS', 'Exported', 'is_exported', 'read', 'read_json', 'write']

ARRAYS = 'model.safetensors'
_CARD = 'README.md'
_COPIED = 'config.json', 'data.json', 'results.json'


class Exported(NamedTuple):
    """What `read` returns.

    Attributes:
        variables: 'params' and the other collections, with NumPy arrays.
        step: the training step.
    """

    variables: dict[str, Any]
    step: int


def is_exported(directory: str) -> bool:
    """Return whether a directory holds an exported model."""
    return os.path.isfile(os.path.join(directory, ARRAYS))


def write(
    workdir: str, out: str, variables: dict[str, Any], step: int, name: str
) -> None:
    """Export a model; the directory has its name only when it is complete.

    Args:
        workdir: the work directory of the run.
        out: the directory that is made.
        variables: those that evaluation uses.
        step: the training step.
        name: the name of the experiment.

    Raises:
        UserError: something is there already, or it cannot be written.
    """
    out = os.path.abspath(os.path.expanduser(out))
    if os.path.lexists(out):
        raise UserError(f'{out} is there already: choose another --to.')
    part = f'{out}.incomplete'
    try:
        shutil.rmtree(part, ignore_errors=True)
        os.makedirs(part)
        arrays = {
            key: np.ascontiguousarray(x)
            for key, x in traverse_util.flatten_dict(variables, sep='/').items()
        }
        path = os.path.join(part, ARRAYS)
        save_file(arrays, path, metadata={'experiment': name, 'step': str(step)})
        os.chmod(path, 0o644)
        for file in _COPIED:
            source = os.path.join(workdir, file)
            if os.path.exists(source):
                shutil.copyfile(source, os.path.join(part, file))
        with open(os.path.join(part, _CARD), 'w', encoding='utf-8') as card:
            card.write(_card(part, name, step, arrays))
        os.rename(part, out)
    except OSError as error:
        raise UserError(f'{out} cannot be written: {error}.') from None


def read(directory: str, template: dict[str, Any]) -> Exported:
    """Read an exported model.

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
            step = int(file.metadata()['step'])
            names = set(file.keys())
            for key, shape in shapes.items():
                found[key] = file.get_tensor('/'.join(key))
                if (found[key].shape, found[key].dtype) != (shape.shape, shape.dtype):
                    raise ValueError(
                        f'{"/".join(key)} is {found[key].dtype}'
                        f'{list(found[key].shape)}, the model has {shape.dtype}'
                        f'{list(shape.shape)}'
                    )
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path} cannot be used: {error}.') from None
    if more := sorted(names - {'/'.join(key) for key in shapes}):
        raise UserError(f'{path} has arrays that the model has not: {more[0]}.')
    return Exported(traverse_util.unflatten_dict(found), step)


def _digest(path: str) -> str:
    with open(path, 'rb') as file:
        return hashlib.file_digest(file, 'sha256').hexdigest()


def _check_digest(directory: str, path: str) -> None:
    """Compare the arrays with the digest in the card, if there is a card."""
    try:
        with open(os.path.join(directory, _CARD), encoding='utf-8') as card:
            text = card.read()
    except (OSError, UnicodeDecodeError):
        return  # a model without its card
    wanted = re.search(rf'`{ARRAYS}` \| SHA-256 `([0-9a-f]{{64}})`', text)
    if wanted is not None and _digest(path) != wanted[1]:
        raise UserError(
            f'{path} is not the file that {_CARD} beside it names: its SHA-256 is '
            f'another. Get it again.'
        )


def _card(directory: str, name: str, step: int, arrays: dict[str, np.ndarray]) -> str:
    """Return the model card, in the convention of the Hugging Face hub."""
    results = read_json(directory, 'results.json')
    data = read_json(directory, 'data.json')
    metrics = results.get('metrics', {})
    numbers = {
        key: value for key, value in metrics.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    dataset = results.get('dataset', data.get('name', ''))
    lines = [
        '---', 'library_name: gm_jax', 'tags:', '- jax', f'- {name}',
        *_model_index(name, str(dataset), numbers), '---', '',
        f'# {name} on {dataset}', '',
        f'A {name} of gm_jax {gm_jax.__version__}, trained for {step:,} steps: '
        f'{results.get("num_parameters", 0):,} parameters.', '',
        '| | |', '|---|---|',
        f'| data | {dataset}, images {data.get("image_shape")} of '
        f'{data.get("num_values")} values, binarize: {data.get("binarize")} |',
        f'| evaluated on | {results.get("num_examples", 0):,} images of the '
        f'{results.get("split", "test")} split |',
        f'| estimator | {metrics.get("estimator", "")} |',
        f'| command | `{results.get("command", "")}` |',
        f'| trained and evaluated in | {results.get("wall_seconds", 0)} s on '
        f'{results.get("devices", "")} |',
        f'| `{ARRAYS}` | SHA-256 `{_digest(os.path.join(directory, ARRAYS))}` |', '',
        '| number | |', '|---|---|',
        *(f'| {key} | {value:.6g} |' for key, value in numbers.items()), '',
        'The names of the numbers are explained in docs/metrics.md of gm_jax. A number '
        'is comparable with another of the same data, binarization, split and '
        'estimator only. The model has seen nothing but its training set.', '',
        '## Use', '', '```python', 'import gm_jax', '',
        "run = gm_jax.load('.')  # the directory of this file", 'print(run)', '```', '',
        'The arrays, without gm_jax:', '', '```python', *_LOADER.splitlines(), '```',
        '', f'There are {len(arrays)} arrays.', '',
    ]
    return '\n'.join(lines)


def _model_index(name: str, dataset: str, numbers: dict[str, float]) -> list[str]:
    """Return the results as the front matter of a card has them."""
    if not numbers:
        return []
    return [
        'model-index:', f'- name: {name}', '  results:', '  - task:',
        '      type: unconditional-image-generation', '    dataset:',
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


def read_json(directory: str, name: str) -> dict[str, Any]:
    """Return the JSON object of a file; {} if there is none that can be read."""
    try:
        with open(os.path.join(directory, name), encoding='utf-8') as file:
            found = json.load(file)
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}
