"""The work that every contestant does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """One pre-training at one size.

    Attributes:
        method: "mae" or "mocov3".
        width, depth, heads: of the encoder, a plain ViT with a class token.
        image_size, patch_size: in pixels.
        batch_size: images in a step.
        decoder: width, blocks and heads of MAE's decoder.
        projector: hidden width and output width of MoCo v3's projector and predictor.
        mask_ratio: of MAE.
    """

    method: str
    width: int
    depth: int
    heads: int
    image_size: int
    patch_size: int
    batch_size: int
    decoder: tuple[int, int, int] = (128, 4, 4)
    projector: tuple[int, int] = (1024, 256)
    mask_ratio: float = 0.75


CASES: Mapping[str, Case] = {
    "mae-ti4-32": Case("mae", 192, 12, 3, 32, 4, 256),
    "mae-s8-96": Case("mae", 384, 12, 6, 96, 8, 64, decoder=(192, 4, 4)),
    "mae-b16-224": Case("mae", 768, 12, 12, 224, 16, 16, decoder=(512, 8, 16)),
    "mocov3-ti4-32": Case("mocov3", 192, 12, 3, 32, 4, 128),
    "mocov3-s8-96": Case("mocov3", 384, 12, 6, 96, 8, 32),
}
