"""Anyone's pre-trained Vision Transformer: files, folders, timm and the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
from timm.layers import Format
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import architecture, encoders, formats, weights
from ssl_bench.architecture import Hints
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.files import read_json
from ssl_bench.formats import Weights

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained encoder, and what came with it.

    Attributes:
        encoder: with the weights, on the CPU.
        spec: how to build it again.
        decoder: other weights of its pre-training under the method's names, or nothing.
        settings: what is known of the pre-training's flags, such as ``decoder_heads``.
        notes: what was worked out, for a person to read.
    """

    encoder: VisionTransformer
    spec: EncoderSpec
    decoder: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_encoder(
    source: str | Path,
    *,
    backbone: str | None = None,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    branch: str | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> VisionTransformer:
    """Load anyone's pre-trained Vision Transformer; no code from the source is run.

    Args:
        source: a file of weights (official MAE, MoCo v3 and DINO checkpoints, timm state dicts;
            PyTorch or safetensors), a run folder, a folder that transformers saved, ``timm:NAME``
            or ``hf:NAME``.
        backbone, num_heads, grid, branch: see `Hints`; needed only where the weights do not tell.
        image_size: of the images to come, or ``(height, width)``; default: the pre-training's.
            Images of any other size whose sides are multiples of the patch size work too.

    Returns:
        A timm model in eval mode, whose ``forward_features`` maps normalised float32
        ``(B, C, H, W)`` images to tokens ``(B, prefix + L, D)`` after the final norm, prefix
        tokens first. Its ``spec`` attribute says how to normalise images. Position embeddings are
        interpolated to each image's own grid (`encoders.resize` says how).

    Raises:
        UserError: the source cannot be read, holds no Vision Transformer, has a weight that
            matches nothing, or does not tell enough.
    """
    checkpoint = read(str(source), Hints(backbone, num_heads, grid, branch))
    for note in checkpoint.notes:
        _log.info("%s: %s", source, note)
    encoder = checkpoint.encoder
    if image_size is not None:
        encoders.resize(encoder, image_size)
    encoder.dynamic_img_size = True
    encoder.patch_embed.flatten, encoder.patch_embed.output_fmt = False, Format.NHWC
    encoder.patch_embed.strict_img_size = False
    encoder.spec = checkpoint.spec
    return encoder.eval()


def is_foreign(source: str) -> bool:
    """Whether a source is anything but a run: a file, a folder of transformers, timm:, hf:."""
    if source.startswith(("timm:", "hf:")):
        return True
    path = Path(source).expanduser()
    return path.is_file() or (path.is_dir() and "model_type" in _json_or_nothing(path))


def read(source: str, hints: Hints) -> Checkpoint:
    """The checkpoint that a source names, see `load_encoder`.

    Raises:
        UserError: as `load_encoder` does.
    """
    kind, _, name = source.partition(":")
    if kind == "timm" and name:
        return _from_timm(name)
    if kind == "hf" and name:
        return _from_hub(name)
    path = Path(source).expanduser()
    if (path / "encoder.json").exists():
        return _from_run(path)
    if path.name == "encoder.safetensors" and (path.parent / "encoder.json").exists():
        return _from_run(path.parent)
    if (path / "config.json").exists():
        return _from_transformers(path)
    if path.is_dir():
        raise UserError(
            f"folder {source!r} holds no weights; it has no encoder.json or config.json"
        )
    require(path.exists(), f"file {source!r} does not exist")
    where, content = repr(source), weights.read(path)
    told = content.get("ssl_bench", {})
    hints = dataclasses.replace(hints, num_heads=hints.num_heads or told.get("num_heads"))
    checkpoint = _build(formats.sort(content, hints.branch, where), where, hints)
    spec = checkpoint.spec
    if told:
        spec = dataclasses.replace(spec, mean=tuple(told["mean"]), std=tuple(told["std"]))
    settings = told.get("settings") or formats.flags(content, checkpoint.decoder)
    return dataclasses.replace(checkpoint, spec=spec, settings=settings)


def _from_run(folder: Path) -> Checkpoint:
    encoder, spec = weights.load(folder)
    plan = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    settings = plan.get("method_config") or {}
    others = folder / "method.safetensors"
    decoder = weights.read(others) if others.exists() else {}
    kind = f"a run of {plan.get('method', 'ssl-bench')}"
    return Checkpoint(encoder, spec, decoder, settings, _notes(kind, spec, encoder))


def _from_timm(name: str) -> Checkpoint:
    require(
        name.partition(".")[0] in encoders.timm_names(),
        f"timm has no Vision Transformer {name!r}; see `ssl-bench list backbones`",
    )
    return _of_model(name, _pretrained(name, f"timm:{name}"), f"timm:{name}")


def _pretrained(name: str, where: str) -> VisionTransformer:
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise UserError(f"{where} cannot be had: {first_line(error)}") from error
    require(
        isinstance(model, VisionTransformer),
        f"{where} is a {type(model).__name__}, no plain Vision Transformer",
    )
    model.reset_classifier(0)
    return model


def _of_model(backbone: str, model: VisionTransformer, where: str) -> Checkpoint:
    """A checkpoint of a model that timm has built with its weights."""
    embed, cfg = model.patch_embed, model.pretrained_cfg
    require(
        embed.img_size[0] == embed.img_size[1],
        f"{where} takes images of {embed.img_size} pixels; only square ones are supported",
    )
    spec = EncoderSpec(
        backbone,
        embed.img_size[0],
        embed.patch_size[0],
        embed.proj.in_channels,
        tuple(cfg["mean"]),
        tuple(cfg["std"]),
    )
    encoder = encoders.build(spec, seed=0)
    weights.load_strictly(encoder, model.state_dict(), where)
    return Checkpoint(encoder, spec, notes=_notes("timm", spec, encoder))


def _from_hub(name: str) -> Checkpoint:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(
            snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "pytorch_model.bin"])
        )
    except Exception as error:
        raise UserError(f"hf:{name} cannot be had: {first_line(error)}") from error
    config = _json(folder / "config.json")
    if "architecture" not in config:
        return _from_transformers(folder, f"hf:{name}")
    model = _pretrained(f"hf-hub:{name}", f"hf:{name}")
    return _of_model(config["architecture"], model, f"hf:{name}")


