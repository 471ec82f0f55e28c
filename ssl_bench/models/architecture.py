"""Which encoder a file's weights belong to: inferred from them, or asked for."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

from ssl_bench.config.presets import BACKBONES
from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError, require
from ssl_bench.models import backbones, encoders, formats
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.formats import Weights
from ssl_bench.models.video import TUBELET, sinusoids

_IMAGENET: Mapping[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_ALIKE = 0.9
_STANDARD = {
    "vit_tiny_patch16_224": {"embed_dim": 192, "depth": 12, "num_heads": 3},
    "vit_small_patch16_224": {"embed_dim": 384, "depth": 12, "num_heads": 6},
    "vit_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "vit_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    "vit_huge_patch14_224": {"embed_dim": 1280, "depth": 32, "num_heads": 16},
}


_OTHERS = {
    r"^layers\.\d+\.blocks\.|^encoder\.layers\.\d+\.blocks\.": "a Swin Transformer V2",
}
"""Names of weights that only other transformers have."""
_SWIN_BLOCK = re.compile(r"layers\.(\d+)\.blocks\.\d+\.norm1\.weight")
_TABLE = "blocks.0.attn.relative_position_bias_table"
_BEITS = {
    "beit_base_patch16_224": {"embed_dim": 768, "depth": 12, "num_heads": 12},
    "beit_large_patch16_224": {"embed_dim": 1024, "depth": 24, "num_heads": 16},
}
_SWINS = {
    f"swin_{size}_patch4_window{window}_{image}": {
        "embed_dim": width,
        "depths": depths,
        "num_heads": tuple(width // 32 * 2**stage for stage in range(4)),
        "window_size": window,
    }
    for size, width, depths in (
        ("tiny", 96, (2, 2, 6, 2)),
        ("small", 96, (2, 2, 18, 2)),
        ("base", 128, (2, 2, 18, 2)),
        ("large", 192, (2, 2, 18, 2)),
    )
    for window, image in ((7, 224), (12, 384))
    if width > 96 or window == 7
}
_RESNETS: Mapping[tuple[int, tuple[int, ...]], str] = {
    (2, (2, 2, 2, 2)): "resnet18",
    (2, (3, 4, 6, 3)): "resnet34",
    (3, (3, 4, 6, 3)): "resnet50",
    (3, (3, 4, 23, 3)): "resnet101",
    (3, (3, 8, 36, 3)): "resnet152",
}
"""By convolutions in a block, and blocks in each layer. timm has torchvision's names for them."""


def work_out(
    found: Weights, where: str, hints: WeightSettings, norm_eps: float
) -> tuple[EncoderSpec, tuple[int, ...] | None]:
    """The encoder that weights belong to, and its rows and columns of patches, if it has any.

    The spec's images are square, with the height of the grid; of 224 pixels for a ResNet; for Swin
    see `_swin`, `_beit` for BEiT, and `_clips` for VideoMAE.

    Raises:
        UserError: they belong to no encoder of timm, are ambiguous, or contradict a hint.
    """
    state = found.encoder
    if "layer1.0.conv1.weight" in state:
        return _resnet(state, where, hints), None
    if f"layers.0.{_TABLE}" in state:
        return _swin(state, where, hints), None
    if _TABLE in state:
        return _beit(found, where, hints), None
    if found.frames > 1:
        return _clips(found, where, hints, norm_eps)
    for pattern, family in _OTHERS.items():
        theirs = [name for name in state if re.search(pattern, name)]
        require(not theirs, f"{where} has {theirs[:1]}, as {family} has, which is not supported")
    for name, dimensions in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        shape = tuple(state[name].shape) if name in state else "missing"
        require(
            name in state and len(shape) == dimensions,
            f"{where}: sizes are read off {name!r}, which should have {dimensions} dimensions and "
            f"is {shape}; every plain Vision Transformer has it",
        )
    width, channels, patch_size, patch_width = state["patch_embed.proj.weight"].shape
    require(
        channels in _IMAGENET and patch_size == patch_width,
        f"{where} takes {channels} channels in patches of {patch_size} x {patch_width} pixels; "
        "1 or 3 channels and square patches are supported",
    )
    damaged = [name for name, tensor in state.items() if 0 in tensor.shape or tensor.ndim == 0]
    require(not damaged, f"{where} is damaged: {damaged[:1]} is empty")
    require(
        "dist_token" not in state,
        f"{where} has 'dist_token', as distilled DeiTs have, which are not supported",
    )
    require(
        "norm_pre.weight" not in state or hints.backbone is not None,
        f"{where} has 'norm_pre.weight', as CLIP's encoders have, which differ in what no weight "
        "shows; say which one, e.g. --backbone vit_base_patch16_clip_224",
    )
    shown = _architecture(state, where)
    grid = rows, _ = _grid(found, shown, hints, where)
    heads = _heads(found, (width, shown["depth"]), grid, hints, where)
    require(
        heads > 0 and width % heads == 0,
        f"{where}: {heads} attention heads do not divide its width of {width}",
    )
    shown["num_heads"] = heads
    backbone, architecture = _name(hints.backbone, hints.num_heads, shown, _is_gated(state))
    mean, std = _normalisation(hints.backbone, channels)
    spec = EncoderSpec(
        backbone, rows * patch_size, patch_size, channels, mean, std, architecture, norm_eps
    )
    return spec, grid


