"""What the author of a method or an evaluation imports.

What needs torch is imported when it is asked for, so that flags and help do without.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ssl_bench.api.evaluation import Evaluation, FrozenEncoder, Result, Training
    from ssl_bench.api.method import DataInfo, Method
    from ssl_bench.api.optimizers import OptimizerSpec
    from ssl_bench.api.ranges import LogUniform, OneOf, Uniform
    from ssl_bench.api.step import Batch, Step
    from ssl_bench.config.checked import CheckedConfig
    from ssl_bench.config.finetuning_settings import FinetuningConfig
    from ssl_bench.config.recipes import (
        OptimizerChoiceConfig,
        OptimizerConfig,
        ProbeConfig,
        SelfDistillationConfig,
        StepScheduleConfig,
        TextConfig,
    )

__all__ = [
    "Batch",
    "CheckedConfig",
    "DataInfo",
    "Evaluation",
    "FinetuningConfig",
    "FrozenEncoder",
    "LogUniform",
    "Method",
    "OneOf",
    "OptimizerChoiceConfig",
    "OptimizerConfig",
    "OptimizerSpec",
    "ProbeConfig",
    "Result",
    "SelfDistillationConfig",
    "Step",
    "StepScheduleConfig",
    "TextConfig",
    "Training",
    "Uniform",
]

HOMES = {
    **dict.fromkeys(
        ("Evaluation", "FrozenEncoder", "Result", "Training"), "ssl_bench.api.evaluation"
    ),
    **dict.fromkeys(("DataInfo", "Method"), "ssl_bench.api.method"),
    **dict.fromkeys(("Batch", "Step"), "ssl_bench.api.step"),
    "OptimizerSpec": "ssl_bench.api.optimizers",
    **dict.fromkeys(("LogUniform", "OneOf", "Uniform"), "ssl_bench.api.ranges"),
    **dict.fromkeys(
        (
            "OptimizerChoiceConfig",
            "OptimizerConfig",
            "ProbeConfig",
            "SelfDistillationConfig",
            "StepScheduleConfig",
            "TextConfig",
        ),
        "ssl_bench.config.recipes",
    ),
    "CheckedConfig": "ssl_bench.config.checked",
    "FinetuningConfig": "ssl_bench.config.finetuning_settings",
}
"""The module that defines each name."""


def __getattr__(name: str) -> Any:
    """Import a name from its home."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(HOMES[name]), name)
