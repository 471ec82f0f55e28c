"""How far features are spread: their spectrum, and whether they have collapsed."""

from __future__ import annotations

from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

TINY = 1e-300
_NUMBERS_AT_ONCE = 2**22
_MOST_ROWS = 256
_SMALLEST_SPREAD, _SMALLEST_RANK = 0.1, 2.0


def spread(features_BD: Tensor) -> float:
    """Mean standard deviation of features of length 1, times the root of D.

    1 where they are spread evenly over the sphere, 0 where all are alike (Chen, He, *Exploring
    Simple Siamese Representation Learning*, arXiv:2011.10566, section 4.1).
    """
    points_BD = F.normalize(features_BD.double(), dim=1)
    return points_BD.std(dim=0, correction=0).mean().item() * sqrt(points_BD.shape[1])


def of_watched(features_BD: Tensor) -> dict[str, float]:
    """The `spread` and the `effective_rank` of some features of length 1."""
    points_BD = F.normalize(features_BD[:_MOST_ROWS].double(), dim=1)
    return {
        "spread": round(spread(points_BD), 4),
        "effective_rank": round(effective_rank(points_BD), 2),
    }


def collapsed(found: dict[str, float]) -> str:
    """What `of_watched` shows of a collapse, for people; "" where there is none.

    Features that are all alike have a spread of 0, those on a line an effective rank of 1.
    """
    if found["spread"] < _SMALLEST_SPREAD:
        return f"its features have become alike, with a spread of {found['spread']:g} of 1"
    if found["effective_rank"] < _SMALLEST_RANK:
        return f"its features have an effective rank of {found['effective_rank']:g}"
    return ""


def effective_rank(features_ND: Tensor) -> float:
    """Effective rank of the covariance, from 1 to the smaller of N - 1 and D."""
    values_K = spectrum(features_ND, features_ND.mean(dim=0, dtype=torch.float64))
    share_K = values_K / values_K.sum().clamp_min(TINY)
    return torch.special.entr(share_K).sum().exp().item()


def spectrum(features_ND: Tensor, center_D: Tensor) -> Tensor:
    """Squared singular values of what is left without the centre: float64 ``(min(N, D),)``.

    Eigenvalues of the smaller one of both products with the transpose, summed part by part.
    """
    count, width = features_ND.shape
    axis, size = (0, width) if width <= count else (1, count)
    gram_KK = features_ND.new_zeros(size, size, dtype=torch.float64)
    at_once = max(1, _NUMBERS_AT_ONCE // size)
    for index_P in torch.arange(features_ND.shape[axis], device=features_ND.device).split(at_once):
        part = features_ND.index_select(axis, index_P).double()
        part -= center_D if axis == 0 else center_D[index_P]
        gram_KK += part.T @ part if axis == 0 else part @ part.T
    return torch.linalg.eigvalsh(gram_KK).clamp_min(0)
