"""DINO, iBOT and I-JEPA in plain PyTorch, computing as the official code does.

Small crops of iBOT are the exception: their patches, of which nothing is wanted, do not go through
the head. Where masks and positions of ours are others than the official ones, they are ours.
"""

from __future__ import annotations

import copy
import warnings
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from benchmarks import masks, plain
from benchmarks.cases import Case

_BOTTLENECK, _STUDENT, _TEACHER = 256, 0.1, 0.04
_MOMENTUM = 0.9


class Head(nn.Module):
    """DINO's."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        hidden, prototypes = case.projector
        self.mlp = nn.Sequential(
            nn.Linear(case.width, hidden),
            nn.GELU(),
            nn.Linear(hidden, hidden),
            nn.GELU(),
            nn.Linear(hidden, _BOTTLENECK),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a newer function, whose weights have other names
            linear = nn.Linear(_BOTTLENECK, prototypes, bias=False)
            self.last_layer = nn.utils.weight_norm(linear)
        gain = dict(self.last_layer.named_parameters())["weight_g"]
        nn.init.ones_(gain).requires_grad_(False)

    def forward(self, features: Tensor) -> Tensor:
        """Logits of the prototypes: ``(..., K)``."""
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


def _vit(case: Case) -> nn.Module:
    vit: Any = plain.encoder(case)
    vit.pos_embed.requires_grad_(False)
    return vit


class Crops(nn.Module):
    """DINO, and iBOT on it."""

    center: Tensor
    patch_center: Tensor

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder: Any = self.network(case)
        self.projector = self.head(case)
        self.momentum_encoder: Any = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = self.head(case).requires_grad_(False)
        self.start(case)

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        return _vit(case)

    def head(self, case: Case) -> nn.Module:
        """The projector."""
        return Head(case)

    def start(self, case: Case) -> None:
        """Make what the losses need."""
        self.mask_token = nn.Parameter(torch.zeros(1, case.width))
        self.register_buffer("center", torch.zeros(1, case.projector[1]))
        self.register_buffer("patch_center", torch.zeros(1, 1, case.projector[1]))

    def forward(self, *views: Tensor, noise: Tensor) -> Tensor:
        """The loss of all views under mask noise ``(B, N)``."""
        return self.dino(views) if self.case.method == "dino" else self.ibot(views, noise)

    def dino(self, views: tuple[Tensor, ...]) -> Tensor:
        """Without masks."""
        large, small = torch.cat(views[:2]), torch.cat(views[2:])
        with torch.no_grad():
            teacher = self.momentum_projector(self.tokens(self.momentum_encoder, large)[:, 0])
        tokens = [self.tokens(self.encoder, images)[:, 0] for images in (large, small)]
        return self.between_views(self.projector(torch.cat(tokens)), teacher)

    def ibot(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        """With them."""
        large, small = torch.cat(views[:2]), torch.cat(views[2:])
        hidden = masks.hidden_patches(self.case, noise)
        with torch.no_grad():
            teacher = self.momentum_projector(self.tokens(self.momentum_encoder, large))
        student = self.projector(self.tokens(self.encoder, large, hidden))
        small_logits = self.projector(self.tokens(self.encoder, small)[:, 0])
        patches = self.of_patches(student[:, 1:], teacher[:, 1:], hidden)
        cls = self.between_views(torch.cat([student[:, 0], small_logits]), teacher[:, 0])
        return cls + patches

    def tokens(self, encoder: Any, images: Tensor, hidden: Tensor | None = None) -> Tensor:
        """After the last norm, the class token first."""
        tokens = encoder.patch_embed(images)
        if hidden is not None:
            tokens = torch.where(
                hidden.view(tokens.shape[:-1])[..., None], self.mask_token.to(tokens), tokens
            )
        return encoder.norm(encoder.blocks(encoder._pos_embed(tokens)))

    def between_views(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Mean cross-entropy of pairs of two different views; then the centre moves."""
        views = (student / _STUDENT).float().chunk(len(self.case.view_sizes))
        targets = ((teacher.float() - self.center) / _TEACHER).softmax(dim=-1).chunk(2)
        terms = [
            -(target * view.log_softmax(dim=-1)).sum(dim=-1).mean()
            for (number, target), (other, view) in product(enumerate(targets), enumerate(views))
            if number != other
        ]
        self.center = _moved(self.center, teacher.float().mean(dim=0, keepdim=True))
        return sum(terms, start=torch.zeros(())) / len(terms)

    def of_patches(self, student: Tensor, teacher: Tensor, hidden: Tensor) -> Tensor:
        """Cross-entropy of hidden patches; then their centre moves."""
        target = ((teacher.float() - self.patch_center) / _TEACHER).softmax(dim=-1)
        terms = -(target * (student / _STUDENT).float().log_softmax(dim=-1)).sum(dim=-1)
        mean = teacher.float().mean(dim=(0, 1), keepdim=True)
        self.patch_center = _moved(self.patch_center, mean)
        return ((terms * hidden).sum(dim=-1) / hidden.sum(dim=-1).clamp(min=1)).mean()

    @torch.no_grad()
    def update(self, momentum: float = 0.99) -> None:
        """Move the teacher."""
        plain.follow(self.momentum_encoder, self.encoder, momentum)
        plain.follow(self.momentum_projector, self.projector, momentum)


