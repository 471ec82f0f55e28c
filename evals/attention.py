"""Attention: where the class token looks in the last block, and how far patches look.

Maps of a few test images for a figure: the attention of the class token over the patches in the
last block, head by head, and attention rollout (Abnar and Zuidema, *Quantifying Attention Flow in
Transformers*, arXiv:2005.00928). Numbers of many: how widely that attention is spread, as its
entropy's share of the largest, the mean over heads and images, and how far patches look in each
block (Dosovitskiy et al., arXiv:2010.11929, figure 7). Entropy and distance are of what goes to
patches, scaled to sum to 1. Of an encoder without a class token, the mean over all patches that
attend is taken instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation.features import RawPixels, prepare
from ssl_bench.evaluation.metrics import rank_in_class, subset
from ssl_bench.models.attention_maps import (
    attention_by_block,
    distance,
    entropy,
    over_patches,
    rollout,
    why_unreadable,
)
from ssl_bench.transforms.augmentations import evaluation_view
from ssl_bench.utils import progress

_IMAGES_AT_ONCE = 32


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of attention."""

    section: ClassVar[str] = "attention"

    images: Annotated[int, "[1, inf)"] = 8
    """Test images to draw maps of: the first of each class, then the second, and so on."""
    sample: Annotated[int, "[1, inf)"] = 500
    """Test images to measure entropy and distance on; the same for every run."""


class Attention(Evaluation):
    """Attention of the last block, and how far patches look."""

    version = 1
    compared_with = ("random",)

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the weights of the encoder's attention can be read."""
        if isinstance(encoder, RawPixels):
            return "raw pixels have no attention"
        return why_unreadable(encoder.trainable_copy())

    def audit(self, encoder: FrozenEncoder) -> str:
        """Whose attention it is."""
        module = encoder.trainable_copy()
        whose = (
            "the class token" if module.cls_token is not None else "all patches, of which the mean"
        )
        return f"attention of {whose} in {len(module.blocks)} blocks"

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Draw maps of a few test images, measure many.

        Arrays: ``images``, uint8 ``(N, C, H, W)`` as the encoder sees them; ``attention``, float32
        ``(N, heads, rows, columns)`` of the last block, which sums to 1 less what goes to prefix
        tokens; ``rollout``, the same of all blocks, float32 ``(N, rows, columns)``; their
        ``labels``, int64 ``(N,)``; ``distance``, float32 ``(depth, heads)`` in patches.
        """
        index_N = _first_of_each_class(data.test.labels_N, self.config.images)
        maps = _maps(encoder, data, index_N)
        spread, distances_MH = _measure(encoder, data, self.config)
        by_block = {
            f"distance_{number}": mean
            for number, mean in enumerate(distances_MH.mean(dim=1).tolist(), start=1)
        }
        return Result(
            {"entropy": 100 * spread, **by_block},
            arrays={
                **maps,
                "labels": data.test.labels_N[index_N],
                "distance": distances_MH.float(),
            },
            unit="attention entropy (%)",
            better="neither",
        )


def _first_of_each_class(labels_N: Tensor, count: int) -> Tensor:
    """Indices of the first image of each class, then of the second of each: int64, all at most."""
    rank_N = rank_in_class(labels_N)
    return (rank_N * (labels_N.max() + 1) + labels_N).argsort()[:count]


@torch.no_grad()
def _maps(encoder: FrozenEncoder, data: Dataset, index_N: Tensor) -> dict[str, Tensor]:
    """The arrays of some images."""
    module = encoder.trainable_copy().eval()
    rows, columns = module.patch_embed.grid_size
    parts: dict[str, list[Tensor]] = {"images": [], "attention": [], "rollout": []}
    for images_BCSS in data.test.read(index_N.split(_IMAGES_AT_ONCE)):
        views_BCHW = evaluation_view(images_BCSS, encoder.spec.image_size)
        with encoder.hardware.autocast():
            given_BCHW = prepare(images_BCSS, encoder.spec, encoder.hardware)
            weights = list(attention_by_block(module, given_BCHW))
        last_BHL = over_patches(weights[-1], module).mean(dim=-2)
        flow_BL = over_patches(rollout(weights), module).mean(dim=-2)
        parts["images"].append((255 * views_BCHW).round().to(torch.uint8))
        parts["attention"].append(last_BHL.unflatten(-1, (rows, columns)))
        parts["rollout"].append(flow_BL.unflatten(-1, (rows, columns)))
    return {name: torch.cat(each).cpu() for name, each in parts.items()}


@torch.no_grad()
def _measure(encoder: FrozenEncoder, data: Dataset, config: Config) -> tuple[float, Tensor]:
    """Mean entropy in the last block, a share of the largest; mean distance, ``(depth, heads)``."""
    module = encoder.trainable_copy().eval()
    rows, columns = module.patch_embed.grid_size
    prefix = module.num_prefix_tokens
    index_N = subset(len(data.test), config.sample, data.fingerprint)
    spread, done = 0.0, 0
    far_MH = torch.zeros(len(module.blocks), module.blocks[0].attn.num_heads, dtype=torch.float64)
    with progress.bar("attention", len(index_N)) as bar:
        for images_BCSS in data.test.read(index_N.split(_IMAGES_AT_ONCE)):
            images_BCHW = prepare(images_BCSS, encoder.spec, encoder.hardware)
            with encoder.hardware.autocast():
                for number, weights_BHTT in enumerate(attention_by_block(module, images_BCHW)):
                    far_BH = distance(weights_BHTT[..., prefix:, prefix:], rows, columns)
                    far_MH[number] += far_BH.double().sum(dim=0).cpu()
            # Of the last block, with which the loop above ends.
            wide_BHQ = entropy(over_patches(weights_BHTT, module))
            spread += wide_BHQ.double().mean(dim=(1, 2)).sum().item()
            done += len(images_BCSS)
            bar.update(done)
    return spread / done, far_MH / done
