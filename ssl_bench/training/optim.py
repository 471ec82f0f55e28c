"""Optimisers, parameter groups, frozen parameters and the schedule of a training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn

from ssl_bench.config.recipes import OptimizerConfig
from ssl_bench.errors import require
from ssl_bench.utils import rng

Group = dict[str, Any]


def freeze(module: nn.Module, *prefixes: str) -> int:
    """Keep the parameters at or under these dotted names from being trained.

    Returns:
        How many parameters (tensors) are frozen by it.

    Raises:
        UserError: a prefix matches no parameter, so that nothing is frozen silently.
    """
    named = dict(module.named_parameters())
    parts = ", ".join(dict.fromkeys(name.split(".")[0] for name in named))
    frozen: set[str] = set()
    for prefix in prefixes:
        under = {name for name in named if f"{name}.".startswith(f"{prefix}.")}
        require(bool(under), f"nothing to freeze under {prefix!r}; there are parameters in {parts}")
        frozen |= under
    for name in frozen:
        named[name].requires_grad_(False)
    return len(frozen)


def parameter_groups(module: nn.Module, config: OptimizerConfig) -> list[Group]:
    """The trainable parameters, those of one dimension and the biases exempt from weight decay.

    (As ``main_pretrain.py`` of MAE calls timm; class and mask tokens are decayed.) With
    ``decay_norm_and_bias`` all are decayed, as in MoCo v3.
    """
    if config.decay_norm_and_bias:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": config.weight_decay}]
    groups = param_groups_weight_decay(module, config.weight_decay)
    # Decayed ones first: that is how the optimiser states in checkpoints are numbered.
    return [group for group in reversed(groups) if group["params"]]


def layer_decay_groups(
    classifier: nn.Module, config: OptimizerConfig, layer_decay: float
) -> list[Group]:
    """Groups whose learning rate falls by a factor for each layer below the head.

    One-dimensional parameters, position embeddings and class tokens are exempt from weight decay
    (``util/lr_decay.py``, facebookresearch/mae ``efb2a80``), unless ``decay_norm_and_bias``.

    Args:
        classifier: a module whose ``group_matcher`` tells timm its layers.
    """
    exempts = not config.decay_norm_and_bias
    names = [name for name, _ in classifier.named_parameters()]
    return param_groups_layer_decay(
        classifier,
        config.weight_decay,
        [name for name in names if exempts and name.endswith(("pos_embed", "_token"))],
        weight_decay_exclude_1d=exempts,
        layer_decay=layer_decay,
    )


def adamw(groups: Iterable[Group], beta2: float) -> torch.optim.AdamW:
    """AdamW over parameter groups, fused into one pass over the parameters."""
    return torch.optim.AdamW(groups, betas=(0.9, beta2), fused=True)


def of_method(method: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """The optimiser of a pre-training."""
    return adamw(parameter_groups(method, config), config.beta2)


class LARS(torch.optim.Optimizer):
    """SGD with momentum whose step is scaled, layer by layer, to the weights' own norm.

    For a gradient g of a weight w with more than one dimension,
    ``g = (g + weight_decay * w) * trust * |w| / |g + weight_decay * w|``, where a norm of zero
    leaves g unscaled; biases and norms take g as it is. Then ``v = momentum * v + g`` and
    ``w = w - lr * v``. (You, Gitman, Ginsburg, *Large Batch Training of Convolutional Networks*,
    arXiv:1708.03888; ``util/lars.py``, facebookresearch/mae ``efb2a80``, and
    ``moco/optimizer.py``, facebookresearch/moco-v3 ``c349e6e``, which have the learning rate
    outside the momentum.)

    lightly's LARS was checked and differs: where the weight decay is zero, as in MAE's linear
    probe, it applies no trust ratio, and it applies one to one-dimensional parameters where it is
    not.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[Group],
        lr: float = 0.0,
        weight_decay: float = 0.0,
        momentum: float = 0.9,
        trust: float = 0.001,
    ) -> None:
        defaults = {"lr": lr, "weight_decay": weight_decay, "momentum": momentum, "trust": trust}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Update every parameter that has a gradient; nothing waits for a device.

        Returns:
            What the closure returns, which is called first, if there is one.
        """
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                update = weight.grad
                if weight.ndim > 1:
                    update = update.add(weight, alpha=group["weight_decay"])
                    ratio = group["trust"] * weight.norm() / update.norm()
                    has_norms = (weight.norm() > 0) & (update.norm() > 0)
                    update = update * torch.where(has_norms, ratio, 1.0)
                state = self.state[weight]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(weight)
                state["momentum"].mul_(group["momentum"]).add_(update)
                weight.sub_(state["momentum"], alpha=group["lr"])
        return loss


@dataclass(frozen=True)
class Schedule:
    """Which images and which learning rate each step of a training takes.

    Attributes:
        images: how many there are to train on.
        peak_lr: learning rate at the end of the warm-up.
        warmup: share of the training during which the rate rises, in [0, 1).
        min_lr: learning rate at which the cosine ends; the warm-up starts at zero all the same.
        per_epoch: the rate changes at the start of an epoch alone, instead of every step.
    """

    images: int
    batch_size: int
    epochs: float
    peak_lr: float
    warmup: float
    min_lr: float = 0.0
    per_epoch: bool = False

    @classmethod
    def of(
        cls,
        images: int,
        batch_size: int,
        epochs: float,
        config: OptimizerConfig,
        *,
        min_lr: float = 0.0,
        per_epoch: bool = False,
    ) -> Schedule:
        """The schedule of a recipe; ``base_lr`` and ``warmup`` are all it takes of its config.

        Raises:
            UserError: there are fewer images than a batch takes.
        """
        require(
            batch_size <= images,
            f"batch size {batch_size} is larger than the {images} training images; "
            f"at most {images} would work",
        )
        peak_lr = config.base_lr * batch_size / 256
        return cls(images, batch_size, epochs, peak_lr, config.warmup, min_lr, per_epoch)

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches alone; the rest of an epoch's images is left out."""
        return self.images // self.batch_size

    @property
    def steps(self) -> int:
        """Optimiser steps in all: the whole number nearest to what the epochs ask for, or 1."""
        return max(1, round(self.steps_per_epoch * self.epochs))

    def batch(self, step: int, *coordinates: str | int) -> Tensor:
        """Indices of a step's images, in an order made anew each epoch: int64 ``(batch_size,)``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        order = rng.permutation(self.images, *coordinates, epoch)
        return order[index * self.batch_size : (index + 1) * self.batch_size]

    def learning_rate(self, step: int) -> float:
        """Linear from 0 during the warm-up, then half a cosine down to ``min_lr``.

        (``util/lr_sched.py``, facebookresearch/mae ``efb2a80``; by epoch as ``main_lincls.py``,
        facebookresearch/moco-v3 ``c349e6e``.)
        """
        if self.per_epoch:
            step -= step % self.steps_per_epoch
        warmup_steps = round(self.warmup * self.steps)
        if step < warmup_steps:
            return self.peak_lr * step / warmup_steps
        done = (step - warmup_steps) / max(1, self.steps - warmup_steps)
        return self.min_lr + (self.peak_lr - self.min_lr) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its share of the learning rate: ``lr_scale``, or all of it without one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
