"""Splits, samples and scores that evaluations share."""

from __future__ import annotations

from torch import Tensor

from ssl_bench import draws
from ssl_bench.data import Dataset


def holdout(data: Dataset, share: float) -> tuple[Tensor, Tensor]:
    """Split the training images in two, to fit on and to choose on: int64 indices.

    The split depends on the data's fingerprint alone, so that every method and every seed chooses
    on the same images.

    Args:
        share: of the images to choose on, in (0, 1); each side gets one image at least.
    """
    count = len(data.train)
    held_out = min(max(1, round(share * count)), count - 1)
    order = draws.permutation(count, "holdout", data.fingerprint)
    return order[held_out:].sort().values, order[:held_out].sort().values


def subset(images: int, count: int, fingerprint: str) -> Tensor:
    """Some images of a split, the same for every method and every seed: sorted int64 indices.

    More of them hold all that fewer do.

    Args:
        images: how many the split has.
        count: how many to take; all, where there are not as many.
        fingerprint: the data set's.
    """
    return draws.permutation(images, "subset", fingerprint)[:count].sort().values


def accuracy(predictions_N: Tensor, labels_N: Tensor) -> float:
    """Share of the predictions that are right, in percent."""
    return 100.0 * (predictions_N.cpu() == labels_N.cpu()).double().mean().item()
