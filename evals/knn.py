"""kNN: the weighted vote of the nearest training images.

Wu, Xiong, Yu, Lin: *Unsupervised Feature Learning via Non-Parametric Instance Discrimination*,
CVPR 2018, arXiv:1805.01978, section 3.4; ``eval_knn.py``, facebookresearch/dino ``7c446df``.

Cosine similarity, votes weighted by exp(similarity / temperature). The number of neighbours and
the pooling are chosen on a validation split of the training images; the test split is read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.distributed.collectives import sharded
from ssl_bench.evaluation import neighbors
from ssl_bench.evaluation.metrics import accuracy, holdout


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
    columns = frozenset({"label"})
    is_default = True
    sharded = True
    compared_with = ("pixels", "random")

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Classify the test images by their nearest training images."""
        train, labels_N = encoder.features(data.train), data.train.labels_N
        classes = len(data.classes)
        fit, held_out = holdout(data, self.config.validation)
        trials = {}
        for pooling, features_ND in train.items():
            queries_QD = features_ND[held_out]
            predictions = _predict(features_ND, labels_N, fit, queries_QD, self.config, classes)
            for count, predictions_Q in predictions.items():
                trials[pooling, count] = accuracy(predictions_Q, labels_N[held_out])
        pooling, count = max(trials, key=trials.__getitem__)
        every, queries_QD = torch.arange(len(data.train)), encoder.features(data.test)[pooling]
        found = _predict(train[pooling], labels_N, every, queries_QD, self.config, classes)
        predictions_N = found[count]
        return Result(
            scores={"top1": accuracy(predictions_N, data.test.labels_N)},
            predictions_N=predictions_N,
            chosen={
                "pooling": pooling,
                "neighbors": count,
                "validation_top1": trials[pooling, count],
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
    votes = neighbors.votes(
        features_ND, labels_N, rows_N, queries_QD, config.neighbors, config.temperature, classes
    )
    return {count: votes_QC.argmax(dim=1).cpu() for count, votes_QC in votes}
