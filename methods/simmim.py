"""SimMIM: a linear layer predicts the raw pixels of hidden squares.

Xie, Zhang, Cao, Lin, Bao, Yao, Dai, Hu: *SimMIM: A Simple Framework for Masked Image Modeling*,
CVPR 2022, arXiv:2111.09886; ``models/simmim.py`` and ``data/data_simmim.py``, microsoft/SimMIM
``d3e29bc``. On Swin Transformers, and on plain Vision Transformers.

Deviations that give the same result:

- The prediction head is a linear layer whose outputs are laid out as pixels, channel fastest,
  where the official one is a convolution of one pixel and a pixel shuffle.
- The loss is divided by the number of hidden pixels, where the official code adds 1e-5 to it: no
  image is without any, and each has as many.

Deviations that give different numbers:

- A Vision Transformer has every method's: fixed absolute positions, no layer scale, and Xavier
  initialisation, where the official one has a table of relative positions that its blocks share in
  the pre-training and not in the fine-tuning. An encoder of its own would compare two things.
- The mask token is from a normal distribution that is cut at 2, as the official code has it for
  Swin; for Vision Transformers it cuts at one standard deviation.
- Where merging patches pads a Swin's grid, pixels beyond the image are predicted and not compared;
  the official code takes whole multiples of 32 pixels alone.
- Warm-up begins at zero instead of at a two-hundredth of the learning rate.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor, nn

from ssl_bench.api import (
    Batch,
    DataInfo,
    LogUniform,
    Method,
    OptimizerSpec,
    Step,
    StepScheduleConfig,
    Uniform,
)
from ssl_bench.api.optimizers import recipe, stepped
from ssl_bench.errors import require
from ssl_bench.models import encoders, masking
from ssl_bench.transforms.augmentations import Augmentation
from ssl_bench.utils.rng import SampleRng

_IMAGENET = {
    "data": "./imagenet",
    "batch_size": 2048,
    "mask_patch_size": 32,
    "evals": ("finetune",),
}


@dataclass(frozen=True, kw_only=True)
class Config(StepScheduleConfig):
    """The defaults are the paper's for ViT-B on ImageNet, but for drop path and schedule."""

    base_lr: float = 5e-5
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    mask_ratio: Annotated[float, "(0, 1)"] = 0.6
    """Share of the squares that are hidden."""
    mask_patch_size: Annotated[int, "[0, inf)"] = 0
    """Side in pixels of the squares that are hidden whole, a multiple of the patches'; 0 for what
    suits image and backbone: 32 of 192 or 224."""
    drop_path: Annotated[float, "[0, 1)"] = 0.0
    """Stochastic depth of a Vision Transformer's last block; the paper's is 0.1."""
    clip_grad: Annotated[float, "(0, inf)"] = 5.0
    """Largest norm of the gradient."""
    step_schedule: bool = False
    """Divide the learning rate by 10 at 7/8 of the training, as in the paper's 800 epochs, instead
    of along a cosine."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.67
    """Smallest share of an image's area that a random crop keeps; 1 crops nothing."""


class SimMIM(Method):
    """An encoder of visible patches and mask tokens, and a linear layer that predicts pixels.

    Shapes: B images of U squares, of which M are hidden; R rows and C columns of patches.
    """

    version = 1
    paper = "Xie et al., CVPR 2022"
    needs = ("ViT or Swin",)
    per_sample_loss = True
    presets = {
        "quick": {"epochs": 3, "base_lr": 2e-3, "crop_scale": 1.0},
        "small": {"base_lr": 5e-4},
        "imagenet-simmim-vitb": {
            **_IMAGENET,
            "backbone": "vit_base_patch16_224",
            "image_size": 224,
            "patch_size": 16,
            "epochs": 800,
            "warmup": 10 / 800,
            "step_schedule": True,
            "drop_path": 0.1,
        },
        "imagenet-simmim-swinb": {
            **_IMAGENET,
            "backbone": "swin_base_simmim",
            "image_size": 192,
            "epochs": 100,
            "base_lr": 1e-4,
            "warmup": 10 / 100,
            "final_lr": 0.05,
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        is_swin, reason = encoders.is_swin(backbone), encoders.why_no_vit(backbone, "SimMIM")
        require(
            is_swin or reason is None,
            f"{reason}, and so would a Swin Transformer such as swin_nano",
        )
        require(
            not (is_swin and config.drop_path),
            f"--drop-path {config.drop_path} is for Vision Transformers; for Swin, 0 would work",
        )
        encoders.drop_paths(backbone, config.drop_path)
        patches = self.encoder.patch_embed
        self.patch_size = patches.patch_size[0]
        self.stride = self.encoder.feature_info[-1]["reduction"]
        self.mask_size = _mask_size(config, data.image_size, self.patch_size, self.stride)
        squares = (data.image_size // self.mask_size) ** 2
        self.kept = squares - math.ceil(squares * config.mask_ratio)
        require(
            self.kept > 0,
            f"--mask-ratio {config.mask_ratio} hides all {squares} squares of {self.mask_size} px; "
            f"up to {math.floor(100 * (1 - 1 / squares)) / 100:g} would work, or a smaller "
            "--mask-patch-size",
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, patches.proj.out_channels))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = nn.Linear(self.encoder.num_features, self.stride**2 * data.channels)

    def transforms(self) -> Mapping[str, Augmentation]:
        """One view: a large random crop, mirrored half of the time."""
        smallest = self.config.crop_scale
        scale = (smallest, 1.0) if smallest < 1 else None
        size = self.data.image_size
        return {"image": Augmentation(size=size, crop_scale=scale, interpolation="bilinear")}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Mean absolute error of all hidden pixels in the batch."""
        images_BCHW = batch.views["image"]
        hidden_BRC = self.mask(batch.rng)
        errors_BCHW = (self.predict(images_BCHW, hidden_BRC) - images_BCHW).abs()
        pixels_B1HW = _enlarged(hidden_BRC, self.patch_size)[:, None]
        return (errors_BCHW * pixels_B1HW).sum() / (pixels_B1HW.sum() * self.data.channels)

    def mask(self, draws: SampleRng) -> Tensor:
        """Which patches are hidden, as many in each image and square by square: bool (B, R, C)."""
        side = self.data.image_size // self.mask_size
        _, hidden_BM = masking.split(masking.random_scores(draws.uniform, side, side), self.kept)
        hidden_BU = masking.as_mask(hidden_BM, side**2)
        return _enlarged(hidden_BU.unflatten(1, (side, side)), self.mask_size // self.patch_size)

    def predict(self, images_BCHW: Tensor, hidden_BRC: Tensor) -> Tensor:
        """All pixels of the images, some of whose patches are hidden: float32 at least."""
        tokens = encoders.encode_masked(self.encoder, images_BCHW, hidden_BRC, self.mask_token)
        pixels_BLP = self.head(tokens).flatten(1, 2)
        predicted = encoders.unpatchify(pixels_BLP, self.stride, columns=tokens.shape[2])
        height, width = images_BCHW.shape[2:]
        return predicted[:, :, :height, :width].to(images_BCHW.dtype)

    def optimizer(self) -> OptimizerSpec:
        """AdamW with clipping; class token and positions are not decayed, nor is Swin's mask token.

        (``optimizer.py``; a Swin's table of relative positions is decayed there.)
        """
        exempt = ["mask_token"] if encoders.is_swin(self.encoder) else ["encoder.cls_token"]
        spec = replace(recipe(self, self.config, exempt), clip_norm=self.config.clip_grad)
        if not self.config.step_schedule:
            return spec
        return replace(spec, learning_rate=stepped(self.config, 7 / 8))

    def pictures(self, batch: Batch) -> Mapping[str, Tensor]:
        """Original, masked and reconstructed images."""
        images_BCHW = batch.views["image"]
        hidden_BRC = self.mask(batch.rng)
        pixels_B1HW = _enlarged(hidden_BRC, self.patch_size)[:, None]
        predicted_BCHW = self.predict(images_BCHW, hidden_BRC)
        return {
            "original": images_BCHW,
            "masked": images_BCHW.masked_fill(pixels_B1HW, torch.nan),
            "reconstructed": torch.where(pixels_B1HW, predicted_BCHW, images_BCHW),
        }

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "mask_ratio": Uniform(0.3, 0.8),
        "weight_decay": LogUniform(0.01, 0.2),
        "crop_scale": Uniform(0.2, 1.0),
    }


def _mask_size(config: Config, image_size: int, patch_size: int, stride: int) -> int:
    """The side of the squares to hide, in pixels: as asked for, or what suits the image.

    That is a token of the encoder's output or a sixth of the image, whichever is larger, but at
    most a quarter of the image.
    """
    sizes = range(patch_size, image_size // 2 + 1, patch_size)
    fits = [size for size in sizes if image_size % size == 0]
    require(
        bool(fits),
        f"images of {image_size} px cannot be divided into squares of whole {patch_size} px "
        "patches; another --patch-size or --image-size would work",
    )
    asked = config.mask_patch_size
    require(
        not asked or asked in fits,
        f"--mask-patch-size {asked} must be a multiple of the {patch_size} px patches and divide "
        f"the image's {image_size} px; {', '.join(map(str, fits))} would work",
    )
    wanted = min(max(stride, image_size / 6), image_size / 4)
    return asked or max([fits[0], *(size for size in fits if size <= wanted)])


def _enlarged(grid_BRC: Tensor, times: int) -> Tensor:
    """Each cell of a grid as a square of so many by so many."""
    return grid_BRC.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)
