"""The recipes of optimisers and of linear probes: flags of methods and evaluations.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from ssl_bench.config.checked import CheckedConfig
from ssl_bench.errors import require


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig(CheckedConfig):
    """The optimiser's recipe: AdamW, linear warm-up, then a cosine to zero, set every step."""

    base_lr: Annotated[float, "(0, inf)"] = 1.5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    weight_decay: Annotated[float, "[0, 1]"] = 0.05
    """AdamW's decoupled weight decay."""
    beta2: Annotated[float, "[0, 1)"] = 0.999
    """AdamW's decay of the second moment."""
    warmup: Annotated[float, "[0, 1)"] = 0.1
    """Share of the training during which the learning rate rises linearly from zero."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to one-dimensional parameters too."""


@dataclass(frozen=True, kw_only=True)
class OptimizerChoiceConfig(OptimizerConfig):
    """The same schedule for an optimiser of one's choice."""

    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    """AdamW; or LARS or SGD, with momentum 0.9, which papers take for a ResNet."""
    final_lr: Annotated[float, "[0, 1]"] = 0.0
    """Where the cosine ends, as a share of the highest learning rate."""


@dataclass(frozen=True, kw_only=True)
class StepScheduleConfig(OptimizerChoiceConfig):
    """The same, or a learning rate that falls in steps."""

    step_schedule: bool = False
    """Divide the learning rate by 10 at some shares of the training, instead of along a cosine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.step_schedule or self.final_lr == 0,
            f"final lr {self.final_lr} is where a cosine ends, and --step-schedule has none",
        )


@dataclass(frozen=True)
class ProbeConfig(CheckedConfig):
    """The recipe of linear probes on frozen features, see `linear_probe.fit_best`."""

    section: ClassVar[str] = "probe"
    epochs: Annotated[int, "[1, inf)"] = 20
    """Passes over the training features."""
    batch_size: Annotated[int, "[1, inf)"] = 512
    """Features in a step of SGD."""
    learning_rates: Annotated[tuple[float, ...], "(0, inf)"] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, at the start of the cosine."""
    weight_decays: Annotated[tuple[float, ...], "[0, 1]"] = (0.0, 1e-4, 1e-3)
    """Weight decays to choose from."""
    validation: Annotated[float, "(0, 1)"] = 0.1
    """Share of the training images to choose on."""
