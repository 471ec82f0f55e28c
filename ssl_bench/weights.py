"""Weights on disk. Loading runs no code."""

from __future__ import annotations

import argparse
import hashlib
import pathlib
import pickletools
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from ssl_bench import encoders, parallel, replicas
from ssl_bench.encoders import EncoderSpec
from ssl_bench.errors import UserError, require
from ssl_bench.files import atomic, read_json, write_json

_LARGEST_PICKLE = 50_000_000
_LET_IN = ("torch.", "torch_utils", "collections.OrderedDict", "argparse.", "numpy", "pathlib")


def save(encoder: VisionTransformer, spec: EncoderSpec, folder: Path) -> None:
    """Write ``encoder.safetensors`` (timm key names) and ``encoder.json`` into the folder.

    Every rank calls it, and rank 0 writes.
    """
    state = replicas.whole(encoder.state_dict())
    if parallel.rank() != 0:
        return
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
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
        spec = EncoderSpec.of(text)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError) as error:
        raise UserError(f"{folder} holds no readable encoder: {error}") from error
    encoder = encoders.empty(spec)
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

    Of what a pickle may hold beside tensors and plain values, only what training code stores as a
    matter of course is let in: ``argparse.Namespace``, numpy scalars and paths.

    Raises:
        UserError: it is no checkpoint, is cut short, or holds pickled code.
    """
    where = f"{str(path)!r}"
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if _is_safetensors(start):
            return dict(load_file(path))
        with warnings.catch_warnings(), torch.serialization.safe_globals(_harmless()):
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
        _check_sums(path)
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from error
    except Exception as error:
        problem = _problem(path, start)
        raise UserError(f"{where} cannot be read as weights: {problem}") from error
    require(isinstance(content, dict), f"{where} holds no weights but a {type(content).__name__}")
    return content


def _is_safetensors(start: bytes) -> bool:
    """A length of eight bytes, then JSON."""
    return start[8:9] == b"{" and not start.startswith((b"PK", b"\x80"))


def _harmless() -> list[Any]:
    numpy_types = [getattr(np.dtypes, name) for name in np.dtypes.__all__]
    scalar, posix = np.float64(0).__reduce__()[0], pathlib.PosixPath
    renamed = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    renamed += [(posix, f"pathlib{module}.PosixPath") for module in ("", "._local")]
    return [argparse.Namespace, np.dtype, *numpy_types, *renamed]


def _check_sums(path: Path) -> None:
    """Raise an error where a zip archive differs from its check sums; torch never looks."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            raise ValueError(f"{broken} is damaged")


def _problem(path: Path, start: bytes) -> str:
    """Why a file is no checkpoint."""
    code = _pickled_code(path)
    if code:
        return f"it holds pickled code ({code}), which is not run; save its tensors alone"
    if start.lstrip()[:1] == b"<":
        return "it is a web page; the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs; `git lfs pull` fetches the file itself"
    if start.startswith((b"PK", b"\x80")) or _is_safetensors(start):
        return "it is damaged or cut short; download or copy it again"
    return "it is neither a PyTorch nor a safetensors file"


def _pickled_code(path: Path) -> str | None:
    """The first thing in a pickle that torch does not build by itself, e.g. ``os.system``."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                [name] = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                content = archive.read(name)
        else:
            with path.open("rb") as file:
                content = file.read(_LARGEST_PICKLE)
        strings: list[str] = []
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "GLOBAL":
                found = str(argument).replace(" ", ".")
            elif opcode.name == "STACK_GLOBAL":
                found = ".".join(strings[-2:])
            else:
                if isinstance(argument, str):
                    strings.append(argument)
                continue
            if not found.startswith(_LET_IN):
                return found
    except Exception:
        return None  # no pickle at all, or a broken one: there is nothing to name
    return None


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    origin: Mapping[str, str] | None = None,
    what: str = "encoder",
) -> None:
    """Load weights into a module, all of them or none.

    Args:
        where: what holds the weights, for complaints.
        origin: names in the file, where they are others.
        what: the module is, for complaints.

    Raises:
        UserError: a weight is missing, matches nothing, has another shape or holds no finite
            numbers.
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
        raise UserError(f"{where} is not that {what}: it {min(problems)}{more}")
    for name, tensor in state.items():
        is_count = name.endswith("num_batches_tracked")
        require(
            is_count or (tensor.is_floating_point() and bool(tensor.isfinite().all())),
            f"{where}: {origin.get(name, name)!r} holds {_unlike_weights(tensor)}",
        )
    floats = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    module.load_state_dict(floats, assign=any(p.is_meta for p in module.parameters()))


def _unlike_weights(tensor: Tensor) -> str:
    if tensor.is_floating_point():
        return "values that are not finite"
    return f"values of type {str(tensor.dtype).removeprefix('torch.')}, which are no weights"
