"""Segmentation: a linear classifier on the frozen features of patches, and its mean IoU.

As DINOv2's linear probe of segmentation (Oquab et al., arXiv:2304.07193, section 7.4): a linear
layer from the tokens of patches to classes, whose scores are interpolated to pixels. Features are
extracted once, and a grid of learning rate x weight decay is trained together, chosen by the mean
IoU of the patches of held-out training images, and fitted again on all of them; see
`ssl_bench.evaluation.dense` for labels of patches, pixels and the interval.

Deviations: no augmentation; a patch learns its most frequent class instead of those of its pixels;
masks are compared in the evaluation view, a square, instead of at the image's own size.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import Evaluation, FrozenEncoder, ProbeConfig, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation import dense, linear_probe


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Flags of segmentation."""

    section: ClassVar[str] = "segmentation"

    epochs: Annotated[int, "[1, inf)"] = 10
    """Passes over the training patches."""
    batch_size: Annotated[int, "[1, inf)"] = 4096
    """Patches in a step of SGD."""
    train_images: Annotated[int, "[0, inf)"] = 2000
    """Training images whose patches are taken, the same ones for every method; 0 for all."""


class Segmentation(Evaluation):
    """A linear classifier of patches."""

    version = 1
    columns = frozenset({"image", "mask"})
    compared_with = ("pixels", "random")

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the encoder's features have rows and columns."""
        return dense.why_unsupported(encoder)

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Choose a probe on held-out training images, refit it, segment the test images."""
        config, classes = self.config, len(data.mask_classes)
        patches = dense.training_patches(encoder, data, config.train_images, config.validation)
        features_PD, labels_P = patches.features_PD, patches.labels_P
        grid = list(itertools.product(config.learning_rates, config.weight_decays))
        sizes = config.epochs, config.batch_size, encoder.seed

        true_Q = labels_P[patches.held_out_P]

        def tried(
            probes: linear_probe.Probes, settings: list[linear_probe.Setting]
        ) -> dict[tuple[str, float, float], float]:
            found_GQ = probes.predict(features_PD, patches.held_out_P)
            tops = [
                -1.0 if (each_Q < 0).any() else dense.patch_iou(each_Q, true_Q, classes)
                for each_Q in found_GQ
            ]
            return {("patches", *each): top for each, top in zip(settings, tops, strict=True)}

        probes = linear_probe.train(features_PD, labels_P, patches.fit_P, classes, grid, *sizes)
        trials = tried(probes, grid)
        _, rate, decay = linear_probe.best(trials)
        best = [(rate, decay)]
        fitted = linear_probe.train(features_PD, labels_P, patches.known_P, classes, best, *sizes)
        linear_probe.best(tried(fitted, best))
        chosen = {
            "learning_rate": rate,
            "weight_decay": decay,
            "validation_miou": trials["patches", rate, decay],
        }

        def score(queries_QD: Tensor) -> Tensor:
            rows_Q = torch.arange(len(queries_QD), device=queries_QD.device)
            return fitted.logits(queries_QD, rows_Q)[0].T

        return dense.segment(encoder, data, score, chosen)
