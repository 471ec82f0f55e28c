"""data2vec 2.0: predict a teacher's contextualised features of an image from small parts of it.

Baevski, Babu, Hsu, Auli: *Efficient Self-supervised Learning with Contextualized Target
Representations for Vision, Speech and Language*, ICML 2023, arXiv:2212.07525;
``examples/data2vec`` of facebookresearch/fairseq ``26323eb``, ``base_images_only_task.yaml``. The
student is what is evaluated: its authors fine-tune that, and leave the teacher out.

A target is what the feed-forward layers of a teacher's last blocks add, normalised over an image's
patches in each, averaged, and normalised over features. The teacher sees the image once, the
student under several masks, and a convolutional decoder fills in what each of them hides.

Deviation that gives the same result: patches are gathered before they are embedded.

Deviations that give different numbers:

- The encoder is every method's, with norms before attention and feed-forward layer and one at the
  end. The official one has them after each sum, as BERT, and one before the first block: no model
  of timm is so, which is why its files cannot be loaded. An encoder of its own would compare two
  things. Initial weights are every method's, too, the class token's included.
- The class token's loss is a mean over images, with a weight of 2.56. The official 0.01 weighs a
  sum over the 16 images of a GPU and their 16 masks, which is the same, for that many.
- What stands in the place of hidden patches is noise of the image, the same under all its masks.
- On a small grid a mask has at least one block; the official share of blocks may round to none.
- The teacher's momentum rises during a share of the training instead of 100,000 steps.
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
from ssl_bench.api.optimizers import recipe
from ssl_bench.api.parts import follow, frozen_copy, in_float32
from ssl_bench.errors import require
from ssl_bench.models import encoders, masking
from ssl_bench.transforms.augmentations import Augmentation, crop_and_flip


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the official code's for ViT-B on ImageNet."""

    base_lr: float = 1e-3
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    beta2: float = 0.95
    """AdamW's decay of the second moment."""
    clip_grad: Annotated[float, "(0, inf)"] = 4.0
    """Largest norm of the gradient."""
    momentum: Annotated[float, "[0, 1]"] = 0.9998
    """Momentum of the teacher at the start."""
    final_momentum: Annotated[float, "[0, 1]"] = 0.99999
    """Momentum of the teacher after it has risen along a line."""
    momentum_warmup: Annotated[float, "(0, 1]"] = 100_000 / 375_300
    """Share of the training during which the teacher's momentum rises."""
    target_layers: Annotated[int, "[1, inf)"] = 10
    """How many of the teacher's last blocks make the targets; all, where it has no more."""
    masks: Annotated[int, "[1, 1000]"] = 16
    """Masks of an image in a step."""
    mask_ratio: Annotated[float, "(0, 1)"] = 0.8
    """Share of the patches that a mask hides."""
    block_size: Annotated[int, "[1, inf)"] = 3
    """Side, in patches, of the squares that stay visible."""
    block_surplus: Annotated[float, "[0, 1)"] = 0.07
    """Share of the patches by which these squares have more of them, to make up for overlap."""
    mask_noise: Annotated[float, "[0, inf)"] = 0.01
    """Standard deviation of what the decoder gets in the place of hidden patches."""
    cls_weight: Annotated[float, "[0, 100]"] = 2.56
    """Weight of the class token's loss; 0 for an encoder without one."""
    decoder_embed_dim: Annotated[int, "[1, inf)"] = 768
    """Width of the decoder."""
    decoder_depth: Annotated[int, "[1, inf)"] = 6
    """Convolutions in the decoder."""
    decoder_kernel: Annotated[int, "[1, inf)"] = 3
    """Side of the convolutions, in patches, an odd number."""
    decoder_groups: Annotated[int, "[1, inf)"] = 16
    """Groups of channels in the convolutions; they divide the widths of encoder and decoder."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.momentum <= self.final_momentum,
            f"--momentum {self.momentum} is above final momentum {self.final_momentum}",
        )
        require(self.decoder_kernel % 2 == 1, f"--decoder-kernel {self.decoder_kernel} is not odd")


class Data2Vec(Method):
    """A student with a decoder, and a teacher that follows it.

    Shapes: B images, N masked images, several of each, L patches, of which K are visible.
    """

    version = 1
    paper = "Baevski et al., ICML 2023"
    needs = ("ViT", "teacher")
    per_sample_loss = True
    presets = {
        "quick": {
            "epochs": 2,
            "base_lr": 2e-3,
            "masks": 4,
            "mask_ratio": 0.6,
            "block_size": 2,
            "momentum": 0.99,
            "final_momentum": 0.999,
            "decoder_embed_dim": 64,
            "decoder_depth": 2,
            "crop_scale": 1.0,
        },
        "small": {
            "masks": 8,
            "momentum": 0.999,
            "final_momentum": 0.9999,
            "decoder_embed_dim": 192,
            "decoder_depth": 4,
        },
        "imagenet-data2vec-vitb": {
            "data": "./imagenet",
            "backbone": "vit_base_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "epochs": 75,
            "batch_size": 256,
            "warmup": 10 / 75,
            "evals": ("finetune",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, encoders.require_plain_blocks(backbone, "data2vec"), data)
        require(
            self.encoder.cls_token is not None or not config.cls_weight,
            "data2vec's loss of class tokens needs one; --cls-weight 0 would work",
        )
        self.teacher: Any = frozen_copy(self.encoder)
        self.teacher.blocks.used_in_parts = True
        embed, self.prefix = self.encoder.patch_embed, self.encoder.num_prefix_tokens
        self.patch_size = embed.patch_size[0]
        self.grid: tuple[int, int] = embed.grid_size
        self.kept = masking.count_kept(math.prod(self.grid), config.mask_ratio)
        share = 1 - config.mask_ratio + config.block_surplus
        self.blocks = max(1, int(math.prod(self.grid) * share / config.block_size**2))
        self.decoder = _Decoder(self.encoder.embed_dim, config)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a random crop, mirrored half of the time."""
        return {"image": crop_and_flip(self.data.image_size, self.config.crop_scale, 0.5)}

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Squared distances of predictions from the teacher's features, divided by their root."""
        images_BCHW, masks = batch.views["image"], self.config.masks
        targets_BLD = self.targets(images_BCHW)
        if batch.part == 0:
            middle = self.grid[0] // 2 * self.grid[1] + self.grid[1] // 2
            self.watch(targets_BLD[:, middle])
        visible_NK, hidden_NM = self.mask(batch)
        patches_BLP = encoders.patchify(images_BCHW, self.patch_size)
        patches_NLP = patches_BLP.repeat_interleave(masks, dim=0)
        tokens_NTD = encoders.encode_visible(self.encoder, patches_NLP, visible_NK)
        predicted_NLD = self.predict(tokens_NTD[:, self.prefix :], visible_NK, batch)
        targets_NLD = targets_BLD.repeat_interleave(masks, dim=0)
        predicted_NMD, wanted_NMD = (
            encoders.take(each, hidden_NM) for each in (predicted_NLD, targets_NLD)
        )
        losses = {"patches": in_float32(distance)(predicted_NMD, wanted_NMD)}
        if self.config.cls_weight:
            cls = in_float32(distance)(tokens_NTD[:, 0], targets_NLD.mean(dim=1))
            losses["cls"] = self.config.cls_weight * cls
        return losses

    @torch.no_grad()
    def targets(self, images_BCHW: Tensor) -> Tensor:
        """What the teacher makes of every patch of whole images: float32 ``(B, L, D)``."""
        layers = encoders.feed_forward_outputs(self.teacher, images_BCHW)
        return in_float32(contextualised)(
            *(each[:, self.prefix :] for each in layers[-self.config.target_layers :])
        )

    def mask(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Visible and hidden patches under each mask: int64 ``(N, K)``, ``(N, L - K)``."""
        count = self.config.masks

        def noise(purpose: str, numbers: int) -> Tensor:
            return batch.rng.uniform(purpose, count * numbers).view(-1, numbers)

        size = self.config.block_size
        scores_NL = masking.visible_block_scores(noise, *self.grid, self.blocks, size)
        return masking.split(scores_NL, self.kept)

    def predict(self, visible_NKD: Tensor, visible_NK: Tensor, batch: Batch) -> Tensor:
        """The features of all patches, from those of the visible ones: ``(N, L, D)``."""
        patches, width = math.prod(self.grid), visible_NKD.shape[-1]
        noise_BLD = batch.rng.normal("decoder", patches * width).view(-1, patches, width)
        filled_NLD = (self.config.mask_noise * noise_BLD).repeat_interleave(self.config.masks, 0)
        index_NKD = visible_NK[..., None].expand(-1, -1, width)
        filled_NLD = filled_NLD.to(visible_NKD).scatter(1, index_NKD, visible_NKD)
        return self.decoder(filled_NLD.transpose(1, 2).unflatten(2, self.grid))

    def optimizer(self) -> OptimizerSpec:
        """AdamW with clipping."""
        return replace(recipe(self, self.config), clip_norm=self.config.clip_grad)

    def after_optimizer_step(self, step: Step) -> None:
        """Move the teacher's parameters towards the student's."""
        start, end = self.config.momentum, self.config.final_momentum
        done = (step.number + 1) / (self.config.momentum_warmup * step.total)
        follow(self.teacher, self.encoder, start + (end - start) * min(1.0, done))

    search_space = {
        "base_lr": LogUniform(1e-4, 1e-2),
        "momentum": Uniform(0.98, 0.999),
        "mask_ratio": Uniform(0.5, 0.9),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.2, 1.0),
    }


def contextualised(*layers_BLD: Tensor) -> Tensor:
    """Each normalised over an image's patches, then their mean over its features: ``(B, L, D)``."""
    normed = [F.instance_norm(each.transpose(1, 2)).transpose(1, 2) for each in layers_BLD]
    mean_BLD = torch.stack(normed).mean(dim=0)
    return F.layer_norm(mean_BLD, mean_BLD.shape[-1:])


def distance(predicted: Tensor, wanted: Tensor) -> Tensor:
    """The squared distance of vectors by the root of their length, in the mean."""
    return (predicted - wanted).square().mean() * predicted.shape[-1] ** 0.5


class _Decoder(nn.Module):
    """Grouped convolutions over the grid, each with a norm of its channels and a shortcut."""

    def __init__(self, width: int, config: Config) -> None:
        super().__init__()
        inner, groups = config.decoder_embed_dim, config.decoder_groups
        fits = [each for each in range(1, groups + 1) if width % each == inner % each == 0]
        require(
            fits[-1] == groups,
            f"--decoder-groups {groups} must divide decoder embed dim {inner} and the encoder's "
            f"{width}; {fits[-1]} would work",
        )
        kernel = config.decoder_kernel
        convolution = partial(nn.Conv2d, kernel_size=kernel, padding=kernel // 2, groups=groups)
        widths = [width, *[inner] * (config.decoder_depth - 1)]
        self.blocks = nn.ModuleList(convolution(each, inner) for each in widths)
        self.proj = nn.Linear(inner, width)

    def forward(self, x_NDRC: Tensor) -> Tensor:
        """Features by rows and columns to predictions for each patch: ``(N, L, D)``."""
        for convolution in self.blocks:
            new_NRCD = convolution(x_NDRC).movedim(1, -1)
            new_NDRC = F.gelu(F.layer_norm(new_NRCD, new_NRCD.shape[-1:])).movedim(-1, 1)
            x_NDRC = new_NDRC + x_NDRC if new_NDRC.shape == x_NDRC.shape else new_NDRC
        return self.proj(x_NDRC.flatten(2).transpose(1, 2))
