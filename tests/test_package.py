"""What the package promises as a whole: a light import, one direction of imports."""

import ast
import configparser
import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Package -> what of ours its modules may import (with the package itself).
ALLOWED_IMPORTS = {
    'gm_jax/losses': {'gm_jax._lazy', 'gm_jax.losses', 'gm_jax.keys'},
    'gm_jax/layers': {
        'gm_jax._lazy', 'gm_jax.layers', 'gm_jax.losses', 'gm_jax.keys'
    },
    'gm_jax/models': {
        'gm_jax._lazy', 'gm_jax.models', 'gm_jax.layers', 'gm_jax.losses'
    },
    'gm_jax/sampling': {
        'gm_jax._lazy', 'gm_jax.sampling', 'gm_jax.layers', 'gm_jax.losses',
        'gm_jax.keys',
    },
}


def imported_modules(path: pathlib.Path) -> set[str]:
    """Return the dotted names that a file imports, at any depth."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            names.update(f'{node.module}.{alias.name}' for alias in node.names)
    return names


def test_import_is_light():
    """Catches a heavy library imported at the top of the package."""
    heavy = "{'jax', 'flax', 'tensorflow', 'tensorflow_datasets', 'matplotlib'}"
    code = (
        'import sys, time; start = time.perf_counter(); import gm_jax; '
        f'print(time.perf_counter() - start, *({heavy} & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    seconds, *loaded = done.stdout.split()
    assert float(seconds) < 2
    assert not loaded


@pytest.mark.parametrize('package', sorted(ALLOWED_IMPORTS))
def test_imports_point_one_way(package):
    """Catches a loss or a sampler that knows a model, and a model that knows a run."""
    for path in sorted((ROOT / package).glob('*.py')):
        for name in imported_modules(path):
            if name.startswith(('gm_jax', 'experiments')):
                owner = '.'.join(name.split('.')[:2])
                assert owner in ALLOWED_IMPORTS[package], f'{path} imports {name}'


def test_flags_and_pmap_have_one_home():
    """Catches a second reader of flags, or a second call of pmap, in the package."""
    for path in sorted((ROOT / 'gm_jax').rglob('*.py')):
        where = path.relative_to(ROOT).as_posix()
        if where != 'gm_jax/training/flags.py':
            assert not any(n.startswith('absl') and 'flags' in n
                           for n in imported_modules(path)), where
        if where != 'gm_jax/training/parallel.py':
            assert 'jax.pmap(' not in path.read_text(), where


def test_lower_bounds_are_the_versions_that_are_tested():
    """Catches a bound in setup.cfg that no test runs with."""
    pins = {}
    for line in (ROOT / 'requirements.txt').read_text().splitlines():
        match = re.match(r'([\w.-]+)==([\w.]+)(.*)', line)
        if match and '>=' not in match[3]:
            pins[match[1].lower()] = match[2]
    config = configparser.ConfigParser()
    config.read(ROOT / 'setup.cfg')
    extras = config['options.extras_require']
    bounds = '\n'.join([config['options']['install_requires'], extras['test'],
                        extras['lint']])
    for line in filter(None, bounds.splitlines()):
        name, version = line.split('>=')
        assert pins[name.lower()] == version, name
