"""Methods in plain PyTorch, computing as the official code does, without our shortcuts.

In MAE everything is embedded before it is masked, the decoder works in the image's own order, all
patches are predicted, the loss multiplies visible ones by zero; images come from Pillow and
torchvision in a ``DataLoader``.
"""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from benchmarks.cases import LOCAL_CROPS, QUEUE, Case

_CROP_SCALES = {"mae": 0.2, "ijepa": 0.3, "simmim": 0.67}
"""Smallest share of an image's area in a crop, of methods that take one view."""
NORM = partial(nn.LayerNorm, eps=1e-6)
"""What every Vision Transformer here norms with."""


def encoder(case: Case) -> VisionTransformer:
    """timm's Vision Transformer of the case."""
    return VisionTransformer(
        img_size=case.image_size,
        patch_size=case.patch_size,
        embed_dim=case.width,
        depth=case.depth,
        num_heads=case.heads,
        num_classes=0,
        norm_layer=NORM,
        dynamic_img_size=len({*case.view_sizes}) > 1,
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
            *(Block(width, heads, qkv_bias=True, norm_layer=NORM) for _ in range(depth))
        )
        self.decoder_norm = NORM(width)
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


class SimMIM(nn.Module):
    """SimMIM on a Vision Transformer whose patches are as large as the squares that are hidden."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.encoder: Any = self.network(case)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, case.width))
        self.projector = nn.Linear(case.width, 3 * case.patch_size**2)

    def network(self, case: Case) -> nn.Module:
        """The encoder."""
        vit = encoder(case)
        vit.pos_embed.requires_grad_(False)
        return vit

    def hide(self, noise: Tensor) -> Tensor:
        """Indices of the patches that are hidden."""
        count = noise.shape[1]
        return noise.argsort(dim=1)[:, count - math.ceil(count * self.case.mask_ratio) :]

    def forward(self, images: Tensor, noise: Tensor) -> Tensor:
        """The loss of images ``(B, 3, H, W)`` under mask noise ``(B, L)``."""
        vit: Any = self.encoder
        tokens = vit.patch_embed(images)
        hidden = torch.zeros_like(noise).scatter(1, self.hide(noise), 1.0)
        tokens = tokens * (1 - hidden[..., None]) + self.mask_token * hidden[..., None]
        pixels = self.projector(vit.norm(vit.blocks(vit._pos_embed(tokens)))[:, 1:])
        size, side = self.case.patch_size, self.case.image_size // self.case.patch_size
        pixels = pixels.reshape(len(images), side, side, size, size, 3)
        predicted = torch.einsum("nhwpqc->nchpwq", pixels).reshape(images.shape)
        mask = hidden.reshape(-1, 1, side, side).repeat_interleave(size, 2)
        mask = mask.repeat_interleave(size, 3)
        error = (predicted.float() - images).abs() * mask
        return error.sum() / (mask.sum() + 1e-5) / 3


def masked_error(prediction: Tensor, images: Tensor, hidden: Tensor, case: Case) -> Tensor:
    """Mean squared error over hidden patches of the normalised pixels."""
    batch, size, side = len(images), case.patch_size, case.image_size // case.patch_size
    target = images.reshape(batch, 3, side, size, side, size)
    target = torch.einsum("nchpwq->nhwpqc", target).reshape(batch, side * side, -1)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    target = (target - mean) / (variance + 1e-6) ** 0.5
    error = ((prediction - target) ** 2).mean(dim=-1)
    return (error * hidden).sum() / hidden.sum()


def mlp(widths: list[int], last_norm: bool = True, scale: bool = False) -> nn.Sequential:
    """Linear layers with batch norms between them, and one, perhaps with a scale, at the end."""
    layers: list[nn.Module] = []
    for index in range(len(widths) - 1):
        is_last = index == len(widths) - 2
        layers.append(nn.Linear(widths[index], widths[index + 1], bias=False))
        if last_norm or not is_last:
            layers.append(nn.BatchNorm1d(widths[index + 1], affine=scale or not is_last))
        if not is_last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Views(nn.Module):
    """Any method that compares views of an image, forwards as its official code goes.

    Features of a view are those of encoder, projector and, where there is one, predictor. They are
    compared with each other, or with targets without gradient: a momentum network's, or SimSiam's
    own projections.
    """

    queue: Tensor

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case, self.encoder = case, encoder(case)
        if case.method == "mocov3":
            self.encoder.pos_embed.requires_grad_(False)
            self.encoder.patch_embed.proj.requires_grad_(False)
        self.projector, self.predictor = self.heads(case)
        self.has_momentum = case.method in ("mocov3", "byol", "moco")
        if self.has_momentum:
            self.momentum_encoder = copy.deepcopy(self.encoder).requires_grad_(False)
            self.momentum_projector = copy.deepcopy(self.projector).requires_grad_(False)
        self.start(case)

    def heads(self, case: Case) -> tuple[nn.Module, nn.Module]:
        """Projector and predictor."""
        (hidden, out), width = case.projector, case.width
        match case.method:
            case "mocov3":
                return mlp([width, hidden, hidden, out]), mlp([out, hidden, out])
            case "byol":
                return mlp([width, hidden, out], False), mlp([out, hidden, out], False)
            case "simsiam":
                predictor = mlp([out, hidden // 4, out], False)
                predictor[-1] = nn.Linear(hidden // 4, out)
                return mlp([width, hidden, hidden, out]), predictor
            case "moco":
                layers = nn.Linear(width, width), nn.ReLU(inplace=True), nn.Linear(width, out)
                return nn.Sequential(*layers), nn.Identity()
            case "lejepa":
                projector = mlp([width, hidden, hidden, out], False)
                projector[-1] = nn.Linear(hidden, out)
                return projector, nn.Identity()
        is_simclr = case.method == "simclr"
        return mlp([width, hidden, hidden, out], is_simclr, scale=is_simclr), nn.Identity()

    def start(self, case: Case) -> None:
        """Make what `compare` needs."""
        if case.method == "moco":
            keys = F.normalize(torch.randn(QUEUE, case.projector[1]), dim=1)
            self.register_buffer("queue", keys)
            self.oldest = 0

    def forward(self, *views: Tensor) -> Tensor:
        """The loss of the views."""
        asked, targeted = (views[:1], views[1:]) if self.case.method == "moco" else (views, views)
        projections = self.project(asked, self.encoder, self.projector)
        if self.has_momentum:
            with torch.no_grad():
                targets = self.project(targeted, self.momentum_encoder, self.momentum_projector)
        else:
            targets = [each.detach() for each in projections]
        return self.compare([self.predictor(each) for each in projections], targets)

    def project(
        self, views: tuple[Tensor, ...], encoder: Any, projector: nn.Module
    ) -> list[Tensor]:
        """Projections of each view; where the official code has it so, with one batch norm."""
        features = [encoder.forward_features(view)[:, 0] for view in views]
        if self.case.method in ("simclr", "lejepa"):
            return list(projector(torch.cat(features)).chunk(len(features)))
        return [projector(each) for each in features]

    def compare(self, features: list[Tensor], targets: list[Tensor]) -> Tensor:
        """The loss of features of each view, and of targets."""
        match self.case.method:
            case "simclr":
                return contrast_all(*features)
            case "vicreg":
                return regularised_distance(*features)
            case "barlow-twins":
                return redundancy(*features)
            case "byol" | "simsiam":
                pairs = zip(features, reversed(targets), strict=True)
                forth, back = ((_unit(a) * _unit(b)).sum(dim=1).mean() for a, b in pairs)
                is_byol = self.case.method == "byol"
                return 4 - 2 * (forth + back) if is_byol else -(forth + back) / 2
            case "moco":
                return self.contrast_queue(features[0], targets[0])
            case "lejepa":
                return gaussian_agreement(torch.stack(features))
        return contrast(features[0], targets[1]) + contrast(features[1], targets[0])

    def contrast_queue(self, query: Tensor, key: Tensor) -> Tensor:
        """Cross-entropy of each query's own key among the queue's, which the keys then enter."""
        query, key = _unit(query), _unit(key)
        others = self.queue.clone()
        logits = torch.cat([(query * key).sum(1, keepdim=True), query @ others.T], dim=1) / 0.2
        self.queue[self.oldest : self.oldest + len(key)] = key
        self.oldest = (self.oldest + len(key)) % len(self.queue)
        return F.cross_entropy(logits, key.new_zeros(len(key), dtype=torch.long))

    @torch.no_grad()
    def update(self, momentum: float = 0.99) -> None:
        """Move the momentum networks, if there are any."""
        if not self.has_momentum:
            return
        follow(self.momentum_encoder, self.encoder, momentum)
        follow(self.momentum_projector, self.projector, momentum)


def follow(slow: nn.Module, fast: nn.Module, momentum: float) -> None:
    """Move a network's parameters towards another's."""
    for theirs, ours in zip(slow.parameters(), fast.parameters(), strict=True):
        theirs.data = theirs.data * momentum + ours.data * (1 - momentum)


def contrast(query: Tensor, key: Tensor, temperature: float = 0.2) -> Tensor:
    """Cross-entropy of each query's own key among all."""
    query, key = F.normalize(query.float(), dim=1), F.normalize(key.float(), dim=1)
    logits = torch.einsum("nc,mc->nm", query, key) / temperature
    own = torch.arange(len(query), device=query.device)
    return F.cross_entropy(logits, own) * 2 * temperature


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features.float(), dim=1)


