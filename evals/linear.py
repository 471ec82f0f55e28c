"""Linear probe: a linear classifier on frozen features.

Features are extracted once, and a grid of learning rate x weight decay x pooling is trained
together (as DINOv2 does, arXiv:2304.07193, appendix B.3), chosen on a validation split of the
training images, refitted on all of them; the test split is read once. Features are standardised by
the training images' mean and deviation: the batch normalisation without affine parameters of MAE's
probe (He et al., arXiv:2111.06377, appendix A.1), over all images instead of a batch.

Deviation from the papers' 90-epoch probes: no augmentation.

Shapes: B batch, N images, D features, G probes in the grid, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ssl_bench import draws, progress
from ssl_bench.contract import FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import above, require, within
from ssl_bench.scoring import accuracy, holdout

DEFAULT = True
_MOMENTUM = 0.9
_IMAGES_AT_ONCE = 1024


@dataclass(frozen=True)
class Config:
    """Flags of the linear probe."""

    epochs: int = 20
    """Passes over the training features."""
    batch_size: int = 512
    """Features in a step of SGD."""
    learning_rates: tuple[float, ...] = (0.01, 0.03, 0.1, 0.3, 1.0)
    """Learning rates to choose from, at the start of the cosine."""
    weight_decays: tuple[float, ...] = (0.0, 1e-4, 1e-3)
    """Weight decays to choose from."""
    validation: float = 0.1
    """Share of the training images to choose on, in (0, 1)."""

    def __post_init__(self) -> None:
        above("linear epochs", self.epochs, 0)
        above("linear batch size", self.batch_size, 0)
        within("linear validation", self.validation, "(0, 1)")
        require(bool(self.learning_rates), "linear learning rates is empty; try 0.1")
        above("linear learning rates", min(self.learning_rates), 0)
        require(bool(self.weight_decays), "linear weight decays is empty; try 0")
        for weight_decay in self.weight_decays:
            within("linear weight decays", weight_decay, "[0, 1]")


def baselines(config: Config) -> Mapping[str, tuple[str, Config]]:
    """What to show beside an encoder's score."""
    return {"raw pixels": ("pixels", config), "random init": ("random", config)}


def evaluate(encoder: FrozenEncoder, data: Dataset, config: Config) -> Result:
    """Choose a probe on held-out training images, refit it, classify the test images."""
    train, labels_N, seed = encoder.features(data.train), data.train.labels_N, encoder.seed
    fit, held_out = holdout(data, config.validation)
    grid = list(itertools.product(config.learning_rates, config.weight_decays))

    trials = {}
    for pooling, features_ND in train.items():
        scaler = _Scaler.of(features_ND, fit)
        probes = _train(features_ND, labels_N, fit, scaler, len(data.classes), grid, config, seed)
        for setting, predictions_N in zip(
            grid, _predict(features_ND, held_out, scaler, probes), strict=True
        ):
            score = accuracy(predictions_N, labels_N[held_out])
            trials[pooling, *setting] = -1.0 if (predictions_N < 0).any() else score
    pooling, learning_rate, weight_decay = max(trials, key=trials.__getitem__)
    require(
        trials[pooling, learning_rate, weight_decay] >= 0,
        f"every linear probe diverged; learning rates below {min(config.learning_rates)} may help",
    )

    features_ND, every = train[pooling], torch.arange(len(data.train))
    scaler = _Scaler.of(features_ND, every)
    chosen = [(learning_rate, weight_decay)]
    probe = _train(features_ND, labels_N, every, scaler, len(data.classes), chosen, config, seed)
    test_ND = encoder.features(data.test)[pooling]
    [predictions_N] = _predict(test_ND, torch.arange(len(data.test)), scaler, probe)
    return Result(
        scores={"top1": accuracy(predictions_N, data.test.labels_N)},
        predictions_N=predictions_N,
        chosen={
            "pooling": pooling,
            "learning_rate": learning_rate,
            "weight_decay": weight_decay,
            "validation_top1": trials[pooling, learning_rate, weight_decay],
        },
    )


@dataclass(frozen=True)
class _Scaler:
    """What standardises features: a batch at a time, so that no copy of them all is made."""

    mean_D: Tensor
    deviation_D: Tensor

    @classmethod
    def of(cls, features_ND: Tensor, rows_N: Tensor) -> _Scaler:
        """By the mean and the deviation of the features in those rows, summed in float64."""
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
        """The features in those rows with mean 0 and deviation 1: ``(B, D)``."""
        return (features_ND.index_select(0, rows_B) - self.mean_D) / self.deviation_D


def _train(
    features_ND: Tensor,
    labels_N: Tensor,
    rows_N: Tensor,
    scaler: _Scaler,
    classes: int,
    grid: list[tuple[float, float]],
    config: Config,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Train G probes side by side with SGD: weights ``(G, C, D)`` and biases ``(G, C, 1)``.

    The gradient of the softmax cross-entropy is written out, so that all probes share two matrix
    products a step. The batch comes last, where the softmax over classes is vectorised.

    Args:
        rows_N: the images to train on, indices into features and labels.
    """
    device, width = features_ND.device, features_ND.shape[1]
    rates_G11, decays_G11 = torch.tensor(grid, device=device).T[..., None, None]
    weights_GCD = torch.zeros(len(grid), classes, width, device=device)
    biases_GC1 = torch.zeros(len(grid), classes, 1, device=device)
    speeds = [torch.zeros_like(weights_GCD), torch.zeros_like(biases_GC1)]
    count = len(rows_N)
    batch_size = min(config.batch_size, count)
    steps_per_epoch = count // batch_size
    total = config.epochs * steps_per_epoch
    rows_N, labels_N = rows_N.to(device), labels_N.to(device)
    column_B = torch.arange(batch_size, device=device)
    with progress.bar("linear probe", config.epochs) as bar:
        for epoch in range(config.epochs):
            order_N = rows_N[draws.permutation(count, seed, "linear", epoch).to(device)]
            for index in range(steps_per_epoch):
                rows_B = order_N[index * batch_size : (index + 1) * batch_size]
                inputs_BD = scaler(features_ND, rows_B)
                error_GCB = _logits(inputs_BD, (weights_GCD, biases_GC1)).softmax(dim=1)
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
    return weights_GCD, biases_GC1


def _predict(
    features_ND: Tensor, rows_N: Tensor, scaler: _Scaler, probes: tuple[Tensor, Tensor]
) -> Tensor:
    """Every probe's class for the images in those rows: ``(G, N)`` on the CPU, -1 for no number."""
    parts = []
    for rows_B in rows_N.to(features_ND.device).split(_IMAGES_AT_ONCE):
        logits_GCB = _logits(scaler(features_ND, rows_B), probes)
        is_number_GB = logits_GCB.isfinite().all(dim=1)
        parts.append(logits_GCB.argmax(dim=1).where(is_number_GB, -1).cpu())
    return torch.cat(parts, dim=1)


def _logits(inputs_BD: Tensor, probes: tuple[Tensor, Tensor]) -> Tensor:
    """Every probe's logits: ``(G, C, B)``."""
    weights_GCD, biases_GC1 = probes
    products = weights_GCD.flatten(0, 1) @ inputs_BD.T
    return products.view(*biases_GC1.shape[:2], len(inputs_BD)) + biases_GC1
