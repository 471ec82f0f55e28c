"""MAE and MoCo v3 in plain PyTorch, computing as the official code does, without our shortcuts.

Everything is embedded before it is masked, the decoder works in the image's own order, all
patches are predicted, the loss multiplies visible ones by zero; images come from Pillow and
torchvision in a ``DataLoader``.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from benchmarks.cases import Case

_NORM = partial(nn.LayerNorm, eps=1e-6)


def encoder(case: Case) -> VisionTransformer:
    """timm's Vision Transformer of the case."""
    return VisionTransformer(
        img_size=case.image_size,
        patch_size=case.patch_size,
        embed_dim=case.width,
        depth=case.depth,
        num_heads=case.heads,
        num_classes=0,
        norm_layer=_NORM,
    )


class MAE(nn.Module):
    """A masked autoencoder, forwards as the official ``models_mae.py`` goes."""

    def __init__(self, case: Case, decode_class_token: bool = True) -> None:
        super().__init__()
        width, depth, heads = case.decoder
        self.case, self.encoder = case, encoder(case)
        self.first = 0 if decode_class_token else 1
        self.encoder.pos_embed.requires_grad_(False)
        tokens = self.encoder.patch_embed.num_patches + 1
        self.decoder_embed = nn.Linear(case.width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        self.decoder_blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=True, norm_layer=_NORM) for _ in range(depth))
        )
        self.decoder_norm = _NORM(width)
        self.decoder_pred = nn.Linear(width, 3 * case.patch_size**2)

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        vit = self.encoder
        tokens = vit.patch_embed(images) + vit.pos_embed[:, 1:]
        batch, count, width = tokens.shape
        keep = int(count * (1 - self.case.mask_ratio))
        shuffle = noise.argsort(dim=1)
        restore = shuffle.argsort(dim=1)
        kept = tokens.gather(1, shuffle[:, :keep, None].expand(-1, -1, width))
        prefix = (vit.cls_token + vit.pos_embed[:, :1]).expand(batch, -1, -1)
        encoded = self.decoder_embed(vit.norm(vit.blocks(torch.cat([prefix, kept], dim=1))))
        hidden = self.mask_token.expand(batch, count - keep, -1).to(encoded)
        full = torch.cat([encoded[:, 1:], hidden], dim=1)
        full = full.gather(1, restore[..., None].expand(-1, -1, full.shape[2]))
        full = torch.cat([encoded[:, :1], full], dim=1) + self.decoder_pos_embed
        decoded = self.decoder_norm(self.decoder_blocks(full[:, self.first :]))
        prediction = self.decoder_pred(decoded)[:, 1 - self.first :]
        return masked_error(prediction, images, restore >= keep, self.case)


def masked_error(prediction: Tensor, images: Tensor, hidden: Tensor, case: Case) -> Tensor:
    """Mean squared error over hidden patches of the normalised pixels."""
    batch, size, side = len(images), case.patch_size, case.image_size // case.patch_size
    target = images.reshape(batch, 3, side, size, side, size)
    target = torch.einsum("nchpwq->nhwpqc", target).reshape(batch, side * side, -1)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (variance + 1e-6) ** 0.5
    error = ((prediction - target) ** 2).mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


def mlp(widths: list[int], last_norm: bool = True) -> nn.Sequential:
    """MoCo v3's projector or predictor."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        is_last = index == len(widths) - 2
        layers.append(nn.Linear(widths[index], widths[index + 1], bias=False))
        if last_norm or not is_last:
            layers.append(nn.BatchNorm1d(widths[index + 1], affine=not is_last))
        if not is_last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class MoCoV3(nn.Module):
    """MoCo v3, forwards as the official ``moco/builder.py`` goes."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.encoder = encoder(case)
        self.encoder.pos_embed.requires_grad_(False)
        self.encoder.patch_embed.proj.requires_grad_(False)
        self.projector, self.predictor = self.heads(case)
        self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
        self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)

    def heads(self, case: Case) -> tuple[nn.Module, nn.Module]:
        """Projector and predictor."""
        hidden, out = case.projector
        return mlp([case.width, hidden, hidden, out]), mlp([out, hidden, out])

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """The loss of two views."""
        queries = [
            self.predictor(self.projector(self.encoder.forward_features(view)[:, 0]))
            for view in (first, second)
        ]
        with torch.no_grad():
            keys = [
                self.momentum_projector(self.momentum_encoder.forward_features(view)[:, 0])
                for view in (first, second)
            ]
        return contrast(queries[0], keys[1]) + contrast(queries[1], keys[0])

    @torch.no_grad()
    def update(self, momentum: float = 0.99) -> None:
        """Move the momentum networks."""
        pairs = (
            (self.momentum_encoder, self.encoder),
            (self.momentum_projector, self.projector),
        )
        for slow, fast in pairs:
            for theirs, ours in zip(slow.parameters(), fast.parameters(), strict=True):
                theirs.data = theirs.data * momentum + ours.data * (1 - momentum)


def contrast(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of each query's own key among all."""
    query, key = F.normalize(query.float(), dim=1), F.normalize(key.float(), dim=1)
    logits = torch.einsum("nc,mc->nm", query, key) / temperature
    own = torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, own) * 2 * temperature


def transforms(case: Case) -> Any:
    """torchvision's view of an image, or two of them, as the official code makes them."""
    from torchvision import transforms as T

    normalize = T.Normalize([0.5] * 3, [0.25] * 3)
    if case.method == "mae":
        crop = T.RandomResizedCrop(
            case.image_size, scale=(0.2, 1.0), interpolation=T.InterpolationMode.BICUBIC
        )
        return T.Compose([crop, T.RandomHorizontalFlip(), T.ToTensor(), normalize])

    def view(blur: float, solarize: float) -> Any:
        return T.Compose(
            [
                T.RandomResizedCrop(case.image_size, scale=(0.08, 1.0)),
                T.RandomApply([T.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([_PillowBlur()], p=blur),
                T.RandomSolarize(128, p=solarize),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                normalize,
            ]
        )

    views = (view(1.0, 0.0), view(0.1, 0.2))
    return lambda image: tuple(one(image) for one in views)


class _PillowBlur:
    """Blur with a radius drawn from [0.1, 2], as MoCo's loader does."""

    def __call__(self, image: Any) -> Any:
        from PIL import ImageFilter

        radius = float(torch.empty(1).uniform_(0.1, 2.0))
        return image.filter(ImageFilter.GaussianBlur(radius=radius))
