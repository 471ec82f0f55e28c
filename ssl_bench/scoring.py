"""Splits and scores that evaluations share."""

from __future__ import annotations

from torch import Tensor

from ssl_bench import draws
from ssl_bench.data import Dataset
from ssl_bench.errors import require


def holdout(data: Dataset, share: float) -> tuple[Tensor, Tensor]:
    """Split the training images in two, to fit on and to choose on: int64 indices.

    The split depends on the data's fingerprint alone, so that every method and every seed chooses
    on the same images.

    Raises:
        UserError: the share is outside (0, 1) or leaves one side without an image.
    """
    require(0 < share < 1, f"validation share {share} is outside (0, 1); try 0.1")
    count = len(data.train)
    held_out = round(share * count)
    require(
        0 < held_out < count,
        f"validation share {share} of {count} training images leaves one side empty; try 0.5",
    )
    order = draws.permutation(count, "holdout", data.fingerprint)
    return order[held_out:].sort().values, order[:held_out].sort().values


def accuracy(predictions_N: Tensor, labels_N: Tensor) -> float:
    """Share of the predictions that are right, in percent."""
    return 100.0 * (predictions_N.cpu() == labels_N.cpu()).double().mean().item()
