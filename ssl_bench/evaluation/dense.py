"""Dense evaluation: features of patches, the classes of their pixels, and mean IoU.

A patch of a training image is labelled with the most frequent class of its pixels. What is found
for the patches of a test image is interpolated to its pixels, and every pixel of the evaluation
view counts. Mean IoU is over all images at once, the mean over the classes that occur in the masks
or the predictions; its interval is the percentile bootstrap's over test images.

Shapes: N images, P patches, K classes; B images at a time, R rows and C columns of patches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.api.evaluation import FrozenEncoder, Result
from ssl_bench.data import Dataset, Split
from ssl_bench.data.masks import IGNORED
from ssl_bench.errors import UserError, require
from ssl_bench.evaluation.features import prepare
from ssl_bench.evaluation.metrics import held_out, subset
from ssl_bench.transforms.augmentations import evaluation_view, mask_view
from ssl_bench.utils import progress, rng

CONFIDENCE = 0.95
UNIT = "mIoU (%)"
_RESAMPLES = 1000
_RESAMPLES_AT_ONCE = 50
_IMAGES_AT_ONCE = 32
_SHOWN = 8


@dataclass(frozen=True)
class Patches:
    """The patches of some training images.

    Attributes:
        features_PD: float32, on the encoder's device.
        labels_P: int64, `IGNORED` where no pixel counts, on the CPU as all else.
        fit_P, held_out_P: int64 indices of those to fit on and of those to choose on, of different
            images; none that is ignored.
    """

    features_PD: Tensor
    labels_P: Tensor
    fit_P: Tensor
    held_out_P: Tensor

    @property
    def known_P(self) -> Tensor:
        """Indices of all that are not ignored."""
        return torch.cat([self.fit_P, self.held_out_P]).sort().values


def why_unsupported(encoder: FrozenEncoder) -> str | None:
    """Why an encoder's features have no rows and columns, or None; see `Evaluation.supports`."""
    size = encoder.spec.image_size
    blank = torch.zeros(1, encoder.spec.input_channels, size, size, device=encoder.hardware.device)
    try:
        _, rows, columns, _ = encoder.patches(blank).shape
    except UserError as error:
        return str(error)
    if rows * columns > 1:
        return None
    return f"its features of images of {size} px have one row and column; more pixels would work"


def training_patches(
    encoder: FrozenEncoder, data: Dataset, images: int, validation: float
) -> Patches:
    """The patches of that many training images, the same ones for every method; 0 for all.

    Raises:
        UserError: the masks of the images to fit on, or of those to choose on, are ignored.
    """
    index_N = subset(len(data.train), images or len(data.train), data.fingerprint)
    features, labels = [], []
    for patches_BRCD, masks_BSS in _read(encoder, data.train, index_N, "patches"):
        features.append(patches_BRCD.flatten(1, 2))
        grid = patches_BRCD.shape[1], patches_BRCD.shape[2]
        labels.append(patch_labels(masks_BSS, grid, len(data.mask_classes)).flatten(1))
    features_NLD, labels_NL = torch.cat(features), torch.cat(labels)
    is_known_NL = labels_NL != IGNORED
    is_held_out_N = torch.zeros(len(index_N), dtype=torch.bool)
    is_held_out_N[held_out(len(index_N), validation, data.fingerprint)[1]] = True
    fit_P, held_out_P = (
        (is_known_NL & each_N[:, None]).flatten().nonzero()[:, 0]
        for each_N in (~is_held_out_N, is_held_out_N)
    )
    require(
        len(fit_P) > 0 and len(held_out_P) > 0,
        f"too few training images of {data.name} have pixels of a class: none are left to fit on, "
        "or none to choose on",
    )
    return Patches(features_NLD.flatten(0, 1), labels_NL.flatten(), fit_P, held_out_P)


