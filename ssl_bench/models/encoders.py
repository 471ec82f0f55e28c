"""Encoders: timm Vision Transformers, made and fed in one way.

Shapes: B batch, C channels, H height, W width, L patches, K kept patches, P pixels in a patch
(patch_size * patch_size * C), T tokens (prefix tokens and patches), D width.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import isfinite
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.layers.format import Format
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssl_bench.config.presets import BACKBONES
from ssl_bench.errors import UserError, first_line, require, unknown
from ssl_bench.utils import rng

_AT_ONCE = "images_at_once"
_MOST_PATCHES = 2**16
_ARCHITECTURE = {
    *("embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "qk_norm", "init_values"),
    *("pre_norm", "reg_tokens", "class_token", "no_embed_class", "global_pool", "fc_norm"),
    *("act_layer", "norm_layer", "final_norm", "proj_bias", "pool_include_prefix", "pos_embed"),
}


@dataclass(frozen=True)
class EncoderSpec:
    """All that is needed to build an encoder again with ``timm.create_model``.

    Attributes:
        backbone: a name of `BACKBONES` or any timm Vision Transformer.
        image_size, patch_size: height = width in pixels.
        channels: 1 or 3.
        mean, std: of the pixels in [0, 1], for each channel; images are normalised with them.
        architecture: further arguments of ``timm.create_model``, where the backbone's own differ.
        norm_eps: of the layer norms, where it is not 1e-6.
    """

    backbone: str
    image_size: int
    patch_size: int
    channels: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    architecture: Mapping[str, Any] = field(default_factory=dict)
    norm_eps: float = 1e-6

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> EncoderSpec:
        """The spec whose ``asdict`` went through JSON; other entries are left out.

        Raises:
            UserError: it is no encoder's, or one of more patches than anybody has trained.
            KeyError, TypeError: something is missing, or of another kind.
        """
        known = {name: fields[name] for name in cls.__dataclass_fields__ if name in fields}
        spec = cls(**known | {"mean": tuple(fields["mean"]), "std": tuple(fields["std"])})
        surplus = sorted(set(spec.architecture) - _ARCHITECTURE)
        require(not surplus, f"an encoder's architecture has no {', '.join(surplus)}")
        sizes = (spec.image_size, spec.patch_size, spec.channels)
        require(
            all(type(size) is int and size > 0 for size in sizes) and spec.patches <= _MOST_PATCHES,
            f"no encoder has images of {sizes[0]!r:.20} pixels in {sizes[2]!r:.20} channels and "
            f"patches of {sizes[1]!r:.20}",
        )
        numbers = (*spec.mean, *spec.std, spec.norm_eps)
        require(
            len(spec.mean) == len(spec.std) == spec.channels
            and all(type(number) in (int, float) and isfinite(number) for number in numbers)
            and min(*spec.std, spec.norm_eps) > 0,
            f"no encoder takes {spec.channels} channels of mean {spec.mean!r:.60} and deviation "
            f"{spec.std!r:.60}, and adds {spec.norm_eps!r:.20} in its norms",
        )
        return spec

    @property
    def patches(self) -> int:
        """Patches in an image."""
        return (self.image_size // self.patch_size) ** 2

    def timm_arguments(self) -> dict[str, Any]:
        """Keyword arguments of ``timm.create_model``, its name included."""
        own = BACKBONES.get(self.backbone, {"model_name": self.backbone})
        sizes = {"img_size": self.image_size, "patch_size": self.patch_size}
        rest = {"in_chans": self.channels, "num_classes": 0}
        return {**own, **self.architecture, **sizes, **rest}


def timm_names() -> list[str]:
    """The plain Vision Transformers of timm."""
    vits = timm.list_models(module="vision_transformer")
    deits = timm.list_models(module="deit", exclude_filters="*distilled*")
    return sorted([*vits, *deits])


def unknown_backbone(name: str) -> UserError:
    """The error for a backbone that is none of ours, with the nearest one if there is any."""
    names = [*BACKBONES, *timm_names()]
    family = (re.match("[a-z]+", name.lower()) or [""])[0]
    is_of_timm = any(each.startswith(family) for each in timm.list_models()) if family else False
    if is_of_timm and not any(each.startswith(family) for each in names):
        return UserError(
            f"unknown backbone {name!r}; plain Vision Transformers are what there is, such as "
            "vit_tiny_patch16_224 (see `ssl-bench list backbones`)"
        )
    return unknown("backbone", name, names)


def default_patch_size(image_size: int) -> int:
    """The divisor of the image size nearest to a quarter of it."""
    divisors = [size for size in range(1, image_size + 1) if image_size % size == 0]
    return min(divisors, key=lambda size: abs(size - image_size / 4))


def check(spec: EncoderSpec) -> None:
    """Raise `UserError` for a backbone that does not exist or sizes that do not fit it."""
    names = [*BACKBONES, *timm_names()]
    if spec.backbone.partition(".")[0] not in names:
        raise unknown_backbone(spec.backbone)
    if spec.image_size % spec.patch_size:
        fits = [size for size in range(1, spec.image_size) if spec.image_size % size == 0]
        near = sorted(fits, key=lambda size: abs(size - spec.patch_size))[:3]
        raise UserError(
            f"image size {spec.image_size} is not divisible by patch size {spec.patch_size}; "
            f"patch sizes that divide it: {', '.join(map(str, sorted(near)))}"
        )


def build(spec: EncoderSpec, seed: int, **overrides: Any) -> VisionTransformer:
    """A freshly initialised encoder, a function of the spec and the seed alone.

    Every method is given the same weights, and may draw some of them anew: Xavier-uniform linear
    layers and a patch embedding initialised like one, zero biases, class token N(0, 0.02), fixed
    sin-cos position embeddings where the backbone has absolute ones (MAE, appendix A.1;
    ``models_mae.py``, facebookresearch/mae ``efb2a80``).

    Args:
        overrides: further arguments of ``timm.create_model``, e.g. ``drop_path_rate``.

    Raises:
        UserError: the backbone does not exist, is no plain Vision Transformer, or does not take
            the image or patch size.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(rng.key(seed, "encoder"))
        encoder = _create(spec, overrides)
        _initialise(encoder)
    return encoder


