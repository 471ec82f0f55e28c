"""Linear probes on frozen features: standardised, a grid trained at once, chosen, applied.

Features are standardised by the mean and the standard deviation of the images that a probe is
fitted on: the batch normalisation without affine parameters of MAE's probe (He et al.,
arXiv:2111.06377, appendix A.1), over all images instead of a batch. A grid of learning rate x
weight decay is trained together, as DINOv2 does (arXiv:2304.07193, appendix B.3).

Shapes: B batch, N images, D features, G probes in the grid, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_bench.config.recipes import ProbeConfig
from ssl_bench.data import Dataset
from ssl_bench.errors import require
from ssl_bench.evaluation.metrics import accuracy, holdout
from ssl_bench.utils import progress, rng

Setting = tuple[float, float]
"""Learning rate at the start of the cosine, weight decay."""
_MOMENTUM = 0.9
_IMAGES_AT_ONCE = 1024


@dataclass(frozen=True)
class Scaler:
    """What standardises features: a batch at a time, so that no copy of them all is made."""

    mean_D: Tensor
    std_D: Tensor

    @classmethod
    def of(cls, features_ND: Tensor, rows_N: Tensor) -> Scaler:
        """By the mean and std of the features in those rows, summed in float64."""
        width = features_ND.shape[1]
        total_D, squares_D = features_ND.new_zeros(2, width, dtype=torch.float64)
        for rows_B in rows_N.to(features_ND.device).split(_IMAGES_AT_ONCE):
            values_BD = features_ND.index_select(0, rows_B).double()
            total_D += values_BD.sum(dim=0)
            squares_D += values_BD.square().sum(dim=0)
        mean_D = total_D / len(rows_N)
        variance_D = (squares_D / len(rows_N) - mean_D.square()).clamp_min(0)
        return cls(mean_D.float(), variance_D.sqrt().float() + 1e-6)

    def __call__(self, features_ND: Tensor, rows_B: Tensor) -> Tensor:
        """The features in those rows with mean 0 and standard deviation 1: ``(B, D)``."""
        return (features_ND.index_select(0, rows_B) - self.mean_D) / self.std_D


@dataclass(frozen=True)
class Probes:
    """G fitted probes on the features of one pooling, and what standardises their inputs."""

    scaler: Scaler
    weights_GCD: Tensor
    biases_GC1: Tensor

    def predict(self, features_ND: Tensor, rows_N: Tensor | None = None) -> Tensor:
        """Every probe's class for the images in those rows, or for all: int64 ``(G, N)``, CPU.

        It is -1 where a probe gives no number.
        """
        rows_N = torch.arange(len(features_ND)) if rows_N is None else rows_N
        parts = []
        for rows_B in rows_N.to(features_ND.device).split(_IMAGES_AT_ONCE):
            logits_GCB = self.logits(features_ND, rows_B)
            is_number_GB = logits_GCB.isfinite().all(dim=1)
            parts.append(logits_GCB.argmax(dim=1).where(is_number_GB, -1).cpu())
        return torch.cat(parts, dim=1)

    def logits(self, features_ND: Tensor, rows_B: Tensor) -> Tensor:
        """Every probe's logits for the images in those rows: ``(G, C, B)``."""
        inputs_BD = self.scaler(features_ND, rows_B)
        return _logits(inputs_BD, self.weights_GCD, self.biases_GC1)


@dataclass(frozen=True)
class Probe:
    """The probe that was chosen (pooling, learning rate, weight decay), fitted on all images."""

    pooling: str
    fitted: Probes
    chosen: Mapping[str, Any]

    def predict(self, features: Mapping[str, Tensor]) -> Tensor:
        """Each image's class, from its features by pooling: int64 ``(N,)`` on the CPU."""
        return self.fitted.predict(features[self.pooling])[0]


def fit_best(
    features: Mapping[str, Tensor], data: Dataset, config: ProbeConfig, seed: int
) -> Probe:
    """Choose a pooling and a setting on held-out training images, refit on all of them.

    Features are those of the training images: float32 ``(N, D)`` by pooling.

    Raises:
        UserError: every probe diverged.
    """
    labels_N, classes = data.train.labels_N, len(data.classes)
    fit_N, held_out_N = holdout(data, config.validation)
    every_N = torch.arange(len(labels_N))
    grid = list(itertools.product(config.learning_rates, config.weight_decays))
    sizes = (config.epochs, config.batch_size, seed)

    trials: dict[tuple[str, float, float], float] = {}
    for pooling, features_ND in features.items():
        probes = train(features_ND, labels_N, fit_N, classes, grid, *sizes)
        tops = score(probes, features_ND, labels_N, held_out_N)
        trials |= {(pooling, *setting): top for setting, top in zip(grid, tops, strict=True)}
    pooling, rate, decay = best(trials)
    fitted = train(features[pooling], labels_N, every_N, classes, [(rate, decay)], *sizes)
    best({(pooling, rate, decay): score(fitted, features[pooling], labels_N, held_out_N)[0]})
    chosen = {
        "pooling": pooling,
        "learning_rate": rate,
        "weight_decay": decay,
        "validation_top1": trials[pooling, rate, decay],
    }
    return Probe(pooling, fitted, chosen)


