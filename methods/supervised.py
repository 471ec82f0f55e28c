"""Supervised: the encoder and a linear classifier, trained on the labels.

A baseline, not a self-supervised method: it shows what the labels give at the same budget.
Recipe: label smoothing as in Touvron et al., *Training data-efficient image transformers &
distillation through attention* (DeiT), ICML 2021, table 9, with crops and flips alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, OptimizerConfig, Step, Uniform
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """Flags of supervised training."""

    label_smoothing: Annotated[float, "[0, 1)"] = 0.1
    """Share of the target that is spread over all classes."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""
    flip: bool = True
    """Mirror half of the images."""


class Supervised(Method):
    """Cross-entropy of a linear classifier on the class token, or the pooled features without."""

    version = 1
    needs = ("labels",)
    columns = frozenset({"image", "clip", "label"})
    per_sample_loss = True
    presets = {"quick": {"epochs": 3, "base_lr": 1e-3}, "small": {"base_lr": 5e-4}}

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        self.head = nn.Linear(encoders.width(self.encoder), data.num_classes)
        nn.init.trunc_normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, mirrored or not; clips are not, as motions would turn round."""
        flip = 0.5 if self.config.flip and self.data.frames == 1 else 0.0
        return {"image": crop_and_flip(self.data.image_size, self.config.crop_scale, flip)}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Cross-entropy with smoothed labels."""
        assert batch.labels_B is not None
        features_BD = encoders.represent(self.encoder, batch.views["image"])
        logits_BC = self.head(features_BD).float()
        smoothing = self.config.label_smoothing
        return F.cross_entropy(logits_BC, batch.labels_B, label_smoothing=smoothing)

    # Around DeiT's values (table 9): a learning rate of 5e-4 for a batch of 512, weight decay 0.05,
    # smoothing 0.1, crops from 0.08.
    search_space = {
        "base_lr": LogUniform(1e-4, 5e-3),
        "weight_decay": LogUniform(0.01, 0.3),
        "label_smoothing": Uniform(0.0, 0.2),
        "crop_scale": Uniform(0.08, 1.0),
    }
