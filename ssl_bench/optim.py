"""Optimiser, parameter groups and the schedule of a training."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ssl_bench import draws
from ssl_bench.errors import require
from ssl_bench.settings import OptimizerConfig

Group = dict[str, Any]
_EMBEDDINGS = ("cls_token", "reg_token", "pos_embed", "patch_embed", "norm_pre")


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[Group]:
    """The trainable parameters, those of one dimension and the biases exempt from weight decay.

    (``add_weight_decay`` of timm, as ``main_pretrain.py`` of MAE calls it; class and mask tokens
    are decayed.) With ``decay_norm_and_bias`` all are decayed, as in MoCo v3.
    """
    groups: list[Group] = [
        {"params": [], "weight_decay": config.weight_decay, "lr_scale": 1.0},
        {"params": [], "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    for name, parameter in _trainable(module):
        is_vector = parameter.ndim <= 1 or name.endswith(".bias")
        groups[is_vector and not config.decay_norm_and_bias]["params"].append(parameter)
    return [group for group in groups if group["params"]]


def layer_decay_groups(
    classifier: nn.Module, config: OptimizerConfig, layer_decay: float
) -> list[Group]:
    """Groups whose learning rate falls by a factor for each layer below the head.

    A parameter of layer ``i`` gets ``layer_decay ** (depth + 1 - i)``: the embeddings are layer 0,
    block ``j`` is layer ``j + 1``, norm and head are layer ``depth + 1``. One-dimensional
    parameters, position embeddings and class tokens are exempt from weight decay
    (``util/lr_decay.py``, facebookresearch/mae ``efb2a80``).

    Args:
        classifier: a module with the ViT under ``encoder``.
    """
    encoder: Any = classifier.encoder
    top = len(encoder.blocks) + 1
    groups: dict[tuple[int, bool], Group] = {}
    for name, parameter in _trainable(classifier):
        layer = _layer(name, top)
        decayed = parameter.ndim > 1 and not name.endswith(("pos_embed", "_token"))
        group = groups.setdefault(
            (layer, decayed),
            {
                "params": [],
                "weight_decay": config.weight_decay if decayed else 0.0,
                "lr_scale": layer_decay ** (top - layer),
            },
        )
        group["params"].append(parameter)
    return list(groups.values())


def adamw(groups: Iterable[Group], beta2: float) -> torch.optim.AdamW:
    """AdamW over parameter groups, fused into one pass over the parameters."""
    return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)


@dataclass(frozen=True)
class Schedule:
    """Which images and which learning rate each step of a training takes.

    Attributes:
        images: how many there are to train on.
        peak_lr: learning rate at the end of the warm-up.
        warmup: share of the training during which the rate rises, in [0, 1).
    """

    images: int
    batch_size: int
    epochs: int
    peak_lr: float
    warmup: float

    @classmethod
    def of(cls, images: int, batch_size: int, epochs: int, config: OptimizerConfig) -> Schedule:
        """The schedule of a recipe.

        Raises:
            UserError: there are fewer images than a batch takes.
        """
        require(
            batch_size <= images,
            f"batch size {batch_size} is larger than the {images} training images; "
            f"at most {images} would work",
        )
        peak_lr = config.base_lr * batch_size / 256
        return cls(images, batch_size, epochs, peak_lr, config.warmup)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches alone; the rest of an epoch's images is left out."""
        return self.images // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        return self.steps_per_epoch * self.epochs

    def batch(self, step: int, *coordinates: str | int) -> Tensor:
        """Indices of a step's images, in an order made anew each epoch: int64 ``(batch_size,)``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = draws.permutation(self.images, *coordinates, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def learning_rate(self, step: int) -> float:
        """Linear from 0 during the warm-up, then half a cosine down to 0."""
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return self.peak_lr * step / warmup_steps
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.peak_lr * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its share of the learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["lr_scale"]


def _trainable(module: nn.Module) -> Iterable[tuple[str, nn.Parameter]]:
    return ((name, p) for name, p in module.named_parameters() if p.requires_grad)


def _layer(name: str, top: int) -> int:
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.removeprefix("encoder.").startswith(_EMBEDDINGS) else top
