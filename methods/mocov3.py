"""MoCo v3: two views of an image predict each other's momentum features.

Chen, Xie, He: *An Empirical Study of Training Self-Supervised Vision Transformers*, ICCV 2021,
arXiv:2104.02057; ``moco/builder.py``, ``vits.py`` and ``main_moco.py``, facebookresearch/moco-v3
``c349e6e``.

The random baseline beside it is the encoder that every method is given, before this one draws its
queries, keys and values anew.

Deviations from the official code that give the same result:

- The momentum update comes at the end of a step, with the next step's momentum, instead of between
  the next step's queries and keys, so that the loss is a function of the views alone. Nothing
  changes a parameter in between, the official first update moves nothing, as the networks start
  equal, and the last one here has momentum 1.
- The encoders' last block computes the class token alone, which is all that is compared.
- Keys come before queries, and the second view's queries after the first view's backward pass, so
  that the activations of one view are kept at a time.
- Batch norm over all ranks is our own, because torch's needs a GPU.
- The encoders may take the images in parts (``--micro-batch-size``), with the activations of one
  part kept and the others' computed again; projectors, predictor and loss see the whole batch.

Deviations that give different numbers:

- The blur is a true Gaussian where Pillow approximates one, and images stay float where Pillow
  rounds between operations, because views are made by the batch, on the images' device.
- Crops and all that follows come from counter-based noise instead of ``torch.rand`` and
  ``random``, because a draw is a function of (seed, purpose, step, sample).
- Images are normalised by the training split's own mean and deviation instead of ImageNet's,
  because other data have others.
- The bound of the patch embedding's initial weights counts the channels there are instead of
  three, because grey images have one.
- Warm-up is a share of the training instead of 40 epochs, because a budget may be shorter.
- Mixed precision is bf16 without loss scaling instead of fp16 with it, because bf16 has the range
  of fp32 and CPUs have it too; the logits are computed in fp32, because bf16 has fewer digits than
  fp16 to tell similar keys apart.
- A ResNet, or any other backbone, has the ViT's projector of three layers and AdamW, where the
  official ResNet has two layers and LARS. It starts as timm has it, nothing of it is frozen, as in
  the paper, and its pooled features are compared where it has no class token. Batch norms of the
  momentum encoder keep statistics of their own, as there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssl_bench.api import Batch, DataInfo, LogUniform, Method, OptimizerConfig, Step, Uniform
from ssl_bench.api.optimizers import cosine, freeze
from ssl_bench.api.parts import follow, frozen_copy, in_float32, mlp
from ssl_bench.distributed import collectives
from ssl_bench.models import encoders
from ssl_bench.transforms.augmentations import Augmentation, byol_views


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    temperature: Annotated[float, "[0.001, 10]"] = 0.2
    """Temperature of the contrastive loss."""
    momentum: Annotated[float, "[0, 1]"] = 0.99
    """Momentum of the momentum encoder at the start; it rises to 1 along a half cosine."""
    proj_hidden_dim: Annotated[int, "[1, inf)"] = 4096
    """Hidden width of projector and predictor."""
    proj_output_dim: Annotated[int, "[1, inf)"] = 256
    """Width of the compared features."""
    freeze_patch_embed: bool = True
    """Keep a ViT's patch projection at its random start, which stabilises the training."""
    crop_scale: Annotated[float, "(0, 1]"] = 0.08
    """Smallest share of an image's area that a random crop keeps."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay."""
    decay_norm_and_bias: bool = True
    """Apply weight decay to one-dimensional parameters too."""


