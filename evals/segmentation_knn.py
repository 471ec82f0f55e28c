"""Segmentation by kNN: the weighted vote of the nearest training patches, and its mean IoU.

As `knn` votes for images: cosine similarity, weighted by exp(similarity / temperature). The
neighbours are patches of training images, as in Balažević et al., *Towards In-context Scene
Understanding*, NeurIPS 2023, arXiv:2306.01667, whose memory bank holds patches of the training
images too. Votes are interpolated to pixels; see `ssl_bench.evaluation.dense`. The number of
neighbours is chosen by the mean IoU of the patches of held-out training images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar

from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation import dense, neighbors
from ssl_bench.utils import rng


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of segmentation by kNN."""

    section: ClassVar[str] = "segmentation-knn"

    neighbors: Annotated[tuple[int, ...], "[1, inf)"] = (5, 10, 20, 50)
    """Numbers of neighbours to choose from."""
    temperature: Annotated[float, "[1e-6, inf)"] = 0.07
    """Temperature of the votes."""
    validation: Annotated[float, "(0, 1)"] = 0.1
    """Share of the training images to choose on."""
    train_images: Annotated[int, "[0, inf)"] = 2000
    """Training images whose patches are taken, the same ones for every method; 0 for all."""
    bank: Annotated[int, "[1, inf)"] = 20_000
    """Patches at most that may be neighbours, and half as many to choose on."""


class SegmentationKNN(Evaluation):
    """The vote of the nearest training patches."""

    version = 1
    columns = frozenset({"image", "mask"})
    compared_with = ("pixels", "random")

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the encoder's features have rows and columns."""
        return dense.why_unsupported(encoder)

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Segment the test images by the nearest patches of training images."""
        config, classes = self.config, len(data.mask_classes)
        patches = dense.training_patches(encoder, data, config.train_images, config.validation)
        features_PD, labels_P = patches.features_PD, patches.labels_P

        def some(rows_P: Tensor, most: int, purpose: str) -> Tensor:
            return rows_P[rng.permutation(len(rows_P), purpose, data.fingerprint)[:most]]

        def votes(
            rows_P: Tensor, queries_QD: Tensor, counts: tuple[int, ...]
        ) -> Iterator[tuple[int, Tensor]]:
            bank = features_PD, labels_P, rows_P
            return neighbors.votes(*bank, queries_QD, counts, config.temperature, classes)

        fit_P = some(patches.fit_P, config.bank, "bank")
        held_out_P = some(patches.held_out_P, config.bank // 2 or 1, "queries")
        queries_QD = features_PD[held_out_P.to(features_PD.device)]
        trials = {
            count: dense.patch_iou(votes_QC.argmax(dim=1).cpu(), labels_P[held_out_P], classes)
            for count, votes_QC in votes(fit_P, queries_QD, config.neighbors)
        }
        best = max(trials, key=trials.__getitem__)
        every_P = some(patches.known_P, config.bank, "bank")

        def score(queries_QD: Tensor) -> Tensor:
            [(_, votes_QC)] = votes(every_P, queries_QD, (best,))
            return votes_QC / votes_QC.sum(dim=1, keepdim=True)

        return dense.segment(
            encoder, data, score, {"neighbors": best, "validation_miou": trials[best]}
        )
