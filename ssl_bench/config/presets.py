"""Encoders and settings that have a name of their own.

Nothing here imports torch, so that ``--help`` is fast.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

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
    "vit_small_mocov3": {
        "model_name": "vit_small_patch16_224",
        "embed_dim": 384,
        "depth": 12,
        "num_heads": 12,
    },
    "swin_nano": {
        "model_name": "swin_tiny_patch4_window7_224",
        "patch_size": 2,
        "window_size": 4,
        "embed_dim": 32,
        "depths": (2, 2, 2),
        "num_heads": (2, 4, 8),
    },
    "swin_base_simmim": {
        "model_name": "swin_base_patch4_window7_224",
        "window_size": 6,
        "embed_dim": 128,
        "depths": (2, 2, 18, 2),
        "num_heads": (4, 8, 16, 32),
    },
}
"""Own encoders: arguments of ``timm.create_model``. MoCo v3's ViT-S has twice the heads of timm's;
no weight's shape shows the difference. The first Swin Transformer is for images of 28 to 64 pixels,
the second is SimMIM's, for 192."""

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "quick": {},
    "small": {
        "backbone": "vit_tiny_patch16_224",
        "patch_size": 4,
        "epochs": 200,
        "batch_size": 256,
    },
}
"""Flags that a preset sets; a method's or an evaluation's own ``presets`` may add to each."""

SIZED_BY_STEPS = "quick"
"""The preset whose epochs are meant for `SIZED_FOR` images: fewer of them get more epochs."""
SIZED_FOR = 60_000
DEFAULT_EPOCHS = 8
"""Where a preset has none."""
DEFAULT_BATCH = 128
"""Images in a step where a preset does not say."""


def merged(preset: str, of_method: Mapping[str, Any]) -> dict[str, Any]:
    """All that a preset sets: for every method, and what a method's own ``presets`` have for it."""
    return {**PRESETS.get(preset, {}), **of_method}


def shared_defaults(preset: str, of_method: Mapping[str, Any]) -> dict[str, Any]:
    """What a preset sets of the flags that all methods share, and of a method's own.

    Args:
        of_method: what the method's own ``presets`` have for it.
    """
    found = merged(preset, of_method)
    if preset == SIZED_BY_STEPS:
        for name in ("epochs", "batch_size"):  # until it is known how many images there are
            found.pop(name, None)
    return found


PRESET_NOTES: Mapping[str, str] = {
    "quick": "minutes on two CPU cores; tuned for MAE, VideoMAE and ALBEF, on the embedded data",
    "small": "ViT-Ti/4, 200 epochs: small images on a GPU",
}