class MoCoV3(Method):
    """A base encoder with projector and predictor, and a momentum encoder that follows it."""

    version = 1
    paper = "Chen et al., ICCV 2021"
    needs = ("pairs", "momentum encoder")
    encodes_in_parts = True
    smallest_batch = 2
    presets = {
        "quick": {"epochs": 2, "proj_hidden_dim": 512, "proj_output_dim": 128, "base_lr": 1e-3},
        "small": {"proj_hidden_dim": 1024, "proj_output_dim": 256, "base_lr": 5e-4},
        **{
            f"imagenet-mocov3-{size}": {
                "data": "./imagenet",
                "backbone": backbone,
                "image_size": 224,
                "patch_size": 16,
                "epochs": 300,
                "batch_size": 4096,
                "warmup": 40 / 300,
                "evals": ("linear-paper", "finetune"),
            }
            for size, backbone in (
                ("vits", "vit_small_mocov3"),
                ("vitb", "vit_base_patch16_224"),
            )
        },
    }

    def __init__(self, config: Config, backbone: nn.Module, data: DataInfo) -> None:
        super().__init__(config, backbone, data)
        encoder = self.encoder
        if encoders.is_vit(encoder):
            _initialise(encoder)
            if config.freeze_patch_embed:
                freeze(encoder, "patch_embed.proj")
        hidden, out = config.proj_hidden_dim, config.proj_output_dim
        self.projector = mlp([encoders.width(encoder), hidden, hidden, out], last_norm="plain")
        self.predictor = mlp([out, hidden, out], last_norm="plain")
        self.momentum_encoder = frozen_copy(encoder)
        self.momentum_projector = frozen_copy(self.projector)

    def transforms(self) -> Mapping[str, Augmentation]:
        """Two views that differ in blur and solarisation (BYOL's, as the paper takes them)."""
        return byol_views(self.data.image_size, self.config.crop_scale, "bilinear")

    def terms(self, batch: Batch, step: Step) -> Iterator[Tensor]:
        """The two views' losses, each view once as the query and once as the key."""
        first, second = batch.views["first"], batch.views["second"]
        with torch.no_grad():
            key_1, key_2 = self.key(first), self.key(second)
        for view, key_BD in ((first, key_2), (second, key_1)):
            query_BD = self.query(view)
            self.watch(query_BD)
            yield self.contrast(query_BD, key_BD)

    def query(self, images_BCHW: Tensor) -> Tensor:
        """Predicted features of the base encoder: ``(B, proj_output_dim)``."""
        return self.predictor(self.projector(encoders.represent(self.encoder, images_BCHW)))

    def key(self, images_BCHW: Tensor) -> Tensor:
        """Features of the momentum encoder: ``(B, proj_output_dim)``."""
        return self.momentum_projector(encoders.represent(self.momentum_encoder, images_BCHW))

    @in_float32
    def contrast(self, query_BD: Tensor, key_BD: Tensor) -> Tensor:
        """Cross-entropy of each query's own key among all ranks' keys, times 2 * temperature.

        Args:
            query_BD, key_BD: of this rank's images; only the keys are gathered.
        """
        temperature = self.config.temperature
        query_BD = F.normalize(query_BD, dim=1)
        keys_ND = F.normalize(collectives.gather(key_BD), dim=1)
        logits_BN = query_BD @ keys_ND.T / temperature
        own_B = collectives.own_rows(len(query_BD), query_BD.device)
        return F.cross_entropy(logits_BN, own_B) * 2 * temperature

    def after_optimizer_step(self, step: Step) -> None:
        """Move the momentum networks' parameters (not their buffers) towards the base ones'."""
        momentum = cosine((step.number + 1) / step.total, self.config.momentum, 1.0)
        follow(self.momentum_encoder, self.encoder, momentum)
        follow(self.momentum_projector, self.projector, momentum)

    # Around the official values: 1.5e-4 (CONFIG.md; the small encoders here take 5e-4 to 1e-3),
    # temperatures 0.2 and 1 (CONFIG.md, main_moco.py's default), 0.99, 0.1 and 0.08 (main_moco.py).
    search_space = {
        "base_lr": LogUniform(5e-5, 5e-3),
        "temperature": LogUniform(0.1, 1.0),
        "momentum": Uniform(0.98, 0.999),
        "weight_decay": LogUniform(0.01, 0.3),
        "crop_scale": Uniform(0.08, 1.0),
    }


def _initialise(encoder: Any) -> None:
    """As the official ``vits.py``: q, k and v are Xavier-uniform one by one."""
    for block in encoder.blocks:
        for weight in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=1e-6)
    encoders.fix_positions(encoder, first="row")
