"""Assignments to prototypes, as a student learns them from its teacher in DINO and after it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.distributed import collectives

_STUDENT_TEMPERATURE = 0.1


class PrototypeHead(nn.Module):
    """Three layers to a bottleneck of length 1, and its products with prototypes.

    (``vision_transformer.py``, facebookresearch/dino ``7c446df``, whose names of weights it has.)

    Args:
        width: of the features that it takes.
        fixed_norms: keep every prototype at length 1.
    """

    def __init__(
        self,
        width: int,
        prototypes: int,
        hidden: int = 2048,
        bottleneck: int = 256,
        fixed_norms: bool = True,
    ) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, bottleneck),
        )
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.last_layer = _NormedLinear(bottleneck, prototypes, fixed_norms)

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits: ``(..., prototypes)``."""
        return self.last_layer(F.normalize(self.mlp(features_BD), dim=-1))


class _NormedLinear(nn.Module):
    def __init__(self, inputs: int, outputs: int, fixed_norms: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(outputs, 1), requires_grad=not fixed_norms)
        self.weight_v = nn.Parameter(nn.Linear(inputs, outputs, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


def sharpened(logits: Tensor, center_K: Tensor, temperature: float) -> Tensor:
    """The teacher's assignments: softmax of what is centred, over a temperature."""
    return ((logits - center_K) / temperature).softmax(dim=-1)


def sinkhorn(logits_NK: Tensor, temperature: float, rounds: int = 3) -> Tensor:
    """The teacher's assignments, with each prototype as often as any other over all ranks.

    (``loss/dino_clstoken_loss.py``, facebookresearch/dinov2 ``b8931f7``.)
    """
    weights_NK = (logits_NK / temperature).exp()
    weights_NK = weights_NK / collectives.total(weights_NK.sum())
    for _ in range(rounds):
        weights_NK = weights_NK / collectives.total(weights_NK.sum(dim=0, keepdim=True))
        weights_NK = weights_NK / weights_NK.sum(dim=1, keepdim=True)
    return weights_NK


def between_views(student_VBK: Tensor, teacher_TBK: Tensor) -> Tensor:
    """Cross-entropy of the student's other views with each of the teacher's, mean over pairs.

    Args:
        student_VBK: logits of all views, those that the teacher has seen first.
        teacher_TBK: assignments.
    """
    log_VBK = (student_VBK / _STUDENT_TEMPERATURE).log_softmax(dim=-1)
    views, seen = len(student_VBK), len(teacher_TBK)
    every = (teacher_TBK.sum(dim=0) * log_VBK.sum(dim=0)).sum(dim=-1)
    same = (teacher_TBK * log_VBK[:seen]).sum(dim=(0, -1))
    return -(every - same).mean() / (seen * (views - 1))
