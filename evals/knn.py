"""kNN: the weighted vote of the nearest training images.

Wu, Xiong, Yu, Lin: *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*,
CVPR 2018, arXiv:1805.01978, section 3.4; ``eval_knn.py``, facebookresearch/dino.

Cosine similarity, votes weighted by exp(similarity / temperature). The number of neighbours and
the pooling are chosen on a validation split of the training images; the test split is read once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.contract import FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import above, require, within
from ssl_bench.scoring import accuracy, holdout

DEFAULT = True
_QUERIES_AT_ONCE = 500


@dataclass(frozen=True)
class Config:
    """Flags of kNN."""

    neighbors: tuple[int, ...] = (1, 5, 10, 20, 50, 100, 200)
    """Numbers of neighbours to choose from."""
    temperature: float = 0.07
    """Temperature of the votes, above 0."""
    validation: float = 0.1
    """Share of the training images to choose on, in (0, 1)."""

    def __post_init__(self) -> None:
        above("knn temperature", self.temperature, 0)
        within("knn validation", self.validation, "(0, 1)")
        require(bool(self.neighbors), "knn neighbors is empty; it needs a number, such as 20")
        above("knn neighbors", min(self.neighbors), 0)


def baselines(config: Config) -> Mapping[str, tuple[str, Config]]:
    """What to show beside an encoder's score."""
    return {"raw pixels": ("pixels", config), "random init": ("random", config)}


def evaluate(encoder: FrozenEncoder, data: Dataset, config: Config) -> Result:
    """Classify the test images by their nearest training images."""
    labels_N = data.train.labels_N
    fit, held_out = holdout(data, config.validation)
    trials = {}
    for pooling, features_ND in encoder.features(data.train).items():
        predictions = _predict(
            features_ND[fit], labels_N[fit], features_ND[held_out], config, len(data.classes)
        )
        for neighbors, predictions_N in predictions.items():
            score = accuracy(predictions_N, labels_N[held_out])
            trials[pooling, neighbors] = score
    pooling, neighbors = max(trials, key=trials.__getitem__)
    predictions_N = _predict(
        encoder.features(data.train)[pooling],
        labels_N,
        encoder.features(data.test)[pooling],
        config,
        len(data.classes),
    )[neighbors]
    return Result(
        scores={"top1": accuracy(predictions_N, data.test.labels_N)},
        predictions_N=predictions_N,
        chosen={
            "pooling": pooling,
            "neighbors": neighbors,
            "validation_top1": trials[pooling, neighbors],
        },
    )


def _predict(
    bank_ND: Tensor, labels_N: Tensor, queries_QD: Tensor, config: Config, classes: int
) -> dict[int, Tensor]:
    """Predicted classes ``(Q,)`` for each number of neighbours, in chunks of queries."""
    bank_DN = F.normalize(bank_ND, dim=1).T.contiguous()
    labels_N = labels_N.to(bank_DN.device)
    counts = {neighbors: min(neighbors, len(bank_ND)) for neighbors in config.neighbors}
    predictions: dict[int, list[Tensor]] = {neighbors: [] for neighbors in counts}
    for chunk_QD in F.normalize(queries_QD, dim=1).split(_QUERIES_AT_ONCE):
        similarity_QK, index_QK = (chunk_QD @ bank_DN).topk(max(counts.values()), dim=1)
        weights_QK = ((similarity_QK - 1) / config.temperature).exp()
        votes_QC = weights_QK.new_zeros(len(chunk_QD), classes)
        done = 0
        for neighbors, count in sorted(counts.items()):
            votes_QC.scatter_add_(1, labels_N[index_QK[:, done:count]], weights_QK[:, done:count])
            predictions[neighbors].append(votes_QC.argmax(dim=1).cpu())
            done = count
    return {neighbors: torch.cat(parts) for neighbors, parts in predictions.items()}
