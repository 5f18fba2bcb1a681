"""The examples in the docstrings of the losses."""

import doctest
import importlib
import inspect
import pkgutil

import pytest

from gm_jax import losses

MODULES = [
    importlib.import_module(f'gm_jax.losses.{found.name}')
    for found in pkgutil.iter_modules(losses.__path__) if found.name != 'numerics'
]


@pytest.mark.parametrize('module', MODULES, ids=lambda module: module.__name__)
def test_examples(module):
    """Catch a function without an example, and one whose output is another."""
    with_examples = {
        test.name.rpartition('.')[2]
        for test in doctest.DocTestFinder().find(module) if test.examples
    }
    functions = {
        name for name, found in inspect.getmembers(module, inspect.isfunction)
        if name in module.__all__ and found.__module__ == module.__name__
    }
    assert functions <= with_examples
    failed, run = doctest.testmod(module)
    assert run and not failed
