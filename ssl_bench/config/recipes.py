"""The recipes of optimisers and of linear probes: flags of methods and evaluations.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from ssl_bench.errors import above, require, within


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimiser's recipe: AdamW, linear warm-up, then a cosine to zero, set every step."""

    base_lr: float = 1.5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    weight_decay: float = 0.05
    """AdamW's decoupled weight decay."""
    beta2: float = 0.999
    """AdamW's decay of the second moment."""
    warmup: float = 0.1
    """Share of the training during which the learning rate rises linearly from zero, in [0, 1)."""
    decay_norm_and_bias: bool = False
    """Apply weight decay to one-dimensional parameters too."""

    def __post_init__(self) -> None:
        above("base lr", self.base_lr, 0)
        within("weight decay", self.weight_decay, "[0, 1]")
        within("beta2", self.beta2, "[0, 1)")
        within("warmup", self.warmup, "[0, 1)")


@dataclass(frozen=True, kw_only=True)
class OptimizerChoiceConfig(OptimizerConfig):
    """The same schedule for an optimiser of one's choice."""

    optimizer: Literal["adamw", "lars", "sgd"] = "adamw"
    """AdamW; or LARS or SGD, with momentum 0.9, which papers take for a ResNet."""
    final_lr: float = 0.0
    """Where the cosine ends, as a share of the highest learning rate, in [0, 1]."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within("final lr", self.final_lr, "[0, 1]")


@dataclass(frozen=True)
class ProbeConfig:
    """The recipe of linear probes on frozen features, see `linear_probe.fit_best`."""

    name: ClassVar[str] = "probe"
    epochs: int = 20
    """Passes over the training features."""
    batch_size: int = 512
    """Features in a step of SGD."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, at the start of the cosine."""
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    """Weight decays to choose from."""
    validation: float = 0.1
    """Share of the training images to choose on, in (0, 1)."""

    def __post_init__(self) -> None:
        above(f"{self.name} epochs", self.epochs, 0)
        above(f"{self.name} batch size", self.batch_size, 0)
        within(f"{self.name} validation", self.validation, "(0, 1)")
        probe_grid(self.name, self.learning_rates, self.weight_decays)


def probe_grid(
    name: str, learning_rates: tuple[float, ...], weight_decays: tuple[float, ...]
) -> None:
    """Require settings of linear probes that can be chosen from."""
    require(bool(learning_rates), f"{name} learning rates is empty; try 0.1")
    above(f"{name} learning rates", min(learning_rates), 0)
    require(bool(weight_decays), f"{name} weight decays is empty; try 0")
    for weight_decay in weight_decays:
        within(f"{name} weight decays", weight_decay, "[0, 1]")