def _from_transformers(folder: Path, where: str = "") -> Checkpoint:
    """A folder that transformers' ``save_pretrained`` wrote: ViT or ViTMAE."""
    where = where or repr(str(folder))
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    require(
        kind in ("vit", "vit_mae"),
        f"{where} holds a model of type {kind!r}; of transformers, vit and vit_mae are read",
    )
    require(
        config.get("hidden_act", "gelu") == "gelu",
        f"{where} uses the activation {config.get('hidden_act')!r}; only gelu is supported",
    )
    found = [n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).exists()]
    require(bool(found), f"{where} has neither model.safetensors nor pytorch_model.bin")
    sorted_weights = formats.sort(weights.read(folder / found[0]), None, where)
    hints = Hints(num_heads=config.get("num_attention_heads"))
    checkpoint = _build(sorted_weights, where, hints, config.get("layer_norm_eps", 1e-12))
    settings = {
        ours: config[theirs]
        for ours, theirs in (
            ("norm_pix_loss", "norm_pix_loss"),
            ("decoder_heads", "decoder_num_attention_heads"),
            ("mask_ratio", "mask_ratio"),
        )
        if theirs in config
    }
    spec = checkpoint.spec
    if (folder / "preprocessor_config.json").exists():
        processor = _json(folder / "preprocessor_config.json")
        if "image_mean" in processor:
            mean, std = tuple(processor["image_mean"]), tuple(processor["image_std"])
            spec = dataclasses.replace(spec, mean=mean, std=std)
    notes = _notes(checkpoint.notes[0], spec, checkpoint.encoder)
    return dataclasses.replace(checkpoint, spec=spec, settings=settings, notes=notes)


def _build(
    found: Weights, where: str, hints: Hints, norm_eps: float = EncoderSpec.norm_eps
) -> Checkpoint:
    """Build the encoder that the weights show, and load them."""
    spec, (rows, columns) = architecture.work_out(found, where, hints, norm_eps)
    size = spec.patch_size
    encoder = encoders.build(spec, seed=0, img_size=(rows * size, columns * size))
    weights.load_strictly(encoder, found.encoder, where, found.origin)
    return Checkpoint(encoder, spec, found.decoder, {}, _notes(found.kind, spec, encoder))


def _notes(kind: str, spec: EncoderSpec, encoder: VisionTransformer) -> tuple[str, ...]:
    rows, columns = encoder.patch_embed.grid_size
    order = "none"
    if encoder.pos_embed is not None:
        first = architecture.position_order(encoder.pos_embed.detach(), (rows, columns))
        order = f"sin-cos, {first} first" if first else "learned"
    pooling = "class token" if encoder.cls_token is not None else "none"
    if not isinstance(encoder.fc_norm, nn.Identity):
        pooling = "mean of the patch tokens, normed after pooling"
    mean = ", ".join(f"{value:.3g}" for value in spec.mean)
    return (
        kind,
        f"{encoder.embed_dim} wide, {len(encoder.blocks)} blocks, "
        f"{encoder.blocks[0].attn.num_heads} heads, {rows} x {columns} patches of "
        f"{spec.patch_size} px; positions: {order}; pooling: {pooling}; "
        f"images normalised with mean {mean}",
    )


def _json_or_nothing(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(read_json(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
