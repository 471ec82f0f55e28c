"""Low-shot: linear probes on frozen features, with a small share of the training labels.

1 % and 10 % of the labels, class-balanced, as in Chen et al., *A Simple Framework for Contrastive
Learning of Visual Representations*, ICML 2020, arXiv:2002.05709, section 6 (table 7).

Each share is drawn several times, and the score is the mean over the draws. A draw depends on the
data, the seed and its number alone, so that every method gets the same labels, and a smaller share
is a part of a larger one. Learning rate, weight decay and pooling are chosen by cross-validation
within the drawn images, so that no label beyond the share is ever read: the folds are stratified,
a setting's score is the mean over the folds, and the best one is refitted on the whole share.

Deviations from the paper: a linear probe where it fine-tunes the network, and several draws where
it has one fixed subset.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor

from ssl_bench.api import CheckedConfig, Evaluation, FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError, require
from ssl_bench.evaluation import linear_probe
from ssl_bench.evaluation.metrics import accuracy, balanced_order, rank_in_class


@dataclass(frozen=True)
class Config(CheckedConfig):
    """Flags of the low-shot probes."""

    section: ClassVar[str] = "low shot"

    shares: Annotated[tuple[float, ...], "(0, 1]"] = (0.01, 0.1)
    """Shares of the training labels to learn from; the smallest one is the headline."""
    draws: Annotated[int, "[1, inf)"] = 3
    """How many times each share is drawn."""
    folds: Annotated[int, "[2, inf)"] = 5
    """Parts of the drawn images, each of which is chosen on once; at least 2."""
    steps: Annotated[int, "[1, inf)"] = 300
    """Steps of SGD, at least, whatever the share."""
    batch_size: Annotated[int, "[1, inf)"] = 256
    """Features in a step; fewer where there are fewer."""
    learning_rates: Annotated[tuple[float, ...], "(0, inf)"] = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, at the start of the cosine."""
    weight_decays: Annotated[tuple[float, ...], "[0, 1]"] = (1e-3, 1e-2, 1e-1)
    """Weight decays to choose from."""


class LowShot(Evaluation):
    """Linear probes on a few labels."""

    version = 1
    columns = frozenset({"label"})
    compared_with = ("pixels", "random")

    def supports(self, encoder: FrozenEncoder, data: Dataset) -> str | None:
        """Whether each share holds two labels of each class."""
        try:
            for share in self.config.shares:
                _size(share, data)
        except UserError as error:
            return str(error)
        return None

    def evaluate(self, encoder: FrozenEncoder, data: Dataset) -> Result:
        """Classify the test images by probes on each share and draw of the training images.

        Scores: ``top1_1pct`` and so on, the means over the draws in percent; with several draws
        also ``spread_1pct`` and so on, the draws' standard deviation in percentage points.

        Arrays: ``accuracy``, float64 ``(shares, draws)`` in percent, from the smallest share.
        """
        config = self.config
        sizes = {share: _size(share, data) for share in sorted(set(config.shares))}
        train, test = encoder.features(data.train), encoder.features(data.test)
        found: dict[str, list[float]] = {}
        chosen: dict[str, list[dict[str, Any]]] = {}
        for draw, (share, size) in itertools.product(range(config.draws), sizes.items()):
            order_N = balanced_order(
                data.train.labels_N, "low shot", data.fingerprint, encoder.seed, draw
            )
            probe, choice = _fit(train, data, order_N[:size], config, encoder.seed)
            [predictions_N] = probe.predict(test[choice["pooling"]])
            name = f"{100 * share:.6g}pct"
            found.setdefault(name, []).append(accuracy(predictions_N, data.test.labels_N))
            chosen.setdefault(name, []).append(choice)
        scores = {f"top1_{name}": statistics.fmean(tops) for name, tops in found.items()}
        if config.draws > 1:
            scores |= {f"spread_{name}": statistics.stdev(tops) for name, tops in found.items()}
        arrays = {"accuracy": torch.tensor(list(found.values()), dtype=torch.float64)}
        return Result(scores, chosen=chosen, arrays=arrays)


def _size(share: float, data: Dataset) -> int:
    """How many labels a share is; two of each class at least, to fit on one and choose on one."""
    count, classes = len(data.train), len(data.train.labels_N.unique())
    size = math.floor(share * count + 1e-6)
    least = math.ceil(2e4 * classes / count) / 1e4
    require(
        size >= 2 * classes,
        f"low shot share {share:g} of {count} training images is {size} labels for {classes} "
        f"classes; it takes two of each class"
        + (f", a share of {least:g}" if least <= 1 else ", which are not there"),
    )
    return size


def _fit(
    features: Mapping[str, Tensor], data: Dataset, rows_N: Tensor, config: Config, seed: int
) -> tuple[linear_probe.Probes, dict[str, Any]]:
    """The probe chosen by cross-validation on those rows, fitted on all of them, and the choice."""
    labels_N, classes = data.train.labels_N.cpu(), len(data.classes)
    grid = list(itertools.product(config.learning_rates, config.weight_decays))
    ranks_N = rank_in_class(labels_N[rows_N])
    folds = min(config.folds, int(ranks_N.max()) + 1)

    def train(
        pooling: str, rows_N: Tensor, settings: list[linear_probe.Setting]
    ) -> linear_probe.Probes:
        steps_per_epoch = max(1, len(rows_N) // config.batch_size)
        epochs = math.ceil(config.steps / steps_per_epoch)
        sizes = (epochs, config.batch_size, seed)
        return linear_probe.train(features[pooling], labels_N, rows_N, classes, settings, *sizes)

    trials = {}
    for pooling, features_ND in features.items():
        tops = []
        for fold in range(folds):
            is_held_out_N = ranks_N % folds == fold
            trained = train(pooling, rows_N[~is_held_out_N], grid)
            tops.append(linear_probe.score(trained, features_ND, labels_N, rows_N[is_held_out_N]))
        for setting, each in zip(grid, zip(*tops, strict=True), strict=True):
            trials[pooling, *setting] = -1.0 if min(each) < 0 else statistics.fmean(each)
    pooling, rate, decay = linear_probe.best(trials)
    choice = {
        "pooling": pooling,
        "learning_rate": rate,
        "weight_decay": decay,
        "validation_top1": trials[pooling, rate, decay],
    }
    return train(pooling, rows_N, [(rate, decay)]), choice
