"""The names that others give to a Vision Transformer's weights, and timm's for the same.

Everything here works on names and tensors alone; `checkpoints` reads files and builds encoders.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ssl_bench.errors import UserError, require

State = Mapping[str, Tensor]
# (width, depth) -> attention heads, which no weight's shape shows.
_VIT_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_MAE_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_MOCO_HEADS = {(384, 12): 12, (768, 12): 12}

_DECODER = re.compile(
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|"
    r"decoder_blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
_HEAD = re.compile(
    r"(head|head_dist|classifier|pooler\.dense)\.(weight|bias)|"  # a classifier
    r"(head|predictor)\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)|"
    r"head\.(mlp|last_layer)\..+"  # DINO's projection head
)
_TRANSFORMERS = (
    (r"^vit\.", ""),
    (r"^decoder\.(?=mask_token|decoder_)", ""),
    (r"^decoder_(encoder\.layer|layers)\.", "decoder_blocks."),
    (r"^(encoder\.layer|layers)\.", "blocks."),
    (r"\.attention\.attention\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.", ""),
    (r"^layernorm\.", "norm."),
)


@dataclass(frozen=True)
class Weights:
    """A file's weights, sorted by what they are for.

    Attributes:
        kind: what made the file, for a person to read.
        encoder: under timm's names; what is not known is here too, to be complained about.
        decoder: MAE's decoder and mask token under the official names, or nothing.
        heads: attention heads by (width, depth), as this kind of file has them.
        origin: the name in the file of each weight that is called otherwise here.
    """

    kind: str
    encoder: State
    decoder: State
    heads: Mapping[tuple[int, int], int]
    origin: Mapping[str, str] = field(default_factory=dict)


def sort(content: Mapping[str, Any], branch: str | None, where: str) -> Weights:
    """Recognise who wrote a checkpoint, and sort its weights.

    Known are MAE (``['model']``, with or without the decoder), MoCo v3 (``['state_dict']``,
    ``module.base_encoder.*``), DINO (``teacher`` and ``student``, or ``backbone.*``), timm, and
    transformers' ViT and ViTMAE.

    Args:
        content: what the file holds.
        branch: which of several networks to take: ``base_encoder`` (default) or
            ``momentum_encoder`` of MoCo v3, ``teacher`` (default) or ``student`` of DINO, else the
            entry's name, such as ``model_ema``.
        where: the file, for complaints.

    Raises:
        UserError: there are no weights, or no such branch, or several and it is not said which.
    """
    networks = [name for name, value in content.items() if _is_state(value)]
    if not networks:
        require(_is_state(content), f"{where} holds no weights but {_listed(content)}")
        return _sorted(dict(content), "", branch, where)
    if len(networks) == 1:
        return _sorted(dict(content[networks[0]]), "", branch, where)
    is_dino = set(networks) == {"teacher", "student"}
    chosen = _choose(branch, ["teacher", "student"] if is_dino else networks, where, is_dino)
    kind = f"DINO, {chosen}" if is_dino else f"the entry {chosen!r}"
    return _sorted(dict(content[chosen]), kind, None, where)


def _sorted(state: dict[str, Tensor], kind: str, branch: str | None, where: str) -> Weights:
    names = {name: re.sub(r"^(module\.|_orig_mod\.)+", "", name) for name in state}
    heads = _VIT_HEADS
    networks = [
        network
        for network in ("base_encoder", "momentum_encoder")
        if any(name.startswith(f"{network}.") for name in names.values())
    ]
    if networks:
        chosen = _choose(branch, networks, where)
        kind, heads = f"MoCo v3, {chosen.replace('_', ' ')}", _MOCO_HEADS
        names = _of_network(names, chosen, networks)
    elif any(name.startswith("backbone.") for name in names.values()):
        kind = kind or "an encoder called backbone"
        names = {old: new.removeprefix("backbone.") for old, new in names.items()}
    elif any("embeddings.patch_embeddings." in name for name in names.values()):
        kind = "transformers"
        names = {old: _from_transformers(new) for old, new in names.items()}
    require(
        branch is None or bool(networks),
        f"{where} holds one network, so --branch {branch} means nothing; leave it out",
    )

    origin = {new: old for old, new in names.items() if new not in ("", old)}
    renamed = {new: state[old] for old, new in names.items() if new and not _HEAD.fullmatch(new)}
    renamed = _fuse_queries_keys_values(renamed)
    decoder = {}
    if any(name.startswith("decoder_pred.") for name in renamed):
        kind, heads = f"{kind}, MAE with its decoder".removeprefix(", "), _MAE_HEADS
        decoder = {name: renamed.pop(name) for name in list(renamed) if _DECODER.fullmatch(name)}
        lacking = sorted(_decoder_names(decoder) - decoder.keys())
        require(not lacking, f"{where} holds a decoder that lacks {lacking[:1]}")
    else:
        renamed.pop("mask_token", None)
    return Weights(kind or "timm's names", renamed, decoder, heads, origin)


def is_mae_decoder(state: State) -> bool:
    """Whether these are the weights of an MAE's decoder, and all of them."""
    return bool(state) and state.keys() == _decoder_names(state)


