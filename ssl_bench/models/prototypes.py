"""What a student learns from its teacher in DINO and after it: assignments to prototypes.

Shapes: V views, of which the teacher has seen the first T, B images, K prototypes, D features.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.config.recipes import SelfDistillationConfig
from ssl_bench.distributed import collectives

_STUDENT_TEMPERATURE = 0.1
_SINKHORN_ROUNDS = 3


class PrototypeHead(nn.Module):
    """Three layers to a bottleneck of length 1, and its products with prototypes.

    (``vision_transformer.py``, facebookresearch/dino ``7c446df``, whose names of weights it has.)

    Args:
        width: of the features that it takes.
        prototypes: how many; 0 for none, which leaves the bottleneck.
        config: the widths, and whether every prototype keeps its length of 1.
    """

    def __init__(self, width: int, prototypes: int, config: SelfDistillationConfig) -> None:
        super().__init__()
        hidden, bottleneck = config.head_hidden_dim, config.head_bottleneck_dim
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
        self.last_layer = (
            _NormedLinear(bottleneck, prototypes, config.norm_last_layer)
            if prototypes
            else nn.Identity()
        )

    def forward(self, features_BD: Tensor) -> Tensor:
        """Logits: ``(..., prototypes)``."""
        return self.last_layer(self.bottleneck(features_BD))

    def bottleneck(self, features_BD: Tensor) -> Tensor:
        """What prototypes are multiplied with, of length 1: ``(..., bottleneck)``."""
        return F.normalize(self.mlp(features_BD), dim=-1)

    def freeze_prototypes(self) -> None:
        """Drop their gradients: an optimiser then does not even decay them."""
        for parameter in self.last_layer.parameters():
            parameter.grad = None


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


def sinkhorn(logits_NK: Tensor, temperature: float) -> Tensor:
    """The teacher's assignments, with each prototype as often as any other over all ranks.

    (``loss/dino_clstoken_loss.py``, facebookresearch/dinov2 ``b8931f7``.)
    """
    weights_NK = (logits_NK / temperature).exp()
    weights_NK = weights_NK / collectives.total(weights_NK.sum())
    for _ in range(_SINKHORN_ROUNDS):
        weights_NK = weights_NK / collectives.total(weights_NK.sum(dim=0, keepdim=True))
        weights_NK = weights_NK / weights_NK.sum(dim=1, keepdim=True)
    return weights_NK


def between_views(student_VBK: Tensor, teacher_TBK: Tensor) -> Tensor:
    """Cross-entropy of the student's other views with each of the teacher's, mean over pairs.

    Args:
        student_VBK: logits of all views, those that the teacher has seen first.
        teacher_TBK: assignments.
    """
    return -agreement((student_VBK / _STUDENT_TEMPERATURE).log_softmax(dim=-1), teacher_TBK)


def agreement(student_VBD: Tensor, teacher_TBD: Tensor) -> Tensor:
    """Inner product of the student's other views with each of the teacher's, mean over pairs."""
    views, seen = len(student_VBD), len(teacher_TBD)
    every = (teacher_TBD.sum(dim=0) * student_VBD.sum(dim=0)).sum(dim=-1)
    same = (teacher_TBD * student_VBD[:seen]).sum(dim=(0, -1))
    return (every - same).mean() / (seen * (views - 1))


def of_hidden_patches(
    student_PK: Tensor, teacher_PK: Tensor, hidden_BL: Tensor, index_P: Tensor
) -> Tensor:
    """Cross-entropy with the teacher of the same patches: each image's mean over its hidden ones.

    Then the mean over images; one with nothing hidden counts as zero.

    Args:
        student_PK: logits of some patches, among which all hidden ones are.
        teacher_PK: assignments of the same.
        hidden_BL: which of all patches are hidden.
        index_P: which of ``(B * L)`` patches they are.
    """
    log_PK = (student_PK / _STUDENT_TEMPERATURE).log_softmax(dim=-1)
    weight_BL = hidden_BL.to(log_PK)
    weight_BL = weight_BL / weight_BL.sum(dim=1, keepdim=True).clamp(min=1) / len(weight_BL)
    return -(teacher_PK * log_PK).sum(dim=-1) @ weight_BL.flatten()[index_P]


def coding_rate(features_TBD: Tensor, epsilon: float) -> Tensor:
    """How much volume all ranks' features of a view take, mean over views.

    (Wu et al., arXiv:2502.10385; ``simdino/main_dino.py``, RobinWu218/SimDINO ``8149fc4``, with its
    factor, and with the covariance over all ranks.)
    """
    width, count = features_TBD.shape[-1], features_TBD.shape[1] * collectives.world_size()
    moments_TDD = collectives.sum_with_gradient(features_TBD.transpose(1, 2) @ features_TBD)
    identity_DD = torch.eye(width, device=features_TBD.device, dtype=features_TBD.dtype)
    rates_T = torch.linalg.slogdet(identity_DD + width / (count * epsilon) * moments_TDD)[1] / 2
    return rates_T.mean() * (width + count) / (width * count)
