"""ssl-bench: which self-supervised method is better, on your data, under your budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.models.checkpoints import load_encoder

__all__ = ["CORE_VERSION", "__version__", "load_encoder"]

__version__ = "0.1.0"

CORE_VERSION = 1
"""Part of every run's and every score's identity, beside the version of the method or evaluation.

Raised by a change of the core that changes what a training or an evaluation computes.
"""


def __getattr__(name: str) -> Any:
    """Import ``load_encoder`` when it is asked for: it takes torch, which the flags do without."""
    if name != "load_encoder":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from ssl_bench.models.checkpoints import load_encoder

    return load_encoder
