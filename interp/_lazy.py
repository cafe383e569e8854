"""Packages and registries that import what they name on its first use, so that names are known without torch."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

__all__ = ["Registry", "lazy"]

T = TypeVar("T")


def lazy(name: str) -> None:
    """Makes a package import on first use what its file imports under ``if TYPE_CHECKING``.

    To be called last in its ``__init__.py``. Its modules, too, become attributes on first use.
    """
    package = sys.modules[name]
    assert package.__file__ is not None
    source = Path(package.__file__).read_text(encoding="utf-8")
    found: dict[str, tuple[str, str]] = {}
    for block in ast.parse(source).body:
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING":
            for line in block.body:
                assert isinstance(line, ast.ImportFrom)
                assert line.module is not None
                found |= {alias.asname or alias.name: (line.module, alias.name) for alias in line.names}
    vars(package)["_first_use"] = found
    package.__class__ = _Package


class _Package(ModuleType):
    _first_use: dict[str, tuple[str, str]]

    def __getattr__(self, name: str) -> Any:
        if name in self._first_use:
            module, attribute = self._first_use[name]
            if module == self.__name__:
                return importlib.import_module(f"{module}.{attribute}")
            value = getattr(importlib.import_module(module), attribute)
            vars(self)[name] = value
            return value
        if not name.startswith("__") and find_spec(f"{self.__name__}.{name}"):
            return importlib.import_module(f"{self.__name__}.{name}")
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        # Importing a module binds it in its package; a function of the same name stays what the package offers.
        offered = self._first_use.get(name, (self.__name__, name))[0] != self.__name__
        if not (offered and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*vars(self), *self._first_use})


class Registry(Mapping[str, T], Generic[T]):
    """Things by name, each imported on first use.

    Args:
        package: Where the modules are.
        **places: Name: ``module:attribute``, or an attribute's own.
    """

    def __init__(self, package: str, **places: str) -> None:
        self._package, self._places = package, places

    def __getitem__(self, name: str) -> T:
        module, _, attribute = self._places[name].partition(":")
        return attrgetter(attribute)(importlib.import_module(f"{self._package}.{module}"))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places
