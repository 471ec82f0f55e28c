"""Loading pre-trained encoders from runs, other people's files, timm and the Hugging Face hub."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ssl_bench.config.settings import WeightSettings
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.models import (
    architecture,
    backbones,
    encoders,
    formats,
    text_encoder,
    text_formats,
    vocabulary,
    weights,
)
from ssl_bench.models.backbones import Backbone, EncoderSpec
from ssl_bench.models.file_names import ENCODER, ENCODER_WEIGHTS, METHOD_WEIGHTS
from ssl_bench.models.formats import Weights
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.utils.files import checked_name, load_json

_MODEL_TYPES = ("vit", "vit_mae", "videomae", "dinov2", "dinov2_with_registers", "ijepa")
_TOKENIZERS = ("vocab.txt", "tokenizer.json")
_FLAGS = {
    "norm_pix_loss": "norm_pix_loss",
    "decoder_num_attention_heads": "decoder_heads",
    "mask_ratio": "mask_ratio",
}
"""Settings of transformers' ViTMAE and VideoMAE, and the flags that they are here."""
_OF_MODEL = (
    "architecture",
    "fixed_input_size",
    "pool_size",
    "crop_mode",
    "first_conv",
    "classifier",
)
"""What timm's ``pretrained_cfg`` says of a model and not of the weights that it has for it."""
_HINTS = ("backbone", "num_heads", "grid", "branch", "frames")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A pre-trained encoder, and what came with it.

    Attributes:
        encoder: with the weights, on the CPU.
        kind: who wrote it, for people.
        decoder: the method's other weights under its own names, if there are any.
        settings: known flags of the pre-training, such as ``decoder_heads``.
        left_out: what else it holds, for people; "" for nothing.
        pair: what was trained beside an encoder of images to read texts.
    """

    encoder: Backbone
    spec: EncoderSpec
    kind: str
    decoder: Mapping[str, Tensor] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    left_out: str = ""
    pair: ImageText | None = None

    @property
    def notes(self) -> tuple[str, ...]:
        """What was worked out, for people."""
        left_out = (self.left_out,) if self.left_out else ()
        return (self.kind, _in_words(self.spec, self.encoder), *left_out)


def load_encoder(
    source: str | Path,
    *,
    backbone: str | None = None,
    num_heads: int | None = None,
    grid: tuple[int, int] | None = None,
    branch: str | None = None,
    tokenizer: str | None = None,
    frames: int | None = None,
    image_size: int | tuple[int, int] | None = None,
) -> Backbone:
    """Load any pre-trained Vision Transformer, Swin, ResNet or BERT, or what a run has trained.

    No code from the source is run.

    Args:
        source: a file of weights (official checkpoints of MAE, MoCo, SimSiam, Barlow Twins, VICReg,
            DINO, iBOT, DINOv2, MSN, I-JEPA, BEiT, SimMIM, Swin, VideoMAE and ALBEF, state dicts of
            timm and torchvision; PyTorch or safetensors), a run folder, what ``ssl-bench export``
            wrote, a folder that transformers saved, ``timm:NAME`` or ``hf:NAME``.
        backbone, num_heads, grid, branch, tokenizer, frames: see `WeightSettings`; needed if
            weights are ambiguous.
        image_size: of all images, or ``(height, width)``. By default a ViT takes images of any
            size whose sides are multiples of the patch size.

    Returns:
        A timm model in eval mode, whose ``forward_features`` maps normalised float32
        ``(B, C, H, W)`` images to features after the final norm; those of a ViT are tokens
        ``(B, prefix + L, D)``, prefix tokens first, with position embeddings interpolated as in
        `backbones.resize`. Its ``spec`` attribute says how to normalise images, and so does its
        ``pretrained_cfg``, of which ``timm.data.create_transform`` makes a transform. Of an encoder
        of captions a `text_encoder.TextEncoder`, whose ``spec`` tells how texts become ids.

    Raises:
        UserError: the source cannot be read, is ambiguous, holds no encoder of timm, or has a
            weight that matches nothing.
    """
    hints = WeightSettings(
        backbone=backbone,
        num_heads=num_heads,
        grid=grid or (),
        branch=branch,
        tokenizer=tokenizer,
        frames=frames,
    )
    checkpoint = read(str(source), hints)
    for note in checkpoint.notes:
        _log.info("%s: %s", source, note)
    encoder: Any = checkpoint.encoder
    if checkpoint.spec.is_text:
        return encoder.eval()
    if image_size is not None:
        backbones.resize(encoder, image_size)
    elif encoders.is_vit(encoder):
        encoders.allow_other_sizes(encoder)
    encoder.spec = spec = checkpoint.spec
    told = spec.pretrained_cfg()
    if image_size is not None:
        sides = (image_size, image_size) if isinstance(image_size, int) else image_size
        told["input_size"] = (spec.channels, *sides)
    of_model = {name: encoder.pretrained_cfg.get(name) for name in _OF_MODEL}
    encoder.pretrained_cfg = encoder.default_cfg = of_model | told
    return encoder.eval()


def is_foreign(source: str) -> bool:
    """Whether a source is not a run, but a file, a folder of transformers, timm: or hf:."""
    if source.startswith(("timm:", "hf:")):
        return True
    path = Path(source).expanduser()
    return path.is_file() or (path.is_dir() and "model_type" in _json_or_nothing(path))


def read(source: str, hints: WeightSettings) -> Checkpoint:
    """Read the checkpoint that a source names; sources and errors are those of `load_encoder`."""
    try:
        found = _read(source, hints)
        if hints.tokenizer:
            words, _ = vocabulary.read_vocabulary(Path(hints.tokenizer).expanduser())
            require(
                found.spec.text is not None and found.spec.text.vocabulary == words,
                f"{source!r} reads no texts by --tokenizer {hints.tokenizer!r}, so that it means "
                "nothing; leave it out",
            )
        return found
    except UserError:
        raise
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as e:
        problem = f"{type(e).__name__}: {first_line(e)}"
        raise UserError(f"{source!r} is damaged, or nothing that is known ({problem})") from e


def _read(source: str, hints: WeightSettings) -> Checkpoint:
    kind, _, name = source.partition(":")
    path = Path(source).expanduser()
    is_file = path.is_file() and not (path.parent / ENCODER).exists()
    is_named = kind in ("timm", "hf") and bool(name)
    given = [name for name in _HINTS if getattr(hints, name)]
    require(
        is_file or not given or not (is_named or path.exists()),
        f"{source!r} tells its own architecture, so --{''.join(given[:1]).replace('_', '-')} means "
        "nothing; leave it out",
    )
    if is_named:
        return _from_timm(name) if kind == "timm" else _from_hub(name, hints)
    folder = path.parent if path.name == ENCODER_WEIGHTS else path
    if (folder / ENCODER).exists():
        return _from_run(folder)
    if (path / "config.json").exists():
        return _from_transformers(path, hints=hints)
    require(
        path.is_file() or not weights.is_of_tensorflow(path),
        f"{source!r} cannot be read as weights: {weights.TENSORFLOW}",
    )
    wanted = f"{ENCODER} or config.json"
    require(not path.is_dir(), f"folder {source!r} holds no weights; it has no {wanted}")
    require(path.exists(), f"file {source!r} does not exist")
    return _from_file(path, repr(source), hints)


def _from_file(path: Path, where: str, hints: WeightSettings) -> Checkpoint:
    is_told = any(getattr(hints, name) for name in _HINTS)
    exported = None if is_told else weights.read_exported(path)
    if exported:
        return Checkpoint(*exported, "ssl-bench")
    content = weights.read(path)
    if text_formats.is_albef(content):
        return _albef(content, path, where, hints)
    ours = content.get("ssl_bench")
    if ours is None:
        found = _build(formats.sort(content, hints.branch, where), where, hints)
        return replace(found, settings=formats.flags(content, found.decoder))
    hints = replace(hints, num_heads=hints.num_heads or ours.get("num_heads"))
    found = _build(formats.sort(content, hints.branch, where), where, hints)
    spec = _normalised(found.spec, ours["mean"], ours["std"], where)
    return replace(found, spec=spec, settings=dict(ours["settings"]))


def _from_run(folder: Path) -> Checkpoint:
    encoder, spec = weights.load(folder)
    plan = _json_or_nothing(folder)
    others = folder / METHOD_WEIGHTS
    decoder = weights.read(others) if others.exists() else {}
    kind = f"a run of {plan.get('method', 'ssl-bench')}"
    pair = weights.load_text_side(folder, spec)
    return Checkpoint(encoder, spec, kind, decoder, plan.get("method_config") or {}, pair=pair)


def _from_timm(name: str) -> Checkpoint:
    require(
        timm.is_model(name.partition(".")[0]),
        f"timm has no model {name!r}; see `ssl-bench list backbones`",
    )
    return _of_model(name, {}, _pretrained(name, f"timm:{name}"), f"timm:{name}")


def _pretrained(name: str, where: str) -> Backbone:
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        raise UserError(f"{where} cannot be had: {first_line(error)}") from error
    model.reset_classifier(0)
    return model


def _of_model(
    backbone: str, architecture: Mapping[str, Any], model: Backbone, where: str
) -> Checkpoint:
    """The checkpoint of a pre-trained timm model; our own build must compute the same."""
    cfg, patch_size = model.pretrained_cfg, None
    channels, *sides = cfg["input_size"]
    if encoders.is_vit(model):
        embed = model.patch_embed
        channels, sides, patch_size = embed.proj.in_channels, embed.img_size, embed.patch_size[0]
    require(
        sides[0] == sides[1],
        f"{where} takes images of {tuple(sides)} pixels; only square ones are supported",
    )
    spec = EncoderSpec(backbone, sides[0], patch_size, channels, (), (), architecture)
    spec = _normalised(spec, cfg["mean"], cfg["std"], where)
    encoder = backbones.empty(spec)
    weights.load_strictly(encoder, model.state_dict(), where)
    noise = torch.Generator().manual_seed(0)
    image_BCHW = torch.randn(1, channels, *sides, generator=noise)
    with torch.no_grad():
        ours, theirs = (
            encoders.pool(m, m.eval().forward_features(image_BCHW)) for m in (encoder, model)
        )
    require(
        all(torch.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-4) for name in ours),
        f"{where} does not compute what timm's {backbone!r} does with the same weights",
    )
    return Checkpoint(encoder, spec, "timm")


def _from_hub(name: str, hints: WeightSettings) -> Checkpoint:
    from huggingface_hub import snapshot_download

    try:
        wanted = ["*.json", "*.safetensors", "pytorch_model*.bin", "vocab.txt"]
        folder = Path(snapshot_download(name, allow_patterns=wanted))
    except Exception as error:
        raise UserError(f"hf:{name} cannot be had: {first_line(error)}") from error
    config = _json(folder / "config.json")
    if "architecture" not in config:
        return _from_transformers(folder, f"hf:{name}", hints)
    given = config.get("model_args") or {}
    own = {k: v for k, v in given.items() if k not in ("img_size", "patch_size", "in_chans")}
    model = _pretrained(f"hf-hub:{name}", f"hf:{name}")
    return _of_model(config["architecture"], own, model, f"hf:{name}")


def _from_transformers(
    folder: Path, where: str = "", hints: WeightSettings | None = None
) -> Checkpoint:
    """Read what transformers' ``save_pretrained`` wrote: such as ViTMAE, VideoMAE or BERT."""
    where = where or repr(str(folder))
    config = _json(folder / "config.json")
    kind = config.get("model_type")
    if kind == text_encoder.BERT:
        return _bert(folder, config, where, hints)
    known = ", ".join([*_MODEL_TYPES, text_encoder.BERT])
    require(
        kind in _MODEL_TYPES,
        f"{where} holds a model of type {kind!r}; of transformers, {known} are read",
    )
    require(
        config.get("hidden_act", "gelu") == "gelu",
        f"{where} uses the activation {config.get('hidden_act')!r}; only gelu is supported",
    )
    state = {name: t for file in _shards(folder, where) for name, t in weights.read(file).items()}
    size, patch = config["image_size"], int(config["patch_size"])
    height, width = (size, size) if isinstance(size, int) else size
    hints = WeightSettings(
        num_heads=int(config["num_attention_heads"]),
        grid=(height // patch, width // patch),
        frames=config.get("num_frames"),
    )
    norm_eps = float(config.get("layer_norm_eps", 1e-12))
    found = _build(formats.sort(state, None, where), where, hints, norm_eps)
    settings = {ours: config[theirs] for theirs, ours in _FLAGS.items() if theirs in config}
    spec, processor = found.spec, _json_or_nothing(folder, "preprocessor_config.json")
    if "image_mean" in processor:
        spec = _normalised(spec, processor["image_mean"], processor["image_std"], where)
    return replace(found, spec=spec, settings=settings)


def _bert(
    folder: Path, config: Mapping[str, Any], where: str, hints: WeightSettings | None
) -> Checkpoint:
    """transformers' BERT, as an encoder of texts."""
    known = _vocabulary(folder, hints)
    require(
        known is not None,
        f"{where} has no vocab.txt to read texts with; the one that came with the weights would "
        "work, there or in --tokenizer",
    )
    assert known
    told = _json_or_nothing(folder, "tokenizer_config.json").get("do_lower_case")
    known = known[0], told if isinstance(told, bool) else known[1]
    state = {name: t for file in _shards(folder, where) for name, t in weights.read(file).items()}
    own, named, left_out = text_formats.bert(state, config, known, where)
    spec = EncoderSpec(text_encoder.BERT, 1, None, 1, (0.0,), (1.0,), text=own)
    encoder = backbones.empty(spec)
    weights.load_strictly(encoder, named, where, what="BERT")
    return Checkpoint(encoder, spec, "transformers' BERT", left_out=left_out)


def _albef(content: Mapping[str, Any], path: Path, where: str, hints: WeightSettings) -> Checkpoint:
    """ALBEF's official weights; without a vocabulary its image encoder alone."""
    images = text_formats.albef_images(content, hints.branch, where)
    found = _build(formats.sort(images, None, where), where, replace(hints, branch=None))
    spec = _normalised(found.spec, text_formats.CLIP_MEAN, text_formats.CLIP_STD, where)
    kind = f"{text_formats.kind_of(content)}, {hints.branch or text_formats.IMAGE_SIDE}"
    known = _vocabulary(path.parent, hints)
    others = text_formats.albef_left_out(content, hints.branch, reads_texts=known is not None)
    found = replace(found, kind=kind, spec=spec, left_out=others)
    if known is None:
        why = (
            "captions are not read, since no vocab.txt lies beside it; --tokenizer FILE would work"
        )
        return replace(found, left_out=f"{why}; {others}")
    encoder: Any = found.encoder
    how = known, encoder.blocks[0].attn.num_heads, encoders.width(encoder), where
    own, named, note = text_formats.albef_texts(content, hints.branch, *how)
    with torch.device("meta"):
        pair = ImageText(own)
    weights.load_strictly(pair, named, where, what="text encoder")
    notes = "; ".join(filter(None, (note, others)))
    return replace(found, spec=replace(spec, text=own), pair=pair, left_out=notes)


def _vocabulary(folder: Path, hints: WeightSettings | None) -> tuple[str, bool] | None:
    """The vocabulary that a user names, or else the one in a folder, if there is any."""
    asked = [Path(hints.tokenizer).expanduser()] if hints and hints.tokenizer else []
    beside = [folder / name for name in _TOKENIZERS if (folder / name).exists()]
    return (
        vocabulary.read_vocabulary(each) if (each := next(iter([*asked, *beside]), None)) else None
    )


def _shards(folder: Path, where: str) -> list[Path]:
    """The weight files in a folder that transformers saved."""
    for name in ("model.safetensors", "pytorch_model.bin"):
        if (folder / name).exists():
            return [folder / name]
        index = folder / f"{name}.index.json"
        if index.exists():
            shards = sorted(set(_json(index)["weight_map"].values()))
            return [folder / checked_name(shard) for shard in shards]
    raise UserError(f"{where} has neither model.safetensors nor pytorch_model.bin")


def _normalised(
    spec: EncoderSpec, mean: Sequence[float], std: Sequence[float], where: str
) -> EncoderSpec:
    """The spec with this mean and deviation of pixels."""
    require(
        len(mean) == len(std) == spec.channels and min(std) > 0,
        f"{where}: {spec.channels} channels cannot have mean {mean} and deviation {std}",
    )
    return replace(spec, mean=tuple(mean), std=tuple(std))


def _build(
    found: Weights, where: str, hints: WeightSettings, norm_eps: float = EncoderSpec.norm_eps
) -> Checkpoint:
    """Build the encoder that weights belong to, and load them."""
    found = architecture.with_positions(found, hints)
    spec, grid = architecture.work_out(found, where, hints, norm_eps)
    side = spec.patch_size or 0
    sizes = {"img_size": (grid[0] * side, grid[1] * side)} if grid else {}
    encoder = backbones.empty(spec, **sizes)
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in found.encoder.values()}
    require(
        sum(t.nbytes for t in found.encoder.values()) <= sum(s.nbytes() for s in storages.values()),
        f"{where} is damaged: some of its weights are the same numbers in memory",
    )
    weights.load_strictly(encoder, found.encoder, where, found.origin)
    return Checkpoint(encoder, spec, found.kind, found.decoder, left_out=found.left_out)