def _normalisation(
    backbone: str | None, channels: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The statistics of a tagged timm backbone, or else ImageNet's."""
    tagged = timm.get_pretrained_cfg(backbone) if backbone and "." in backbone else None
    if tagged and channels == len(tagged.mean):
        return tuple(tagged.mean), tuple(tagged.std)
    return _IMAGENET[channels]


def _swin(state: Mapping[str, Tensor], where: str, hints: WeightSettings) -> EncoderSpec:
    """The Swin Transformer that weights belong to; whether all of them do shows as they are loaded.

    Its images are of the size for which its last stage is one window, as in all published ones.
    """
    _means_nothing(hints, where, "a Swin Transformer")
    counts = Counter(match[1] for name in state if (match := _SWIN_BLOCK.fullmatch(name)))
    depths = tuple(counts[str(stage)] for stage in range(len(counts)))
    tables = [state.get(f"layers.{stage}.{_TABLE}") for stage in range(len(depths))]
    projection = state["patch_embed.proj.weight"]
    require(
        projection.ndim == 4
        and projection.shape[1] in _IMAGENET
        and all(table is not None and table.ndim == 2 for table in tables),
        f"{where} holds a Swin Transformer that lacks a stage, or takes no images of 1 or 3 "
        "channels",
    )
    shapes = [table.shape for table in tables if table is not None]
    windows = [(math.isqrt(count) + 1) // 2 for count, _ in shapes]
    width, channels, patch_size, _ = projection.shape
    shown = {
        "embed_dim": width,
        "depths": depths,
        "num_heads": tuple(heads for _, heads in shapes),
        "window_size": max(windows),
    }
    known = {**_SWINS, **BACKBONES}.items()
    names = [name for name, own in known if shown == {key: own.get(key) for key in shown}]
    backbone = hints.backbone or (names or [next(iter(_SWINS))])[0]
    architecture = {} if hints.backbone or names else shown
    image_size = windows[-1] * 2 ** (len(depths) - 1) * patch_size
    mean, std = _normalisation(hints.backbone, channels)
    return EncoderSpec(backbone, image_size, patch_size, channels, mean, std, architecture)


def _beit(found: Weights, where: str, hints: WeightSettings) -> EncoderSpec:
    """The BEiT that weights belong to; whether all of them do shows as they are loaded.

    SimMIM's Vision Transformers and data2vec's are BEiTs. Images are square, and normalised as in
    the authors' files: those of BEiT have a mean and a deviation of 0.5, SimMIM's ImageNet's.
    """
    _means_nothing(hints, where, "a BEiT")
    state, table = found.encoder, found.encoder[_TABLE]
    projection = state["patch_embed.proj.weight"]
    side = (math.isqrt(max(0, table.shape[0] - 3)) + 1) // 2
    require(
        projection.ndim == 4
        and projection.shape[1] in _IMAGENET
        and table.ndim == 2
        and table.shape[0] == (2 * side - 1) ** 2 + 3,
        f"{where} holds a BEiT that takes no square images of 1 or 3 channels: its patches are of "
        f"shape {tuple(projection.shape)}, its relative positions of shape {tuple(table.shape)}",
    )
    _, channels, patch_size, _ = projection.shape
    shown = _architecture(state, where)
    sizes = {"embed_dim": shown["embed_dim"], "depth": shown["depth"], "num_heads": table.shape[1]}
    names = [name for name, own in _BEITS.items() if own == sizes]
    backbone = hints.backbone or (names or [next(iter(_BEITS))])[0]
    architecture: dict[str, Any] = {} if hints.backbone or names else sizes
    if "mlp_ratio" in shown:
        architecture["mlp_ratio"] = shown["mlp_ratio"]
    if "norm.weight" in state:
        architecture["global_pool"] = "token"
    if "blocks.0.gamma_1" not in state:
        architecture["init_values"] = 0.0  # timm takes its own for None
    halves = ((0.5,) * channels, (0.5,) * channels)
    is_of_imagenet = hints.backbone or found.kind.startswith("SimMIM")
    mean, std = _normalisation(hints.backbone, channels) if is_of_imagenet else halves
    image_size = side * patch_size
    return EncoderSpec(backbone, image_size, patch_size, channels, mean, std, architecture)


def with_positions(found: Weights, hints: WeightSettings) -> Weights:
    """Weights with the fixed positions of an encoder of clips, which files leave out."""
    if found.frames == 1 or "pos_embed" in found.encoder:
        return found
    width, _, patch_size, _ = found.encoder["patch_embed.proj.weight"].shape
    rows, columns = hints.grid or ((found.side or 0) // patch_size,) * 2
    tokens = (hints.frames or found.frames) // TUBELET * rows * columns
    positions = {"pos_embed": sinusoids(tokens, width)[None]}
    return replace(found, encoder={**found.encoder, **positions})


def _clips(
    found: Weights, where: str, hints: WeightSettings, norm_eps: float
) -> tuple[EncoderSpec, tuple[int, ...]]:
    """The encoder of clips that weights belong to: VideoMAE's, of square frames.

    As positions are fixed, weights do not tell how many frames there are, nor their size: what was
    stored beside them does, or a hint, or else they are those of all published encoders.
    """
    state, frames = found.encoder, hints.frames or found.frames
    width, channels, patch_size, patch_width = state["patch_embed.proj.weight"].shape
    channels //= TUBELET
    require(
        channels in _IMAGENET and patch_size == patch_width and frames % TUBELET == 0,
        f"{where} takes {frames} frames of {channels} channels in patches of {patch_size} x "
        f"{patch_width} pixels; an even number, 1 or 3 channels and square patches are supported",
    )
    positions = state["pos_embed"].shape[1]
    side = math.isqrt(positions // (frames // TUBELET))
    require(
        0 < positions == side**2 * (frames // TUBELET) and hints.grid in ((), (side, side)),
        f"{where} has frames of {hints.grid} patches; only square ones are supported",
    )
    shown = _architecture(state, where)
    if "norm.weight" not in state and not shown.get("fc_norm"):
        shown["final_norm"] = False
    shown["num_heads"] = _heads(found, (width, shown["depth"]), (side, side), hints, where)
    backbone, architecture = _name(hints.backbone, hints.num_heads, shown, is_gated=False)
    mean, std = _normalisation(hints.backbone, channels)
    sizes = side * patch_size, patch_size, channels
    spec = EncoderSpec(backbone, *sizes, mean, std, architecture, norm_eps, frames)
    return spec, (side, side)


def _means_nothing(hints: WeightSettings, where: str, family: str) -> None:
    """Refuse hints that are about plain Vision Transformers alone."""
    for name in ("num_heads", "grid"):
        require(
            not getattr(hints, name),
            f"{where} holds {family}, so --{name.replace('_', '-')} means nothing; leave it out",
        )


def _resnet(state: Mapping[str, Tensor], where: str, hints: WeightSettings) -> EncoderSpec:
    """The ResNet that weights belong to; whether all of them do shows as they are loaded."""
    _means_nothing(hints, where, "a ResNet")
    stem = state.get("conv1.weight", state.get("conv1.0.weight"))
    require(
        stem is not None and stem.ndim == 4 and stem.shape[1] in _IMAGENET,
        f"{where} holds a ResNet without the convolution 'conv1.weight' of 1 or 3 channels that it "
        "should start with",
    )
    assert stem is not None
    backbone = hints.backbone or _plain_resnet(state, stem, where)
    channels = stem.shape[1]
    spec = EncoderSpec(backbone, 224, None, channels, *_normalisation(hints.backbone, channels))
    require(not spec.is_vit, f"{where} holds a ResNet, not {backbone!r}; leave --backbone out")
    return spec


def _plain_resnet(state: Mapping[str, Tensor], stem: Tensor, where: str) -> str:
    """timm's name of the ResNet with these blocks."""
    channels, (rows, columns) = len(stem), stem.shape[2:]
    is_timms = "conv1.0.weight" in state or (channels, rows, columns) == (64, 7, 7)
    known = ", ".join(_RESNETS.values())
    require(
        is_timms,
        f"{where} holds a ResNet that starts with {channels} channels of {rows} x {columns} "
        f"pixels, as wider ones and those for small images do; timm's have 64 of 7 x 7, so only "
        f"those would work ({known}, and others by --backbone)",
    )
    width = len(state["layer1.0.conv1.weight"])
    convolutions = 3 if "layer1.0.conv3.weight" in state else 2
    blocks = tuple(len(formats.blocks_in(state, f"layer{layer}")) for layer in (1, 2, 3, 4))
    name = _RESNETS.get((convolutions, blocks))
    is_plain = name is not None and "conv1.weight" in state and width == 64
    require(
        is_plain,
        f"{where} holds a ResNet with {' + '.join(map(str, blocks))} blocks of {convolutions} "
        f"convolutions, the first of {width} channels, which is none of {known}; if it is another "
        "of timm's, say which, e.g. --backbone wide_resnet50_2",
    )
    assert name is not None
    return name


def _architecture(state: Mapping[str, Tensor], where: str) -> dict[str, Any]:
    """The arguments of ``timm.create_model`` that names and shapes of weights reveal.

    Apart from width and depth, only those that differ from the plain ViT's.
    """
    width = len(state["patch_embed.proj.weight"])
    blocks = {int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name))}
    depth = len(blocks)
    gaps = sorted(blocks - set(range(depth)))
    require(not gaps, f"{where} has a block {gaps[:1]}, but {depth} blocks in all")
    shown: dict[str, Any] = {"embed_dim": width, "depth": depth}
    hidden = state.get("blocks.0.mlp.fc1.weight")
    if hidden is not None and (len(hidden) != 4 * width or _is_gated(state)):
        shown["mlp_ratio"] = (len(hidden) + 0.5) / width
    if "blocks.0.attn.qkv.bias" not in state:
        shown["qkv_bias"] = False
    if "blocks.0.attn.q_norm.weight" in state:
        shown["qk_norm"] = True
    if "blocks.0.ls1.gamma" in state:
        shown["init_values"] = 1e-5
    if "norm_pre.weight" in state:
        shown["pre_norm"] = True
    if "reg_token" in state:
        require(state["reg_token"].ndim == 3, f"{where} is damaged: 'reg_token' has no tokens")
        shown["reg_tokens"] = state["reg_token"].shape[1]
    if "fc_norm.weight" in state:
        shown["global_pool"] = "avg"
    if "cls_token" not in state:
        shown |= {"class_token": False, "global_pool": "avg", "fc_norm": "fc_norm.weight" in state}
    return shown


def _grid(
    found: Weights, shown: dict[str, Any], hints: WeightSettings, where: str
) -> tuple[int, ...]:
    """Rows and columns of patches; notes in ``shown`` if prefix tokens have no positions."""
    state = found.encoder
    count = state["pos_embed"].shape[1]
    prefix = shown.get("class_token", True) + shown.get("reg_tokens", 0)
    if found.without_prefix:
        shown["no_embed_class"], prefix = True, 0
    grid = hints.grid or _factors(state["pos_embed"], count - prefix)
    if grid and grid[0] * grid[1] == count - prefix:
        return grid
    if not hints.grid and hints.backbone:
        grid = _factors(state["pos_embed"], count)
    if grid and grid[0] * grid[1] == count:
        shown["no_embed_class"] = True
        return grid
    if hints.grid:
        rows, columns = hints.grid
        raise UserError(
            f"{where} has {count} positions, at most {prefix} of them for prefix tokens, which is "
            f"no grid of {rows} x {columns} patches"
        )
    side = math.isqrt(count)
    or_all = f" (--grid {side},{side} if prefix tokens have none)" if side**2 == count else ""
    raise UserError(
        f"{where} has {count} positions for {prefix} prefix tokens and its patches, which are no "
        f"square; say the rows and columns of its grid, e.g. --grid 8,6{or_all}"
    )


def _factors(positions_1TD: Tensor, patches: int) -> tuple[int, ...]:
    """The grid whose sin-cos table the positions are, or else the square of that many patches."""
    for rows in range(1, patches + 1):
        columns, rest = divmod(patches, rows)
        is_table = not rest and position_order(positions_1TD, (rows, columns), alike=0.999)
        if is_table and rows != columns:
            return rows, columns
    side = math.isqrt(max(0, patches))
    return (side, side) if side > 0 and side**2 == patches else ()


def _heads(
    found: Weights,
    width_depth: tuple[int, int],
    grid: tuple[int, ...],
    hints: WeightSettings,
    where: str,
) -> int:
    """Attention heads, which no shape reveals: from a hint, or as usual in files of this kind."""
    if hints.num_heads:
        return hints.num_heads
    known = formats.heads(found, width_depth, position_order(found.encoder["pos_embed"], grid))
    if hints.backbone:
        if backbones.timm_name(hints.backbone) not in backbones.vit_names():
            require(
                not timm.is_model(backbones.timm_name(hints.backbone)),
                f"{where} ({found.kind}) is a plain Vision Transformer, and backbone "
                f"{hints.backbone!r} is none; one such as vit_small_patch16_224 would work",
            )
            raise backbones.unknown_backbone(hints.backbone)
        with torch.device("meta"):
            preset = BACKBONES.get(hints.backbone, {"model_name": hints.backbone})
            model = timm.create_model(**preset)
        own = model.blocks[0].attn.num_heads
        require(
            known in (None, own),
            f"{where} ({found.kind}) has {known} attention heads, and backbone "
            f"{hints.backbone!r} has {own}; leave --backbone out, or insist with --num-heads {own}",
        )
        return own
    width, depth = width_depth
    fits = [str(heads) for heads in range(1, width) if width % heads == 0 and width // heads >= 8]
    require(
        known is not None,
        f"{where} ({found.kind}) is {width} wide with {depth} blocks, which does not tell its "
        f"attention heads; say --backbone, or --num-heads, one of {', '.join(fits)}",
    )
    assert known is not None
    return known


def _name(
    backbone: str | None, num_heads: int | None, architecture: Mapping[str, Any], is_gated: bool
) -> tuple[str, Mapping[str, Any]]:
    """A backbone's name, and the arguments in which the encoder differs from it."""
    if backbone:
        insisted = {"num_heads": num_heads} if num_heads else {}
        pooled = {"global_pool": "avg"} if architecture.get("global_pool") else {}
        return backbone, {**insisted, **pooled}
    for name, own in {**_STANDARD, **BACKBONES}.items():
        if architecture == {key: own.get(key) for key in ("embed_dim", "depth", "num_heads")}:
            return name, {}
    if is_gated:
        return "vit_giant_patch14_dinov2", {"init_values": 0.0, **architecture}
    return "vit_base_patch16_224", architecture


def _is_gated(state: Mapping[str, Tensor]) -> bool:
    """Whether the MLPs are gated (SwiGLU), as in DINOv2's ViT-g."""
    first, second = (state.get(f"blocks.0.mlp.fc{i}.weight") for i in (1, 2))
    if first is None or second is None or second.ndim != 2:
        return False
    return len(first) == 2 * second.shape[1]


def position_order(
    positions_1TD: Tensor, grid: tuple[int, ...], alike: float = _ALIKE
) -> str | None:
    """Which axis the first half of the width encodes, if positions resemble a sin-cos table.

    Fine-tuned ones still do; those learned from scratch are nearly orthogonal to it.
    """
    rows, columns = grid
    patches_LD = positions_1TD[0, -rows * columns :].float()
    if patches_LD.shape[1] % 4:
        return None
    similarity = {}
    for first in ("column", "row"):
        table_LD = encoders.sincos_2d(patches_LD.shape[1], rows, columns, first=first)
        similarity[first] = F.cosine_similarity(patches_LD.ravel(), table_LD.ravel(), dim=0).item()
    best = max(similarity, key=similarity.__getitem__)
    is_clear = similarity[best] > alike and similarity["column"] != similarity["row"]
    return best if is_clear else None
