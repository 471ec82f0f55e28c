"""Reading and writing weights. Loading runs no code."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ssl_bench.distributed import collectives, strategy
from ssl_bench.errors import UserError, first_line, is_of_memory, require
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.file_names import ENCODER, ENCODER_WEIGHTS, METHOD_WEIGHTS
from ssl_bench.models.text_encoder import ImageText
from ssl_bench.utils import pickled
from ssl_bench.utils.files import Unreadable, atomic, load_json, require_regular, write_json

TEXT_SIDE = "text_side"
"""The name of a `text_encoder.ImageText` among the weights of a method."""
_SEAL = "ssl_bench"
_COUNT = "num_batches_tracked"
_DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, SafetensorError)
_TENSORFLOW = re.compile(r".*\.(index|meta|data-\d+-of-\d+)|(saved_model|tfhub_module)\.pb")
TENSORFLOW = f"it is of TensorFlow, as SimCLR's official checkpoints are; {pickled.CONVERTED}"


def save(encoder: nn.Module, spec: EncoderSpec, folder: Path) -> None:
    """Write ``encoder.safetensors`` (timm's names) and ``encoder.json``; all ranks call it."""
    state = strategy.full_state(encoder.state_dict())
    if collectives.rank() != 0:
        return
    write(folder / ENCODER_WEIGHTS, state, _text(spec))
    write_json(folder / ENCODER, {**spec.to_json(), "timm": spec.timm_arguments()})


def export(encoder: nn.Module, spec: EncoderSpec, path: Path) -> None:
    """Write weights (timm's names) and spec into one file, for `read_exported`."""
    write(path, encoder.state_dict(), _text(spec))


def read_exported(path: Path) -> tuple[Any, EncoderSpec] | None:
    """The encoder that `export` wrote, or None if it did not write this file."""
    try:
        state, made_from = read_sealed(path)
        spec = EncoderSpec.of(json.loads(made_from or ""))
    except _DAMAGE:
        return None
    return _built(spec, state, path), spec


def load(folder: Path) -> tuple[Any, EncoderSpec]:
    """The encoder that `save` wrote into the folder.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the encoder.
    """
    try:
        text = load_json(folder / ENCODER)
        weights, made_from = read_sealed(folder / ENCODER_WEIGHTS)
        spec = EncoderSpec.of(text)
        is_of_spec = made_from is None or EncoderSpec.of(json.loads(made_from)) == spec
    except _DAMAGE as error:
        raise UserError(f"{folder} holds no readable encoder: {first_line(error)}") from error
    require(
        is_of_spec,
        f"{folder}: encoder.json is not as it was written with encoder.safetensors",
    )
    return _built(spec, weights, folder / ENCODER_WEIGHTS), spec


def save_text_side(side: ImageText, folder: Path) -> None:
    """Write what reads texts beside an encoder of images, for `load_text_side`."""
    state = {f"{TEXT_SIDE}.{name}": tensor for name, tensor in side.state_dict().items()}
    write(folder / METHOD_WEIGHTS, state)


def load_text_side(folder: Path, spec: EncoderSpec) -> ImageText | None:
    """What was pre-trained beside an encoder of images to read captions; None without.

    Raises:
        UserError: the weights of the method are damaged, or do not fit.
    """
    path = folder / METHOD_WEIGHTS
    if spec.text is None or spec.is_text or not path.exists():
        return None
    start = f"{TEXT_SIDE}."
    state = {
        name.removeprefix(start): t for name, t in read(path).items() if name.startswith(start)
    }
    with torch.device("meta"):
        side = ImageText(spec.text)
    load_strictly(side, state, repr(str(path)), what="text encoder")
    return side


def _built(spec: EncoderSpec, state: Mapping[str, Tensor], path: Path) -> Any:
    encoder = backbones.empty(spec)
    load_strictly(encoder, state, repr(str(path)))
    return encoder


def _text(spec: EncoderSpec) -> str:
    return json.dumps(spec.to_json(), sort_keys=True)


def write(path: Path, tensors: Mapping[str, Tensor], made_from: str = "") -> None:
    """Write a safetensors file with a digest, which `read_sealed` checks, and a text."""
    plain = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    # One metadata entry only: several come in any order, so equal content would give unequal files.
    seal = json.dumps({"made_from": made_from, "sha256": _sha256(plain, made_from)})
    with atomic(path) as temporary:
        save_file(plain, temporary, {_SEAL: seal})


def read_sealed(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file, on the CPU, and the ``made_from`` of `write`.

    The latter is None for files of other origin, which have no digest to check. A ValueError says
    that the content does not match its digest, a SafetensorError that it is cut short or no such
    file.
    """
    require_regular(path)
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in sorted(file.keys())}
        seal = (file.metadata() or {}).get(_SEAL)
    if seal is None:
        return tensors, None
    sealed = json.loads(seal)
    if sealed["sha256"] != _sha256(tensors, sealed["made_from"]):
        raise ValueError(f"{path.name} is damaged: it differs from its digest")
    return tensors, sealed["made_from"]


def _sha256(tensors: Mapping[str, Tensor], made_from: str) -> str:
    sha256 = hashlib.sha256(made_from.encode())
    for name, tensor in sorted(tensors.items()):
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        sha256.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha256.hexdigest()


def digest(encoder: nn.Module) -> str:
    """SHA-256 of all weights and their names."""
    sha256 = hashlib.sha256()
    for name, tensor in sorted(encoder.state_dict().items()):
        sha256.update(name.encode())
        sha256.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return sha256.hexdigest()


def read(path: Path) -> dict[str, Any]:
    """Read a PyTorch or safetensors file, tensors on the CPU, without running code from it.

    Check sums and digests are verified, if the file has any. `pickled` says what is read of a
    pickle.

    Raises:
        UserError: it is not a checkpoint, is damaged or cut short, or holds pickled code.
    """
    where = f"{str(path)!r}"
    try:
        require_regular(path)
        with path.open("rb") as file:
            start = file.read(64)
        content = read_sealed(path)[0] if _is_safetensors(start) else pickled.read(path)
    except (OSError, Unreadable) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{where} cannot be read: {reason}") from error
    except Exception as error:
        problem = TENSORFLOW if is_of_tensorflow(path) else _problem(start, error)
        raise UserError(f"{where} cannot be read as weights: {problem}") from error
    kind = getattr(content, "name", type(content).__name__)
    require(isinstance(content, dict), f"{where} holds no weights but a {kind}")
    return content


def is_of_tensorflow(path: Path) -> bool:
    """Whether a path names a checkpoint of TensorFlow: its folder, one of its files, their stem."""
    near = path.glob("*") if path.is_dir() else path.parent.glob("*")
    names = [each.name for each in near if path in (each, each.parent, each.with_suffix(""))]
    return any(_TENSORFLOW.fullmatch(name) for name in names)


def _is_safetensors(start: bytes) -> bool:
    """Whether a file starts with a length in eight bytes, less than 4 GiB, then JSON."""
    return start[4:9] == b"\0\0\0\0{"


def _problem(start: bytes, error: Exception) -> str:
    """Why a file is no checkpoint."""
    if start.lstrip()[:1] == b"<":
        return "it is a web page; the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of git-lfs; `git lfs pull` fetches the file itself"
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed; gunzip it first"
    if isinstance(error, pickled.Unreadable):
        return str(error)
    if is_of_memory(error):
        return "it does not fit into the memory that is free"
    if start.startswith((b"PK", b"\x80")) or _is_safetensors(start):
        return "it is damaged or cut short; download or copy it again"
    return "it is neither a PyTorch nor a safetensors file"


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    where: str,
    origin: Mapping[str, str] | None = None,
    what: str = "encoder",
) -> None:
    """Load weights into a module, all of them or none.

    ``origin`` has the names of weights in the file, where they were renamed.

    Raises:
        UserError: a weight is missing or unknown, has the wrong shape, or is not finite.
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
        kind, is_count = str(tensor.dtype).removeprefix("torch."), name.endswith(_COUNT)
        wrong = f"values of type {kind}, which are no weights"
        if tensor.is_floating_point():
            wrong = "" if tensor.isfinite().all() else "values that are not finite"
        require(is_count or not wrong, f"{where}: {origin.get(name, name)!r} holds {wrong}")
    floats = {name: t.float() if t.is_floating_point() else t for name, t in state.items()}
    module.load_state_dict(floats, assign=any(p.is_meta for p in module.parameters()))
