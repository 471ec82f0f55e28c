"""DINO: a student assigns crops of an image to prototypes as its teacher assigns other crops.

Caron et al.: *Emerging Properties in Self-Supervised Vision Transformers*, ICCV 2021,
arXiv:2104.14294; ``main_dino.py``, ``utils.py`` and ``vision_transformer.py``,
facebookresearch/dino ``7c446df``. The teacher is what is evaluated.

Options beyond the paper are DINOv2's (Oquab et al., arXiv:2304.07193; facebookresearch/dinov2
``b8931f7``): ``--koleo`` spreads the large crops' features, ``--centering sinkhorn`` balances the
teacher's assignments instead of centring them. The former is lightly's, of all ranks' features.

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

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
from lightly.loss import KoLeoLoss
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OptimizerChoiceConfig,
    OptimizerSpec,
    Step,
    Uniform,
)
from ssl_bench.api.optimizers import cosine, recipe
from ssl_bench.api.parts import follow, frozen_copy, in_float32
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.models.prototypes import PrototypeHead, between_views, sharpened, sinkhorn
from ssl_bench.transforms.augmentations import Augmentation, dino_views


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the official code's for ViT-S on ImageNet."""

    base_lr: float = 5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    final_lr: float = 0.001
    """Where the cosine ends, as a share of the highest learning rate."""
    weight_decay: float = 0.04
    """AdamW's decoupled weight decay at the start."""
    final_weight_decay: Annotated[float, "[0, 1]"] = 0.4
    """The same in the end, along a half cosine."""
    prototypes: Annotated[int, "[2, inf)"] = 65536
    """What features are assigned to; small data do with 2,048 to 8,192."""
    head_hidden_dim: Annotated[int, "[1, inf)"] = 2048
    """Hidden width of the projection head."""
    head_bottleneck_dim: Annotated[int, "[1, inf)"] = 256
    """Width before the prototypes."""
    norm_last_layer: bool = True
    """Keep the prototypes' norms fixed, which stabilises the training."""
    freeze_last_layer: Annotated[int, "[0, 10000]"] = 1
    """Epochs at the start in which the prototypes stay as they are."""
    momentum: Annotated[float, "[0, 1]"] = 0.996
    """Momentum of the teacher at the start; it rises to 1 along a half cosine."""
    center_momentum: Annotated[float, "[0, 1]"] = 0.9
    """Momentum of the centre of the teacher's logits."""
    centering: Literal["mean", "sinkhorn"] = "mean"
    """What keeps the teacher from a few prototypes: a running mean, or balance in each batch."""
    teacher_temp: Annotated[float, "[0.001, 10]"] = 0.04
    """Temperature of the teacher."""
    warmup_teacher_temp: Annotated[float, "[0.001, 10]"] = 0.04
    """Temperature of the teacher in the first epoch."""
    temp_warmup: Annotated[float, "[0, 1]"] = 0.3
    """Share of the training's epochs in which the teacher's temperature changes."""
    clip_grad: Annotated[float, "(0, inf)"] = 3.0
    """Largest norm of each parameter's own gradient."""
    drop_path: Annotated[float, "[0, 1)"] = 0.1
    """Stochastic depth of the student's last block."""
    koleo: Annotated[float, "[0, 100]"] = 0.0
    """Weight of DINOv2's spreading of features; there it is 0.1."""
    local_crops: Annotated[int, "[0, 100]"] = 8
    """Small crops beside the two large ones."""
    crop_scale: Annotated[float, "(0.05, 1]"] = 0.4
    """Smallest share of an image's area that a large crop keeps, and the largest that a small one
    does."""


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
        self.student_head = PrototypeHead(
            encoders.width(backbone),
            config.prototypes,
            config.head_hidden_dim,
            config.head_bottleneck_dim,
            config.norm_last_layer,
        )
        self.teacher_head = frozen_copy(self.student_head)
        self.register_buffer("center_K", torch.zeros(config.prototypes))
        self.mean_K: Tensor | None = None

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """Whether the prototypes would stay as they are to the end."""
        frozen = config.freeze_last_layer
        if frozen < epochs:
            return None
        return (
            f"freeze last layer {frozen} leaves none of the {epochs:g} epochs to train the "
            f"prototypes in; --freeze-last-layer {math.ceil(epochs) - 1} would work"
        )

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
            self.mean_K = teacher_TBK.mean(dim=(0, 1))
            assigned_TBK = self.assign(teacher_TBK, step)
        features_VBD = encoders.represent_views(self.student, views)
        self.watch(features_VBD[0])
        losses = {"dino": in_float32(between_views)(self.student_head(features_VBD), assigned_TBK)}
        if self.config.koleo:
            losses["koleo"] = self.config.koleo * sum(map(koleo, features_VBD[:2]))
        return losses

    def assign(self, teacher_TBK: Tensor, step: Step) -> Tensor:
        """The teacher's assignments of its two views."""
        temperature = self.teacher_temperature(step)
        if self.config.centering == "mean":
            return sharpened(teacher_TBK, self.center_K, temperature)
        return sinkhorn(teacher_TBK.flatten(0, 1), temperature).view_as(teacher_TBK)

    def teacher_temperature(self, step: Step) -> float:
        """Changes in equal steps from epoch to epoch, then stays."""
        first, last = self.config.warmup_teacher_temp, self.config.teacher_temp
        epochs = round(self.config.temp_warmup * step.total / step.per_epoch)
        if step.epoch >= epochs:
            return last
        return first + (last - first) * step.epoch / max(1, epochs - 1)

    def optimizer(self) -> OptimizerSpec:
        """AdamW, with a weight decay that rises, and each gradient clipped by itself."""
        start, end = self.config.weight_decay, self.config.final_weight_decay
        return replace(
            recipe(self, self.config),
            weight_decay=lambda step: cosine(step.fraction, start, end),
            clip_norm=self.config.clip_grad,
            clip_each=True,
        )

    def before_optimizer_step(self, step: Step) -> None:
        """Prototypes without a gradient are not even decayed."""
        if step.epoch < self.config.freeze_last_layer:
            for parameter in self.student_head.last_layer.parameters():
                parameter.grad = None

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """Move the teacher's parameters towards the student's, and the centre to its logits."""
        momentum = cosine(step.fraction, self.config.momentum, 1.0)
        follow(self.encoder, self.student, momentum)
        follow(self.teacher_head, self.student_head, momentum)
        assert self.mean_K is not None
        self.center_K.lerp_(collectives.mean(self.mean_K), 1 - self.config.center_momentum)
        self.mean_K = None

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "momentum": Uniform(0.98, 0.9995),
        "teacher_temp": Uniform(0.02, 0.08),
        "final_weight_decay": LogUniform(0.04, 0.5),
        "crop_scale": Uniform(0.14, 0.5),
    }


@in_float32
def koleo(features_BD: Tensor) -> Tensor:
    """Mean negative log of the distance to the nearest neighbour among all ranks' features."""
    return KoLeoLoss()(collectives.gather_with_gradient(features_BD))
