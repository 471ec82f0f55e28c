"""SimCLR: two views of an image are alike, and unlike all views of the other images.

Chen, Kornblith, Norouzi, Hinton: *A Simple Framework for Contrastive Learning of Visual
Representations*, ICML 2020, arXiv:2002.05709; ``tf2/objective.py``, ``model.py`` and
``data_util.py``, google-research/simclr ``383d414``.

The losses of both views are added, as there, so that the loss is twice that of codes which take
their mean. Gathered features carry gradient, so that any number of ranks trains alike.

Deviations that give different numbers:

- Images are normalised by the training split's own mean and deviation, where the official code
  leaves them in [0, 1].
- After ten crops that do not fit, the largest centred one is taken instead of the whole image after
  a hundred. The blur's kernel is as wide as its deviation needs, not a tenth of the image.
- Draws are counter-based noise, a function of (seed, purpose, step, sample).
- LARS has the learning rate outside of its momentum, as MAE's and MoCo v3's has, not inside.
- A Vision Transformer is trained with AdamW, as in MoCo v3's comparison (arXiv:2104.02057, table
  4): a recipe of our own, since the paper's, LARS, is for ResNets. Warm-up is a share of the
  training instead of 10 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
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


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's, but for the optimiser, which is for ViTs."""

    temperature: Annotated[float, "[0.001, 10]"] = 0.1
    """Temperature of the contrastive loss."""
    proj_layers: Annotated[int, "[1, inf)"] = 3
    """Linear layers of the projector: 2 in the paper, 3 in SimCLR v2 and the official code."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 2048
    """Hidden width of the projector; the official one is the encoder's width."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 128
    """Width of the compared features."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps."""
    color_strength: Annotated[float, "[0, 2]"] = 1.0
    """Strength of the colour jitter: 1 on ImageNet, 0.5 on CIFAR."""
    blur: bool = True
    """Blur half of the views; off on CIFAR."""


class SimCLR(Method):
    """An encoder with a projector, and a contrast over the batch."""

    version = 1
    paper = "Chen et al., ICML 2020"
    needs = ("pairs",)
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "proj_hidden_dim": 512, "base_lr": 1e-3, "temperature": 0.2},
        "small": {"base_lr": 5e-4, "temperature": 0.5, "color_strength": 0.5, "blur": False},
        "imagenet-simclr-resnet50": {
            "data": "./imagenet",
            "backbone": "resnet50",
            "image_size": 224,
            "epochs": 100,
            "batch_size": 4096,
            "optimizer": "lars",
            "base_lr": 0.3,
            "weight_decay": 1e-4,
            "warmup": 0.1,
            "evals": ("linear-paper",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        hidden = [config.proj_hidden_dim] * (config.proj_layers - 1)
        widths = [encoders.width(backbone), *hidden, config.proj_output_dim]
        self.projector = mlp(widths, last_norm="scale")
        for layer in self.projector:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.01)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two views, made alike."""
        strength = self.config.color_strength
        view = Augmentation(
            size=self.data.image_size,
            crop_scale=(self.config.crop_scale, 1.0),
            interpolation="bicubic",
            flip=0.5,
            jitter=(0.8 * strength, 0.8 * strength, 0.8 * strength, min(0.5, 0.2 * strength)),
            jitter_probability=0.8,
            grayscale=0.2,
            blur=0.5 if self.config.blur else 0.0,
        )
        return {"first": view, "second": view}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """The contrast of the two views, which go through the networks together."""
        images_BCHW = torch.cat([batch.views["first"], batch.views["second"]])
        projections = self.projector(encoders.represent(self.encoder, images_BCHW))
        self.watch(projections)
        return contrast(*projections.chunk(2), self.config.temperature)

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "temperature": LogUniform(0.05, 1.0),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
        "color_strength": Uniform(0.0, 1.0),
    }


@in_float32
def contrast(first_BD: Tensor, second_BD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each view's other view among all ranks' other views, both ways added.

    Args:
        first_BD, second_BD: projections of this rank's images, of any length.
        temperature: above 0.
    """
    own_B = collectives.own_rows(len(first_BD), first_BD.device)
    first_BD, second_BD = F.normalize(first_BD, dim=1), F.normalize(second_BD, dim=1)
    first_ND, second_ND = map(collectives.gather_with_gradient, (first_BD, second_BD))
    losses = []
    for view_BD, same_ND, other_ND in (
        (first_BD, first_ND, second_ND),
        (second_BD, second_ND, first_ND),
    ):
        itself_BN = (view_BD @ same_ND.T / temperature).scatter(1, own_B[:, None], -torch.inf)
        logits = torch.cat([view_BD @ other_ND.T / temperature, itself_BN], dim=1)
        losses.append(F.cross_entropy(logits, own_B))
    return torch.stack(losses).sum()
