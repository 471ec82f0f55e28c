"""ssl-bench: which self-supervised method is better, on your data, under your budget."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.errors import UserError
    from ssl_bench.notebook import compare, load_encoder, load_run, run, runs, sweep

__all__ = [
    "CORE_VERSION",
    "UserError",
    "__version__",
    "compare",
    "load_encoder",
    "load_run",
    "run",
    "runs",
    "sweep",
]

__version__ = "0.1.0"

CORE_VERSION = 1
"""Part of every run's and every score's identity, beside the version of the method or evaluation.

Raised by a change of the core that changes what a training or an evaluation computes.
"""

_CALLABLE_PACKAGES = ("runs", "sweep")


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: most take torch or pandas, which the flags do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in _CALLABLE_PACKAGES:
        return importlib.import_module(f"ssl_bench.{name}")
    home = "ssl_bench.errors" if name == "UserError" else "ssl_bench.notebook"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