def _in_words(spec: EncoderSpec, encoder: Backbone) -> str:
    if spec.is_text and spec.text:
        own = spec.text
        return (
            f"{own.width} wide, {own.depth} layers, {own.num_heads} heads, {own.size:,} words"
            f"{' in lower case' if own.lowercase else ''}, texts of {own.max_tokens} tokens"
        )
    mean = ", ".join(f"{value:.3g}" for value in spec.mean)
    if not encoders.is_vit(encoder):
        count = sum(parameter.numel() for parameter in encoder.parameters())
        return (
            f"{spec.backbone}: {encoders.width(encoder)} features, {count / 1e6:.1f} M parameters; "
            f"images normalised with mean {mean}"
        )
    rows, columns = encoder.patch_embed.grid_size
    order, patches = "none", f"{rows} x {columns} patches of {spec.patch_size} px"
    if encoders.is_video(encoder):
        order = "sin-cos, in one row"
        patches = f"{spec.frames} frames in pairs, {patches}"
    elif encoder.pos_embed is not None:
        first = architecture.position_order(encoder.pos_embed.detach(), (rows, columns))
        order = f"sin-cos, {first} first" if first else "learned"
    pooling = "class token" if encoder.cls_token is not None else "none"
    if not isinstance(encoder.fc_norm, nn.Identity):
        pooling = "mean of the patch tokens, normed after pooling"
    return (
        f"{encoder.embed_dim} wide, {len(encoder.blocks)} blocks, "
        f"{encoder.blocks[0].attn.num_heads} heads, {patches}; "
        f"positions: {order}; pooling: {pooling}; "
        f"norms add {spec.norm_eps:g}; images normalised with mean {mean}"
    )


def _json_or_nothing(folder: Path, name: str = "config.json") -> dict[str, Any]:
    path = folder / name
    return _json(path) if path.exists() else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        return dict(load_json(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{str(path)!r} cannot be read: {first_line(error)}") from error
