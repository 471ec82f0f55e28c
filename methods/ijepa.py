"""I-JEPA: predict the features of hidden blocks of an image from those of a context block.

Assran et al.: *Self-Supervised Learning from Images with a Joint-Embedding Predictive
Architecture*, CVPR 2023, arXiv:2301.08243, after whose text this is written;
facebookresearch/ijepa ``52c1ae9``.

Deviations that give the same result for less work: patches are gathered before they are embedded,
and only the predicted tokens leave the predictor's last block.

Deviations that give different numbers:

- Sizes of blocks are drawn for each image, instead of for each batch of a GPU. Small ones are
  filled up with tokens that nothing attends to and no loss counts, so that shapes stay the same.
- Every context has the same share of the image's patches, chosen at random: a quarter, as in the
  paper's table 6. The official code cuts all contexts of a GPU's batch to the shortest one (from
  41 to 25.5 % of 14 x 14 patches on average), dropping patches from the lower right, so that what
  is seen of an image depends on its batch and on the number of GPUs. What the context block has too
  few of comes from beside it, and at last from the targets.
- No smallest number of patches is asked of a block. The official ten leave no block at all of a
  small grid, and its sampler searches for ever.
- A block may touch every border, and be as large as the image. The official one never reaches the
  last row and column, so that on usual grids its context block is always the same.
- A backbone's class token stays in both encoders, and out of the predictor; the paper's encoders,
  like those that timm calls ``gap``, have none. Their initial weights are every method's, and the
  predictor's are not divided by the root of twice the block's number where a block ends.
- The learning rate rises from zero instead of from a fifth of its peak. Schedules are one step
  behind the official ones, which begin with their second value.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise. Mixed precision is bf16 without loss scaling.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OneOf,
    OptimizerChoiceConfig,
    OptimizerSpec,
    Step,
    Uniform,
)
from ssl_bench.api.optimizers import cosine, recipe
from ssl_bench.api.parts import follow, frozen_copy, in_float32
from ssl_bench.errors import require
from ssl_bench.models import encoders, masking
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    base_lr: float = 1.25e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    final_lr: float = 0.001
    """Where the cosine ends, as a share of the highest learning rate."""
    weight_decay: float = 0.04
    """AdamW's decoupled weight decay at the start."""
    final_weight_decay: Annotated[float, "[0, 1]"] = 0.4
    """The same in the end, along a half cosine."""
    momentum: Annotated[float, "[0, 1]"] = 0.996
    """Momentum of the target encoder at the start; it rises to 1 along a line."""
    targets: Annotated[int, "[1, 100]"] = 4
    """Target blocks in an image."""
    min_target_scale: Annotated[float, "(0, 1]"] = 0.15
    """Smallest share of the image's patches in a target block."""
    max_target_scale: Annotated[float, "(0, 1]"] = 0.2
    """Largest share of the image's patches in a target block."""
    min_context_scale: Annotated[float, "(0, 1]"] = 0.85
    """Smallest share of the image's patches in the context block, targets included."""
    context_ratio: Annotated[float, "(0, 1)"] = 0.25
    """Share of the image's patches that the context encoder sees."""
    predictor_embed_dim: Annotated[int, "[1, inf)"] = 384
    """Width of the predictor, a multiple of 4 and of the encoder's attention heads."""
    predictor_depth: Annotated[int, "[1, inf)"] = 6
    """Transformer blocks in the predictor."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.3
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        low, high = self.min_target_scale, self.max_target_scale
        require(low <= high, f"--min-target-scale {low} is above max target scale {high}")


class IJEPA(Method):
    """A context encoder with a predictor, and a target encoder that follows and is evaluated.

    Shapes: B images, L patches, of which the context has K, N target blocks of M patches each.
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
        embed, self.prefix = self.encoder.patch_embed, self.encoder.num_prefix_tokens
        self.patch_size, self.grid = embed.patch_size[0], embed.grid_size
        scales = config.min_target_scale, config.max_target_scale
        blocks = config.targets, scales, config.min_context_scale
        self.masks = masking.MultiBlocks(self.grid, *blocks, config.context_ratio)
        self.predictor = _Predictor(self.encoder, config)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop."""
        crop = crop_and_flip(self.data.image_size, self.config.crop_scale, flip=0.0)
        return {"image": replace(crop, interpolation="bilinear")}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """How far the predicted features of the target blocks are from the target encoder's."""
        images_BCHW = batch.views["image"]
        context_BK, *targets = self.masks(batch.rng.uniform)
        features_BLD = self.target_features(images_BCHW)
        if batch.part == 0:
            middle = self.grid[0] // 2 * self.grid[1] + self.grid[1] // 2
            self.watch(features_BLD[:, middle])
        patches_BLP = encoders.patchify(images_BCHW, self.patch_size)
        context_BTD = encoders.encode_visible(self.context_encoder, patches_BLP, context_BK)
        predicted = self.predictor(context_BTD[:, self.prefix :], context_BK, *targets)
        targets_BNM, is_own_BM = targets
        wanted = encoders.take(features_BLD, targets_BNM.flatten(1)).view_as(predicted)
        return in_float32(distance)(predicted, wanted, is_own_BM)

    @torch.no_grad()
    def target_features(self, images_BCHW: Tensor) -> Tensor:
        """Every patch's features, as the target encoder makes them of whole images."""
        return self.encoder.forward_features(images_BCHW)[:, self.prefix :].float()

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

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        # 0.996 suits long trainings: a short one would leave the teacher near its initial weights.
        "momentum": OneOf((0.9, 0.96, 0.99, 0.996)),
        "final_weight_decay": LogUniform(0.04, 0.5),
        "context_ratio": Uniform(0.15, 0.5),
        "crop_scale": Uniform(0.2, 1.0),
    }


