"""stable-pretraining's MAE and MoCo v3 with its transforms, in the loop that all share.

Its own trainer is Lightning's, which would only add to a step. Two things deviate from the
papers, so that the gate compares with `reference`: MAE's decoder is not given the class token, and
MoCo v3's predictor does not end in batch norm.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import plain
from benchmarks.cases import Case
from benchmarks.contestants import Model
from ssl_bench.errors import UserError

_TEMPERATURE = 0.2
_NAMES = (
    (r"^encoder\.vit\.", "encoder."),
    (r"^decoder\.transformer\.blocks\.", "decoder_blocks."),
    (r"^decoder\.transformer\.context_proj\.", "decoder_embed."),
    (r"^decoder\.transformer\.final_norm\.", "decoder_norm."),
    (r"^decoder\.transformer\.output_proj\.", "decoder_pred."),
    (r"^backbone\.student\.", "encoder."),
    (r"^backbone\.teacher\.", "momentum_encoder."),
    (r"^projector\.student\.", "projector."),
    (r"^projector\.teacher\.", "momentum_projector."),
)


def build(case: Case) -> Model:
    """The case's model."""
    if case.method not in ("mae", "mocov3"):
        raise UserError(f"stable-pretraining does mae and mocov3 here, not {case.method!r}")
    _quiet()
    return _MAE(case) if case.method == "mae" else _MoCoV3(case)


def reference(case: Case) -> Model:
    """The same maths in plain PyTorch."""
    return _Reference(case)


class _Reference(Model):
    def __init__(self, case: Case) -> None:
        super().__init__()
        self.is_mae = case.method == "mae"
        if self.is_mae:
            self.method = plain.MAE(case, decode_class_token=False)
        else:
            self.method = plain.Views(case)
            hidden, out = case.projector
            self.method.predictor = plain.mlp([out, hidden, out], last_norm=False)

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        return self.method(views[0], noise) if self.is_mae else self.method(*views)


class _Named(Model):
    def plain_name(self, name: str) -> str:
        name = super().plain_name(name)
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        return name


class _MAE(_Named):
    def __init__(self, case: Case) -> None:
        super().__init__()
        from stable_pretraining.methods.mae import MAE

        width, depth, heads = case.decoder
        self.patch_size = case.patch_size
        encoder, self.masking = plain.encoder(case), _Masking(case.mask_ratio)
        encoder.pos_embed.requires_grad_(False)
        self.method = MAE(encoder, width, depth, heads, masking=self.masking)

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        self.masking.noise = noise
        return self.method(views[0]).loss

    def adopt(self, weights: Mapping[str, Tensor]) -> None:
        """Take weights: its mask token is projected, and its pixels lie channel by channel."""
        decoder, size = self.method.decoder, self.patch_size
        own = dict(weights)
        for name in ("decoder_pred.weight", "decoder_pred.bias"):
            own[name] = own[name].unflatten(0, (size, size, 3)).movedim(2, 0).flatten(0, 2)
        super().adopt(own)
        with torch.no_grad():
            decoder.transformer.pos_embed.copy_(weights["decoder_pos_embed"][:, 1:])
            decoder.transformer.query_proj.weight.zero_()
            decoder.transformer.query_proj.bias.copy_(weights["mask_token"].flatten())


class _Masking(nn.Module):
    """Keep the patches with the least noise, as its ``PatchMasking`` does with noise of its own."""

    def __init__(self, mask_ratio: float) -> None:
        super().__init__()
        self.mask_ratio = mask_ratio
        self.noise = torch.empty(0)

    def forward(self, tokens: Tensor, rows: int, columns: int) -> Any:
        from stable_pretraining.backbone.patch_masking import MaskingOutput

        keep = int(rows * columns * (1 - self.mask_ratio))
        shuffle = self.noise.argsort(dim=1)
        restore, kept = shuffle.argsort(dim=1), shuffle[:, :keep]
        return MaskingOutput(
            visible=tokens.gather(1, kept[..., None].expand(-1, -1, tokens.shape[2])),
            mask=(restore >= keep).float(),
            ids_restore=restore,
            ids_keep=kept,
        )


class _MoCoV3(_Named):
    def __init__(self, case: Case) -> None:
        super().__init__()
        from stable_pretraining.methods.mocov3 import MoCov3

        hidden, out = case.projector
        # It measures its encoder's output on 224 pixels, whatever the images' size.
        encoder = plain.encoder(replace(case, image_size=14 * case.patch_size))
        encoder.set_input_size(img_size=224)
        self.method = MoCov3(encoder, (hidden, hidden, out), hidden, _TEMPERATURE)
        for network in (self.method.backbone.student, self.method.backbone.teacher):
            network.set_input_size(img_size=case.image_size)
            network.pos_embed.requires_grad_(False)

    def loss(self, views: tuple[Tensor, ...], noise: Tensor) -> Tensor:
        # Its mean of both ways, without the factor of twice the temperature.
        return self.method(*views).loss * (4 * _TEMPERATURE)

    def update(self) -> None:
        self.method.backbone.update_teacher()
        self.method.projector.update_teacher()


def transform(case: Case) -> Callable[[Any], Any]:
    """Its view of an image, or two of them."""
    _quiet()
    from stable_pretraining.data import transforms as T
    from torchvision.transforms import InterpolationMode

    size = (case.image_size, case.image_size)
    end = [T.RandomHorizontalFlip(p=0.5), T.ToImage(mean=[0.5] * 3, std=[0.25] * 3)]
    if case.method == "mae":
        crop = T.RandomResizedCrop(
            size, scale=(0.2, 1.0), interpolation=InterpolationMode.BICUBIC, antialias=True
        )
        return partial(_one, T.Compose(T.RGB(), crop, *end))

    def view(blur: float, solarize: float) -> Any:
        return T.Compose(
            T.RGB(),
            T.RandomResizedCrop(size, scale=(0.08, 1.0)),
            T.ColorJitter(0.4, 0.4, 0.2, 0.1, p=0.8),
            T.RandomGrayscale(0.2),
            T.PILGaussianBlur(p=blur),
            T.RandomSolarize(threshold=128, p=solarize),
            *end,
        )

    return partial(_several, T.MultiViewTransform([view(1.0, 0.0), view(0.1, 0.2)]))


def _one(compose: Any, image: Any) -> Tensor:
    return compose({"image": image})["image"]


def _several(compose: Any, image: Any) -> tuple[Tensor, ...]:
    return tuple(view["image"] for view in compose({"image": image})["views"])


def _quiet() -> None:
    os.environ.setdefault("LOGURU_LEVEL", "ERROR")
