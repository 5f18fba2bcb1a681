"""Submodules that are imported when they are first used."""

import importlib
from collections.abc import Callable, Mapping
from typing import Any


def attach(
    package: str, names: tuple[str, ...], functions: Mapping[str, str] = {}
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return `__getattr__`, `__dir__` and `__all__` of a package (PEP 562).

    Args:
        package: the name of the package.
        names: the public submodules of the package.
        functions: submodules by the names of functions that the package offers itself.
    """

    def load(name: str) -> Any:
        if name in functions:
            module = importlib.import_module(f'{package}.{functions[name]}')
            return getattr(module, name)
        if name not in names:
            raise AttributeError(f'module {package!r} has no attribute {name!r}')
        return importlib.import_module(f'{package}.{name}')

    public = [*functions, *names]
    return load, lambda: list(public), list(public)