def _decoder_names(decoder: State) -> set[str]:
    """What an MAE's decoder has, of as many blocks as there are."""
    parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = {name.split(".")[1] for name in decoder if name.startswith("decoder_blocks.")}
    modules = ["decoder_embed", "decoder_norm", "decoder_pred"]
    modules += [f"decoder_blocks.{block}.{part}" for block in blocks for part in parts]
    pairs = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return pairs | {"mask_token", "decoder_pos_embed"}


def flags(content: Mapping[str, Any], decoder: State) -> dict[str, Any]:
    """What a file tells of an MAE's pre-training, beside its weights.

    The official code stores its flags as ``args``, and every decoder it makes has 16 heads and is
    512 wide (``models_mae.py``, facebookresearch/mae ``efb2a80``).
    """
    args = content.get("args")
    told = vars(args) if isinstance(args, argparse.Namespace) else args
    known: dict[str, Any] = {}
    if isinstance(told, Mapping):
        if isinstance(told.get("norm_pix_loss"), bool):
            known["norm_pix_loss"] = told["norm_pix_loss"]
        if isinstance(told.get("mask_ratio"), float):
            known["mask_ratio"] = told["mask_ratio"]
    bias = decoder.get("decoder_embed.bias")
    if bias is not None and bias.shape == (512,):
        known["decoder_heads"] = 16
    return known


def heads(found: Weights, width_depth: tuple[int, int], first: str | None) -> int | None:
    """Attention heads as encoders of this kind, width and depth have them, if any does.

    A ViT-S of MoCo v3 has 12, others 6, and MAE has none of its own. Files without these methods'
    names around them are recognised by their fixed position embeddings.

    Args:
        first: the axis that position embeddings encode first, if they are sin-cos.
    """
    table = found.heads
    if table is _VIT_HEADS and first:
        table = _MOCO_HEADS if first == "row" else _MAE_HEADS
    return table.get(width_depth)


def to_transformers(state: State, decoder: State) -> dict[str, Tensor]:
    """Weights under the names of transformers' ``ViTModel``, or ViTMAE where there is a decoder.

    The names are those of the files on the Hugging Face hub, which every version reads.
    """
    prefix = "vit." if decoder else ""
    renamed = {
        prefix + new: value
        for name, tensor in state.items()
        for new, value in _transformers_items(name, tensor, "encoder.layer.")
    }
    for name, tensor in decoder.items():
        for new, value in _transformers_items(name, tensor, "decoder_layers."):
            renamed["decoder." + new] = value
    return {name: value.contiguous() for name, value in renamed.items()}


def _transformers_items(name: str, tensor: Tensor, layers: str) -> list[tuple[str, Tensor]]:
    whole = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    block = re.fullmatch(r"(?:decoder_)?blocks\.(\d+)\.(.+)\.(weight|bias)", name)
    if not block:
        return [(whole.get(name, name), tensor)]
    layer, part, kind = f"{layers}{block[1]}.", block[2], block[3]
    if part == "attn.qkv":
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return [(f"{layer}attention.attention.{who}.{kind}", value) for who, value in parts]
    inner = {
        "attn.proj": "attention.output.dense",
        "norm1": "layernorm_before",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    return [(f"{layer}{inner[part]}.{kind}", tensor)]


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) for name in value)
        and all(isinstance(each, Tensor) and _is_dense(each) for each in value.values())
    )


def _is_dense(tensor: Tensor) -> bool:
    return tensor.layout == torch.strided and not tensor.is_meta


def _listed(content: Mapping[str, Any]) -> str:
    names = [f"{name!r} ({type(value).__name__})" for name, value in content.items()]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"


def _choose(branch: str | None, networks: list[str], where: str, first: bool = True) -> str:
    """The branch asked for, else the first one, if that may be taken unasked."""
    names = " and ".join(networks)
    require(
        first or branch is not None,
        f"{where} holds several networks: {names}; say which, e.g. --branch {networks[0]}",
    )
    if branch is None:
        return networks[0]
    if branch not in networks:
        raise UserError(f"{where} has no branch {branch!r}; it has {names}")
    return branch


def _of_network(names: Mapping[str, str], chosen: str, networks: Iterable[str]) -> dict[str, str]:
    """The chosen network's names without its prefix; "" for what the other has alike."""
    own = {new.removeprefix(f"{chosen}.") for new in names.values() if new.startswith(f"{chosen}.")}
    renamed = {}
    for old, new in names.items():
        network, _, rest = new.partition(".")
        if network == chosen:
            renamed[old] = rest
        else:
            renamed[old] = "" if network in networks and rest in own else new
    return renamed


def _from_transformers(name: str) -> str:
    for pattern, replacement in _TRANSFORMERS:
        name = re.sub(pattern, replacement, name)
    return name


def _fuse_queries_keys_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as the one matrix ``qkv`` that timm and MAE have."""
    fused = dict(state)
    for name in state:
        if ".attn.query." not in name:
            continue
        parts = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            values = [fused.pop(part) for part in parts]
            fused[name.replace(".query.", ".qkv.")] = torch.cat(values)
    return fused
