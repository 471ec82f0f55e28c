"""I-JEPA: predict the features of hidden blocks of an image from those of a context block.

Assran et al.: *Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture*, CVPR 2023, arXiv:2301.08243, after whose text this is written;
facebookresearch/ijepa ``52c1ae9``. The target encoder is what is evaluated.

The sizes of the blocks are drawn for each step, their positions for each image. One number tells
both the scale and the aspect of the target blocks, as in the official code.

Deviations that give the same result for less work:

- Patches are gathered before they are embedded.
- Only the predicted tokens leave the predictor's last block.

Deviations that give different numbers:

- Every context has the same share of the image's patches, the paper's average, chosen at random.
  The official code cuts all contexts of a GPU to the shortest one, dropping patches from the lower
  right, so that masks depend on the rest of the batch. What the context block has too few of comes
  from beside it, and at last from the targets.
- No smallest number of patches is asked of a block. The official ten leave no block at all of a
  small grid, and its sampler searches for ever.
- A block may touch every border, and be as large as the image. The official one never reaches the
  last row and column, so that on usual grids its context block is always the same.
- A backbone's class token stays in both encoders, attended to and neither predicted nor told to the
  predictor; the paper's has none. Those that timm calls ``gap`` have none either.
- The encoder starts from the weights that every method starts from, not from N(0, 0.02).
- The learning rate rises from zero instead of from a fifth of its peak. Schedules are one step
  behind the official ones, which begin with their second value.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise. Mixed precision is bf16 without loss scaling.

A step's cost depends on the size of its target blocks; what is counted is that of the first step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
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
from ssl_bench.errors import above, require, within
from ssl_bench.models import encoders, masking
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip
from ssl_bench.utils import rng

_TARGET_ASPECTS = (0.75, 1.5)


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    base_lr: float = 1.25e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    final_lr: float = 0.001
    """Where the cosine ends, as a share of the highest learning rate, in [0, 1]."""
    weight_decay: float = 0.04
    """AdamW's decoupled weight decay at the start."""
    final_weight_decay: float = 0.4
    """The same in the end, along a half cosine."""
    momentum: float = 0.996
    """Momentum of the target encoder at the start; it rises to 1 along a line."""
    targets: int = 4
    """Target blocks in an image."""
    min_target_scale: float = 0.15
    """Smallest share of the image's patches in a target block, in (0, 1]."""
    max_target_scale: float = 0.2
    """Largest share of the image's patches in a target block, in (0, 1]."""
    min_context_scale: float = 0.85
    """Smallest share of the image's patches in the context block, targets included, in (0, 1]."""
    context_ratio: float = 0.25
    """Share of the image's patches that the context encoder sees, in (0, 1)."""
    predictor_embed_dim: int = 384
    """Width of the predictor, a multiple of 4 and of the encoder's attention heads."""
    predictor_depth: int = 6
    """Transformer blocks in the predictor."""
    crop_scale: float = 0.3
    """Smallest share of an image's area that a random crop keeps, in (0, 1]; 1 crops nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        within("final weight decay", self.final_weight_decay, "[0, 1]")
        within("momentum", self.momentum, "[0, 1]")
        within("context ratio", self.context_ratio, "(0, 1)")
        for name in ("targets", "predictor_embed_dim", "predictor_depth"):
            above(name.replace("_", " "), getattr(self, name), 0)
        for name in ("min_target_scale", "max_target_scale", "min_context_scale", "crop_scale"):
            within(name.replace("_", " "), getattr(self, name), "(0, 1]")
        require(
            self.min_target_scale <= self.max_target_scale,
            f"min target scale {self.min_target_scale} is above max target scale "
            f"{self.max_target_scale}",
        )


class IJEPA(Method):
    """A context encoder with a predictor, and a target encoder that follows.

    Shapes: B images, L patches, of which the context has K, N target blocks of M patches each.

    Attributes:
        encoder: the target encoder.
        middles: features of each image's middle patch, by where its part of the batch begins.
    """

    version = 1
    paper = "Assran et al., CVPR 2023"
    needs = ("ViT", "momentum encoder")
    per_sample_loss = True
    presets = {
        "quick": {
            "epochs": 4,
            "base_lr": 1e-3,
            "predictor_embed_dim": 64,
            "predictor_depth": 2,
            "crop_scale": 1.0,
        },
        "small": {"base_lr": 5e-4, "predictor_embed_dim": 96, "predictor_depth": 4},
        **{
            f"imagenet-ijepa-{size}": {
                "data": "./imagenet",
                "backbone": f"{backbone}_gap_224",
                "image_size": 224,
                "patch_size": patch_size,
                "epochs": epochs,
                "batch_size": 2048,
                "warmup": warmup / epochs,
                "predictor_depth": depth,
                "evals": ("linear-paper",),
            }
            for size, backbone, patch_size, epochs, warmup, depth in (
                ("vitb", "vit_base_patch16", 16, 600, 15, 6),
                ("vith", "vit_huge_patch14", 14, 300, 40, 12),
            )
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, frozen_copy(encoders.require_vit(backbone, "I-JEPA")), data)
        self.context_encoder: nn.Module = backbone
        embed = self.encoder.patch_embed
        self.patch_size, self.grid = embed.patch_size[0], embed.grid_size
        require(
            embed.num_patches > 1,
            "an image of one patch has no context to predict it from; a smaller patch size would "
            "work",
        )
        self.kept = max(1, int(embed.num_patches * config.context_ratio))
        self.prefix = self.encoder.num_prefix_tokens
        heads = self.encoder.blocks[0].attn.num_heads
        shape = config.predictor_embed_dim, config.predictor_depth, heads
        self.predictor = _Predictor(self.encoder.embed_dim, self.grid, *shape)
        self.middles: dict[int, Tensor] = {}

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop."""
        crop = crop_and_flip(self.data.image_size, self.config.crop_scale, flip=0.0)
        return {"image": replace(crop, interpolation="bilinear")}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """How far the predicted features of the target blocks are from the target encoder's."""
        images_BCHW = batch.views["image"]
        context_BK, targets_BNM = self.masks(batch, step)
        features_BLD = self.target_features(images_BCHW)
        # Parts of a batch may come in any order.
        middle = self.grid[0] // 2 * self.grid[1] + self.grid[1] // 2
        self.middles[int(batch.rng.samples_B.storage_offset())] = features_BLD[:, middle]
        return self.prediction_loss(images_BCHW, features_BLD, context_BK, targets_BNM)

    def masks(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """Patches of the contexts and of the target blocks: int64 ``(B, K)`` and ``(B, N, M)``."""
        config, grid = self.config, self.grid
        generator = rng.generator(batch.rng.seed, "block sizes", step.number)
        first, second = torch.rand(2, generator=generator).tolist()
        scales = config.min_target_scale, config.max_target_scale
        target = masking.block_size(first, scales, _TARGET_ASPECTS, grid)
        context = masking.block_size(second, (config.min_context_scale, 1.0), (1.0, 1.0), grid)
        noise = batch.rng.uniforms(
            {"targets": 2 * config.targets, "context": 2, "patches": math.prod(grid)}
        )
        targets_BNM = masking.block_patches(noise["targets"], target, grid)
        inside_BM = masking.block_patches(noise["context"], context, grid).flatten(1)
        hidden_BM = targets_BNM.flatten(1)
        return masking.inside_alone(noise["patches"], inside_BM, hidden_BM, self.kept), targets_BNM

    @torch.no_grad()
    def target_features(self, images_BCHW: Tensor) -> Tensor:
        """Every patch's features, as the target encoder makes them of whole images."""
        return self.encoder.forward_features(images_BCHW)[:, self.prefix :].float()

    def prediction_loss(
        self, images_BCHW: Tensor, features_BLD: Tensor, context_BK: Tensor, targets_BNM: Tensor
    ) -> Tensor:
        """Smooth L1 distance, mean over images, blocks, patches and features."""
        patches_BLP = encoders.patchify(images_BCHW, self.patch_size)
        context_BTD = encoders.encode_visible(self.context_encoder, patches_BLP, context_BK)
        predicted = self.predictor(context_BTD[:, self.prefix :], context_BK, targets_BNM)
        return in_float32(distance)(predicted, encoders.take(features_BLD, targets_BNM.flatten(1)))

    def optimizer(self) -> OptimizerSpec:
        """AdamW, with a weight decay that rises."""
        start, end = self.config.weight_decay, self.config.final_weight_decay
        return replace(
            recipe(self, self.config), weight_decay=lambda step: cosine(step.fraction, start, end)
        )

    def after_optimizer_step(self, step: Step) -> None:
        """Move the target encoder's parameters towards the context encoder's."""
        momentum = self.config.momentum
        follow(self.encoder, self.context_encoder, momentum + (1 - momentum) * step.fraction)
        self.watch(torch.cat([self.middles[start] for start in sorted(self.middles)]))
        self.middles.clear()

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "momentum": Uniform(0.98, 0.9995),
        "final_weight_decay": LogUniform(0.04, 0.5),
        "context_ratio": Uniform(0.15, 0.5),
        "crop_scale": Uniform(0.2, 1.0),
    }


