"""SimSiam: one view of an image predicts the other view's features, whose gradient is stopped.

Chen, He: *Exploring Simple Siamese Representation Learning*, CVPR 2021, arXiv:2011.10566, after
whose formulas this is written; facebookresearch/simsiam ``a7bc177``.

The loss runs from 1 to -1, where both what is wanted and a collapse lie: the logged spread of the
features tells them apart. Loss and heads are lightly's, with batch norms over all ranks.

Deviations that give the same result: the projector's last layer has no bias, which the official
one does not train.

Deviations that give different numbers:

- The learning rate falls at every step instead of every epoch.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
- A Vision Transformer is trained with AdamW: a recipe of our own, since the paper's, SGD, is for
  ResNets. A ResNet starts as timm has it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules.heads import SimSiamPredictionHead, SimSiamProjectionHead
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
from ssl_bench.api.parts import in_float32, synchronised
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, mocov2_views


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerChoiceConfig):
    """The defaults are the paper's, but for the optimiser, which is for ViTs."""

    proj_hidden_dim: Annotated[int, "[1, inf)"] = 2048
    """Hidden width of the projector."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 2048
    """Width of the compared features."""
    pred_hidden_dim: Annotated[int, "[1, inf)"] = 512
    """Hidden width of the predictor, a bottleneck."""
    fix_predictor_lr: bool = True
    """Train the predictor at the highest learning rate throughout."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps."""


class SimSiam(Method):
    """An encoder with projector and predictor."""

    version = 1
    paper = "Chen and He, CVPR 2021"
    needs = ("pairs",)
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {
            "epochs": 2,
            "proj_hidden_dim": 512,
            "proj_output_dim": 512,
            "pred_hidden_dim": 128,
            "base_lr": 1e-3,
        },
        "small": {"base_lr": 5e-4},
        "imagenet-simsiam-resnet50": {
            "data": "./imagenet",
            "backbone": "resnet50",
            "image_size": 224,
            "epochs": 100,
            "batch_size": 512,
            "optimizer": "sgd",
            "base_lr": 0.05,
            "weight_decay": 1e-4,
            "decay_norm_and_bias": True,
            "warmup": 0.0,
            "evals": ("linear-paper",),
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        hidden, out = config.proj_hidden_dim, config.proj_output_dim
        self.projector = synchronised(SimSiamProjectionHead(encoders.width(backbone), hidden, out))
        self.predictor = synchronised(SimSiamPredictionHead(out, config.pred_hidden_dim, out))

    def transforms(self) -> Mapping[str, Augmentation]:
        """MoCo v2's two views."""
        return mocov2_views(self.data.image_size, self.config.crop_scale)

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Half the negative cosines of both directions."""
        first_BD, second_BD = (
            self.projector(encoders.represent(self.encoder, batch.views[name]))
            for name in ("first", "second")
        )
        self.watch(first_BD)
        forth = negative_cosine(self.predictor(first_BD), second_BD.detach())
        back = negative_cosine(self.predictor(second_BD), first_BD.detach())
        return (forth + back) / 2

    def optimizer(self) -> OptimizerSpec:
        """As the flags say; the predictor's learning rate may stay where it is."""
        spec = recipe(self, self.config)
        if not self.config.fix_predictor_lr:
            return spec
        own = set(self.predictor.parameters())
        optimizer = spec.optimizer
        for group in list(optimizer.param_groups):
            kept = [parameter for parameter in group["params"] if parameter not in own]
            taken = [parameter for parameter in group["params"] if parameter in own]
            group["params"] = kept
            optimizer.add_param_group({**group, "params": taken, "schedule": "fixed"})
        peak = self.config.base_lr / 256
        return replace(spec, schedules={"fixed": lambda step: peak * step.batch_size})

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }


@in_float32
def negative_cosine(prediction_BD: Tensor, target_BD: Tensor) -> Tensor:
    """Mean negative cosine, from -1 to 1."""
    return NegativeCosineSimilarity()(prediction_BD, target_BD)
