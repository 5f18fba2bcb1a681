"""Submodules that are imported when they are first used."""

import importlib
from collections.abc import Callable
from types import ModuleType


def attach(
    package: str, names: tuple[str, ...]
) -> tuple[Callable[[str], ModuleType], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package: the name of the package.
        names: the public submodules of the package.
    """

    def load(name: str) -> ModuleType:
        if name not in names:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return importlib.import_module(f'{package}.{name}')

    return load, lambda: list(names), list(names)