def score(probes: Probes, features_ND: Tensor, labels_N: Tensor, rows_N: Tensor) -> list[float]:
    """Every probe's accuracy on the images in those rows in percent, -1 where it diverged."""
    return [
        -1.0 if (predictions_N < 0).any() else accuracy(predictions_N, labels_N[rows_N])
        for predictions_N in probes.predict(features_ND, rows_N)
    ]


def best(trials: Mapping[tuple[str, float, float], float]) -> tuple[str, float, float]:
    """The pooling and setting of the highest score, the first of equal ones; one has to be >= 0."""
    found = max(trials, key=trials.__getitem__)
    lowest = min(rate for _, rate, _ in trials)
    require(
        trials[found] >= 0,
        f"every linear probe diverged; learning rates below {lowest} may help",
    )
    return found


def train(
    features_ND: Tensor,
    labels_N: Tensor,
    rows_N: Tensor,
    classes: int,
    grid: Sequence[Setting],
    epochs: int,
    batch_size: int,
    seed: int,
    scaler: Scaler | None = None,
) -> Probes:
    """Train G probes side by side with SGD, a momentum of 0.9 and a cosine to zero.

    The gradient of the softmax cross-entropy is written out, so that all probes share two matrix
    products a step. The batch comes last, where the softmax over classes is vectorised. Weights
    start at zero, biases do not decay, and what is left over of an epoch is left out.

    They train on the images in ``rows_N``, whose features standardise them unless a ``scaler`` is
    given.
    """
    scaler = scaler or Scaler.of(features_ND, rows_N)
    device, width = features_ND.device, features_ND.shape[1]
    rates_G11, decays_G11 = torch.tensor(grid, device=device).T[..., None, None]
    weights_GCD = torch.zeros(len(grid), classes, width, device=device)
    biases_GC1 = torch.zeros(len(grid), classes, 1, device=device)
    speeds = [torch.zeros_like(weights_GCD), torch.zeros_like(biases_GC1)]
    count = len(rows_N)
    batch_size = min(batch_size, count)
    steps_per_epoch = count // batch_size
    total = epochs * steps_per_epoch
    rows_N, labels_N = rows_N.to(device), labels_N.to(device)
    column_B = torch.arange(batch_size, device=device)
    with progress.bar("linear probe", epochs) as bar:
        for epoch in range(epochs):
            order_N = rows_N[rng.permutation(count, seed, "linear", epoch).to(device)]
            for index in range(steps_per_epoch):
                rows_B = order_N[index * batch_size : (index + 1) * batch_size]
                inputs_BD = scaler(features_ND, rows_B)
                error_GCB = _logits(inputs_BD, weights_GCD, biases_GC1).softmax(dim=1)
                error_GCB[:, labels_N[rows_B], column_B] -= 1
                error_GCB /= batch_size
                gradients = (
                    (error_GCB.flatten(0, 1) @ inputs_BD).view_as(weights_GCD)
                    + decays_G11 * weights_GCD,
                    error_GCB.sum(dim=2, keepdim=True),
                )
                step = epoch * steps_per_epoch + index
                anneal = (1 + math.cos(math.pi * step / total)) / 2
                for value, speed, gradient in zip(
                    (weights_GCD, biases_GC1), speeds, gradients, strict=True
                ):
                    speed.mul_(_MOMENTUM).add_(gradient)
                    value.sub_(rates_G11 * anneal * speed)
            bar.update(epoch + 1)
    return Probes(scaler, weights_GCD, biases_GC1)


def _logits(inputs_BD: Tensor, weights_GCD: Tensor, biases_GC1: Tensor) -> Tensor:
    """Every probe's logits: ``(G, C, B)``."""
    products = weights_GCD.flatten(0, 1) @ inputs_BD.T
    return products.view(*biases_GC1.shape[:2], len(inputs_BD)) + biases_GC1
