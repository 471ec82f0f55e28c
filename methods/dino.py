"""DINO: a student assigns crops of an image to prototypes as its teacher assigns other crops.

Caron et al.: *Emerging Properties in Self-Supervised Vision Transformers*, ICCV 2021,
arXiv:2104.14294; ``main_dino.py``, ``utils.py`` and ``vision_transformer.py``,
facebookresearch/dino ``7c446df``. The teacher is what is evaluated.

Options beyond the paper are DINOv2's (Oquab et al., arXiv:2304.07193; facebookresearch/dinov2
``b8931f7``): ``--koleo`` spreads the large crops' features, ``--centering sinkhorn`` balances the
teacher's assignments instead of centring them. The former is lightly's, of all ranks' features.
And ``--simdino`` (Wu et al., arXiv:2502.10385; RobinWu218/SimDINO ``8149fc4``): no prototypes, no
centre, no temperatures, but the heads' bottlenecks, whose coding rate keeps them from becoming
alike. It is that of all ranks' features, where the official code has each rank's own by default.

Deviation that gives the same result: the centre moves at the end of a step, after the loss.

Deviations that give different numbers:

- Position embeddings are fixed sin-cos tables, as for every method here, and interpolated with
  antialiasing for small crops; the official ones are learned.
- Small crops are 96 of 224 pixels, or the next size that patches divide. A backbone that is no
  Vision Transformer gets them at the image's size, and no stochastic depth.
- The learning rate reaches its peak after the warm-up, a share of the training, instead of in its
  last step, and ends at a share of the peak.
- Losses are computed in float32; mixed precision is bf16 without loss scaling.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from lightly.loss import KoLeoLoss
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OneOf,
    OptimizerSpec,
    SelfDistillationConfig,
    Step,
    Uniform,
)
from ssl_bench.api.optimizers import cosine, distillation_recipe
from ssl_bench.api.parts import follow, frozen_copy, in_float32
from ssl_bench.distributed import collectives
from ssl_bench.errors import require
from ssl_bench.models import encoders
from ssl_bench.models.prototypes import (
    PrototypeHead,
    agreement,
    between_views,
    coding_rate,
    sharpened,
    sinkhorn,
)
from ssl_bench.transforms.augmentations import Augmentation, dino_views


@dataclass(frozen=True, kw_only=True)
class Config(SelfDistillationConfig):
    """The defaults are the official code's for ViT-S on ImageNet."""

    centering: Literal["mean", "sinkhorn"] = "mean"
    """What keeps the teacher from a few prototypes: a running mean, or balance in each batch."""
    koleo: Annotated[float, "[0, 100]"] = 0.0
    """Weight of DINOv2's spreading of features; there it is 0.1."""
    simdino: bool = False
    """Compare the heads' bottlenecks, spread by their coding rate, without any prototypes."""
    coding_precision: Annotated[float, "(0, inf)"] = 0.05
    """How finely SimDINO's coding rate counts; smaller is finer."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not self.simdino or self.centering == "mean",
            f"SimDINO has no prototypes for {self.centering} to balance; leave --centering out",
        )


class DINO(Method):
    """A student and a teacher, each with a head of prototypes.

    Attributes:
        encoder: the teacher's.
        center_K: running mean of the teacher's logits.
    """

    version = 1
    paper = "Caron et al., ICCV 2021"
    needs = ("multi-crop", "teacher")
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {
            "epochs": 2,
            "base_lr": 1e-3,
            "prototypes": 2048,
            "head_hidden_dim": 512,
            "head_bottleneck_dim": 128,
            "freeze_last_layer": 0,
            "momentum": 0.99,
            "drop_path": 0.0,
            "local_crops": 2,
        },
        "small": {"prototypes": 4096, "local_crops": 6, "momentum": 0.996},
        "imagenet-dino-vits": {
            "data": "./imagenet",
            "backbone": "vit_small_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "epochs": 100,
            "batch_size": 512,
            "evals": ("linear-paper",),
        },
    }

    center_K: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, frozen_copy(backbone), data)
        self.student = backbone
        encoders.drop_paths(backbone, config.drop_path)
        prototypes = 0 if config.simdino else config.prototypes
        self.student_head = PrototypeHead(encoders.width(backbone), prototypes, config)
        self.teacher_head = frozen_copy(self.student_head)
        self.register_buffer("center_K", torch.zeros(prototypes))
        self.mean_K: Tensor | None = None

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """Whether the prototypes would stay as they are to the end."""
        return None if config.simdino else config.all_frozen(epochs)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two large crops, and the small ones."""
        local_size = encoders.local_size(self.encoder, self.data.image_size)
        config = self.config
        return dino_views(self.data.image_size, local_size, config.crop_scale, config.local_crops)

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy between the views of an image."""
        views = list(batch.views.values())
        with torch.no_grad():
            teacher_TBK = self.teacher_head(encoders.represent_views(self.encoder, views[:2]))
            teacher_TBK = teacher_TBK.float()
        features_VBD = encoders.represent_views(self.student, views)
        self.watch(features_VBD[0])
        student_VBK = self.student_head(features_VBD)
        if self.config.simdino:
            losses = simdino(student_VBK, teacher_TBK, epsilon=self.config.coding_precision)
        else:
            assigned_TBK = self.assign(teacher_TBK, step)
            losses = {"dino": in_float32(between_views)(student_VBK, assigned_TBK)}
        if self.config.koleo:
            losses["koleo"] = self.config.koleo * sum(map(koleo, features_VBD[:2]))
        return losses

    def assign(self, teacher_TBK: Tensor, step: Step) -> Tensor:
        """The teacher's assignments of its two views."""
        self.mean_K = teacher_TBK.mean(dim=(0, 1))
        temperature = self.teacher_temperature(step)
        if self.config.centering == "mean":
            return sharpened(teacher_TBK, self.center_K, temperature)
        return sinkhorn(teacher_TBK.flatten(0, 1), temperature).view_as(teacher_TBK)

    def teacher_temperature(self, step: Step) -> float:
        """Changes in equal steps from epoch to epoch, then stays."""
        config = self.config
        return step.epoch_ramp(config.warmup_teacher_temp, config.teacher_temp, config.temp_warmup)

    def optimizer(self) -> OptimizerSpec:
        """AdamW, with a weight decay that rises, and each gradient clipped by itself."""
        return distillation_recipe(self, self.config)

    def before_optimizer_step(self, step: Step) -> None:
        """Keep the prototypes as they are in the first epochs."""
        if step.epoch < self.config.freeze_last_layer:
            self.student_head.freeze_prototypes()

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """Move the teacher's parameters towards the student's, and the centre to its logits."""
        momentum = cosine(step.fraction, self.config.momentum, 1.0)
        follow(self.encoder, self.student, momentum)
        follow(self.teacher_head, self.student_head, momentum)
        if self.mean_K is not None:
            self.center_K.lerp_(collectives.mean(self.mean_K), 1 - self.config.center_momentum)
            self.mean_K = None

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        # Of a short training, 0.996 would leave the weights that it began with.
        "momentum": OneOf((0.9, 0.96, 0.99, 0.996)),
        "teacher_temp": Uniform(0.02, 0.08),
        "final_weight_decay": LogUniform(0.04, 0.5),
        "crop_scale": Uniform(0.14, 1.0),
    }


@in_float32
def simdino(student_VBD: Tensor, teacher_TBD: Tensor, *, epsilon: float) -> dict[str, Tensor]:
    """The views' cosines, and the coding rate of what student and teacher make of the large ones.

    Args:
        student_VBD, teacher_TBD: bottlenecks, of length 1.
    """
    middle_TBD = (student_VBD[: len(teacher_TBD)] + teacher_TBD) / 2
    return {
        "agreement": -agreement(student_VBD, teacher_TBD),
        "coding rate": -coding_rate(middle_TBD, epsilon),
    }


@in_float32
def koleo(features_BD: Tensor) -> Tensor:
    """Mean negative log of the distance to the nearest neighbour among all ranks' features."""
    return KoLeoLoss()(collectives.gather_with_gradient(features_BD))
