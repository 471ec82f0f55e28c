"""BYOL: one view of an image predicts the other view's features in a slowly following network.

Grill et al.: *Bootstrap Your Own Latent: A New Approach to Self-Supervised Learning*, NeurIPS 2020,
arXiv:2006.07733; ``byol/byol_experiment.py``, google-deepmind/deepmind-research ``f5de0ed``.

The loss of an image is the squared distance of normalised features, added over both directions: 0
where all agree, 8 at most. The cosines are lightly's.

Deviations that give the same result:

- Hidden layers have no bias, as the batch norm after each would take it away.
- The second view's prediction follows the first view's backward pass, so that the activations of
  one view are kept at a time.

Deviations that give different numbers:

- The target network starts as a copy of the online one, where the official code initialises it
  by itself.
- The jitter's brightness is a factor instead of a sum, and a crop is tried ten times instead of
  once. A blur is a true Gaussian; draws are counter-based noise.
- Images are normalised by the training split's own mean and deviation instead of ImageNet's.
- A Vision Transformer is trained with AdamW, as in MoCo v3's comparison (arXiv:2104.02057, table
  4): a recipe of our own, since the paper's, LARS, is for ResNets. Warm-up is a share of the
  training instead of 10 epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from lightly.loss import NegativeCosineSimilarity
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
from ssl_bench.api.optimizers import cosine
from ssl_bench.api.parts import follow, frozen_copy, in_float32, mlp
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, byol_views


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's for 300 epochs, but for the optimiser, which is for ViTs."""

    momentum: Annotated[float, "[0, 1]"] = 0.99
    """Momentum of the target network at the start; it rises to 1 along a half cosine."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 4096
    """Hidden width of projector and predictor."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 256
    """Width of the compared features."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps."""


class BYOL(Method):
    """An online network with projector and predictor, and a target network that follows it."""

    version = 1
    paper = "Grill et al., NeurIPS 2020"
    needs = ("pairs", "momentum encoder")
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "proj_hidden_dim": 512, "proj_output_dim": 128, "base_lr": 1e-3},
        "small": {"proj_hidden_dim": 1024, "base_lr": 5e-4},
        "imagenet-byol-resnet50": {
            "data": "./imagenet",
            "backbone": "resnet50",
            "image_size": 224,
            "epochs": 1000,
            "batch_size": 4096,
            "optimizer": "lars",
            "base_lr": 0.2,
            "weight_decay": 1.5e-6,
            "warmup": 0.01,
            "momentum": 0.996,
            "evals": ("linear-paper",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        hidden, out = config.proj_hidden_dim, config.proj_output_dim
        self.projector = mlp([encoders.width(backbone), hidden, out])
        self.predictor = mlp([out, hidden, out])
        self.target_encoder = frozen_copy(backbone)
        self.target_projector = frozen_copy(self.projector)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two views that differ in blur and solarisation."""
        return byol_views(self.data.image_size, self.config.crop_scale)

    def terms(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """The two views' losses, each view predicted from the other one."""
        first, second = batch.views["first"], batch.views["second"]
        with torch.no_grad():
            target_1, target_2 = self.target(first), self.target(second)
        for view, target_BD in ((first, target_2), (second, target_1)):
            projection_BD = self.projector(encoders.represent(self.encoder, view))
            self.watch(projection_BD)
            yield distance(self.predictor(projection_BD), target_BD)

    def target(self, images_BCHW: Tensor) -> Tensor:
        """Features of the target network: ``(B, proj_output_dim)``."""
        return self.target_projector(encoders.represent(self.target_encoder, images_BCHW))

    def after_optimizer_step(self, step: Step) -> None:
        """Move the target network's parameters towards the online one's."""
        momentum = cosine(step.fraction, self.config.momentum, 1.0)
        follow(self.target_encoder, self.encoder, momentum)
        follow(self.target_projector, self.projector, momentum)

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "momentum": Uniform(0.97, 0.999),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }


@in_float32
def distance(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean squared distance of features of length 1, from 0 to 4."""
    return 2 + 2 * NegativeCosineSimilarity()(prediction_BD, target_BD)
