"""Linear probe: a linear classifier on frozen features.

Features are extracted once, and a grid of learning rate x weight decay x pooling is trained
together (as DINOv2 does, arXiv:2304.07193, appendix B.3), chosen on a validation split of the
training images, refitted on all of them; the test split is read once. Features are standardised by
the training images' mean and deviation: the batch normalisation without affine parameters of MAE's
probe (He et al., arXiv:2111.06377, appendix A.1), over all images instead of a batch.

Deviation from the papers' 90-epoch probes: no augmentation.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ssl_bench import draws, progress
from ssl_bench.contract import FrozenEncoder, Result
from ssl_bench.data import Dataset
from ssl_bench.errors import above, require, within
from ssl_bench.scoring import accuracy, holdout

DEFAULT = True
_MOMENTUM = 0.9


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
    train, labels_N = encoder.features(data.train), data.train.labels_N
    fit, held_out = holdout(data, config.validation)
    grid = list(itertools.product(config.learning_rates, config.weight_decays))

    trials = {}
    for pooling, features_ND in train.items():
        inputs, standardise = _standardised(features_ND[fit])
        probes = _train(inputs, labels_N[fit], len(data.classes), grid, config, encoder.seed)
        logits_NGC = _logits(standardise(features_ND[held_out]), probes)
        for setting, logits_NC in zip(grid, logits_NGC.unbind(dim=1), strict=True):
            score = accuracy(logits_NC.argmax(dim=1), labels_N[held_out])
            trials[pooling, *setting] = score if logits_NC.isfinite().all() else -1.0
    pooling, learning_rate, weight_decay = max(trials, key=trials.__getitem__)
    require(
        trials[pooling, learning_rate, weight_decay] >= 0,
        f"every linear probe diverged; learning rates below {min(config.learning_rates)} may help",
    )

    inputs, standardise = _standardised(train[pooling])
    chosen = [(learning_rate, weight_decay)]
    probe = _train(inputs, labels_N, len(data.classes), chosen, config, encoder.seed)
    logits_NGC = _logits(standardise(encoder.features(data.test)[pooling]), probe)
    predictions_N = logits_NGC[:, 0].argmax(dim=1).cpu()
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


def _standardised(features_ND: Tensor) -> tuple[Tensor, Any]:
    """The features with mean 0 and deviation 1, and the function that does so to others."""
    mean_D, deviation_D = features_ND.mean(dim=0), features_ND.std(dim=0) + 1e-6

    def standardise(others_ND: Tensor) -> Tensor:
        return (others_ND - mean_D) / deviation_D

    return standardise(features_ND), standardise


def _train(
    inputs_ND: Tensor,
    labels_N: Tensor,
    classes: int,
    grid: list[tuple[float, float]],
    config: Config,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Train G probes side by side with SGD: weights ``(D, G, C)`` and biases ``(G, C)``.

    The gradient of the softmax cross-entropy is written out, so that all probes share two matrix
    products a step.
    """
    count, width = inputs_ND.shape
    device = inputs_ND.device
    rates_G1, decays_G1 = torch.tensor(grid, device=device).T[..., None]
    weights_DGC = torch.zeros(width, len(grid), classes, device=device)
    biases_GC = torch.zeros(len(grid), classes, device=device)
    speeds = [torch.zeros_like(weights_DGC), torch.zeros_like(biases_GC)]
    batch_size = min(config.batch_size, count)
    steps_per_epoch = count // batch_size
    total = config.epochs * steps_per_epoch
    labels_N = labels_N.to(device)
    with progress.bar("linear probe", config.epochs) as bar:
        for step in range(total):
            epoch, index = divmod(step, steps_per_epoch)
            order = draws.permutation(count, seed, "linear", epoch)
            index_B = order[index * batch_size : (index + 1) * batch_size].to(device)
            inputs_BD, labels_B = inputs_ND[index_B], labels_N[index_B]

            error_BGC = _logits(inputs_BD, (weights_DGC, biases_GC)).softmax(dim=-1)
            error_BGC[torch.arange(batch_size, device=device), :, labels_B] -= 1
            error_BGC /= batch_size
            gradients = (
                (inputs_BD.T @ error_BGC.flatten(1)).view_as(weights_DGC) + decays_G1 * weights_DGC,
                error_BGC.sum(dim=0),
            )
            anneal = (1 + math.cos(math.pi * step / total)) / 2
            for value, speed, gradient in zip(
                (weights_DGC, biases_GC), speeds, gradients, strict=True
            ):
                speed.mul_(_MOMENTUM).add_(gradient)
                value.sub_(rates_G1 * anneal * speed)
            bar.update(epoch + 1)
    return weights_DGC, biases_GC


def _logits(inputs_ND: Tensor, probes: tuple[Tensor, Tensor]) -> Tensor:
    """Every probe's logits: ``(N, G, C)``."""
    weights_DGC, biases_GC = probes
    products = inputs_ND @ weights_DGC.flatten(1)
    return products.view(len(inputs_ND), *biases_GC.shape) + biases_GC
