"""The work that every contestant does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

LOCAL_CROPS, QUEUE = 6, 65536
"""Of LeJEPA and of MoCo, as their papers have them; DINO and iBOT get as many crops."""
_MULTI_CROP = ("lejepa", "dino", "ibot")


@dataclass(frozen=True)
class Case:
    """One pre-training at one size.

    Attributes:
        method: its name in this project.
        width, depth, heads: of the encoder, a plain ViT with a class token.
        image_size, patch_size: in pixels.
        batch_size: images in a step.
        decoder: width, blocks and heads of MAE's decoder, and of I-JEPA's predictor.
        projector: hidden and output width of the heads of methods that compare views. MoCo's hidden
            width is the encoder's, that of SimSiam's predictor a quarter; what DINO and iBOT put
            out are prototypes.
        mask_ratio: of MAE, SimMIM and iBOT.
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

    @property
    def patches(self) -> int:
        """In an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def takes_one_view(self) -> bool:
        """Whether the method compares no views of an image."""
        return self.method in ("mae", "ijepa", "simmim")

    @property
    def noise(self) -> int:
        """How many random numbers of an image make its masks."""
        return 2 + 64 * 4 if self.method == "ibot" else self.patches

    @property
    def view_sizes(self) -> tuple[int, ...]:
        """In pixels; small crops are 96 of 224, rounded up to whole patches."""
        small = -(-self.image_size * 96 // (224 * self.patch_size)) * self.patch_size
        return (self.image_size,) * 2 + (small,) * (LOCAL_CROPS * (self.method in _MULTI_CROP))

    def words(self) -> str:
        """What it is, for a reader."""
        own = f"mask ratio {self.mask_ratio:g}"
        if self.method == "ijepa":
            own = f"a predictor of {self.decoder[0]} x {self.decoder[1]}"
        elif not self.takes_one_view:
            heads = f"heads of {self.projector[0]} and {self.projector[1]}"
            if self.method == "moco":
                heads = f"a head of {self.projector[1]}, {QUEUE:,} keys"
            if self.method == "ibot":
                heads += f", {own}"
            large, small = 2, len(self.view_sizes) - 2
            own = f"{large} views, {small} small ones, {heads}" if small else f"two views, {heads}"
        return (
            f"{self.method}, encoder {self.width} x {self.depth}, {self.image_size} px in patches "
            f"of {self.patch_size}, batch {self.batch_size}, {own}"
        )

    @property
    def name(self) -> str:
        """All of it in one word."""
        return "-".join(
            str(value) for value in (
                self.method, f"{self.width}x{self.depth}x{self.heads}",
                f"{self.image_size}px{self.patch_size}", f"b{self.batch_size}",
                *self.decoder, *self.projector, self.mask_ratio,
            )
        )  # fmt: skip


CPU_CASES: Mapping[str, Case] = {
    "mae-ti4-32": Case("mae", 192, 12, 3, 32, 4, 256),
    "mae-s8-96": Case("mae", 384, 12, 6, 96, 8, 64, decoder=(192, 4, 4)),
    "mae-b16-224": Case("mae", 768, 12, 12, 224, 16, 16, decoder=(512, 8, 16)),
    "mocov3-ti4-32": Case("mocov3", 192, 12, 3, 32, 4, 128),
    "mocov3-s8-96": Case("mocov3", 384, 12, 6, 96, 8, 32),
}
_TI4 = Case("", 192, 12, 3, 32, 4, 128)
_OWN: Mapping[str, Mapping[str, Any]] = {
    "simclr": {"projector": (2048, 128)},
    "vicreg": {"projector": (2048, 2048)},
    "barlow-twins": {"projector": (2048, 2048)},
    "byol": {"projector": (1024, 256)},
    "simsiam": {"projector": (2048, 2048)},
    "moco": {"projector": (192, 128)},
    "lejepa": {"projector": (2048, 64)},
    "dino": {"projector": (2048, 4096), "batch_size": 16},
    "ibot": {"projector": (2048, 4096), "batch_size": 16, "mask_ratio": 0.3},
    "ijepa": {"decoder": (96, 4, 3), "batch_size": 32},
    "simmim": {"mask_ratio": 0.6, "batch_size": 32},
}
METHOD_CASES: Mapping[str, Case] = {
    f"{method}-ti4-32": replace(_TI4, method=method, **own) for method, own in _OWN.items()
}
GPU_CASES: Mapping[str, Case] = {
    "gpu-mae-ti4-32": Case("mae", 192, 12, 3, 32, 4, 2048),
    "gpu-mae-b16-224": Case("mae", 768, 12, 12, 224, 16, 512, decoder=(512, 8, 16)),
    "gpu-mae-l16-224": Case("mae", 1024, 24, 16, 224, 16, 256, decoder=(512, 8, 16)),
    "gpu-mocov3-b16-224": Case("mocov3", 768, 12, 12, 224, 16, 128, projector=(4096, 256)),
}
CASES: Mapping[str, Case] = {**CPU_CASES, **METHOD_CASES, **GPU_CASES}


def _growth() -> dict[str, dict[str, Case]]:
    mae = Case("mae", 192, 12, 3, 32, 4, 128)
    mocov3 = Case("mocov3", 192, 12, 3, 32, 4, 64)
    sizes, sides = {"Ti": (192, 3), "S": (384, 6), "B": (768, 12)}, (32, 64, 96, 128)

    def batches(base: Case, counts: tuple[int, ...]) -> dict[str, Case]:
        return {str(count): replace(base, batch_size=count) for count in counts}

    def images(base: Case) -> dict[str, Case]:
        return {str(side): replace(base, image_size=side, patch_size=side // 8) for side in sides}

    return {
        "MAE, batch size": batches(mae, (32, 64, 128, 256, 512)),
        "MAE, image size, 64 patches": images(mae),
        "MAE, model size": {
            name: replace(mae, width=width, heads=heads) for name, (width, heads) in sizes.items()
        },
        "MAE, mask ratio": {
            str(ratio): replace(mae, mask_ratio=ratio) for ratio in (0.25, 0.5, 0.75, 0.9)
        },
        "MoCo v3, batch size": batches(mocov3, (32, 64, 128, 256)),
        "MoCo v3, image size, 64 patches": images(mocov3),
    }


GROWTH: Mapping[str, Mapping[str, Case]] = _growth()
"""How cost grows: what grows, then the case at each of its values."""
AUGMENTED: Mapping[str, Case] = {
    "mae-32": Case("mae", 192, 12, 3, 32, 4, 256),
    "mocov3-32": Case("mocov3", 192, 12, 3, 32, 4, 256),
    "mae-224": Case("mae", 768, 12, 12, 224, 16, 64),
    "mocov3-224": Case("mocov3", 768, 12, 12, 224, 16, 64),
}
"""Whose views are made without a training."""