def distance(predicted_BTD: Tensor, features_BTD: Tensor) -> Tensor:
    """Smooth L1 distance from features that are normed without affine parameters; the mean."""
    return F.smooth_l1_loss(predicted_BTD, F.layer_norm(features_BTD, features_BTD.shape[-1:]))


class _Predictor(nn.Module):
    """A narrow Vision Transformer, under the official names."""

    predictor_pos_embed: Tensor

    def __init__(self, features: int, grid: tuple[int, int], width: int, depth: int, heads: int):
        super().__init__()
        step = math.lcm(4, heads)
        require(
            width % step == 0,
            f"predictor embed dim {width} must be a multiple of 4 and of the encoder's {heads} "
            f"attention heads; {math.ceil(width / step) * step} would work",
        )
        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.predictor_embed = nn.Linear(features, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        positions_LD = encoders.sincos_2d(width, *grid)
        self.predictor_pos_embed = nn.Parameter(positions_LD[None], requires_grad=False)
        self.predictor_blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, norm_layer=layer_norm) for _ in range(depth))
        )
        self.predictor_norm = layer_norm(width)
        self.predictor_proj = nn.Linear(width, features)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, context_BKD: Tensor, context_BK: Tensor, targets_BNM: Tensor) -> Tensor:
        """Features of the patches of all target blocks, each block by itself: ``(B, N * M, D)``."""
        count, positions_1LD = targets_BNM.shape[1], self.predictor_pos_embed
        seen_BKD = self.predictor_embed(context_BKD) + encoders.take(positions_1LD, context_BK)
        wanted = self.mask_token + encoders.take(positions_1LD, targets_BNM.flatten(0, 1))
        tokens = torch.cat([seen_BKD.repeat_interleave(count, dim=0), wanted], dim=1)
        tokens = self.predictor_blocks[:-1](tokens)
        wanted = encoders.block_at(
            self.predictor_blocks[-1], tokens, slice(context_BK.shape[1], None)
        )
        predicted = self.predictor_proj(self.predictor_norm(wanted))
        return predicted.unflatten(0, (-1, count)).flatten(1, 2)
