"""Splits, samples, scores and similarities that evaluations share."""

from __future__ import annotations

import torch
from torch import Tensor

from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.utils import rng

_FEWEST = 4


def holdout(data: Dataset, share: float) -> tuple[Tensor, Tensor]:
    """Split the training images in two, to fit on and to choose on: int64 indices.

    The split depends on the data's fingerprint alone, so that every method and every seed chooses
    on the same images.

    The ``share`` to choose on is in (0, 1); each side gets one image at least.
    """
    return held_out(len(data.train), share, data.fingerprint)


def held_out(count: int, share: float, fingerprint: str) -> tuple[Tensor, Tensor]:
    """Split that many images as `holdout` does: int64 indices to fit on and to choose on."""
    chosen_on = min(max(1, round(share * count)), count - 1)
    order = rng.permutation(count, "holdout", fingerprint)
    return order[chosen_on:].sort().values, order[:chosen_on].sort().values


def subset(images: int, count: int, fingerprint: str) -> Tensor:
    """Some images of a split, the same for every method and every seed: sorted int64 indices.

    All, where there are not as many as ``count``; more of them hold all that fewer do.
    """
    return rng.permutation(images, "subset", fingerprint)[:count].sort().values


def balanced_order(labels_N: Tensor, *coordinates: str | int) -> Tensor:
    """A random order whose first images, however many, are spread evenly over the classes.

    No class has two images more than another one that is not used up yet, so that the first
    images hold one of each class if there are as many.

    It is a permutation, int64 ``(N,)``, a function of the labels and the coordinates (see `rng`).
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


def linear_cka(x_ND: Tensor, y_NE: Tensor) -> float:
    """Linear centred kernel alignment of two sets of features, without the bias of few images.

    Kornblith et al., *Similarity of Neural Network Representations Revisited*, ICML 2019,
    arXiv:1905.00414, equation 1, for linear kernels, with the unbiased estimator of the
    Hilbert-Schmidt independence criterion in place of the biased one: Song et al., *Feature
    Selection via Dependence Maximization*, JMLR 2012, equation 5; Nguyen et al., arXiv:2010.15327,
    equation 3. It does not change with a rotation, a shift or a common scale of either side. Each
    takes ``N * N`` numbers in float64.

    Features are of any width and floating type, of the same images in the same order.

    Returns:
        1 for features that are equal up to these, near 0 for unrelated ones, which may fall
        below it by chance; 0 where one side is the same for all images; NaN where features are
        no numbers.

    Raises:
        UserError: there are fewer than four images, or not as many on both sides.
    """
    require(
        len(x_ND) == len(y_NE) >= _FEWEST,
        f"similarity of features of {len(x_ND)} and of {len(y_NE)} images; "
        f"the same {_FEWEST} or more would work",
    )
    x_NN, y_NN = _centred_gram(x_ND), _centred_gram(y_NE)
    shared = (x_NN * y_NN).sum()
    scale = x_NN.norm() * y_NN.norm()
    return 0.0 if scale == 0 else (shared / scale).item()


def _centred_gram(x_ND: Tensor) -> Tensor:
    """Products of all pairs of images, so centred that the mean of their products is unbiased.

    The sum of two such matrices' products is ``N * (N - 3)`` times the estimate: the U-centring of
    Székely and Rizzo, arXiv:1310.2926, definition 2.
    """
    x_ND = x_ND.double()
    # The result is blind to a shift; the first image is exact where all are the same.
    x_ND = x_ND - x_ND[0]
    x_ND = x_ND - x_ND.mean(dim=0)
    count = len(x_ND)
    gram_NN = (x_ND @ x_ND.T).fill_diagonal_(0)
    mean_N = gram_NN.sum(dim=0) / (count - 2)
    overall = gram_NN.sum() / ((count - 1) * (count - 2))
    return (gram_NN - mean_N[:, None] - mean_N + overall).fill_diagonal_(0)
