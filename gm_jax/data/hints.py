"""What was meant by a path that was given in the place of the name of an image set."""

import glob
import itertools
import json
import os
import shlex

__all__ = ['for_path']

# Files that are looked at, at most, to find a picture among them.
_LOOKS = 1000
_PICTURES = '.png', '.jpg', '.jpeg'


def for_path(path: str) -> str:
    """Return ': did you mean --dataset=...?' for a path, '' where none is meant.

    Args:
        path: what was given as the name of a set.
    """
    path = os.path.expanduser(path)
    directory = path if os.path.isdir(path) else os.path.dirname(path) or '.'
    if path == directory and (found := _prepared(path)):
        return f': did you mean {found}?'
    meant = ''
    if path.lower().endswith('.npz') and path != directory:  # there or not
        meant = f'npz:{path}'
    elif not os.path.exists(path):
        return ''
    elif glob.glob(os.path.join(glob.escape(directory), '*-idx3-ubyte*')):
        meant = f'idx:{directory}'
    elif _has_pictures(directory) if path == directory else _is_picture(path):
        meant = f'images:{directory}'
    return f': did you mean --dataset={shlex.quote(meant)}?' if meant else ''


def _prepared(path: str) -> str:
    """Return the flags for a directory of one prepared TFDS set, or of several.

    A set lies in ROOT/NAME/VERSION, or in ROOT/NAME/CONFIG/VERSION.
    """
    path = os.path.realpath(path)
    found: dict[str, tuple[str, str]] = {}
    for depth in range(4):
        below = os.path.join(glob.escape(path), *['*'] * depth, 'dataset_info.json')
        for file in sorted(glob.glob(below)):
            found = {**found, **_place(file)}  # of several configs the last
        if found:
            break
    roots = {root for root, _ in found.values()}
    if len(roots) != 1:
        return ''
    where = f'--data_dir={shlex.quote(roots.pop())}'
    if len(found) > 1:
        return f'{where} with one of {", ".join(f"--dataset={name}" for name in found)}'
    name, (_, config) = found.popitem()
    return f'--dataset={name}{config} {where}'


def _place(info: str) -> dict[str, tuple[str, str]]:
    """Return the root and '/CONFIG' of the set that a dataset_info.json is of, by name.

    Nothing is returned for a file that is not where TFDS would look for it.
    """
    try:
        with open(info, encoding='utf-8') as file:
            content = json.load(file)
        name, config = content['name'], content.get('configName')
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    parts = [name, config] if config else [name]
    directory = os.path.dirname(os.path.dirname(info))
    end = os.path.join(os.sep, *map(str, parts))
    if not directory.endswith(end):
        return {}
    root = directory.removesuffix(end) or os.sep
    return {name: (root, f'/{config}' if config else '')}


def _has_pictures(directory: str) -> bool:
    """Return whether a directory has a picture among its first files."""
    files = (name for _, _, names in os.walk(directory) for name in names)
    return any(map(_is_picture, itertools.islice(files, _LOOKS)))


def _is_picture(path: str) -> bool:
    return path.lower().endswith(_PICTURES)
