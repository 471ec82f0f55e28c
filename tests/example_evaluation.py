"""Class means: the label of the training images whose mean feature is nearest.

Snell, Swersky, Zemel: *Prototypical Networks for Few-shot Learning*, NeurIPS 2017,
arXiv:1703.05175, section 2.3, with all training images as the support set. The pooling is chosen
on a validation split of the training images; the test split is read once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation.metrics import accuracy, holdout


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the class means."""

    section: ClassVar[str] = "class means"

    distance: Literal["euclidean", "cosine"] = "euclidean"
    """What is nearest."""
    validation: Annotated[float, "(0, 1)"] = 0.1
    """Share of the training images to choose on."""


class ClassMeans(Evaluation):
    """Each class is the mean of its training images' features."""

    compared_with = ("pixels", "random")

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Choose a pooling on held-out training images, then classify the test images."""
        train, labels_N = encoder.features(data.train), data.train.labels_N
        fit_N, held_out_N = holdout(data, self.config.validation)
        trials = {
            pooling: accuracy(
                self._classify(features_ND[fit_N], labels_N[fit_N], features_ND[held_out_N]),
                labels_N[held_out_N],
            )
            for pooling, features_ND in train.items()
        }
        pooling = max(trials, key=trials.__getitem__)
        test_ND = encoder.features(data.test)[pooling]
        predictions_N = self._classify(train[pooling], labels_N, test_ND)
        return Result(
            scores={"top1": accuracy(predictions_N, data.test.labels_N)},
            predictions_N=predictions_N,
            chosen={"pooling": pooling, "validation_top1": trials[pooling]},
        )

    def _classify(self, features_ND: Tensor, labels_N: Tensor, queries_QD: Tensor) -> Tensor:
        """The class of the nearest mean, int64 ``(Q,)`` on the CPU; absent classes have none."""
        if self.config.distance == "cosine":
            features_ND, queries_QD = F.normalize(features_ND), F.normalize(queries_QD)
        classes_C = labels_N.unique()
        means_CD = torch.stack([features_ND[labels_N == each].mean(dim=0) for each in classes_C])
        return classes_C[torch.cdist(queries_QD, means_CD).argmin(dim=1)].cpu()
