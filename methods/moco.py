"""MoCo v1 and v2: a view's other view is told from a queue of other images' momentum features.

He, Fan, Wu, Xie, Girshick: *Momentum Contrast for Unsupervised Visual Representation Learning*,
CVPR 2020, arXiv:1911.05722 (v1: ``--head linear --temperature 0.07 --no-blur``); Chen, Fan,
Girshick, He: *Improved Baselines with Momentum Contrastive Learning*, arXiv:2003.04297 (v2, the
defaults); ``moco/builder.py`` and ``main_moco.py``, facebookresearch/moco ``7397dfe``.

Heads are lightly's. Its queue is not: it is not stored with the weights, and not in the order of
ranks.

Deviations that give the same result:

- The momentum update comes at the end of a step instead of before the next step's keys: nothing
  changes a parameter in between, and the first update moves nothing, as the networks start equal.
- Keys enter the queue at the end of a step, after the loss that they must not see.
- Keys of a Vision Transformer are not shuffled over ranks. It has no batch norms, whose statistics
  are all that shuffling hides.

Deviations that give different numbers:

- Batch norms of a ResNet are over the whole batch, of queries or of keys, so that any number of
  ranks trains alike. The official ones are each GPU's own, and the keys are shuffled between them,
  so that no query finds its key by their common statistics (v1, section 3.3). Here it can, as the
  queue's keys were normalised with other batches: take a backbone with other norms (a ViT, Swin,
  ConvNeXt) to compare MoCo v1 or v2 with others.
- A ResNet's residual blocks start at scale 0 (timm's way) instead of 1.
- v1 removes colour before the jitter, and always jitters; here the jitter comes first, in both.
- v2's learning rate falls at every step instead of every epoch.
- Images are normalised by the training split's own mean and deviation; draws are counter-based
  noise; a blur is a true Gaussian.
- A Vision Transformer is trained with AdamW: a recipe of our own, since the papers', SGD, is for
  ResNets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from lightly.models.modules.heads import MoCoProjectionHead
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
from ssl_bench.api.parts import Queue, follow, frozen_copy, in_float32
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, mocov2_views

_IMAGENET = {
    "data": "./imagenet",
    "backbone": "resnet50",
    "image_size": 224,
    "epochs": 200,
    "batch_size": 256,
    "optimizer": "sgd",
    "base_lr": 0.03,
    "weight_decay": 1e-4,
    "decay_norm_and_bias": True,
    "warmup": 0.0,
    "evals": ("linear-paper",),
}


@dataclass(frozen=True, kw_only=True)
class Config(StepScheduleConfig):
    """The defaults are v2's, but for the optimiser, which is for ViTs."""

    queue_size: Annotated[int, "[1, inf)"] = 65536
    """Keys to tell a query's own from, a multiple of the batch size; no more than images, or each
    image is among its own negatives."""
    temperature: Annotated[float, "[0.001, 10]"] = 0.2
    """Temperature of the contrastive loss."""
    momentum: Annotated[float, "[0, 1]"] = 0.999
    """Momentum of the key encoder."""
    head: Literal["mlp", "linear"] = "mlp"
    """Two layers with ReLU, or v1's single one."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 128
    """Width of the compared features."""
    blur: bool = True
    """Blur half of the views; off in v1."""
    step_schedule: bool = False
    """Divide the learning rate by 10 at 60 % and at 80 % of the training, as in v1, instead of
    along a cosine."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.2
    """Smallest share of an image's area that a random crop keeps."""


class MoCo(Method):
    """A query encoder, a key encoder that follows it, and a queue of keys."""

    version = 1
    paper = "He et al., CVPR 2020; Chen et al., arXiv 2020"
    needs = ("pairs", "momentum encoder", "queue")
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "queue_size": 4096, "momentum": 0.99, "base_lr": 1e-3},
        "small": {"queue_size": 16384, "momentum": 0.99, "base_lr": 5e-4},
        "imagenet-moco-v1-resnet50": {
            **_IMAGENET,
            "head": "linear",
            "temperature": 0.07,
            "blur": False,
            "step_schedule": True,
        },
        "imagenet-moco-v2-resnet50": _IMAGENET,
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        width, out = encoders.width(backbone), config.proj_output_dim
        self.head: nn.Module = nn.Linear(width, out)
        if config.head == "mlp":
            self.head = MoCoProjectionHead(width, width, out, num_layers=2, batch_norm=False)
        self.key_encoder = frozen_copy(backbone)
        self.key_head = frozen_copy(self.head)
        self.queue = Queue(config.queue_size, out)
        self.keys_BD: Tensor | None = None

    @classmethod
    def refuses(cls, config: Config, batch_size: int, images: int, epochs: float) -> str | None:
        """Whether a queue is filled by whole batches, with keys of different images."""
        return Queue.refuses(config.queue_size, batch_size, images)

    def transforms(self) -> Mapping[str, Augmentation]:
        """The view of the query and that of the key, made alike."""
        views = mocov2_views(self.data.image_size, self.config.crop_scale)
        view = views["first"] if self.config.blur else replace(views["first"], blur=0.0)
        if self.config.head == "linear":
            view = replace(view, jitter=(0.4,) * 4, jitter_probability=1.0)
        return {"query": view, "key": view}

    def loss(self, batch: Batch, step: Step) -> Tensor:
        """Cross-entropy of each query's own key among the queue's."""
        with torch.no_grad():
            key_BD = self.key_head(encoders.represent(self.key_encoder, batch.views["key"]))
            self.keys_BD = F.normalize(key_BD.float(), dim=1)
        query_BD = self.head(encoders.represent(self.encoder, batch.views["query"]))
        self.watch(query_BD)
        return contrast(query_BD, self.keys_BD, self.queue.rows_KD, self.config.temperature)

    def optimizer(self) -> OptimizerSpec:
        """As the flags say, or in v1's steps."""
        spec = recipe(self, self.config)
        if not self.config.step_schedule:
            return spec
        return replace(spec, learning_rate=stepped(self.config, 0.6, 0.8))

    @torch.no_grad()
    def after_optimizer_step(self, step: Step) -> None:
        """Move the key network's parameters, and put all ranks' keys into the queue."""
        follow(self.key_encoder, self.encoder, self.config.momentum)
        follow(self.key_head, self.head, self.config.momentum)
        assert self.keys_BD is not None
        self.queue.push(collectives.gather(self.keys_BD))
        self.keys_BD = None

    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "temperature": LogUniform(0.05, 0.5),
        "momentum": Uniform(0.98, 0.9995),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }


@in_float32
def contrast(query_BD: Tensor, key_BD: Tensor, queue_KD: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of each query's own key, the first of 1 + K.

    Args:
        query_BD: of any length.
        key_BD, queue_KD: of length 1, without gradient.
    """
    query_BD = F.normalize(query_BD, dim=1)
    own_B1 = (query_BD * key_BD).sum(dim=1, keepdim=True)
    logits = torch.cat([own_B1, query_BD @ queue_KD.T], dim=1) / temperature
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
