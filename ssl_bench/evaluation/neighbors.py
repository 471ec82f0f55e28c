"""The weighted vote of the nearest neighbours, see `knn`.

Shapes: N features, D numbers in one, Q queries, K neighbours, C classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_QUERIES_AT_ONCE = 512
_BANK_AT_ONCE = 2**16
_BANK_NUMBERS = 2**24


def votes(
    features_ND: Tensor,
    labels_N: Tensor,
    rows_N: Tensor,
    queries_QD: Tensor,
    neighbors: Sequence[int],
    temperature: float,
    classes: int,
) -> Iterator[tuple[int, Tensor]]:
    """Each number of neighbours, ascending, and the votes for each class: ``(Q, C)``.

    A vote counts exp(cosine similarity / temperature), relative to the nearest one's. The same
    tensor is used again for the next number.

    Args:
        rows_N: what may be a neighbour, indices into features and labels.
    """
    counts = {count: min(count, len(rows_N)) for count in neighbors}
    similarity_QK, labels_QK = _nearest(
        features_ND, labels_N, rows_N, queries_QD, max(counts.values())
    )
    # The nearest has a weight of 1, so that votes do not vanish at a low temperature.
    weights_QK = ((similarity_QK - similarity_QK[:, :1]) / temperature).exp()
    votes_QC = weights_QK.new_zeros(len(queries_QD), classes)
    done = 0
    for number, count in sorted(counts.items()):
        votes_QC.scatter_add_(1, labels_QK[:, done:count], weights_QK[:, done:count])
        done = count
        yield number, votes_QC


def _nearest(
    features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, queries_QD: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarity and label of the nearest, the nearest first: ``(Q, K)`` each.

    Both sides come in chunks, so that memory does not grow with their product; similarities are
    written to the same place again and again, which saves a third of the product's time.
    """
    rows_N, labels_N = rows_N.to(features_ND.device), labels_N.to(features_ND.device)
    most = max(1, min(_BANK_AT_ONCE, _BANK_NUMBERS // features_ND.shape[1]))
    queries_QD = F.normalize(queries_QD, dim=1)
    place = queries_QD.new_empty(_QUERIES_AT_ONCE * min(most, len(rows_N)))
    similarity_QK = queries_QD.new_empty(len(queries_QD), 0)
    labels_QK = labels_N.new_empty(len(queries_QD), 0)
    for rows_M in rows_N.split(most):
        bank_MD = features_ND.index_select(0, rows_M)
        bank_MD /= bank_MD.norm(dim=1, keepdim=True).clamp_min(1e-12)
        near = []
        for chunk_PD in queries_QD.split(_QUERIES_AT_ONCE):
            room_PM = place[: len(chunk_PD) * len(bank_MD)].view(len(chunk_PD), len(bank_MD))
            torch.mm(chunk_PD, bank_MD.T, out=room_PM)
            near.append(room_PM.topk(min(count, len(bank_MD)), dim=1))
        found_QK = labels_N[rows_M][torch.cat([each.indices for each in near])]
        similarity_QK = torch.cat([similarity_QK, torch.cat([each.values for each in near])], dim=1)
        similarity_QK, kept_QK = similarity_QK.topk(min(count, similarity_QK.shape[1]), dim=1)
        labels_QK = torch.cat([labels_QK, found_QK], dim=1).gather(1, kept_QK)
    return similarity_QK, labels_QK
