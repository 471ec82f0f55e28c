"""CKA: how alike the encoder's blocks are to each other and to the pixels.

Linear centred kernel alignment (Kornblith et al., *Similarity of Neural Network Representations
Revisited*, ICML 2019, arXiv:1905.00414), debiased, see `metrics.linear_cka`. A block's features
are the mean of the patch tokens that leave it, which every encoder has; block 0 stands for the
embeddings, and the last one's are taken before the final norm.

The images are the same for every method and every seed, and their features are stored, so that
runs can be compared block by block afterwards.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation.features import RawPixels, prepare
from ssl_bench.evaluation.metrics import linear_cka, subset
from ssl_bench.models import encoders
from ssl_bench.models.attention_maps import tokens_by_block
from ssl_bench.utils import progress

_IMAGES_AT_ONCE = 64
_FEWEST = 4


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of CKA."""

    section: ClassVar[str] = "cka"

    images: Annotated[int, "[4, inf)"] = 1000
    """Test images to compare; the same for every run."""


class CKA(Evaluation):
    """Similarity of the encoder's blocks to each other and to the pixels."""

    version = 1
    columns = frozenset({"image"})
    compared_with = ("random",)

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether there are blocks, and images enough for the debiased estimate."""
        if isinstance(encoder, RawPixels):
            return "raw pixels have no blocks"
        reason = encoders.why_no_vit(encoder.trainable_copy())
        if reason is not None:
            return reason
        if len(data.test) < _FEWEST:
            return f"it takes {_FEWEST} test images or more; {data.name} has {len(data.test)}"
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Compare the last block with the pixels, and with each other block.

        Arrays: ``index`` of the images in the test split, int64 ``(N,)``, and ``block_0`` to
        ``block_{depth}``, ``(N, D)``: float16, or float32 where a number is too large for it.
        """
        index_N = subset(len(data.test), self.config.images, data.fingerprint)
        pixels_ND, blocks = _features(encoder, data, index_N)
        last_ND = blocks[-1]
        similar = {"pixels_last": linear_cka(pixels_ND, last_ND)}
        for number, block_ND in enumerate(blocks[:-1]):
            similar[f"block_{number}_last"] = linear_cka(block_ND, last_ND)
        return Result(
            {name: 100 * cka for name, cka in similar.items()},
            arrays={"index": index_N}
            | {f"block_{number}": _small(each) for number, each in enumerate(blocks)},
            unit="linear CKA with pixels (%)",
            better="neither",
        )


@torch.no_grad()
def _features(
    encoder: FrozenEncoder, data: Dataset, index_N: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """The images' pixels and their features after each block: float32 ``(N, D)`` on the CPU."""
    module = encoder.trainable_copy().eval()
    pixels: list[Tensor] = []
    parts: list[list[Tensor]] = []
    with progress.bar("blocks", len(index_N)) as bar:
        for images_BCSS in data.test.read(index_N.split(_IMAGES_AT_ONCE)):
            images_BCHW = prepare(images_BCSS, encoder.spec, encoder.hardware)
            with encoder.hardware.autocast():
                means = [
                    tokens_BTD[:, module.num_prefix_tokens :].float().mean(dim=1).cpu()
                    for tokens_BTD in tokens_by_block(module, images_BCHW)
                ]
            pixels.append(images_BCHW.flatten(1).cpu())
            parts.append(means)
            bar.update(_IMAGES_AT_ONCE * len(parts))
    return torch.cat(pixels), [torch.cat(each) for each in zip(*parts, strict=True)]


def _small(features_ND: Tensor) -> Tensor:
    """In half the room, where no number is too large for that."""
    half_ND = features_ND.half()
    return half_ND if half_ND.isfinite().all() else features_ND
