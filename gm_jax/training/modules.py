"""Modules by name, or by the path of their file."""

import importlib
import importlib.util
import os
import sys
from types import ModuleType

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
    if (running := _running(path)) is not None:
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


def _running(path: str) -> ModuleType | None:
    """Return the module of a file that is the script, or that `load` is running."""
    script, loaded = sys.modules['__main__'], sys.modules.get(path)
    file = getattr(script, '__file__', None)  # a notebook has none
    if file is not None and os.path.abspath(file) == path:
        return script
    spec = getattr(loaded, '__spec__', None)
    return loaded if spec is not None and spec.loader_state == _RUNNING else None
