"""MoCo v3: two views of an image predict each other's momentum features.

Chen, Xie, He: *An Empirical Study of Training Self-Supervised Vision Transformers*, ICCV 2021,
arXiv:2104.02057; ``moco/builder.py``, ``vits.py`` and ``main_moco.py``, facebookresearch/moco-v3
``c349e6e``.

The random baseline beside it is the encoder that every method is given, before this one draws its
queries, keys and values anew.

Deviations from the official code: blur is a true Gaussian instead of PIL's approximation of one.
The momentum update comes at the end of a step instead of between the next step's queries and keys,
with that next step's momentum, which is the same.
"""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import encoders
from ssl_bench.augment import Augmentation
from ssl_bench.contract import Batch, Method
from ssl_bench.errors import above, require, within
from ssl_bench.settings import OptimizerConfig

PRESETS = {
    "quick": {"epochs": 2, "projector_width": 512, "projection_dim": 128, "base_lr": 1e-3},
    "small": {"projector_width": 1024, "projection_dim": 256, "base_lr": 5e-4},
}


@dataclass(frozen=True, kw_only=True)
class Config(OptimizerConfig):
    """The defaults are the paper's for ViT-B on ImageNet."""

    temperature: float = 0.2
    """Temperature of the contrastive loss, above 0."""
    momentum: float = 0.99
    """Momentum of the momentum encoder at the start; it rises to 1 along a half cosine."""
    projector_width: int = 4096
    """Hidden width of projector and predictor."""
    projection_dim: int = 256
    """Width of the compared features."""
    freeze_patch_embed: bool = True
    """Keep the patch projection at its random start, which stabilises the training."""
    crop_scale: float = 0.08
    """Smallest share of an image's area that a random crop keeps, in (0, 1]."""
    weight_decay: float = 0.1
    """AdamW's decoupled weight decay."""
    decay_norm_and_bias: bool = True
    """Apply weight decay to one-dimensional parameters too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        above("temperature", self.temperature, 0)
        above("projector width", self.projector_width, 0)
        above("projection dim", self.projection_dim, 0)
        within("momentum", self.momentum, "[0, 1]")
        within("crop scale", self.crop_scale, "(0, 1]")


class Pretraining(Method):
    """A base encoder with projector and predictor, and a momentum encoder that follows it."""

    smallest_batch = 2

    def __init__(self, config: Config, encoder: VisionTransformer, num_classes: int) -> None:
        super().__init__(config, encoder, num_classes)
        require(
            encoder.cls_token is not None,
            "MoCo v3 compares class tokens, and this backbone has none; try vit_tiny_patch16_224",
        )
        _initialise(encoder)
        if config.freeze_patch_embed:
            encoder.patch_embed.proj.requires_grad_(False)
        hidden, out = config.projector_width, config.projection_dim
        self.projector = mlp([encoder.embed_dim, hidden, hidden, out])
        self.predictor = mlp([out, hidden, out])
        self.momentum_encoder = copy.deepcopy(encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def augmentations(self, image_size: int) -> tuple[Augmentation, ...]:
        """Two views that differ in blur and solarisation (BYOL's, as the paper takes them)."""
        first = Augmentation(
            size=image_size,
            crop_scale=(self.config.crop_scale, 1.0),
            interpolation="bilinear",
            flip=0.5,
            jitter=(0.4, 0.4, 0.2, 0.1),
            jitter_probability=0.8,
            grayscale=0.2,
            blur=1.0,
        )
        return first, replace(first, blur=0.1, solarize=0.2)

    def loss(self, batch: Batch) -> Tensor:
        """The two views' losses, each view once as the query and once as the key."""
        first, second = batch.views
        query_1, query_2 = self.query(first), self.query(second)
        with torch.no_grad():
            key_1, key_2 = self.key(first), self.key(second)
        return self.contrast(query_1, key_2) + self.contrast(query_2, key_1)

    def query(self, images_BCHW: Tensor) -> Tensor:
        """Predicted features of the base encoder: ``(B, projection_dim)``."""
        class_token_BD = self.encoder.forward_features(images_BCHW)[:, 0]
        return self.predictor(self.projector(class_token_BD))

    def key(self, images_BCHW: Tensor) -> Tensor:
        """Features of the momentum encoder: ``(B, projection_dim)``."""
        class_token_BD = self.momentum_encoder.forward_features(images_BCHW)[:, 0]
        return self.momentum_projector(class_token_BD)

    def contrast(self, query_BD: Tensor, key_BD: Tensor) -> Tensor:
        """Cross-entropy of each query's own key among all keys, times 2 * temperature."""
        temperature = self.config.temperature
        query_BD = F.normalize(query_BD.float(), dim=1)
        key_BD = F.normalize(key_BD.float(), dim=1)
        logits_BB = query_BD @ key_BD.T / temperature
        own_B = torch.arange(len(query_BD), device=query_BD.device)
        return F.cross_entropy(logits_BB, own_B) * 2 * temperature

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Move the momentum networks' parameters (not their buffers) towards the base ones'."""
        momentum = 1 - (1 - self.config.momentum) * (1 + math.cos(math.pi * progress)) / 2
        pairs = (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        )
        for slow, fast in pairs:
            torch._foreach_lerp_(list(slow.parameters()), list(fast.parameters()), 1 - momentum)


def mlp(widths: list[int]) -> nn.Sequential:
    """Linear layers without bias, each batch-normalised; ReLU between, no affine at the end."""
    layers: list[nn.Module] = []
    last = len(widths) - 2
    for index, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers += [
            nn.Linear(inputs, outputs, bias=False),
            nn.BatchNorm1d(outputs, affine=index < last),
        ]
        if index < last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


def _initialise(encoder: VisionTransformer) -> None:
    """As the official ``vits.py``: q, k and v are Xavier-uniform one by one."""
    for block in encoder.blocks:
        for weight in block.attn.qkv.weight.chunk(3):
            nn.init.xavier_uniform_(weight)
    nn.init.normal_(encoder.cls_token, std=1e-6)
    encoders.fix_positions(encoder, first="row")
