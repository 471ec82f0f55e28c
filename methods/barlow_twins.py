"""Barlow Twins: the correlations between two views' features are those of independent ones.

Zbontar, Jing, Misra, LeCun, Deny: *Barlow Twins: Self-Supervised Learning via Redundancy
Reduction*, ICML 2021, arXiv:2103.03230; ``main.py``, facebookresearch/barlowtwins ``8e8d284``.

lightly's loss normalises each rank's features by itself; here they are normalised over all ranks',
as there.

Deviations that give different numbers:

- The sum of correlations over ranks has a gradient. The official ``all_reduce`` has none, so that
  the gradient of W ranks is 1 / W of the loss's; LARS does not notice it in adapted weights.
- Correlations are computed in float32 instead of fp16.
- An incomplete last batch is left out, where the official one is divided by the whole's size.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
- A Vision Transformer is trained with AdamW, a recipe of our own, since the paper's, LARS, is for
  ResNets. Warm-up is a share of the training instead of 10 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

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
from ssl_bench.api.parts import in_float32, mlp
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, byol_views

_BIAS_LR = 0.0048 / 0.2
"""The official learning rate of biases and batch norms, as a share of the weights'."""


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's, but for the optimiser, which is for ViTs."""

    redundancy: Annotated[float, "[0, 1]"] = 0.0051
    """Weight of the correlations between different features (the paper's lambda)."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 8192
    """Hidden width of the projector."""
    proj_output_dim: Annotated[int, "[2, inf)"] = 8192
    """Width of the compared features."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps."""


class BarlowTwins(Method):
    """An encoder with a wide projector."""

    version = 1
    paper = "Zbontar et al., ICML 2021"
    needs = ("pairs",)
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "proj_hidden_dim": 512, "proj_output_dim": 512, "base_lr": 1e-3},
        "small": {"proj_hidden_dim": 2048, "proj_output_dim": 2048, "base_lr": 5e-4},
        "imagenet-barlow-twins-resnet50": {
            "data": "./imagenet",
            "backbone": "resnet50",
            "image_size": 224,
            "epochs": 1000,
            "batch_size": 2048,
            "optimizer": "lars",
            "base_lr": 0.2,
            "weight_decay": 1e-6,
            "warmup": 0.01,
            "final_lr": 0.001,
            "evals": ("linear-paper",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        hidden, out = config.proj_hidden_dim, config.proj_output_dim
        self.projector = mlp([encoders.width(backbone), hidden, hidden, out])
        self.norm = collectives.SyncBatchNorm1d(out, affine=False, track_running_stats=False)

    def transforms(self) -> Mapping[str, Augmentation]:
        """BYOL's two views."""
        return byol_views(self.data.image_size, self.config.crop_scale)

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """How far the correlations are from the identity matrix."""
        first_BD, second_BD = (
            self.projector(encoders.represent(self.encoder, batch.views[name]))
            for name in ("first", "second")
        )
        self.watch(first_BD)
        return self.decorrelate(first_BD, second_BD)

    @in_float32
    def decorrelate(self, first_BD: Tensor, second_BD: Tensor) -> Mapping[str, Tensor]:
        """Squared distances of the correlations over all ranks from 1 and, weighted, from 0."""
        correlations_DD = self.norm(first_BD).T @ self.norm(second_BD) / len(first_BD)
        correlations_DD = collectives.mean_with_gradient(correlations_DD)
        own_D = correlations_DD.diagonal()
        others = correlations_DD.square().sum() - own_D.square().sum()
        return {
            "invariance": (own_D - 1).square().sum(),
            "redundancy": self.config.redundancy * others,
        }

    def optimizer(self) -> OptimizerSpec:
        """As the flags say; under LARS biases and norms have a smaller learning rate."""
        spec = recipe(self, self.config)
        if self.config.optimizer == "lars":
            for group in spec.optimizer.param_groups:
                if group["params"][0].ndim <= 1:
                    group["lr_scale"] = _BIAS_LR
        return spec

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "redundancy": LogUniform(1e-3, 0.05),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }
