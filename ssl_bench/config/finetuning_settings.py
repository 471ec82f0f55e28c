"""What every evaluation that trains encoder and classifier on labels is told: its recipe's flags.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from ssl_bench.config.checked import flag_of
from ssl_bench.config.recipes import OptimizerConfig
from ssl_bench.errors import require

# Magnitude, operations, their chance, deviation and bound of the magnitude, increasing severity.
_RAND_AUGMENT = r"(rand(-(m\d+|n[1-9]\d*|p(0?\.\d+|[01])|mstd\d+(\.\d+)?|mmax\d+|inc[01]))*)?"

FINETUNING_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "epochs": 2,
        "batch_size": 128,
        "base_lr": 4e-3,
        "min_lr": 0.0,
        "layer_decay": 0.75,
        "mixup": 0.0,
        "cutmix": 0.0,
        "drop_path": 0.0,
        "crop_scale": 1.0,
        "auto_augment": "",
        "random_erasing": 0.0,
    },
    "small": {
        "base_lr": 1e-3,
        "min_lr": 0.0,
        "layer_decay": 0.75,
        "batch_size": 256,
        "crop_scale": 0.4,
        "auto_augment": "",
        "random_erasing": 0.0,
    },
    "imagenet-mae-vitl": {
        "epochs": 50,
        "base_lr": 1e-3,
        "warmup": 5 / 50,
        "layer_decay": 0.75,
        "drop_path": 0.2,
    },
}
"""What presets set for both fine-tuning and partial fine-tuning."""


@dataclass(frozen=True, kw_only=True)
class FinetuningConfig(OptimizerConfig):
    """The recipe of a fine-tuning; the defaults are MAE's for ViT-B on ImageNet.

    Attributes:
        rates: the flags of its learning rates.
    """

    section: ClassVar[str] = "finetune"
    rates: ClassVar[str] = "base lr"

    epochs: Annotated[int, "[1, inf)"] = 100
    """Passes over the training split."""
    batch_size: Annotated[int, "[1, inf)"] = 1024
    """Images in an optimiser step."""
    base_lr: float = 5e-4
    """Learning rate of the head for a batch of 256."""
    min_lr: Annotated[float, "[0, inf)"] = 1e-6
    """Learning rate that the head's cosine ends at."""
    warmup: float = 0.05
    """Share of the training during which the learning rate rises linearly from zero."""
    layer_decay: Annotated[float, "(0, 1]"] = 0.65
    """Factor of the learning rate from each layer to the one below it."""
    pooling: Literal["avg", "cls"] = "avg"
    """What is classified: the mean of the patch tokens, normed anew, or the normed class token."""
    head_std: Annotated[float, "[0, inf)"] = 2e-5
    """Standard deviation of the classifier's initial weights."""
    label_smoothing: Annotated[float, "[0, 1)"] = 0.1
    """Share of the target that is spread over all classes."""
    mixup: Annotated[float, "[0, inf)"] = 0.8
    """Alpha of mixup's Beta distribution; 0 switches it off."""
    cutmix: Annotated[float, "[0, inf)"] = 1.0
    """Alpha of cutmix's Beta distribution; 0 switches it off. With both, a coin decides."""
    drop_path: Annotated[float, "[0, 1)"] = 0.1
    """Chance of skipping the last block, rising linearly from 0 at the first."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    auto_augment: str = "rand-m9-mstd0.5-inc1"
    """RandAugment as timm writes it; an empty word switches it off."""
    random_erasing: Annotated[float, "[0, 1]"] = 0.25
    """Chance of erasing a rectangle of an image."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            bool(re.fullmatch(_RAND_AUGMENT, self.auto_augment)),
            f"--{flag_of(self.section, 'auto_augment')} {self.auto_augment!r} is not understood; "
            "rand-m9-mstd0.5-inc1 would work, or '' for none",
        )
