"""A student that follows a teacher: a method that uses all of the contract."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, Method, OptimizerSpec, Step
from ssl_bench.api.optimizers import cosine, freeze
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation


@dataclass(frozen=True)
class Config:
    """None of AdamW's flags."""

    clip: float | None = 0.01
    """Largest norm of a gradient."""
    clip_each: bool = False
    """Clip each parameter's gradient by itself."""


class Teaching(Method):
    """A student sees crops of two sizes, a teacher follows it; a queue remembers features."""

    queue_QD: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, copy.deepcopy(backbone).requires_grad_(False), data)
        self.student = encoders.require_vit(backbone, "teaching")
        freeze(backbone, "patch_embed")
        self.head = nn.Linear(encoders.width(backbone), 8)
        self.register_buffer("queue_QD", torch.zeros(4, 8))
        self.calls: list[tuple[str, int]] = []

    def transforms(self) -> Mapping[str, Augmentation]:
        """A large and a small crop."""
        size = self.data.image_size
        return {
            "global": Augmentation(size=size, crop_scale=(0.5, 1.0)),
            "local": Augmentation(size=size // 2, crop_scale=(0.1, 0.5)),
        }

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Distance to the teacher, and how far all ranks' features are from being white."""
        assert batch.labels_B is None
        self.calls.append(("loss", step.number))
        student_BD, large_BD = (
            self.head(encoders.represent(self.student, batch.views[name])).float()
            for name in ("local", "global")
        )
        with torch.no_grad():
            teacher_BD = self.head(encoders.represent(self.encoder, batch.views["global"])).float()
            remembered_D = self.queue_QD.mean(0)
            self.queue_QD.copy_(self.queue_QD.roll(1, 0))
            self.queue_QD[0] = collectives.mean(teacher_BD.mean(0))
        rows_ND = collectives.gather_with_gradient(torch.cat([student_BD, large_BD]))
        centred_ND = rows_ND - rows_ND.mean(0)
        covariance_DD = centred_ND.T @ centred_ND / len(rows_ND)
        identity_DD = torch.eye(8, device=covariance_DD.device)
        return {
            "distance": (student_BD - teacher_BD - remembered_D).square().mean(),
            "whiteness": (covariance_DD - identity_DD).square().mean(),
        }

    def optimizer(self) -> OptimizerSpec:
        """SGD: the head's weight at a constant rate, the rest by a cosine."""
        student = [p for p in self.student.parameters() if p.requires_grad]
        groups = [
            {"params": student, "weight_decay": 0.1},
            {"params": [self.head.weight], "schedule": "constant", "lr_scale": 2.0},
            {"params": [self.head.bias], "weight_decay": 0.0},
        ]
        return OptimizerSpec(
            optimizer=torch.optim.SGD(groups, lr=0.0, momentum=0.9, weight_decay=0.3),
            learning_rate=lambda step: cosine(step.fraction, 0.5, 0.1),
            schedules={"constant": lambda step: 0.25},
            weight_decay=lambda step: 0.01 * step.number,
            clip_norm=self.config.clip,
            clip_each=self.config.clip_each,
        )

    def before_optimizer_step(self, step: Step) -> None:
        """The head stands still in the first epoch."""
        self.calls.append(("before", step.number))
        if step.epoch == 0:
            self.head.weight.grad = None

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """The teacher follows."""
        self.calls.append(("after", step.number))
        for slow, fast in zip(self.encoder.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 0.5)