def contrast_all(first: Tensor, second: Tensor) -> Tensor:
    """SimCLR's loss: each view's other view among all others, both ways added."""
    first, second = _unit(first), _unit(second)
    count = len(first)
    itself, own = torch.eye(count).to(first) * 1e9, torch.arange(count, device=first.device)
    losses = []
    for view, other in ((first, second), (second, first)):
        logits = torch.cat([view @ other.T, view @ view.T - itself], dim=1) / 0.1
        losses.append(F.cross_entropy(logits, own))
    return losses[0] + losses[1]


def regularised_distance(first: Tensor, second: Tensor) -> Tensor:
    """VICReg's loss."""
    loss = 25 * F.mse_loss(first, second)
    for view in (first, second):
        view = view - view.mean(dim=0)
        loss = loss + 25 * F.relu(1 - (view.var(dim=0) + 1e-4).sqrt()).mean() / 2
        covariance = view.T @ view / (len(view) - 1)
        loss = loss + _off_diagonal(covariance).square().sum() / view.shape[1]
    return loss


def redundancy(first: Tensor, second: Tensor) -> Tensor:
    """Barlow Twins' loss."""
    first, second = (F.batch_norm(view, None, None, training=True) for view in (first, second))
    correlation = first.T @ second / len(first)
    wanted = (correlation.diagonal() - 1).square().sum()
    return wanted + 0.0051 * _off_diagonal(correlation).square().sum()