def empty(spec: EncoderSpec, **overrides: Any) -> VisionTransformer:
    """An encoder whose weights are still to be loaded: they are on the meta device.

    Raises:
        UserError: as `build` does.
    """
    with torch.device("meta"):
        return _create(spec, overrides)


def _create(spec: EncoderSpec, overrides: Mapping[str, Any]) -> VisionTransformer:
    check(spec)
    try:
        encoder = timm.create_model(**{**spec.timm_arguments(), **overrides})
    except (TypeError, AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"backbone {spec.backbone!r} cannot be built with {spec.image_size} px images and "
            f"{spec.patch_size} px patches: {first_line(error)}"
        ) from error
    if not isinstance(encoder, VisionTransformer):
        raise UserError(
            f"backbone {spec.backbone!r} is a {type(encoder).__name__}; masked pre-training "
            "needs a plain Vision Transformer such as vit_tiny_patch16_224"
        )
    for module in encoder.modules():
        if isinstance(module, nn.LayerNorm) and spec.norm_eps != EncoderSpec.norm_eps:
            module.eps = spec.norm_eps
    return encoder


def resize(encoder: VisionTransformer, image_size: int | tuple[int, int]) -> None:
    """Make an encoder take images of another size, height first, with its patch size kept.

    Position embeddings are interpolated over the grid of patches (Dosovitskiy et al., *An Image is
    Worth 16x16 Words*, arXiv:2010.11929, section 3.2), bicubically and with antialiasing, as timm
    does it (``resample_abs_pos_embed``), so that its own models agree. The official code of MAE,
    DeiT and DINO has no antialiasing, which a coarser grid suffers from, and so another cubic: for
    a 224-pixel MAE the class token is 0.2 % off theirs at 384 pixels and 6 % at 32. Those of
    prefix tokens stay.

    Raises:
        UserError: the size is not a multiple of the patch size.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    patch_size = encoder.patch_embed.patch_size[0]
    for side in (height, width):
        require(
            side > 0 and side % patch_size == 0,
            f"image size {side} is not a multiple of the {patch_size} px patches; "
            f"{max(1, round(side / patch_size)) * patch_size} would work",
        )
    encoder.set_input_size(img_size=(height, width))


def allow_other_sizes(encoder: Any) -> None:
    """Let an encoder take images of other sizes beside its own, such as small crops.

    A Vision Transformer's position embeddings are interpolated for each of them, as `resize` does.
    """
    if not isinstance(encoder, VisionTransformer):
        return
    encoder.dynamic_img_size = True
    patches = encoder.patch_embed
    patches.strict_img_size, patches.flatten, patches.output_fmt = False, False, Format.NHWC


def initialise_linear(root: nn.Module) -> None:
    """Xavier-uniform weights and zero biases in every linear layer, as in MAE's transformers."""
    for module in root.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _initialise(encoder: VisionTransformer) -> None:
    initialise_linear(encoder)
    projection = encoder.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    if encoder.cls_token is not None:
        nn.init.normal_(encoder.cls_token, std=0.02)
    fix_positions(encoder)