def distance(predicted_BNMD: Tensor, features_BNMD: Tensor, is_own_BM: Tensor) -> Tensor:
    """Smooth L1 distance from features that are normed without affine parameters.

    The mean over features, patches that are no filling, blocks and images.
    """
    wanted_BNMD = F.layer_norm(features_BNMD, features_BNMD.shape[-1:])
    errors_BNMD = F.smooth_l1_loss(predicted_BNMD, wanted_BNMD, reduction="none")
    own_BM = is_own_BM.to(errors_BNMD)
    return ((errors_BNMD.mean(dim=(1, 3)) * own_BM).sum(dim=1) / own_BM.sum(dim=1)).mean()


class _Predictor(nn.Module):
    """A narrow Vision Transformer, under the official names."""

    predictor_pos_embed: Tensor

    def __init__(self, encoder: Any, config: Config) -> None:
        super().__init__()
        width, heads = config.predictor_embed_dim, encoder.blocks[0].attn.num_heads
        step = math.lcm(4, heads)
        require(
            width % step == 0,
            f"--predictor-embed-dim {width} must be a multiple of 4 and of the encoder's {heads} "
            f"attention heads; {math.ceil(width / step) * step} would work",
        )
        layer_norm = partial(nn.LayerNorm, eps=1e-6)
        self.predictor_embed = nn.Linear(encoder.embed_dim, width)
        self.mask_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02))
        positions_LD = encoders.sincos_2d(width, *encoder.patch_embed.grid_size)
        self.predictor_pos_embed = nn.Parameter(positions_LD[None], requires_grad=False)
        block = partial(Block, width, heads, qkv_bias=True, norm_layer=layer_norm)
        self.predictor_blocks = nn.ModuleList(block() for _ in range(config.predictor_depth))
        self.predictor_norm = layer_norm(width)
        self.predictor_proj = nn.Linear(width, encoder.embed_dim)
        self.apply(init_weights_vit_timm)  # N(0, 0.02) and zeros

    def forward(
        self, context_BKD: Tensor, context_BK: Tensor, targets_BNM: Tensor, is_own_BM: Tensor
    ) -> Tensor:
        """Features of the patches of all target blocks, each block by itself: ``(B, N, M, D)``."""
        count, kept = targets_BNM.shape[1], context_BK.shape[1]
        positions_1LD = self.predictor_pos_embed
        seen_BKD = self.predictor_embed(context_BKD) + encoders.take(positions_1LD, context_BK)
        wanted = self.mask_token + encoders.take(positions_1LD, targets_BNM.flatten(0, 1))
        tokens = torch.cat([seen_BKD.repeat_interleave(count, dim=0), wanted], dim=1)
        attended_BT = F.pad(is_own_BM, (kept, 0), value=True)
        attended = attended_BT.repeat_interleave(count, dim=0)[:, None, None]
        *blocks, last = self.predictor_blocks
        for block in blocks:
            tokens = block(tokens, attn_mask=attended)
        wanted = encoders.block_at(last, tokens, slice(kept, None), attended)
        return self.predictor_proj(self.predictor_norm(wanted)).unflatten(0, (-1, count))
