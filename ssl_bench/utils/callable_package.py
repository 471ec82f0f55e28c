"""Packages that can be called, for ``ssl_bench.sweep(...)`` beside ``ssl_bench.sweep.grid``."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


class _CallablePackage(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function of `ssl_bench.notebook` that has the package's name."""
        name = self.__name__.rpartition(".")[2]
        return getattr(importlib.import_module("ssl_bench.notebook"), name)(*args, **options)


def make_callable(name: str) -> None:
    """Have a package that is being imported stand for the function of that name, too."""
    sys.modules[name].__class__ = _CallablePackage
