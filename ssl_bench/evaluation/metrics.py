"""Splits, samples and scores that evaluations share."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_bench.data import Dataset
from ssl_bench.utils import rng


def holdout(data: Dataset, share: float) -> tuple[Tensor, Tensor]:
    """Split the training images in two, to fit on and to choose on: int64 indices.

    The split depends on the data's fingerprint alone, so that every method and every seed chooses
    on the same images.

    Args:
        share: of the images to choose on, in (0, 1); each side gets one image at least.
    """
    count = len(data.train)
    held_out = min(max(1, round(share * count)), count - 1)
    order = rng.permutation(count, "holdout", data.fingerprint)
    return order[held_out:].sort().values, order[:held_out].sort().values


def subset(images: int, count: int, fingerprint: str) -> Tensor:
    """Some images of a split, the same for every method and every seed: sorted int64 indices.

    More of them hold all that fewer do.

    Args:
        images: how many the split has.
        count: how many to take; all, where there are not as many.
        fingerprint: the data set's.
    """
    return rng.permutation(images, "subset", fingerprint)[:count].sort().values


def balanced_order(labels_N: Tensor, *coordinates: str | int) -> Tensor:
    """A random order whose first images, however many, are spread evenly over the classes.

    No class has two images more than another one that is not used up yet, so that the first
    images hold one of each class if there are as many.

    Args:
        labels_N: int64 class indices.
        coordinates: what the order is a function of, besides the labels; see `rng`.

    Returns:
        int64 ``(N,)``, a permutation of the images' indices.
    """
    labels_N = labels_N.cpu()
    order_N = rng.permutation(len(labels_N), *coordinates)
    classes = int(labels_N.max()) + 1
    turn_C = rng.permutation(classes, *coordinates, "classes")
    shuffled_N = labels_N[order_N]
    return order_N[(rank_in_class(shuffled_N) * classes + turn_C[shuffled_N]).argsort()]


def rank_in_class(labels_N: Tensor) -> Tensor:
    """How many images before each one are of its class: int64 ``(N,)``."""
    by_class_N = labels_N.argsort(stable=True)
    counts_C = labels_N.bincount()
    starts_C = counts_C.cumsum(0) - counts_C
    ranks_N = torch.empty_like(labels_N)
    ranks_N[by_class_N] = torch.arange(len(labels_N)) - starts_C.repeat_interleave(counts_C)
    return ranks_N


def accuracy(predictions_N: Tensor, labels_N: Tensor) -> float:
    """Share of the predictions that are right, in percent."""
    return 100.0 * (predictions_N.cpu() == labels_N.cpu()).double().mean().item()