def _moved(center: Tensor, mean: Tensor) -> Tensor:
    return center * _MOMENTUM + mean * (1 - _MOMENTUM)


class IJEPA(nn.Module):
    """I-JEPA."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder: Any = self.network(case)
        self.momentum_encoder: Any = copy.deepcopy(self.encoder).requires_grad_(False)
        self.predictor = self.narrow(case)

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        return _vit(case)

    def narrow(self, case: Case) -> nn.Module:
        """The predictor."""
        return Predictor(case)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        context, targets = masks.blocks(self.case, noise)
        with torch.no_grad():
            features = self.momentum_encoder.forward_features(images)[:, 1:].float()
            features = F.layer_norm(features, features.shape[-1:])
            wanted = torch.cat([_taken(features, target) for target in targets])
        predicted = self.predictor(self.seen(images, context), context, targets)
        return F.smooth_l1_loss(predicted.float(), wanted)

    def seen(self, images: Tensor, context: Tensor) -> Tensor:
        """What the encoder makes of the context's patches alone: ``(B, K, D)``."""
        vit: Any = self.encoder
        tokens = vit._pos_embed(vit.patch_embed(images))
        tokens = torch.cat([tokens[:, :1], _taken(tokens[:, 1:], context)], dim=1)
        return vit.norm(vit.blocks(tokens))[:, 1:]

    @torch.no_grad()
    def update(self, momentum: float = 0.99) -> None:
        """Move the target encoder."""
        plain.follow(self.momentum_encoder, self.encoder, momentum)


class Predictor(nn.Module):
    """I-JEPA's, which sees the context once for each of the target blocks."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        width, depth, heads = case.decoder
        self.predictor_embed = nn.Linear(case.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        positions = torch.zeros(1, case.patches, width)
        self.predictor_pos_embed = nn.Parameter(positions, requires_grad=False)
        self.predictor_blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, norm_layer=plain.NORM) for _ in range(depth))
        )
        self.predictor_norm = plain.NORM(width)
        self.predictor_proj = nn.Linear(width, case.width)

    def forward(self, seen: Tensor, context: Tensor, targets: list[Tensor]) -> Tensor:
        """Features of all target blocks, block by block: ``(N * B, M, D)``."""
        positions = self.predictor_pos_embed.expand(len(seen), -1, -1)
        seen = self.predictor_embed(seen) + _taken(positions, context)
        wanted = torch.cat([_taken(positions, target) for target in targets]) + self.mask_token
        tokens = torch.cat([seen.repeat(len(targets), 1, 1), wanted], dim=1)
        tokens = self.predictor_norm(self.predictor_blocks(tokens))
        return self.predictor_proj(tokens[:, seen.shape[1] :])


def _taken(tokens: Tensor, index: Tensor) -> Tensor:
    return tokens.gather(1, index[..., None].expand(-1, -1, tokens.shape[-1]))
