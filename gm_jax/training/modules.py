"""Modules by name, or by the path of their file."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType
from typing import TypeGuard

__all__ = ['load']

_RUNNING = 'running'


def load(name: str) -> ModuleType:
    """Import a module, or run a file, unless it is what runs now.

    Args:
        name: the name of a module, or a path that ends in .py.

    Raises:
        ImportError: there is no such module.
        Exception: whatever the module raises.
    """
    if not name.endswith('.py'):
        return importlib.import_module(name)
    path = os.path.abspath(os.path.expanduser(name))
    for running in (sys.modules['__main__'], sys.modules.get(path)):
        if _runs(running, path):
            return running
    spec = importlib.util.spec_from_file_location(path, path)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there. Its path is the name of no other module.
    sys.modules[path] = module
    try:
        spec.loader_state = _RUNNING
        spec.loader.exec_module(module)
        spec.loader_state = None
    except BaseException:
        del sys.modules[path]  # half a module
        raise
    return module


def _runs(module: ModuleType | None, path: str) -> TypeGuard[ModuleType]:
    """Say whether a module is the script of this file, or `load` is running it."""
    spec = getattr(module, '__spec__', None)
    if spec is not None:
        return spec.origin == path and spec.loader_state == _RUNNING
    file = getattr(module, '__file__', None)
    return file is not None and os.path.abspath(file) == path