def fix_positions(encoder: VisionTransformer, first: Literal["column", "row"] = "column") -> None:
    """Set absolute position embeddings, where the encoder has any, to the fixed sin-cos table."""
    if encoder.pos_embed is None:
        return
    prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
    rows, columns = encoder.patch_embed.grid_size
    table_TD = sincos_2d(encoder.embed_dim, rows, columns, prefix, first)
    encoder.pos_embed.data.copy_(table_TD[None])
    encoder.pos_embed.requires_grad_(False)


def sincos_2d(
    width: int,
    rows: int,
    columns: int,
    prefix_tokens: int = 0,
    first: Literal["column", "row"] = "column",
) -> Tensor:
    """Fixed position embeddings: float32 ``(prefix_tokens + rows * columns, width)``.

    One half of the width encodes the column, the other the row; each half is all sines followed
    by all cosines of position / 10000^(k / (width / 4)). Prefix tokens get zeros.

    Args:
        first: what the first half encodes: the column in MAE (``util/pos_embed.py``,
            facebookresearch/mae ``efb2a80``), the row in MoCo v3 (``vits.py``).

    Raises:
        UserError: the width is not a multiple of 4.
    """
    require(width % 4 == 0, f"sin-cos position embeddings need a width divisible by 4, not {width}")
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    halves = []
    for position in (column, row) if first == "column" else (row, column):
        angles = position.reshape(-1, 1) * frequencies
        halves += [angles.sin(), angles.cos()]
    return F.pad(torch.cat(halves, dim=1).float(), (0, 0, prefix_tokens, 0))


def patchify(images_BCHW: Tensor, patch_size: int) -> Tensor:
    """Cut images into patches, channel fastest: ``(B, L, patch_size * patch_size * C)``."""
    batch, channels, height, width = images_BCHW.shape
    rows, columns = height // patch_size, width // patch_size
    grid = images_BCHW.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return grid.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, -1)


def unpatchify(patches_BLP: Tensor, patch_size: int, columns: int) -> Tensor:
    """The inverse of `patchify` for a grid with that many columns: ``(B, C, H, W)``."""
    batch, count, pixels = patches_BLP.shape
    rows, channels = count // columns, pixels // patch_size**2
    grid = patches_BLP.reshape(batch, rows, columns, patch_size, patch_size, channels)
    return grid.permute(0, 5, 1, 3, 2, 4).reshape(
        batch, channels, rows * patch_size, columns * patch_size
    )


def take(tokens_BLD: Tensor, index_BK: Tensor) -> Tensor:
    """The tokens at each row's indices: ``(B, K, D)``. Tokens may be shared: ``(1, L, D)``."""
    tokens_BLD = tokens_BLD.expand(len(index_BK), -1, -1)
    return tokens_BLD.gather(1, index_BK[..., None].expand(-1, -1, tokens_BLD.shape[-1]))