def _off_diagonal(matrix: Tensor) -> Tensor:
    size = len(matrix)
    return matrix.flatten()[:-1].view(size - 1, size + 1)[:, 1:].flatten()


def gaussian_agreement(views: Tensor) -> Tensor:
    """LeJEPA's loss of features ``(V, B, D)``, of which two are of large crops."""
    directions = torch.randn(views.shape[2], 1024).to(views.device)
    knots = torch.linspace(0, 3, 17, device=views.device)
    wanted = (-knots.square() / 2).exp()
    angles = (views @ (directions / directions.norm(dim=0)))[..., None] * knots
    error = (angles.cos().mean(dim=1) - wanted).square() + angles.sin().mean(dim=1).square()
    statistic = 2 * torch.trapezoid(error * wanted, knots) * views.shape[1]
    agreement = (views[:2].mean(dim=0) - views).square().mean()
    return 0.95 * agreement + 0.05 * statistic.mean()


def transforms(case: Case) -> Any:
    """torchvision's view of an image, or several of them, as the official code makes them."""
    from torchvision import transforms as T

    normalize = T.Normalize([0.5] * 3, [0.25] * 3)
    if case.method in _CROP_SCALES:
        bicubic = {"interpolation": T.InterpolationMode.BICUBIC} if case.method == "mae" else {}
        crop = T.RandomResizedCrop(
            case.image_size, scale=(_CROP_SCALES[case.method], 1.0), **bicubic
        )
        flip = T.RandomHorizontalFlip(0.0 if case.method == "ijepa" else 0.5)
        return T.Compose([crop, flip, T.ToTensor(), normalize])

    def view(
        blur: float,
        solarize: float = 0.0,
        scale: tuple[float, float] = (0.08, 1.0),
        jitter: tuple[float, ...] = (0.4, 0.4, 0.2, 0.1),
        size: int = case.image_size,
    ) -> Any:
        return T.Compose(
            [
                T.RandomResizedCrop(size, scale=scale),
                T.RandomApply([T.ColorJitter(*jitter)], p=0.8),
                T.RandomGrayscale(0.2),
                T.RandomApply([_PillowBlur()], p=blur),
                T.RandomSolarize(128, p=solarize),
                T.RandomHorizontalFlip(),
                T.ToTensor(),
                normalize,
            ]
        )

    views = [view(1.0), view(0.1, 0.2)]
    match case.method:
        case "simclr":
            views = [view(0.5, jitter=(0.8, 0.8, 0.8, 0.2))] * 2
        case "moco" | "simsiam":
            views = [view(0.5, scale=(0.2, 1.0), jitter=(0.4, 0.4, 0.4, 0.1))] * 2
        case "lejepa":
            small = view(0.5, 0.2, scale=(0.05, 0.3), size=case.view_sizes[-1])
            views = [view(0.5, 0.2, scale=(0.3, 1.0))] * 2 + [small] * LOCAL_CROPS
        case "dino" | "ibot":
            share = 0.25 if case.method == "ibot" else 0.4
            small = view(0.5, scale=(0.05, share), size=case.view_sizes[-1])
            large = [view(1.0, scale=(share, 1.0)), view(0.1, 0.2, scale=(share, 1.0))]
            views = large + [small] * LOCAL_CROPS
    return lambda image: tuple(one(image) for one in views)


class _PillowBlur:
    """Blur with a radius drawn from [0.1, 2], as MoCo's loader does."""

    def __call__(self, image: Any) -> Any:
        from PIL import ImageFilter

        radius = float(torch.empty(1).uniform_(0.1, 2.0))
        return image.filter(ImageFilter.GaussianBlur(radius=radius))
