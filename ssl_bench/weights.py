"""Weights on disk. Loading runs no code."""

from __future__ import annotations

import argparse
import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import encoders
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, first_line, require
from ssl_bench.files import atomic, read_json, write_json


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
    spec = EncoderSpec.of(text)
    encoder = encoders.build(spec, seed=0)
    load_strictly(encoder, weights, repr(str(folder / "encoder.safetensors")))
    return encoder, spec


def digest(encoder: VisionTransformer) -> str:
    """SHA-256 of all weights and their names."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        sha256.update(name.encode())
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def read(path: Path) -> dict[str, Any]:
    """What a file of weights holds, tensors on the CPU. No code from it is run.

    Of what a pickle may hold beside tensors and plain values, ``argparse.Namespace`` alone is let
    in: the official code of MAE and DINO stores its flags so.

    Raises:
        UserError: it is no checkpoint, is cut short, or holds pickled code.
    """
    where = f"{str(path)!r}"
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        problem = (
            f"it holds pickled code ({code[1]}), which is not run; save its tensors alone"
            if code
            else f"it is no checkpoint, or cut short ({first_line(error).rstrip('.')})"
        )
        raise UserError(f"{where} cannot be read as weights: {problem}") from error
    require(isinstance(content, dict), f"{where} holds no weights but a {type(content).__name__}")
    return content


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    origin: Mapping[str, str] | None = None,
) -> None:
    """Load weights into a module, all of them or none.

    Args:
        where: what holds the weights, for complaints.
        origin: names in the file, where they are others.

    Raises:
        UserError: a weight is missing, matches nothing or has another shape.
    """
    origin = origin or {}
    expected = module.state_dict()
    problems = [f"has {origin.get(name, name)!r} too" for name in state.keys() - expected.keys()]
    problems += [f"lacks {name!r}" for name in expected.keys() - state.keys()]
    problems += [
        f"has {origin.get(name, name)!r} of shape {tuple(state[name].shape)}, "
        f"not {tuple(expected[name].shape)}"
        for name in expected.keys() & state.keys()
        if state[name].shape != expected[name].shape
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise UserError(f"{where} is not that encoder: it {min(problems)}{more}")
    module.load_state_dict(state)
