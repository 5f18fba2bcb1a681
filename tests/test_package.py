"""What the package promises as a whole: a light import, one direction of imports."""

import ast
import configparser
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import experiments

ROOT = pathlib.Path(__file__).resolve().parents[1]
# Package -> which others of ours its modules may import, from the ground floor up.
ALLOWED_IMPORTS = {
    'losses': {'keys'},
    'layers': {'keys'},
    'data': {'errors', 'keys', 'memory'},
    'models': {'layers', 'losses'},
    'sampling': {'keys', 'layers', 'losses'},
    'evaluation': {'data', 'errors', 'keys', 'losses', 'sampling'},
    'training': {'data', 'errors', 'html', 'keys', 'memory', 'plotting'},
    'families': {
        'data', 'errors', 'evaluation', 'keys', 'layers', 'losses', 'models',
        'plotting', 'sampling', 'training',
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
    """Catch a heavy library imported at the top of the package."""
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


def test_one_import_reaches_all():
    """Catch a submodule that must be imported first, and what a loss does not need."""
    heavy = "{'flax', 'optax', 'orbax', 'tensorflow_datasets', 'sklearn', 'rich'}"
    functions = ', '.join(f'gm_jax.{name}' for name in (
        'losses.elbo.elbo', 'losses.adversarial.gradient_penalty',
        'losses.likelihoods.logistic_mixture_sample', 'losses.dequantization.uniform',
        'sampling.autoregressive.incremental', 'sampling.latent.interpolate',
        'keys.example_rngs', 'evaluation.checks.assert_causal',
    ))
    code = (
        f'import sys, gm_jax; assert all(map(callable, [{functions}])); '
        f'print(*({heavy} & set(sys.modules)))'
    )
    done = subprocess.run(
        [sys.executable, '-W', 'error', '-c', code],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )
    assert not done.stdout.split()


def test_completion_offers_what_is_there():
    """Catch a module that its package forgets, and one that is not there."""
    packages = [path.parent for path in (ROOT / 'gm_jax').glob('*/__init__.py')]
    for path in [ROOT / 'gm_jax', *packages]:
        name = '.'.join(path.relative_to(ROOT).parts)
        package = importlib.import_module(name)
        there = {p.stem for p in path.glob('*.py')} | {
            p.parent.name for p in path.glob('*/__init__.py')
        }
        public = {stem for stem in there if not stem.startswith('_')}
        if name == 'gm_jax.losses':
            # Their public functions are those of `likelihoods`.
            public -= {'logistic_mixture', 'numerics'}
        functions = {'load'} if name == 'gm_jax' else set()
        assert set(dir(package)) == set(package.__all__) == public | functions, name
        for submodule in public:
            assert getattr(package, submodule).__name__ == f'{name}.{submodule}'
        with pytest.raises(AttributeError, match=f'{name!r} has no attribute'):
            package.no_such_module


@pytest.mark.parametrize('package', sorted(ALLOWED_IMPORTS))
def test_imports_point_one_way(package):
    """Catch a loss or a sampler that knows a model, and a model that knows a run."""
    allowed = ALLOWED_IMPORTS[package] | {package, '_lazy'}
    for path in sorted((ROOT / 'gm_jax' / package).glob('*.py')):
        for name in imported_modules(path):
            assert not name.startswith('experiments'), f'{path} imports {name}'
            if name.startswith('gm_jax.'):
                assert name.split('.')[1] in allowed, f'{path} imports {name}'


def test_experiments_stand_alone():
    """Catch an experiment that imports another, or that no list names."""
    files = [p for p in (ROOT / 'experiments').glob('*.py') if p.stem[0] != '_']
    # Two are commands of another kind.
    others = {'compare', 'compare_runs'}
    assert {path.stem for path in files} == {*experiments.NAMES, *others}
    for path in files:
        for name in imported_modules(path):
            assert not name.startswith(('experiments', 'gm_jax.experiments')), path


def test_flags_and_pmap_have_one_home():
    """Catch a second reader of flags, or a second call of pmap, in the package."""
    for path in sorted((ROOT / 'gm_jax').rglob('*.py')):
        where = path.relative_to(ROOT).as_posix()
        if where != 'gm_jax/training/flags.py':
            assert not any(n.startswith('absl') and 'flags' in n
                           for n in imported_modules(path)), where
        if where != 'gm_jax/training/parallel.py':
            assert 'jax.pmap(' not in path.read_text(), where


def test_lower_bounds_are_the_versions_that_are_tested():
    """Catch a bound in setup.cfg that no test runs with."""
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
