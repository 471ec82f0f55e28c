"""kNN: the weighted vote of the nearest training images.

Wu, Xiong, Yu, Lin: *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*,
CVPR 2018, arXiv:1805.01978, section 3.4; ``eval_knn.py``, facebookresearch/dino.

Cosine similarity, votes weighted by exp(similarity / temperature). The number of neighbours and
the pooling are chosen on a validation split of the training images; the test split is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.distributed.collectives import sharded
from ssl_bench.evaluation.metrics import accuracy, holdout

_QUERIES_AT_ONCE = 512
_BANK_AT_ONCE = 2**16
_BANK_NUMBERS = 2**24


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of kNN."""

    section: ClassVar[str] = "knn"

    neighbors: Annotated[tuple[int, ...], "[1, inf)"] = (1, 5, 10, 20, 50, 100, 200)
    """Numbers of neighbours to choose from."""
    temperature: Annotated[float, "[1e-6, inf)"] = 0.07
    """Temperature of the votes."""
    validation: Annotated[float, "(0, 1)"] = 0.1
    """Share of the training images to choose on."""


class KNN(Evaluation):
    """The vote of the nearest training images."""

    version = 1
    is_default = True
    sharded = True

    def baselines(self) -> Mapping[str, tuple[str, Config]]:
        """What to show beside an encoder's score."""
        return {"raw pixels": ("pixels", self.config), "random init": ("random", self.config)}

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Classify the test images by their nearest training images."""
        train, labels_N = encoder.features(data.train), data.train.labels_N
        classes = len(data.classes)
        fit, held_out = holdout(data, self.config.validation)
        trials = {}
        for pooling, features_ND in train.items():
            queries_QD = features_ND[held_out]
            predictions = _predict(features_ND, labels_N, fit, queries_QD, self.config, classes)
            for neighbors, predictions_Q in predictions.items():
                trials[pooling, neighbors] = accuracy(predictions_Q, labels_N[held_out])
        pooling, neighbors = max(trials, key=trials.__getitem__)
        every, queries_QD = torch.arange(len(data.train)), encoder.features(data.test)[pooling]
        predictions_N = _predict(train[pooling], labels_N, every, queries_QD, self.config, classes)[
            neighbors
        ]
        return Result(
            scores={"top1": accuracy(predictions_N, data.test.labels_N)},
            predictions_N=predictions_N,
            chosen={
                "pooling": pooling,
                "neighbors": neighbors,
                "validation_top1": trials[pooling, neighbors],
            },
        )


@sharded("queries_QD")
def _predict(
    features_ND: Tensor,
    labels_N: Tensor,
    rows_N: Tensor,
    queries_QD: Tensor,
    config: Config,
    classes: int,
) -> dict[int, Tensor]:
    """Predicted classes ``(Q,)`` on the CPU, for each number of neighbours.

    Args:
        rows_N: the images that may be neighbours, indices into features and labels.
    """
    counts = {neighbors: min(neighbors, len(rows_N)) for neighbors in config.neighbors}
    similarity_QK, labels_QK = _nearest(
        features_ND, labels_N, rows_N, queries_QD, max(counts.values())
    )
    # The nearest image has a weight of 1, so that votes do not vanish at a low temperature.
    weights_QK = ((similarity_QK - similarity_QK[:, :1]) / config.temperature).exp()
    votes_QC = weights_QK.new_zeros(len(queries_QD), classes)
    predictions, done = {}, 0
    for neighbors, count in sorted(counts.items()):
        votes_QC.scatter_add_(1, labels_QK[:, done:count], weights_QK[:, done:count])
        predictions[neighbors] = votes_QC.argmax(dim=1).cpu()
        done = count
    return predictions


def _nearest(
    features_ND: Tensor, labels_N: Tensor, rows_N: Tensor, queries_QD: Tensor, count: int
) -> tuple[Tensor, Tensor]:
    """Cosine similarity and label of the nearest images, the nearest first: ``(Q, K)`` each.

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
