"""``ssl-bench export``: a pre-trained encoder in the files that other code reads."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ssl_bench.config.command_settings import ExportSettings
from ssl_bench.errors import require
from ssl_bench.models import checkpoints, clip_formats, encoders, formats, weights
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.checkpoints import Checkpoint
from ssl_bench.models.video import TUBELET
from ssl_bench.runs import run_folder, schema
from ssl_bench.utils.files import atomic, write_json, writing
from ssl_bench.utils.terminal import Console

_PLAIN = re.compile(
    r"cls_token|pos_embed|(patch_embed\.proj|norm)\.(weight|bias)|"
    r"blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)


def export(settings: ExportSettings) -> None:
    """Write a run's encoder, or anyone's, and its decoder where the format has a place for it.

    Raises:
        UserError: there is no such run or file, it does not fit the format, or nothing can be
            written there.
    """
    source, name, unseen = settings.target, Path(settings.target).stem.replace(":", "-"), ""
    if not checkpoints.is_foreign(source):
        folder = run_folder.find_trained(settings.runs_dir, source)
        source, name = str(folder), folder.name
        unseen = schema.warn_of_method_file(folder)
    checkpoint = checkpoints.read(source, settings)
    suffix, write = _FORMATS[settings.format]
    output = settings.output or Path(f"{name}-{settings.format}{suffix}")
    require(
        settings.overwrite or not output.exists(),
        f"{str(output)!r} exists; say --output elsewhere, or --overwrite",
    )
    with writing(output):
        output.parent.mkdir(parents=True, exist_ok=True)
        note = write(checkpoint, output)
    if unseen:
        unseen += ": the encoder is written, and a decoder only if it is like MAE's"
    for line in filter(None, (*checkpoint.notes, f"written: {output}", note, unseen)):
        Console().print(line)


def to_timm(checkpoint: Checkpoint, output: Path) -> str:
    """A safetensors file for ``timm.create_model(..., checkpoint_path=)``; says with what."""
    spec = checkpoint.spec
    require(
        spec.norm_eps == EncoderSpec.norm_eps,
        f"the encoder's layer norms add {spec.norm_eps:g}, and timm's {EncoderSpec.norm_eps:g}, "
        "which no argument changes; --format hf can say so",
    )
    weights.export(checkpoint.encoder, spec, output)
    if spec.is_text or spec.frames > 1:
        what = "reads captions" if spec.is_text else "takes clips"
        return f"it {what}; load it with ssl_bench.load_encoder({str(output)!r})"
    arguments = checkpoint.spec.timm_arguments()
    name = arguments.pop("model_name")
    arguments["pretrained_cfg_overlay"] = spec.pretrained_cfg()
    rest = "".join(f", {key}={value!r}" for key, value in arguments.items())
    return f"load it with timm.create_model({name!r}, checkpoint_path={str(output)!r}{rest})"


def to_mae(checkpoint: Checkpoint, output: Path) -> str:
    """A file as the official code of MAE has it: ``{'model': ...}``, with the decoder if any.

    (``util/misc.py``, facebookresearch/mae ``efb2a80``.) What its names do not tell, such as the
    attention heads, stands beside it under ``'ssl_bench'``, which that code does not look at.
    """
    encoder, spec, state = checkpoint.encoder, checkpoint.spec, _plain(checkpoint, "mae")
    block = encoder.blocks[0]
    is_official = block.attn.qkv.bias is not None and spec.norm_eps == EncoderSpec.norm_eps
    require(
        is_official and block.mlp.fc1.out_features == 4 * encoder.embed_dim,
        "the official code of MAE has biases for queries, keys and values, MLPs four times as wide "
        f"as the encoder and norms that add {EncoderSpec.norm_eps:g}, unlike this encoder; "
        "--format hf would work",
    )
    told = {
        "num_heads": block.attn.num_heads,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "settings": dict(checkpoint.settings),
    }
    decoder = _decoder(checkpoint)
    with atomic(output) as path:
        whole = {name: t.detach().cpu().contiguous() for name, t in (state | decoder).items()}
        torch.save({"model": whole, "ssl_bench": told}, path)
    takes = (
        "the official fine-tuning code takes it by --finetune, into a ViT of "
        f"img_size={spec.image_size}, patch_size={spec.patch_size}, in_chans={spec.channels}, "
        f"embed_dim={encoder.embed_dim}, depth={len(encoder.blocks)}, num_heads={told['num_heads']}"
    )
    if not decoder:
        return f"it holds the encoder alone; {takes}"
    return f"it holds encoder and decoder; {takes}; the pre-training code takes it by --resume"


def to_transformers(checkpoint: Checkpoint, output: Path) -> str:
    """A folder for transformers' ``from_pretrained``: ViTMAE with the decoder if any, else ViT.

    Of clips it is VideoMAE, which has a decoder or none. Its mean and deviation are ImageNet's in
    transformers' loss, whose normalised targets do not depend on them.
    """
    state, takes_clips = _plain(checkpoint, "hf"), checkpoint.spec.frames > 1
    encoder, spec, decoder = checkpoint.encoder, checkpoint.spec, _decoder(checkpoint)
    kind = "VideoMAE" if takes_clips else "ViTMAE" if decoder else "ViT"
    config: dict[str, Any] = {
        "architectures": [f"{kind}ForPreTraining" if decoder else f"{kind}Model"],
        "model_type": {"VideoMAE": "videomae", "ViTMAE": "vit_mae", "ViT": "vit"}[kind],
        "hidden_size": encoder.embed_dim,
        "num_hidden_layers": len(encoder.blocks),
        "num_attention_heads": encoder.blocks[0].attn.num_heads,
        "intermediate_size": encoder.blocks[0].mlp.fc1.out_features,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": spec.norm_eps,
        "image_size": spec.image_size,
        "patch_size": spec.patch_size,
        "num_channels": spec.channels,
        "qkv_bias": encoder.blocks[0].attn.qkv.bias is not None,
    }
    if takes_clips:
        config |= {
            "num_frames": spec.frames,
            "tubelet_size": TUBELET,
            "qv_bias": config.pop("qkv_bias"),
            "use_mean_pooling": False,
        }
    if decoder:
        settings, bridge = checkpoint.settings, _bridge(decoder)
        config |= {
            "decoder_hidden_size": len(bridge),
            "decoder_num_hidden_layers": len(formats.blocks_in(decoder, "decoder_blocks")),
            "decoder_num_attention_heads": settings["decoder_heads"],
            "decoder_intermediate_size": len(decoder["decoder_blocks.0.mlp.fc1.weight"]),
            "mask_ratio": settings.get("mask_ratio", 0.75),
            "norm_pix_loss": settings.get("norm_pix_loss", False),
        }
    processor: dict[str, Any] = {
        "image_processor_type": f"{'VideoMAE' if takes_clips else 'ViT'}ImageProcessor",
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(spec.mean),
        "image_std": list(spec.std),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"height": spec.image_size, "width": spec.image_size},
    }
    if takes_clips:
        processor |= {"do_center_crop": True, "crop_size": processor["size"], "resample": 2}
        processor["size"] = {"shortest_edge": spec.image_size}
    require(
        not output.exists() or not any(output.iterdir()) or (output / "config.json").exists(),
        f"{str(output)!r} is a folder of something else; say --output elsewhere",
    )
    output.mkdir(exist_ok=True)
    with atomic(output / "model.safetensors") as path:
        theirs = formats.to_transformers(state, decoder, spec.channels if takes_clips else 0)
        save_file(theirs, path, metadata={"format": "pt"})
    write_json(output / "preprocessor_config.json", processor)
    write_json(output / "config.json", config)
    where = repr(str(output))
    # Without the ratio ViTMAE would hide patches from the encoder, as in pre-training.
    more = {"ViT": ", add_pooling_layer=False", "ViTMAE": ", mask_ratio=0.0", "VideoMAE": ""}[kind]
    note = f"load it with transformers.AutoModel.from_pretrained({where}{more})"
    if decoder:
        whole = f"transformers.AutoModelForPreTraining.from_pretrained({where})"
        note += f"\nand its decoder with {whole}"
    return note


def _plain(checkpoint: Checkpoint, name: str) -> dict[str, Tensor]:
    """The encoder's weights, where it is the plain ViT that the format knows."""
    encoder = encoders.require_vit(checkpoint.encoder, f"format {name!r}")
    state = dict(encoder.state_dict())
    foreign = sorted(key for key in state if not _PLAIN.fullmatch(key))
    if checkpoint.spec.frames > 1:
        require(
            name == "hf" and not foreign and "norm.weight" in state,
            f"format {name!r} has no place for this encoder of clips; --format "
            f"{'timm' if name == 'hf' else 'hf'} would work",
        )
        return state
    require(
        not foreign and encoder.cls_token is not None and encoder.pos_embed is not None,
        f"format {name!r} is for the plain ViT with a class token and position embeddings; this "
        f"encoder {f'has {foreign[0]!r}' if foreign else 'has not both'}; --format timm would work",
    )
    rows, columns = encoder.patch_embed.grid_size
    if state["pos_embed"].shape[1] == rows * columns:
        state["pos_embed"] = torch.nn.functional.pad(state["pos_embed"], (0, 0, 1, 0))
    return state


def _bridge(decoder: Mapping[str, Tensor]) -> Tensor:
    """What leads from the encoder to its decoder: as many rows as the decoder is wide."""
    own = clip_formats.has_decoder(decoder)
    return decoder[clip_formats.BRIDGE if own else "decoder_embed.weight"]


def _decoder(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """MAE's decoder, or VideoMAE's of clips, if that is what came with the encoder."""
    decoder, settings = checkpoint.decoder, checkpoint.settings
    if checkpoint.spec.frames > 1:
        return dict(decoder) if clip_formats.has_decoder(decoder) else {}
    is_known = "decoder_heads" in settings and not settings.get("encoder_mask_tokens")
    return dict(decoder) if is_known and formats.is_mae_decoder(decoder) else {}


_FORMATS: Mapping[str, tuple[str, Callable[[Checkpoint, Path], str]]] = {
    "timm": (".safetensors", to_timm),
    "mae": (".pth", to_mae),
    "hf": ("", to_transformers),
}
