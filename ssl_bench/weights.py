"""Weights on disk: our own folders, and files from elsewhere. Loading runs no code."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from ssl_bench import encoders
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.files import atomic, read_json, write_json

_NORMALISATION = {
    1: ((0.449,), (0.226,)),
    3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def save(encoder: VisionTransformer, spec: EncoderSpec, folder: Path) -> None:
    """Write ``encoder.safetensors`` (timm key names) and ``encoder.json`` into the folder."""
    weights = {name: tensor.contiguous() for name, tensor in encoder.state_dict().items()}
    with atomic(folder / "encoder.safetensors") as path:
        save_file(weights, path)
    write_json(folder / "encoder.json", {**asdict(spec), "timm": spec.timm_arguments()})


def load(folder: Path) -> tuple[VisionTransformer, EncoderSpec]:
    """The encoder that `save` wrote into the folder.

    Raises:
        UserError: a file is missing or cut short, or the weights are another encoder's.
    """
    try:
        text = read_json(folder / "encoder.json")
        weights = load_file(folder / "encoder.safetensors")
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable encoder: {error}") from error
    text["mean"], text["std"] = tuple(text["mean"]), tuple(text["std"])
    spec = EncoderSpec(**{name: text[name] for name in EncoderSpec.__dataclass_fields__})
    encoder = encoders.build(spec, seed=0)
    _load_strictly(encoder, weights, folder / "encoder.safetensors")
    return encoder, spec


def read(path: Path, backbone: str | None) -> tuple[VisionTransformer, EncoderSpec]:
    """The encoder in a file of weights under timm's names: safetensors, or a PyTorch checkpoint.

    Image size, patch size and channels are read off the weights; a classifier's ``head`` is left
    out. Loading runs no code from the file. Images are normalised with ImageNet's statistics,
    which weights from elsewhere expect. Next to an ``encoder.json``, that file says it all.

    Raises:
        UserError: the file cannot be read, holds no Vision Transformer, or another one than the
            backbone; every surplus or missing weight counts.
    """
    if (path.parent / "encoder.json").exists() and path.name == "encoder.safetensors":
        return load(path.parent)
    state = _read_state(path)
    if "patch_embed.proj.weight" not in state:
        raise UserError(
            f"{str(path)!r} holds no Vision Transformer under timm's names; its first key is "
            f"{next(iter(state), None)!r}, and 'patch_embed.proj.weight' is missing"
        )
    if backbone is None:
        raise UserError(f"say what {str(path)!r} holds, e.g. --backbone vit_base_patch16_224")
    for name, dimensions in (("patch_embed.proj.weight", 4), ("pos_embed", 3)):
        shape = tuple(state[name].shape) if name in state else "missing"
        require(
            name in state and len(shape) == dimensions,
            f"{str(path)!r}: sizes are read off {name!r}, which should have {dimensions} "
            f"dimensions and is {shape}",
        )
    _, channels, _, patch_size = state["patch_embed.proj.weight"].shape
    positions = state["pos_embed"].shape[1]
    side = math.isqrt(positions)
    if channels not in _NORMALISATION or positions - side**2 > 8:
        raise UserError(f"{str(path)!r}: only square images of 1 or 3 channels are supported")
    spec = EncoderSpec(backbone, side * patch_size, patch_size, channels, *_NORMALISATION[channels])
    encoder = encoders.build(spec, seed=0)
    _load_strictly(
        encoder,
        {name: value for name, value in state.items() if not name.startswith("head.")},
        path,
    )
    return encoder, spec


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{str(path)!r} cannot be read as weights: {first_line(error)}") from error
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise UserError(f"{str(path)!r} holds no weights but a {type(content).__name__}")
    return content


def _load_strictly(encoder: VisionTransformer, state: dict[str, Tensor], path: Path) -> None:
    expected = encoder.state_dict()
    problems = [f"lacks {name!r}" for name in expected.keys() - state.keys()]
    problems += [f"has {name!r} too" for name in state.keys() - expected.keys()]
    problems += [
        f"has {name!r} of shape {tuple(state[name].shape)}, not {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{str(path)!r} is not that encoder: it {min(problems)}{more}")
    encoder.load_state_dict(state)
