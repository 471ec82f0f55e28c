"""Linear probe: a linear classifier on frozen features.

Features are extracted once, and a grid of learning rate x weight decay x pooling is trained
together, chosen on a validation split of the training images, refitted on all of them
(`ssl_bench.evaluation.linear_probe`); the test split is read once.

Deviation from the papers' 90-epoch probes: no augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ssl_bench.api import Evaluation, FrozenEncoder, ProbeConfig, Result
from ssl_bench.data import Dataset
from ssl_bench.evaluation import linear_probe
from ssl_bench.evaluation.metrics import accuracy


@dataclass(frozen=True)
class Config(ProbeConfig):
    """Flags of the linear probe."""

    section: ClassVar[str] = "linear"


class LinearProbe(Evaluation):
    """A linear classifier on features that are extracted once."""

    version = 1
    columns = frozenset({"label"})
    is_default = True
    sharded = True
    compared_with = ("pixels", "random")

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Choose a probe on held-out training images, refit it, classify the test images."""
        probe = linear_probe.fit_best(encoder.features(data.train), data, self.config, encoder.seed)
        predictions_N = probe.predict(encoder.features(data.test))
        return Result(
            scores={"top1": accuracy(predictions_N, data.test.labels_N)},
            predictions_N=predictions_N,
            chosen=probe.chosen,
        )
