"""How parameters are updated: groups, optimisers, schedules, clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from ssl_bench.api.step import Step
from ssl_bench.config.recipes import (
    OptimizerChoiceConfig,
    OptimizerConfig,
    SelfDistillationConfig,
)
from ssl_bench.errors import require

Group = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """How a method is optimised.

    Attributes:
        optimizer: over parameter groups. A group's ``lr_scale`` multiplies the learning rate; its
            ``schedule`` names one of the schedules, whose learning rate the group has instead.
        learning_rate: of each step.
        schedules: other learning rates, by name.
        weight_decay: of each step, in the groups that are made with any; None where it does not
            change.
        clip_norm: the largest norm that the gradient may have; None for any.
        clip_each: clip each parameter's gradient by itself, as DINO does, instead of all together.
    """

    optimizer: torch.optim.Optimizer
    learning_rate: Callable[[Step], float]
    schedules: Mapping[str, Callable[[Step], float]] = field(default_factory=dict)
    weight_decay: Callable[[Step], float] | None = None
    clip_norm: float | None = None
    clip_each: bool = False

    def prepare(self, step: Step) -> float:
        """Set the learning rates and weight decays of a step; returns the learning rate."""
        learning_rate = self.learning_rate(step)
        set_learning_rate(self.optimizer, learning_rate)
        for group in self.optimizer.param_groups:
            if "schedule" in group:
                group["lr"] = self.schedules[group["schedule"]](step) * group.get("lr_scale", 1.0)
            if self.weight_decay and group.setdefault("decays", group["weight_decay"] > 0):
                group["weight_decay"] = self.weight_decay(step)
        return learning_rate

    def update(self) -> None:
        """Clip the gradients, update the parameters, forget the gradients."""
        if self.clip_norm is not None:
            parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
            if self.clip_each:
                _clip_each(parameters, self.clip_norm)
            else:
                clip_grad_norm_(parameters, self.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


@torch.no_grad()
def _clip_each(parameters: Iterable[nn.Parameter], norm: float) -> None:
    """``clip_grad_norm_`` of each parameter by itself, in a few operations for all of them."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if any(type(gradient) is not Tensor for gradient in gradients):  # sharded: norms are of ranks
        for parameter in parameters:
            clip_grad_norm_([parameter], norm)
    elif gradients:
        norms = torch.stack(torch._foreach_norm(gradients))
        scales = (norm / (norms + 1e-6)).clamp(max=1.0)
        torch._foreach_mul_(gradients, scales.unbind())


def recipe(module: nn.Module, config: OptimizerConfig, exempt: Sequence[str] = ()) -> OptimizerSpec:
    """A linear warm-up, then half a cosine: of AdamW, down to zero, as in MAE and MoCo v3.

    `OptimizerChoiceConfig` says which optimiser it is instead, and where the cosine ends. LARS
    neither decays nor adapts one-dimensional parameters, whatever ``decay_norm_and_bias`` says.

    Args:
        exempt: names of further parameters without weight decay, see `parameter_groups`.
    """
    name, final_lr = "adamw", 0.0
    if isinstance(config, OptimizerChoiceConfig):
        name, final_lr = config.optimizer, config.final_lr

    def learning_rate(step: Step) -> float:
        peak = config.base_lr * step.batch_size / 256
        return warmup_cosine(step, peak, config.warmup, peak * final_lr)

    if name == "lars":  # which decays none of them, and whose two kinds a method may tell apart
        config = replace(config, decay_norm_and_bias=False)
    groups = parameter_groups(module, config, exempt)
    optimizer: torch.optim.Optimizer
    if name == "adamw":
        optimizer = adamw(groups, config.beta2)
    elif name == "lars":
        optimizer = LARS(groups)
    else:
        optimizer = torch.optim.SGD(groups, lr=0.0, momentum=0.9)
    return OptimizerSpec(optimizer=optimizer, learning_rate=learning_rate)


def stepped(config: OptimizerConfig, *at: float) -> Callable[[Step], float]:
    """A linear warm-up to a learning rate that is divided by 10 at each share of the training.

    Args:
        at: the shares, in [0, 1].
    """

    def learning_rate(step: Step) -> float:
        peak = config.base_lr * step.batch_size / 256
        level = warmup_cosine(step, peak, config.warmup, final=peak)
        return level * 0.1 ** sum(step.fraction >= share for share in at)

    return learning_rate


def distillation_recipe(module: nn.Module, config: SelfDistillationConfig) -> OptimizerSpec:
    """`recipe` with a weight decay that rises, and each gradient clipped by itself, as in DINO."""
    start, end = config.weight_decay, config.final_weight_decay
    return replace(
        recipe(module, config),
        weight_decay=lambda step: cosine(step.fraction, start, end),
        clip_norm=config.clip_grad,
        clip_each=True,
    )


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


def parameter_groups(
    module: nn.Module, config: OptimizerConfig, exempt: Sequence[str] = ()
) -> list[Group]:
    """The trainable parameters, those of one dimension and the biases exempt from weight decay.

    (As ``main_pretrain.py`` of MAE calls timm; class and mask tokens are decayed.) With
    ``decay_norm_and_bias`` all are decayed, as in MoCo v3.

    Args:
        exempt: names of parameters that are exempt, too.
    """
    if config.decay_norm_and_bias:
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        return [{"params": trained, "weight_decay": config.weight_decay}]
    groups = param_groups_weight_decay(module, config.weight_decay, no_weight_decay_list=exempt)
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


def warmup_cosine(step: Step, peak: float, warmup: float, final: float = 0.0) -> float:
    """Linear from 0 to the peak during the warm-up, then half a cosine to the final value.

    (``util/lr_sched.py``, facebookresearch/mae ``efb2a80``.)

    Args:
        warmup: fraction of the training that the warm-up takes, in [0, 1).
    """
    warmup_steps = round(warmup * step.total)
    if step.number < warmup_steps:
        return peak * step.number / warmup_steps
    done = (step.number - warmup_steps) / max(1, step.total - warmup_steps)
    return cosine(done, peak, final)


def cosine(done: float, start: float, end: float) -> float:
    """Half a cosine from the start, where nothing is done, to the end, where all (1) is."""
    return end + (start - end) * (1 + math.cos(math.pi * done)) / 2


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Give each group its share of the learning rate: ``lr_scale``, or all of it without one."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_scale", 1.0)