def patch_labels(masks_BSS: Tensor, grid: tuple[int, int], classes: int) -> Tensor:
    """The most frequent class in each patch, the first of equal ones: int64 ``(B, R, C)``.

    It is `IGNORED` where a patch has no pixel of a class.
    """
    batch, height, width = masks_BSS.shape
    rows, columns = grid
    row_S1 = (torch.arange(height) * rows // height)[:, None]
    patch_SS = row_S1 * columns + torch.arange(width) * columns // width
    image_B11 = torch.arange(batch)[:, None, None]
    cell_BSS = (image_B11 * rows * columns + patch_SS) * classes + masks_BSS
    count = batch * rows * columns * classes
    counts = cell_BSS[masks_BSS != IGNORED].bincount(minlength=count)
    most = counts.view(batch, rows, columns, classes).max(dim=-1)
    return most.indices.where(most.values > 0, IGNORED)


def pixel_classes(scores_BRCK: Tensor, size: int) -> Tensor:
    """The class of the highest score at each pixel, scores interpolated: int64 ``(B, S, S)``."""
    scores_BKRC = scores_BRCK.permute(0, 3, 1, 2)
    scores_BKSS = F.interpolate(scores_BKRC, (size, size), mode="bilinear", align_corners=False)
    return scores_BKSS.argmax(dim=1)


def overlaps(predictions_BX: Tensor, labels_BX: Tensor, classes: int) -> Tensor:
    """For each image and class how many pixels agree, are predicted, are true: ``(B, 3, K)``."""
    is_known_BX = labels_BX != IGNORED
    is_right_BX = is_known_BX & (predictions_BX == labels_BX)
    image_B1 = torch.arange(len(labels_BX))[:, None] * classes
    return torch.stack(
        [
            (image_B1 + each_BX)[counted_BX]
            .bincount(minlength=len(labels_BX) * classes)
            .view(-1, classes)
            for each_BX, counted_BX in (
                (labels_BX, is_right_BX),
                (predictions_BX, is_known_BX),
                (labels_BX, is_known_BX),
            )
        ],
        dim=1,
    )


def iou(overlaps_3K: Tensor) -> Tensor:
    """Intersection over union of each class in percent, NaN where it never occurs: ``(..., K)``."""
    right, predicted, true = overlaps_3K.double().unbind(-2)
    return 100 * right / (predicted + true - right)


def mean_iou(overlaps_3K: Tensor) -> Tensor:
    """The mean over the classes that occur, in percent: ``(...)``."""
    return iou(overlaps_3K).nanmean(dim=-1)


def patch_iou(predictions_Q: Tensor, labels_Q: Tensor, classes: int) -> float:
    """The mean IoU of patches, each of one class, in percent."""
    [overlaps_3K] = overlaps(predictions_Q[None], labels_Q[None], classes)
    return mean_iou(overlaps_3K).item()


def interval(overlaps_N3K: Tensor, *coordinates: str | int) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean IoU, over images (Efron, 1979)."""
    count, found = len(overlaps_N3K), []
    generator = rng.generator("bootstrap", *coordinates)
    for _ in range(_RESAMPLES // _RESAMPLES_AT_ONCE):
        drawn_MN = torch.randint(count, (_RESAMPLES_AT_ONCE, count), generator=generator)
        times_MN = torch.zeros(drawn_MN.shape, dtype=torch.float64)
        times_MN.scatter_add_(1, drawn_MN, torch.ones_like(times_MN))
        sums_M3K = (times_MN @ overlaps_N3K.flatten(1).double()).unflatten(
            1, overlaps_N3K.shape[1:]
        )
        found.append(mean_iou(sums_M3K))
    tail = (1 - CONFIDENCE) / 2
    low, high = torch.cat(found).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high


def segment(
    encoder: FrozenEncoder,
    data: Dataset,
    score: Callable[[Tensor], Tensor],
    chosen: Mapping[str, Any],
) -> Result:
    """Segment the test images.

    Scores: ``miou``, the ends of its interval, ``pixel_accuracy``, and the IoU of each class that
    occurs, in percent. Arrays: ``overlaps``, int64 ``(N, 3, K)`` as `overlaps` has them, of each
    image; of the first few ``images``, uint8 ``(B, C, S, S)``, ``masks`` and ``predictions``, uint8
    ``(B, S, S)``.

    Args:
        score: from features of patches ``(P, D)`` to scores of classes ``(P, K)``.
    """
    size, classes = encoder.spec.image_size, data.mask_classes
    index_N = torch.arange(len(data.test))
    found: list[Tensor] = []
    shown: list[Tensor] = []
    for patches_BRCD, masks_BSS in _read(encoder, data.test, index_N, "segmentation"):
        scores_PK = score(patches_BRCD.flatten(0, 2))
        scores_BRCK = scores_PK.unflatten(0, patches_BRCD.shape[:3])
        predictions_BSS = pixel_classes(scores_BRCK, size).cpu()
        shown = shown or [masks_BSS[:_SHOWN], predictions_BSS[:_SHOWN]]
        found.append(overlaps(predictions_BSS.flatten(1), masks_BSS.flatten(1), len(classes)))
    overlaps_N3K = torch.cat(found)
    sums_3K = overlaps_N3K.sum(dim=0)
    require(bool(sums_3K[2].any()), f"no pixel of the test masks of {data.name} is of a class")
    low, high = interval(overlaps_N3K, data.fingerprint)
    by_class = zip(classes, iou(sums_3K).tolist(), strict=True)
    images_BCHW = evaluation_view(data.test.images(index_N[:_SHOWN]).cpu(), size)
    masks_BSS, predictions_BSS = shown
    return Result(
        scores={
            "miou": mean_iou(sums_3K).item(),
            "miou_low": low,
            "miou_high": high,
            "pixel_accuracy": (100 * sums_3K[0].sum() / sums_3K[2].sum()).item(),
            **{f"iou {name}": value for name, value in by_class if value == value},
        },
        chosen=chosen,
        arrays={
            "overlaps": overlaps_N3K,
            "images": (255 * images_BCHW).round().to(torch.uint8),
            "masks": masks_BSS.to(torch.uint8),
            "predictions": predictions_BSS.to(torch.uint8),
        },
        unit=UNIT,
    )


def _read(
    encoder: FrozenEncoder, split: Split, index_N: Tensor, what: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Features of patches ``(B, R, C, D)``, and masks, int64 ``(B, S, S)`` on the CPU."""
    chunks, done = index_N.split(_IMAGES_AT_ONCE), 0
    with progress.bar(what, len(index_N)) as bar:
        for index_B, images_BCHW in zip(chunks, split.read(chunks), strict=True):
            patches_BRCD = encoder.patches(prepare(images_BCHW, encoder.spec, encoder.hardware))
            yield patches_BRCD, mask_view(split.masks(index_B), encoder.spec.image_size)
            done += len(index_B)
            bar.update(done)
