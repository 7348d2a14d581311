"""Lazy re-exports (PEP 562): a package's stub lists its public names once, for readers and at run time."""

import ast
import importlib
from collections.abc import Callable
from pathlib import Path


def attach(
    package: str, init_file: str
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """Make a package import each name only when it is first asked for.

    The names are the `from .module import Name as Name` lines of the `__init__.pyi` beside `init_file`,
    which type checkers and editors read too, so there is one list and nothing to drift.

    Returns:
        `__getattr__`, `__dir__` and `__all__` for the package.

    Raises:
        AttributeError: When a name is asked for that the stub does not list.
    """
    stub = ast.parse(Path(init_file).with_suffix(".pyi").read_text(encoding="utf-8"))
    home = {
        name.asname or name.name: (f"{package}.{line.module}", name.name)
        for line in stub.body
        if isinstance(line, ast.ImportFrom) and line.level == 1 and line.module
        for name in line.names
    }

    def load(name: str) -> object:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, attribute = home[name]
        value = getattr(importlib.import_module(module), attribute)
        setattr(importlib.import_module(package), name, value)
        return value

    def names() -> list[str]:
        return sorted(home)

    return load, names, names()
