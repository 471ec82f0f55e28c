"""What a run is told: flags every method shares, the optimiser's recipe, presets, backbones.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssl_bench.errors import above, require, within

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class Settings:
    """Flags of ``ssl-bench run`` that do not depend on the method."""

    method: str = "mae"
    """Name of a method (see `ssl-bench list`), or the path of a Python file that defines one."""
    data: str = "fashion-mnist"
    """Name of a data set, a folder of class folders, or Parquet files of images."""
    backbone: str = "vit_micro"
    """One of the presets in `ssl-bench list`, or any Vision Transformer of timm by name."""
    image_size: int | None = None
    """Height and width of the images in pixels. Default: the data's own size, or 64."""
    patch_size: int | None = None
    """Height and width of a patch in pixels. Default: the divisor of the image size nearest to a
    quarter of it."""
    epochs: int = 8
    """Passes over the training split."""
    batch_size: int = 128
    """Images in an optimiser step."""
    seed: int = 0
    """Seed of every random draw: weights, order, crops, masks."""
    precision: Precision = "auto"
    """Arithmetic of training; auto takes bf16 where the hardware has it."""
    evals: tuple[str, ...] = ()
    """Evaluations to run afterwards, separated by commas; none skips them. Default: those marked
    with a star in `ssl-bench list`."""
    preset: str = "quick"
    """Named set of defaults; each flag given beside it wins."""
    runs_dir: Path = Path("runs")
    """Folder that holds the run folders."""
    data_dir: Path = Path("~/.cache/ssl-bench")
    """Folder for downloaded data sets."""

    def __post_init__(self) -> None:
        above("epochs", self.epochs, 0)
        above("batch size", self.batch_size, 0)
        for name in ("image_size", "patch_size"):
            if getattr(self, name) is not None:
                above(name.replace("_", " "), getattr(self, name), 0)


@dataclass(frozen=True)
class EvalSettings:
    """Flags of ``ssl-bench eval`` that do not depend on an evaluation."""

    target: str = ""
    """A run's folder or name, or a file of weights."""
    backbone: str | None = None
    """What a file of weights holds: a preset of `ssl-bench list`, or a Vision Transformer of
    timm by name."""
    data: str | None = None
    """Data set to evaluate on. Default: the one the run was pre-trained on."""
    seed: int | None = None
    """Seed of the evaluations' draws. Default: the run's."""
    precision: Precision = "auto"
    """Arithmetic of feature extraction and fine-tuning; auto takes bf16 where there is."""
    evals: tuple[str, ...] = ()
    """Evaluations to run, separated by commas. Default: those marked in `ssl-bench list`."""
    preset: str = "quick"
    """Named set of defaults. Default: the run's."""
    runs_dir: Path = Path("runs")
    """Folder that holds the run folders."""
    data_dir: Path = Path("~/.cache/ssl-bench")
    """Folder for downloaded data sets."""

    def __post_init__(self) -> None:
        require(bool(self.target), "say what to evaluate: a run, or a file of weights")


@dataclass(frozen=True)
class CompareSettings:
    """Show runs side by side."""

    runs: tuple[str, ...] = ()
    """Run folders, or parts of their names. Default: all."""
    runs_dir: Path = Path("runs")
    """Folder that holds the run folders."""
    csv: Path | None = None
    """Write the table to this file too."""


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


BACKBONES: Mapping[str, Mapping[str, Any]] = {
    "vit_nano": {
        "model_name": "vit_tiny_patch16_224",
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 2,
    },
    "vit_micro": {
        "model_name": "vit_tiny_patch16_224",
        "embed_dim": 128,
        "depth": 6,
        "num_heads": 4,
    },
    "vit_mini": {
        "model_name": "vit_tiny_patch16_224",
        "embed_dim": 256,
        "depth": 8,
        "num_heads": 8,
    },
}
"""Own small Vision Transformers: arguments of ``timm.create_model``."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "small": {"backbone": "vit_tiny_patch16_224", "epochs": 200, "batch_size": 256},
}
"""Flags that a preset sets; a method's or an evaluation's own ``PRESETS`` may add to each."""

PRESET_NOTES: Mapping[str, str] = {
    "quick": "minutes on two CPU cores; tuned on the embedded Fashion-MNIST",
    "small": "ViT-Ti, 200 epochs: small images on a GPU",
}