def encode_visible(encoder: VisionTransformer, patches_BLP: Tensor, keep_BK: Tensor) -> Tensor:
    """Encode only the kept patches: ``(B, prefix + K, D)`` after the final norm.

    Patches are gathered before they are embedded, so nothing is computed for masked ones.
    """
    embed = encoder.patch_embed
    weight = embed.proj.weight.permute(0, 2, 3, 1).flatten(1)
    tokens = embed.norm(F.linear(take(patches_BLP, keep_BK), weight, embed.proj.bias))
    prefix = [token for token in (encoder.cls_token, encoder.reg_token) if token is not None]
    prefix_BTD = [token.expand(len(tokens), -1, -1) for token in prefix]
    if encoder.pos_embed is not None:
        positions = encoder.pos_embed
        embedded = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
        tokens = tokens + take(positions[:, embedded:], keep_BK)
        if embedded:
            prefix_BTD = [torch.cat(prefix_BTD, dim=1) + positions[:, :embedded]]
    tokens = encoder.norm_pre(encoder.pos_drop(torch.cat([*prefix_BTD, tokens], dim=1)))
    return encoder.norm(encoder.blocks(tokens))


def class_token(encoder: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    """The class token after the final norm, ``(B, D)``, as in ``forward_features(images)[:, 0]``.

    The last block computes nothing else. The activations of as many images are kept at a time as
    `keep_at_once` says.
    """
    at_once = getattr(encoder, _AT_ONCE, None)
    return in_parts(partial(_class_token, encoder), images_BCHW, at_once)


def _class_token(encoder: VisionTransformer, images_BCHW: Tensor) -> Tensor:
    tokens_BTD = encoder.patch_drop(encoder._pos_embed(encoder.patch_embed(images_BCHW)))
    tokens_BTD = encoder.blocks[:-1](encoder.norm_pre(tokens_BTD))
    return encoder.norm(block_at(encoder.blocks[-1], tokens_BTD, slice(0, 1)))[:, 0]


def keep_at_once(root: nn.Module, images: int | None) -> None:
    """Have each encoder under a module keep the activations of so many images at a time.

    Heeded by what encodes with `in_parts`, such as `class_token`; None for all.
    """
    for module in root.modules():
        if isinstance(module, VisionTransformer):
            setattr(module, _AT_ONCE, images)


def in_parts(
    encode: Callable[[Tensor], Tensor], images_BCHW: Tensor, images_at_once: int | None
) -> Tensor:
    """``encode(images)``, with the activations of so many images kept at a time; None for all.

    Those of the other parts are computed again in the backward pass, at the price of one more
    forward pass.

    Args:
        encode: a function of each image by itself, to rows ``(B, ...)``.
    """
    if images_at_once is None or images_at_once >= len(images_BCHW):
        return encode(images_BCHW)
    parts = images_BCHW.split(images_at_once)
    if not torch.is_grad_enabled():
        return torch.cat([encode(part_BCHW) for part_BCHW in parts])
    return torch.cat([checkpoint(encode, part, use_reentrant=False) for part in parts])


def block_at(block: Any, tokens_BTD: Tensor, wanted: slice) -> Tensor:
    """``block(tokens)[:, wanted]``: all tokens are attended to, and the wanted ones alone attend.

    A block that is not timm's plain one computes all of its output.
    """
    attention: Any = getattr(block, "attn", None)
    gate = getattr(attention, "gate", None)
    if type(block) is not Block or type(attention) is not Attention or gate is not None:
        return block(tokens_BTD)[:, wanted]
    batch, count, _ = tokens_BTD.shape
    heads = (3, attention.num_heads, attention.head_dim)
    qkv = attention.qkv(block.norm1(tokens_BTD)).view(batch, count, *heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q[:, :, wanted]), attention.k_norm(k)
    dropout = attention.attn_drop.p if attention.training else 0.0
    if attention.fused_attn:
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    else:
        weights = (q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)
        attended = attention.attn_drop(weights) @ v
    attended = attention.norm(attended.transpose(1, 2).flatten(2))
    attended = attention.proj_drop(attention.proj(attended))
    tokens = tokens_BTD[:, wanted] + block.drop_path1(block.ls1(attended))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens))))
