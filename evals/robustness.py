"""Robustness: a linear probe of clean images' features on corrupted test images.

The fifteen corruptions at five severities of ImageNet-C (Hendrycks, Dietterich: *Benchmarking
Neural Network Robustness to Common Corruptions and Perturbations*, ICLR 2019, arXiv:1903.12261),
see `ssl_bench.transforms.corruptions` for how ours differ: the frost is another one, and small
images get the strengths of large ones, so that these scores are not ImageNet-C's. With
``corrupted`` they are of the published files of ImageNet-C or CIFAR-10-C. The probe is chosen and
fitted on clean training images as that of `linear`, and nothing is learned from corrupted ones.

Deviations from the paper: mean accuracy instead of the mean corruption error, which divides by
AlexNet's errors on ImageNet; a fixed part of the test images instead of all.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import Evaluation, FrozenEncoder, ProbeConfig, Result
from ssl_bench.data import Dataset, Split, corrupted
from ssl_bench.evaluation import linear_probe
from ssl_bench.evaluation.features import match_channels
from ssl_bench.evaluation.linear_probe import Probe
from ssl_bench.evaluation.metrics import accuracy
from ssl_bench.transforms.augmentations import evaluation_view, normalize
from ssl_bench.transforms.corruptions import KINDS, SEVERITIES, SMALLEST_SIDE, corrupt
from ssl_bench.utils import progress, rng

_SEED = 0
_IMAGES_AT_ONCE = 64
Tops = dict[tuple[str, int], float]
"""Accuracies in percent by kind and severity; clean images have severity 0."""


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Flags of robustness."""

    section: ClassVar[str] = "robustness"
    images: Annotated[int, "[0, inf)"] = 1000
    """Test images of each corruption, the same ones for every method; 0 for all."""
    corrupted: str = ""
    """Folder of published corrupted test images instead of ours: ImageNet-C's
    KIND/SEVERITY/CLASS/ folders, or CIFAR-10-C's KIND.npy files beside labels.npy."""


class Robustness(Evaluation):
    """A linear probe of clean images on corrupted ones."""

    version = 2
    compared_with = ("random",)

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether the images are large enough to be corrupted."""
        size = encoder.spec.image_size
        if encoder.spec.frames > 1:
            return "its corruptions are of single images, not of clips; --frames 1 would work"
        if size < SMALLEST_SIDE:
            return (
                f"it takes images of {SMALLEST_SIDE} pixels or more, not {size}; a larger "
                "--image-size would work"
            )
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Classify corrupted test images; corruptions depend neither on the method nor on the seed.

        Scores, top-1 accuracies in percent: ``top1_corrupted``, the mean over kinds and severities;
        ``top1_clean``, on the same images, or on test images beside published files; one for each
        kind, in the order of `corruptions.KINDS` or of the files' names, and for each severity.

        Arrays: ``accuracy``, float64 ``(kinds, severities)`` in percent, in the same order.
        """
        probe = linear_probe.fit_best(encoder.features(data.train), data, self.config, encoder.seed)
        tops = self._published(encoder, data, probe) if self.config.corrupted else {}
        tops = tops or self._own(encoder, data, probe)
        kinds = list(dict.fromkeys(kind for kind, severity in tops if severity))
        rows = [[tops[kind, severity] for severity in SEVERITIES] for kind in kinds]
        table_KS = torch.tensor(rows, dtype=torch.float64)
        by_kind = zip(kinds, table_KS.mean(1).tolist(), strict=True)
        by_severity = zip(SEVERITIES, table_KS.mean(0).tolist(), strict=True)
        return Result(
            scores={
                "top1_corrupted": table_KS.mean().item(),
                "top1_clean": tops["clean", 0],
                **{f"top1_{kind}": top for kind, top in by_kind},
                **{f"top1_severity_{severity}": top for severity, top in by_severity},
            },
            chosen=probe.chosen,
            arrays={"accuracy": table_KS},
        )

    def _own(self, encoder: FrozenEncoder, data: Dataset, probe: Probe) -> Tops:
        """The accuracies on test images that are corrupted here, and on the same ones clean."""
        spec, hardware = encoder.spec, encoder.hardware
        chosen_N = self._chosen(data.test, data)
        views = [("clean", 0), *itertools.product(KINDS, SEVERITIES)]
        predictions: dict[tuple[str, int], list[Tensor]] = {view: [] for view in views}
        with progress.bar("robustness", len(chosen_N)) as bar:
            done = 0
            for index_B in chosen_N.split(_IMAGES_AT_ONCE):
                images_BCSS = data.test.images(index_B).to(hardware.device)
                clean_BCHW = evaluation_view(images_BCSS, spec.image_size)
                for (kind, severity), parts in predictions.items():
                    views_BCHW = clean_BCHW
                    if severity:
                        views_BCHW = corrupt(clean_BCHW, kind, severity, _SEED, index_B)
                    parts.append(_predict(encoder, probe, views_BCHW))
                done += len(index_B)
                bar.update(done)
        labels_N = data.test.labels_N.cpu()[chosen_N]
        return {key: accuracy(torch.cat(parts), labels_N) for key, parts in predictions.items()}

    def _published(self, encoder: FrozenEncoder, data: Dataset, probe: Probe) -> Tops:
        """The accuracies on published files of corrupted images, and on the clean test images."""
        found = corrupted.find(
            Path(self.config.corrupted).expanduser(),
            *(data.classes, encoder.spec.image_size, data.test.channels),
        )
        splits = {("clean", 0): data.test} | {
            (kind, severity): split
            for kind, of_kind in found.items()
            for severity, split in enumerate(of_kind, 1)
        }
        tops = {}
        with progress.bar("robustness", len(splits)) as bar:
            for (kind, severity), split in splits.items():
                chosen_N, parts = self._chosen(split, data), []
                for images_BCSS in split.read(chosen_N.split(_IMAGES_AT_ONCE)):
                    images_BCSS = images_BCSS.to(encoder.hardware.device)
                    views_BCHW = evaluation_view(images_BCSS, encoder.spec.image_size)
                    parts.append(_predict(encoder, probe, views_BCHW))
                labels_N = split.labels_N.cpu()[chosen_N]
                tops[kind, severity] = accuracy(torch.cat(parts), labels_N)
                bar.update(len(tops))
        return tops

    def _chosen(self, split: Split, data: Dataset) -> Tensor:
        """The same images of a split for every method and seed: sorted indices."""
        order_N = rng.permutation(len(split), "robustness", data.fingerprint)
        return order_N[: self.config.images or None].sort().values


def _predict(encoder: FrozenEncoder, probe: Probe, views_BCHW: Tensor) -> Tensor:
    spec = encoder.spec
    views_BCHW = match_channels(views_BCHW, spec.channels)
    return probe.predict(encoder.encode(normalize(views_BCHW, spec.mean, spec.std)))
