"""VICReg: two views of an image agree, while features keep their variance and stay uncorrelated.

Bardes, Ponce, LeCun: *VICReg: Variance-Invariance-Covariance Regularization for Self-Supervised
Learning*, ICLR 2022, arXiv:2105.04906; ``main_vicreg.py``, facebookresearch/vicreg ``4e12602``.

The terms are of all ranks' features, which carry gradient. Invariance and variance are lightly's;
its covariance selects by a mask, for which a GPU's step has to wait. As in the official code the
variance's is the mean of both views' and the covariance's their sum, where the paper's equation 6
adds both.

Deviations that give the same result: the projector's hidden layers have no bias, as the batch norm
after each would take it away; the invariance is of all ranks' features, whose mean over ranks it
is in the official code.

Deviations that give different numbers:

- The terms are computed in float32, where the official covariances are fp16.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
- A Vision Transformer is trained with AdamW, a recipe of our own, since the paper's, LARS, is for
  ResNets. Warm-up is a share of the training instead of 10 epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from lightly.loss.vicreg_loss import invariance_loss, variance_loss
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
from ssl_bench.errors import require
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, byol_views


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's, but for the optimiser, which is for ViTs."""

    invariance: Annotated[float, "[0, 1000]"] = 25.0
    """Weight of the distance between views."""
    variance: Annotated[float, "[0, 1000]"] = 25.0
    """Weight of the hinge on each feature's standard deviation."""
    covariance: Annotated[float, "[0, 1000]"] = 1.0
    """Weight of the squared covariances between features."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 8192
    """Hidden width of the projector."""
    proj_output_dim: Annotated[int, "[2, inf)"] = 8192
    """Width of the compared features."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            any((self.invariance, self.variance, self.covariance)),
            "invariance, variance and covariance are all 0, and so would be the loss; a weight "
            "above 0 would work",
        )


class VICReg(Method):
    """An encoder with a wide projector."""

    version = 1
    paper = "Bardes et al., ICLR 2022"
    needs = ("pairs",)
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "proj_hidden_dim": 512, "proj_output_dim": 512, "base_lr": 1e-3},
        "small": {"proj_hidden_dim": 2048, "proj_output_dim": 2048, "base_lr": 5e-4},
        "imagenet-vicreg-resnet50": {
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
        hidden = config.proj_hidden_dim
        self.projector = mlp([encoders.width(backbone), hidden, hidden, config.proj_output_dim])

    def transforms(self) -> Mapping[str, Augmentation]:
        """BYOL's two views."""
        return byol_views(self.data.image_size, self.config.crop_scale)

    def loss(self, batch: Batch, step: Step) -> Mapping[str, Tensor]:
        """The three terms, each with its weight."""
        first_BD, second_BD = (
            self.projector(encoders.represent(self.encoder, batch.views[name]))
            for name in ("first", "second")
        )
        self.watch(first_BD)
        weights = self.config.invariance, self.config.variance, self.config.covariance
        return regularise(first_BD, second_BD, *weights)

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "invariance": LogUniform(1.0, 100.0),
        "variance": LogUniform(1.0, 100.0),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }


@in_float32
def regularise(
    first_BD: Tensor, second_BD: Tensor, invariance: float, variance: float, covariance: float
) -> Mapping[str, Tensor]:
    """The weighted terms by name, of both views' features on all ranks.

    The hinge is on the root of the unbiased variance plus 1e-4, at 1; squared covariances between
    different features are added and divided by their number.
    """
    views = [collectives.gather_with_gradient(view_BD) for view_BD in (first_BD, second_BD)]
    return {
        "invariance": invariance * invariance_loss(*views),
        "variance": variance * sum(map(variance_loss, views)) / 2,
        "covariance": covariance * sum(map(covariance_loss, views)),
    }


def covariance_loss(features_ND: Tensor) -> Tensor:
    """Squared covariances between different features, their sum divided by the features' number."""
    count, width = features_ND.shape
    centred_ND = features_ND - features_ND.mean(dim=0)
    covariance_DD = centred_ND.T @ centred_ND / (count - 1)
    return (covariance_DD - covariance_DD.diagonal().diag()).square().sum() / width
