"""LeJEPA: views of an image agree, and features are distributed as an isotropic Gaussian is.

Balestriero, LeCun: *LeJEPA: Provable and Scalable Self-Supervised Learning Without the Heuristics*,
arXiv:2511.08544, after whose formulas this is written; rbalestr-lab/lejepa ``eddffdd``.

SIGReg (sketched isotropic Gaussian regularisation) compares the empirical characteristic function
of the features, along random directions, with a standard normal's (Epps and Pulley's test). There
is no teacher, no stopped gradient and no schedule but the learning rate's.

The test integrates over [-3, 3] by trapezoids over the half that is not redundant: weights are
twice the distance of the knots, and once at both ends, as in the authors' code. It is added over
all ranks' features, with gradient.

Deviations that give different numbers:

- Directions are our own random numbers, a function of seed and step, the same on every rank.
- Small crops are 96 of 224 pixels, or the next size that patches divide, where the authors' are 98
  for patches of 14; a backbone that is no Vision Transformer gets them at the image's size.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
- The cosine ends at zero by default, where the authors' ends at a thousandth (``--final-lr``).
"""

from __future__ import annotations

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
    OptimizerChoiceConfig,
    Step,
    Uniform,
)
from ssl_bench.api.parts import in_float32, mlp
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation

_KNOTS, _END = 17, 3.0


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the authors' for ViTs on ImageNet."""

    base_lr: float = 2.5e-4
    """Learning rate for a batch of 256; the one used is base_lr * batch_size / 256."""
    sigreg: Annotated[float, "[0, 1]"] = 0.05
    """Weight of the Gaussian regularisation; the views' agreement has the rest."""
    directions: Annotated[int, "[1, inf)"] = 1024
    """Random directions that the features are projected on, in every step."""
    local_crops: Annotated[int, "[0, 100]"] = 6
    """Small crops beside the two large ones."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 2048
    """Hidden width of the projector."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 64
    """Width of the compared features."""
    crop_scale: Annotated[float, "(0.05, 1]"] = 0.3
    """Smallest share of an image's area that a large crop keeps, and the largest that a small one
    does."""


class LeJEPA(Method):
    """An encoder with a projector, and crops of two sizes."""

    version = 2
    paper = "Balestriero and LeCun, arXiv 2025"
    needs = ("multi-crop",)
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "local_crops": 2, "proj_hidden_dim": 512, "base_lr": 1e-3},
        "small": {"local_crops": 4, "base_lr": 5e-4},
        "imagenet-lejepa-vitl": {
            "data": "./imagenet",
            "backbone": "vit_large_patch14_224",
            "image_size": 224,
            "patch_size": 14,
            "epochs": 100,
            "batch_size": 512,
            "warmup": 1 / 100,
            "final_lr": 0.001,
            "decay_norm_and_bias": True,
            "evals": ("linear-paper",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        hidden = config.proj_hidden_dim
        width = encoders.width(backbone)
        self.projector = mlp([width, hidden, hidden, config.proj_output_dim], last_bias=True)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two large crops, and small ones, of the same colours."""
        large = Augmentation(
            size=self.data.image_size,
            crop_scale=(self.config.crop_scale, 1.0),
            interpolation="bicubic",
            flip=0.5,
            jitter=(0.4, 0.4, 0.2, 0.1),
            jitter_probability=0.8,
            grayscale=0.2,
            blur=0.5,
            solarize=0.2,
        )
        size = encoders.local_size(self.encoder, self.data.image_size)
        small = replace(large, size=size, crop_scale=(0.05, self.config.crop_scale))
        return {
            **{f"global_{number}": large for number in range(2)},
            **{f"local_{number}": small for number in range(self.config.local_crops)},
        }

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """Disagreement of the views, and how far each view's features are from Gaussian."""
        features_VBD = encoders.represent_views(self.encoder, batch.views.values())
        projections = self.projector(features_VBD.flatten(0, 1))
        views_VBD = projections.unflatten(0, features_VBD.shape[:2])
        self.watch(views_VBD[0])
        weight, count = self.config.sigreg, self.config.directions
        rows_D = torch.arange(views_VBD.shape[-1], device=views_VBD.device)
        directions_DM = replace(batch.rng, samples_B=rows_D).normal("directions", count)
        return {
            "agreement": (1 - weight) * disagreement(views_VBD),
            "sigreg": weight * sigreg(views_VBD, directions_DM),
        }

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "sigreg": LogUniform(0.005, 0.5),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.1, 1.0),
    }


@in_float32
def disagreement(views_VBD: Tensor) -> Tensor:
    """Mean squared distance of each view's features from the mean of the two large crops'."""
    return (views_VBD[:2].mean(dim=0) - views_VBD).square().mean()


@in_float32
def sigreg(views_VBD: Tensor, directions_DM: Tensor) -> Tensor:
    """Epps and Pulley's statistic, mean over directions and views; about 1 for Gaussian features.

    Args:
        views_VBD: features of this rank's images in each view.
        directions_DM: of any length.
    """
    directions_DM = directions_DM / directions_DM.norm(dim=0)
    knots_T = torch.linspace(0, _END, _KNOTS, device=views_VBD.device, dtype=views_VBD.dtype)
    normal_T = (-knots_T.square() / 2).exp()
    weights_T = torch.full_like(knots_T, 2 * _END / (_KNOTS - 1))
    weights_T[0] /= 2
    weights_T[-1] /= 2
    angles_VBMT = (views_VBD @ directions_DM)[..., None] * knots_T
    means = torch.stack([angles_VBMT.cos().mean(dim=1), angles_VBMT.sin().mean(dim=1)])
    real_VMT, imaginary_VMT = collectives.mean_with_gradient(means)
    error_VMT = (real_VMT - normal_T).square() + imaginary_VMT.square()
    statistics_VM = (
        error_VMT @ (weights_T * normal_T) * (views_VBD.shape[1] * collectives.world_size())
    )
    return statistics_VM.mean()
