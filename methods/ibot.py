"""iBOT: DINO whose student also guesses what its teacher makes of patches that are hidden from it.

Zhou, Wei, Wang, Shen, Xie, Yuille, Kong: *iBOT: Image BERT Pre-Training with Online Tokenizer*,
ICLR 2022, arXiv:2111.07832; ``main_ibot.py``, ``loader.py`` and ``models/``, bytedance/ibot
``da316d8``. The teacher is what is evaluated. One head serves class tokens and patches. lightly's
loss of patches is not taken: it centres by the hidden ones alone, as in DINOv2, not by all.

Deviations that give the same result:

- Only hidden patches are multiplied with the prototypes, or, where shapes are fixed, as many of an
  image as may be hidden at most: the official loss multiplies the others by zero. What the centre
  takes of them is the product of their mean bottleneck with the prototypes, which is the mean of
  their products.
- The centres move at the end of a step, after the loss.

Deviations that give different numbers:

- Masks come from counter-based noise, a function of (seed, step, sample, view).
- Position embeddings are fixed sin-cos tables, as for every method here; the official are learned.
- Small crops are 96 of 224 pixels, or the next size that patches divide.
- The learning rate reaches its peak after the warm-up instead of in its last step.
- Losses are computed in float32; mixed precision is bf16 without loss scaling.
- Images are normalised by the training split's own mean and deviation; a blur is a true Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
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
from ssl_bench.models import encoders, masking
from ssl_bench.models.prototypes import PrototypeHead, between_views, of_hidden_patches, sharpened
from ssl_bench.transforms.augmentations import Augmentation, dino_views


@dataclass(frozen=True, kw_only=True)
class Config(SelfDistillationConfig):
    """The defaults are the official code's for ViT-S on ImageNet."""

    prototypes: int = 8192
    norm_last_layer: bool = False
    teacher_temp: float = 0.07
    temp_warmup: float = 30 / 800
    local_crops: int = 10
    crop_scale: float = 0.25
    patch_temp: Annotated[float, "[0.001, 10]"] = 0.07
    """Temperature of the teacher's patches."""
    warmup_patch_temp: Annotated[float, "[0.001, 10]"] = 0.04
    """Temperature of the teacher's patches in the first epoch."""
    patch_center_momentum: Annotated[float, "[0, 1]"] = 0.9
    """Momentum of the centre of the teacher's logits of patches."""
    mask_ratio: Annotated[float, "(0, 1)"] = 0.3
    """Share of a large crop's patches that are hidden, in the mean."""
    mask_spread: Annotated[float, "[0, 0.5]"] = 0.2
    """How far that share varies up and down, from crop to crop."""
    mask_probability: Annotated[float, "(0, 1]"] = 0.5
    """Share of the large crops that anything is hidden of."""
    sampling: Literal["block", "random"] = "block"
    """Which patches are hidden: rectangles of them, or any."""
    cls_weight: Annotated[float, "[0, 100]"] = 1.0
    """Weight of the class tokens' loss."""
    patch_weight: Annotated[float, "[0, 100]"] = 1.0
    """Weight of the hidden patches' loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.mask_spread <= self.mask_ratio < 1 - self.mask_spread,
            f"--mask-ratio {self.mask_ratio} with mask spread {self.mask_spread} leaves [0, 1); "
            f"a mask spread of {min(self.mask_ratio, 1 - self.mask_ratio) / 2:.2g} would work",
        )


class IBOT(Method):
    """A student, a teacher, and a head of prototypes for each; what the student sees is masked.

    Shapes: N large crops, both of each image, of L patches; P patches in all are compared.

    Attributes:
        encoder: the teacher's.
        center_K, patch_center_K: running means of the teacher's logits of class tokens and patches.
    """

    version = 1
    paper = "Zhou et al., ICLR 2022"
    needs = ("ViT", "multi-crop", "teacher")
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
            "teacher_temp": 0.04,
            "patch_temp": 0.04,
            "drop_path": 0.0,
            "local_crops": 2,
        },
        "small": {"prototypes": 4096, "local_crops": 6},
        "imagenet-ibot-vits": {
            "data": "./imagenet",
            "backbone": "vit_small_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "epochs": 800,
            "batch_size": 1024,
            "warmup": 10 / 800,
            "final_lr": 1e-6 / 2e-3,
            "evals": ("linear-paper", "finetune"),
        },
    }

    center_K: Tensor
    patch_center_K: Tensor

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        vit = encoders.require_vit(backbone, "iBOT")
        super().__init__(config, frozen_copy(vit), data)
        require(
            vit.cls_token is not None,
            "iBOT needs a Vision Transformer with a class token; vit_tiny_patch16_224 would work",
        )
        self.grid: tuple[int, int] = vit.patch_embed.grid_size
        require(
            min(self.grid) > 1,
            f"iBOT hides some of an image's patches, which are {self.grid[0]} x {self.grid[1]} "
            "here; a smaller --patch-size would work",
        )
        self.student = vit
        encoders.drop_paths(vit, config.drop_path)
        self.student_head = PrototypeHead(vit.embed_dim, config.prototypes, config)
        self.teacher_head = frozen_copy(self.student_head)
        self.masked_embed = nn.Parameter(torch.zeros(1, vit.embed_dim))
        self.prefix = vit.num_prefix_tokens
        self.most = math.ceil((config.mask_ratio + config.mask_spread) * math.prod(self.grid))
        self.register_buffer("center_K", torch.zeros(config.prototypes))
        self.register_buffer("patch_center_K", torch.zeros(config.prototypes))
        self.means_2K: Tensor | None = None

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """Whether the prototypes would stay as they are to the end."""
        return config.all_frozen(epochs)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two large crops, and the small ones."""
        local_size = encoders.local_size(self.encoder, self.data.image_size)
        config = self.config
        return dino_views(self.data.image_size, local_size, config.crop_scale, config.local_crops)

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Cross-entropy between the views of an image, and of what is hidden within each."""
        views = list(batch.views.values())
        large_NCHW = torch.cat(views[:2])
        hidden_NL = self.hide(batch)
        index_P = self.compared(hidden_NL)
        with torch.no_grad():
            assigned_TBK, assigned_PK = self.assign(large_NCHW, index_P, step)
        tokens_NTD = encoders.encode_tokens(self.student, large_NCHW, hidden_NL, self.masked_embed)
        features_VBD = tokens_NTD[:, 0].unflatten(0, (2, -1))
        if views[2:]:
            small_VBD = encoders.represent_views(self.student, views[2:])
            features_VBD = torch.cat([features_VBD, small_VBD])
        self.watch(features_VBD[0])
        student_PK = self.student_head(tokens_NTD[:, self.prefix :].flatten(0, 1)[index_P])
        cls = in_float32(between_views)(self.student_head(features_VBD), assigned_TBK)
        patches = in_float32(of_hidden_patches)(student_PK, assigned_PK, hidden_NL, index_P)
        return {"cls": self.config.cls_weight * cls, "patches": self.config.patch_weight * patches}

    def hide(self, batch: Batch) -> Tensor:
        """Which patches of each large crop are hidden from the student: bool ``(N, L)``."""
        config = self.config
        draws = [batch.rng.within(name) for name in list(batch.views)[:2]]

        def noise(purpose: str, count: int) -> Tensor:
            return torch.cat([each.uniform(purpose, count) for each in draws])

        chance_N, spread_N = noise("mask ratio", 2).unbind(1)
        ratio_N = config.mask_ratio + config.mask_spread * (2 * spread_N - 1)
        most_N = torch.where(chance_N < config.mask_probability, ratio_N * math.prod(self.grid), 0)
        if config.sampling == "block":
            return masking.blocks(noise, *self.grid, most_N)
        order_NL = masking.random_scores(noise, *self.grid).argsort(dim=1).argsort(dim=1)
        return order_NL < most_N.floor()[:, None]

    def compared(self, hidden_NL: Tensor) -> Tensor:
        """Patches among which all hidden ones are, as indices into ``(N * L)``."""
        if hidden_NL.device.type == "cpu" and not self.fixed_shapes:
            return hidden_NL.flatten().nonzero()[:, 0]
        order_NL = hidden_NL.int().argsort(dim=1, descending=True, stable=True)
        first_N1 = torch.arange(0, hidden_NL.numel(), hidden_NL.shape[1], device=order_NL.device)
        return (order_NL[:, : self.most] + first_N1[:, None]).flatten()

    def assign(self, large_NCHW: Tensor, index_P: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """The teacher's assignments of its views, ``(2, B, K)``, and of some of their patches."""
        config, logits = self.config, self.teacher_head.last_layer
        tokens_NTD = encoders.encode_tokens(self.encoder, large_NCHW)
        bottleneck_NTD = self.teacher_head.bottleneck(tokens_NTD).float()
        patches_NLD = bottleneck_NTD[:, self.prefix :]
        cls_TBK = logits(bottleneck_NTD[:, 0]).float().unflatten(0, (2, -1))
        patches_PK = logits(patches_NLD.flatten(0, 1)[index_P]).float()
        patch_mean_K = in_float32(logits.forward)(patches_NLD.mean(dim=(0, 1)))
        self.means_2K = torch.stack([cls_TBK.mean(dim=(0, 1)), patch_mean_K])
        share = config.temp_warmup
        temp = step.epoch_ramp(config.warmup_teacher_temp, config.teacher_temp, share)
        patch_temp = step.epoch_ramp(config.warmup_patch_temp, config.patch_temp, share)
        assigned_TBK = sharpened(cls_TBK, self.center_K, temp)
        return assigned_TBK, sharpened(patches_PK, self.patch_center_K, patch_temp)

    def optimizer(self) -> OptimizerSpec:
        """AdamW, with a weight decay that rises, and each gradient clipped by itself."""
        return distillation_recipe(self, self.config)

    def before_optimizer_step(self, step: Step) -> None:
        """Keep the prototypes as they are in the first epochs."""
        if step.epoch < self.config.freeze_last_layer:
            self.student_head.freeze_prototypes()

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """Move the teacher's parameters towards the student's, and the centres to its logits."""
        config = self.config
        momentum = cosine(step.fraction, config.momentum, 1.0)
        follow(self.encoder, self.student, momentum)
        follow(self.teacher_head, self.student_head, momentum)
        assert self.means_2K is not None
        mean_K, patch_mean_K = collectives.mean(self.means_2K)
        self.center_K.lerp_(mean_K, 1 - config.center_momentum)
        self.patch_center_K.lerp_(patch_mean_K, 1 - config.patch_center_momentum)
        self.means_2K = None

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        # Of a short training, 0.996 would leave the weights that it began with.
        "momentum": OneOf((0.9, 0.96, 0.99, 0.996)),
        "patch_temp": Uniform(0.02, 0.08),
        "final_weight_decay": LogUniform(0.04, 0.5),
        "crop_scale": Uniform(0.14, 1.0),
    }
