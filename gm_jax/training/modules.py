"""Modules by name, or by the path of their file."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType

__all__ = ['load']


def load(name: str) -> ModuleType:
    """Import a module, or run a file.

    Args:
        name: the name of a module, or a path that ends in .py.

    Raises:
        ImportError: there is no such module.
        Exception: whatever the module raises.
    """
    if not name.endswith('.py'):
        return importlib.import_module(name)
    path = os.path.abspath(os.path.expanduser(name))
    spec = importlib.util.spec_from_file_location(path, path)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there. Its path is the name of no other module.
    sys.modules[path] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[path]  # half a module
        raise
    return module
