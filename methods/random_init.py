"""Random initialisation: the encoder as it starts, for what pre-training has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer

from ssl_bench.api import Method


@dataclass(frozen=True)
class Config:
    """Nothing is trained, so there is nothing to set."""


class RandomInit(Method):
    """Nothing to train: no parameter requires a gradient."""

    version = 1

    def __init__(self, config: Config, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__(config, encoder.requires_grad_(False), num_classes)
