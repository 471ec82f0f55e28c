"""Other people's names for the weights of Vision Transformers, BEiT, Swin and ResNets, as timm's.

Everything here works on names and tensors only; `checkpoints` reads files and builds encoders.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ssl_bench.errors import UserError, require
from ssl_bench.models import clip_formats
from ssl_bench.utils.pickled import Left

State = Mapping[str, Tensor]
# (width, depth) -> attention heads, which no weight's shape reveals.
_VIT_HEADS = {
    **{(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16},
    (1536, 40): 24,  # DINOv2's ViT-g
}
_MAE_HEADS = {(768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_MOCO_HEADS = {(384, 12): 12, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
_IJEPA_HEADS = {**_VIT_HEADS, (1408, 40): 16}

# Wrappers that training code puts around modules, and that leave their names in those of weights.
_WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(?:module|_orig_mod|_fsdp_wrapped_module|_forward_module|"
    r"_checkpoint_wrapped_module)\."
)
_FIRST = re.compile(
    r"((?:.+\.)?)"
    r"(?:patch_embed\.proj|embeddings\.patch_embeddings\.projection|layer1\.0\.conv1)\.weight"
)
"""A weight that each encoder has once: a Vision Transformer's patches, a ResNet's first block."""
_DEEPEST = 5  # entries within entries
_SHOWN = 8
_PAIRS = (
    ("base_encoder", "momentum_encoder"),  # MoCo v3
    ("encoder_q", "encoder_k"),  # MoCo v1 and v2
    ("teacher", "student"),  # DINO, iBOT, DINOv2
    ("target_encoder", "encoder"),  # MSN, I-JEPA
)
"""Pairs of networks in one file; first the one that the paper evaluates."""
_MOCO = {"base_encoder", "momentum_encoder", "encoder_q", "encoder_k"}
_NETWORKS = _MOCO | {"teacher", "student"}
_OFFICIAL = (
    ("MoCo v2", r"encoder_[qk]", "fc.2.weight"),
    ("MoCo v1", r"encoder_[qk]", "fc.weight"),
    ("SimSiam", r"encoder", "predictor.3.weight"),
    ("Barlow Twins", r"backbone", "bn.running_mean"),
    ("VICReg", r"backbone", "projector.0.bias"),
    ("SimMIM", r"encoder", "decoder.0.bias"),
)
"""Official files: the method, its encoder, and a weight in or beside it that tells."""
_IJEPA_PREDICTOR = "predictor.predictor_pos_embed"
_OF_ENCODER = {"cls_token", "pos_embed", "reg_token", "register_tokens", "dist_token"}
_NUMBERS = ((), (0,))
_QKV = ("query", "key", "value")
_OF_TRAINING = {"mask_token", "masked_embed"}
_COMPUTED = ("relative_position_index", "attn_mask")
"""What a Swin Transformer or a BEiT stores and timm works out from its sizes."""
_TABLE = "relative_position_bias_table"

_DECODER = re.compile(
    r"mask_token|decoder_pos_embed|decoder_(embed|norm|pred)\.(weight|bias)|"
    r"decoder_blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
_HEAD = re.compile(
    r"(head|head\.fc|head_dist|classifier|pooler\.dense)\.(weight|bias)|"  # a classifier
    r"lm_head\.(weight|bias)|"  # BEiT's
    r"(head|predictor)\.\d+\.(weight|bias|running_mean|running_var|num_batches_tracked)|"
    r"(head|dino_head|ibot_head)\.(mlp|last_layer2?)\..+|"  # projection heads of DINO and iBOT
    r"(fc|projector|projection_head|prediction_head)\..+"  # MSN's, and other people's
)
_EXPORTED = (
    (".decoder_layers.", ".decoder_blocks."),
    (".encoder.layer.", ".blocks."),
    (".attention.attention.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    (".embeddings.position_embeddings", ".pos_embed"),
    (".embeddings.patch_embeddings.projection.", ".patch_embed.proj."),
    (".embeddings.cls_token", ".cls_token"),
    (".layernorm.", ".norm."),
)
"""Parts of names in transformers' ViT and ViTMAE, and timm's for them; a dot begins each name."""
_TRANSFORMERS = (
    (".vit.", "."),
    (".videomae.", "."),
    (".decoder.mask_token", ".mask_token"),
    (".decoder.decoder_", ".decoder_"),
    (".decoder_encoder.layer.", ".decoder_blocks."),
    *_EXPORTED,
    (".layers.", ".blocks."),
    (".attention.q_proj.", ".attn.query."),
    (".attention.k_proj.", ".attn.key."),
    (".attention.v_proj.", ".attn.value."),
    (".attention.o_proj.", ".attn.proj."),
    (".layer_scale1.lambda1", ".ls1.gamma"),
    (".layer_scale2.lambda1", ".ls2.gamma"),
    (".embeddings.", "."),
)
"""The same of more of its models and versions, for reading alone."""
_GATED = ((".mlp.w12.", ".mlp.fc1."), (".mlp.w3.", ".mlp.fc2."))
"""DINOv2's names for gated MLPs."""


@dataclass(frozen=True)
class Weights:
    """A file's weights, sorted by purpose.

    Attributes:
        kind: who wrote the file, for people.
        encoder: under timm's names; unknown weights are included, to be refused later.
        decoder: MAE's decoder and mask token under the official names, or nothing.
        heads: attention heads by (width, depth) that are usual in this kind of file.
        origin: original names of renamed weights.
        frames, side: of the clips that the encoder takes, as far as the file tells: 1 for images,
            and no side for those.
        without_prefix: whether position embeddings are known to be those of patches only.
        left_out: what else the file holds, for people; "" for nothing.
    """

    kind: str
    encoder: State
    decoder: State
    heads: Mapping[tuple[int, int], int]
    origin: Mapping[str, str] = field(default_factory=dict)
    frames: int = 1
    side: int | None = None
    without_prefix: bool = False
    left_out: str = ""


@dataclass(frozen=True)
class _Leaf:
    """A value in a file, a tensor or not: the path of nested entries to it, and its name there."""

    entry: str
    key: str
    value: Any

    @property
    def name(self) -> str:
        """Its full name in the file, without wrappers."""
        return self.entry + _WRAPPERS.sub("", self.key)


def sort(content: Mapping[str, Any], branch: str | None, where: str) -> Weights:
    """Recognise who wrote a checkpoint, and sort its weights.

    A Vision Transformer or a Swin is found by its patch embedding, a ResNet by its first block,
    under any prefix that its weights share: entries of the file, modules around the encoder, or
    both. Specific knowledge covers MAE (with or without decoder), MoCo, DINO, iBOT, DINOv2, MSN,
    I-JEPA, SimSiam, Barlow Twins, VICReg, SimMIM, BEiT, Swin, VideoMAE, timm, torchvision, and
    transformers' ViT, ViTMAE and VideoMAE. Everything else is left out, and counted.

    Args:
        branch: which of several networks to take: ``base_encoder`` (default) or
            ``momentum_encoder`` of MoCo v3, ``encoder_q`` (default) or ``encoder_k`` of MoCo v1 and
            v2, ``teacher`` (default) or ``student`` of DINO and iBOT, ``target_encoder`` (default)
            or ``encoder`` of MSN and I-JEPA, else the entry's name, such as ``model_ema``.

    Raises:
        UserError: there are no weights, no such branch, or several and none was chosen.
    """
    leaves = _by_name(((leaf.name, leaf) for leaf in _leaves(content)), where)
    tensors = [leaf for leaf in leaves.values() if isinstance(leaf.value, Tensor)]
    require(bool(tensors), f"{where} holds no weights but {_listed(content)}")
    found = {m[1]: leaf for name, leaf in leaves.items() if (m := _FIRST.fullmatch(name))}
    require(
        not any("modality_encoders.IMAGE." in name for name in leaves),
        f"{where} is data2vec 2.0's: its blocks have their norms after each sum, as no Vision "
        "Transformer of timm has, so that it cannot be loaded",
    )
    require(
        bool(found),
        f"{where} holds no Vision Transformer and no ResNet under known names: its first key is "
        f"{tensors[0].key!r}, 'patch_embed.proj.weight' is missing, and so is "
        "'layer1.0.conv1.weight'",
    )
    prefix = _choose(list(found), branch, where)
    entry = found[prefix].entry
    is_of_transformers = "embeddings.patch_embeddings." in found[prefix].key
    embedding = found[prefix].value
    takes_clips = isinstance(embedding, Tensor) and embedding.ndim == 5
    if is_of_transformers:
        prefix = re.sub(r"(^|\.)(vit|videomae)\.$", r"\1", prefix)  # a decoder is a sibling of it
    elif takes_clips and clip_formats.BRIDGE in (
        name.removeprefix(prefix.removesuffix("encoder.")) for name in leaves
    ):
        prefix = prefix.removesuffix("encoder.")
    own, outside = dict[str, _Leaf](), dict[str, _Leaf]()
    for name, leaf in leaves.items():
        is_own = leaf.entry == entry and name.startswith(prefix)
        (own if is_own else outside)[name.removeprefix(prefix) if is_own else name] = leaf

    network = next((part for part in prefix.split(".") if part in _NETWORKS), "")
    called = (prefix if len(found) > 1 else prefix.removeprefix(entry)).rstrip(".")
    kind, heads = f"an encoder called {called}" if called else "", _VIT_HEADS
    if is_of_transformers:
        kind = "transformers"
        own = _by_name(((_replaced(n, _TRANSFORMERS), leaf) for n, leaf in own.items()), where)
    elif network in ("base_encoder", "momentum_encoder"):
        kind, heads = f"MoCo v3, {network.replace('_', ' ')}", _MOCO_HEADS
    elif network in ("teacher", "student"):
        is_ibot = any(re.search(r"\bmasked_embed$|^ibot_loss\.", name) for name in leaves)
        kind = f"{'iBOT' if is_ibot else 'DINO'}, {network}"
    elif _IJEPA_PREDICTOR in outside:
        kind, heads = f"I-JEPA, {prefix.rstrip('.').replace('_', ' ')}", _IJEPA_HEADS
    else:
        kind = _official(prefix, {*own, *(n.removeprefix(entry) for n in outside)}) or kind
    if takes_clips:
        kind = f"{kind}, VideoMAE".removeprefix(", ")
        names = ((_replaced(n, clip_formats.NAMES), leaf) for n, leaf in own.items())
        own = _by_name(names, where)
    if network in _MOCO:
        own |= _unknown_to_moco(outside, entry, own)
    # DINOv2 may count blocks within chunks of them.
    chunk = re.compile(r"^blocks\.\d+\.(?=\d+\.)")
    renamed = [(chunk.sub("blocks.", _replaced(name, _GATED)), leaf) for name, leaf in own.items()]
    own = _by_name(_merged_first(renamed), where)
    aside = {name: leaf for name, leaf in own.items() if _is_aside(name, leaf, where)}
    state = {name: leaf.value for name, leaf in own.items() if name not in aside}
    if takes_clips:
        state = _fuse_queries_keys_values(clip_formats.with_key_biases(state))
        state, decoder = clip_formats.from_theirs(state, where)
    else:
        state, decoder = _fuse_queries_keys_values(state), {}
    if any(name.startswith("decoder_pred.") for name in state):
        kind, heads = f"{kind}, MAE with its decoder".removeprefix(", "), _MAE_HEADS
        decoder = {name: state.pop(name) for name in list(state) if _DECODER.fullmatch(name)}
        lacking = sorted(_decoder_names(decoder) - decoder.keys())
        require(not lacking, f"{where} holds a decoder that lacks {lacking[:1]}")
    aside |= {name: own[name] for name in _OF_TRAINING if state.pop(name, None) is not None}
    return Weights(
        kind=kind or ("BEiT" if "lm_head.weight" in aside else "timm's names"),
        encoder=_with_batch_counts(_with_registers(_with_own_tables(state))),
        decoder=decoder,
        heads=heads,
        origin={name: leaf.key for name, leaf in own.items() if name != leaf.key},
        frames=_told(content, "num_frames", clip_formats.FRAMES) if takes_clips else 1,
        side=_told(content, "input_size", clip_formats.SIDE) if takes_clips else None,
        without_prefix="register_tokens" in state,
        left_out=left_out(
            [(_place(name, prefix), leaf.value) for name, leaf in outside.items()]
            + [(_kind_of(name), leaf.value) for name, leaf in aside.items()]
        ),
    )


def _leaves(content: Mapping[str, Any]) -> Iterator[_Leaf]:
    """All values in a file, nested ones included, each once."""
    seen: set[int] = set()

    def below(content: Mapping[Any, Any], entry: str, depth: int) -> Iterator[_Leaf]:
        for key, value in content.items():
            is_entry = isinstance(value, Mapping) and all(isinstance(name, str) for name in value)
            if is_entry and depth < _DEEPEST and id(value) not in seen:
                seen.add(id(value))
                yield from below(value, entry + _WRAPPERS.sub("", f"{key}."), depth + 1)
            else:
                yield _Leaf(entry, str(key), value)

    return below(content, "", 0)


def _by_name(leaves: Iterable[tuple[str, _Leaf]], where: str) -> dict[str, _Leaf]:
    """Values by name; no two weights may have the same one."""
    found: dict[str, _Leaf] = {}
    for name, leaf in leaves:
        other = found.setdefault(name, leaf)
        require(
            other is leaf or not isinstance(leaf.value, Tensor),
            f"{where}: {other.key!r} and {leaf.key!r} are both {name!r}",
        )
    return found


def _choose(prefixes: Sequence[str], branch: str | None, where: str) -> str:
    """The prefix of the branch asked for, or else of the default one."""
    if len(prefixes) == 1:
        require(
            branch is None or branch in prefixes[0].split("."),
            f"{where} holds one network, so --branch {branch} means nothing; leave it out",
        )
        return prefixes[0]
    named = dict(zip(_labels(prefixes), prefixes, strict=True))
    defaults = [pair[0] for pair in _PAIRS if set(pair) == set(named)]
    names = " and ".join(named)
    require(
        bool(branch or defaults),
        f"{where} holds several networks: {names}; say which, e.g. --branch {next(iter(named))}",
    )
    chosen = branch or defaults[0]
    require(chosen in named, f"{where} has no branch {branch!r}; it has {names}")
    return named[chosen]


def _labels(prefixes: Sequence[str]) -> list[str]:
    """Short names that tell prefixes apart: common beginnings and ends are dropped."""
    parts = [prefix.split(".")[:-1] for prefix in prefixes]
    for end in (0, -1):
        while all(parts) and len({part[end] for part in parts}) == 1:
            for part in parts:
                part.pop(end)
    return [".".join(part) or whole or "top" for part, whole in zip(parts, prefixes, strict=True)]


def _official(prefix: str, names: Collection[str]) -> str:
    """The method and the network of an encoder in its authors' file; "" for any other.

    Args:
        names: of the weights in the encoder, and of those beside it.
    """
    network = prefix.rstrip(".").rpartition(".")[2]
    for method, encoder, telling in _OFFICIAL:
        if re.fullmatch(encoder, network) and telling in names:
            return f"{method}, {network}"
    return ""


def _unknown_to_moco(
    outside: Mapping[str, _Leaf], entry: str, own: Mapping[str, _Leaf]
) -> dict[str, _Leaf]:
    """The weights in a MoCo file that should not be there.

    Beside the encoder it may only hold a predictor or a queue, and the other encoder with the same
    weights.
    """
    unknown = {}
    for name, leaf in outside.items():
        if leaf.entry == entry and isinstance(leaf.value, Tensor):
            rest = name.removeprefix(entry)
            network, _, inner = rest.partition(".")
            rest = inner if network in _MOCO else rest
            if rest not in own and not (_HEAD.fullmatch(rest) or rest.startswith("queue")):
                unknown[leaf.key] = leaf
    return unknown


def _is_aside(name: str, leaf: _Leaf, where: str) -> bool:
    """Whether a value is not one of the encoder's weights but, say, a head or a plain number."""
    value = leaf.value
    if isinstance(value, Tensor):
        is_number = "." not in name and name not in _OF_ENCODER and value.shape in _NUMBERS
        return is_number or _kind_of(name) in _COMPUTED or bool(_HEAD.fullmatch(name))
    if isinstance(value, Left) and "tensor" in value.name:
        raise UserError(f"{where}: {leaf.key!r} holds no weights but {value.name}")
    return True


def _kind_of(name: str) -> str:
    """What a weight beside the encoder's is of: the first part of its name, or what it stores."""
    last = name.rpartition(".")[2]
    return last if last in _COMPUTED else name.partition(".")[0]


def _merged_first(own: Sequence[tuple[str, _Leaf]]) -> Iterator[tuple[str, _Leaf]]:
    """Weights of a Swin whose stages begin with the merging, as timm's do; official ones end so."""
    is_last = any(name.startswith("layers.0.downsample.") for name, _ in own)
    for name, leaf in own:
        found = re.fullmatch(r"layers\.(\d+)\.downsample\.(.+)", name) if is_last else None
        yield f"layers.{int(found[1]) + 1}.downsample.{found[2]}" if found else name, leaf


def _place(name: str, prefix: str) -> str:
    """The name up to the first part in which it differs from the encoder's prefix."""
    parts = name.split(".")
    pairs = zip(parts, prefix.split("."), strict=False)
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return ".".join(parts[: shared + 1])


def left_out(values: Iterable[tuple[str, Any]]) -> str:
    """What is not read of a file, in words: the tensors counted by the names of their places."""
    tensors: Counter[str] = Counter()
    for place, value in values:
        tensors[place] += isinstance(value, Tensor)
    parts = [f"{place} (tensors: {count})" if count else place for place, count in tensors.items()]
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return f"left out: {', '.join(parts[:_SHOWN])}{more}" if parts else ""


def _with_own_tables(state: State) -> State:
    """A BEiT whose blocks share a table of relative positions, with one for each of them.

    So it is fine-tuned, too (``run_class_finetuning.py``, microsoft/unilm ``768a3c8``).
    """
    shared = f"rel_pos_bias.{_TABLE}"
    if shared not in state:
        return state
    blocks = {match[0] for name in state if (match := re.match(r"blocks\.\d+\.", name))}
    own = {f"{block}attn.{_TABLE}": state[shared].clone() for block in blocks}
    return {**own, **{name: value for name, value in state.items() if name != shared}}


def _with_registers(state: State) -> State:
    """DINOv2's registers under timm's name.

    With registers, timm has positions for patches only, so the class token's is added to the token.
    """
    if "register_tokens" not in state:
        return state
    changed = dict(state)
    changed["reg_token"] = changed.pop("register_tokens")
    changed["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
    changed["pos_embed"] = state["pos_embed"][:, 1:]
    return changed


def _replaced(name: str, parts: Iterable[tuple[str, str]]) -> str:
    """A name with parts replaced by others; a dot begins it for that."""
    name = f".{name}"
    for old, new in parts:
        name = name.replace(old, new)
    return name[1:]


def _with_batch_counts(state: State) -> State:
    """Batch norms with their count of batches, which PyTorch before 0.4.1 did not store.

    What an encoder computes does not depend on it.
    """
    if any(name.endswith(".num_batches_tracked") for name in state):
        return state
    norms = [name.removesuffix("running_mean") for name in state if name.endswith(".running_mean")]
    return {**state, **{f"{norm}num_batches_tracked": torch.tensor(0) for norm in norms}}


def blocks_in(names: Iterable[str], stack: str) -> set[str]:
    """Numbers of a stack's blocks, as they stand in the names of weights."""
    return {name.split(".")[1] for name in names if name.startswith(f"{stack}.")}


def is_mae_decoder(state: State) -> bool:
    """Whether these are exactly the weights of an MAE decoder."""
    return bool(state) and state.keys() == _decoder_names(state)


def _decoder_names(decoder: State) -> set[str]:
    """The names in an MAE decoder with these blocks."""
    parts = ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    blocks = blocks_in(decoder, "decoder_blocks")
    modules = ["decoder_embed", "decoder_norm", "decoder_pred"]
    modules += [f"decoder_blocks.{block}.{part}" for block in blocks for part in parts]
    pairs = {f"{module}.{kind}" for module in modules for kind in ("weight", "bias")}
    return pairs | {"mask_token", "decoder_pos_embed"}


def flags(content: Mapping[str, Any], decoder: State) -> dict[str, Any]:
    """The flags of an MAE or VideoMAE pre-training that a file reveals.

    The official code stores its flags as ``args``, and every decoder it makes has 16 heads and is
    512 wide (``models_mae.py``, facebookresearch/mae ``efb2a80``).
    """
    args = _args(content)
    known = clip_formats.flags(args, decoder)
    if known:
        return known
    if isinstance(args.get("norm_pix_loss"), bool):
        known["norm_pix_loss"] = args["norm_pix_loss"]
    if isinstance(args.get("mask_ratio"), float):
        known["mask_ratio"] = args["mask_ratio"]
    bias = decoder.get("decoder_embed.bias")
    if bias is not None and bias.shape == (512,):
        known["decoder_heads"] = 16
    return known


def _args(content: Mapping[str, Any]) -> Mapping[str, Any]:
    """The flags of its training that a file has as the official codes write them."""
    args = content.get("args")
    return args if isinstance(args, Mapping) else {}


def _told(content: Mapping[str, Any], name: str, usual: int) -> int:
    """A size among the flags of a file's training, or the usual one."""
    value = _args(content).get(name)
    return value if type(value) is int and value > 0 else usual


def heads(found: Weights, width_depth: tuple[int, int], first: str | None) -> int | None:
    """The usual number of attention heads of encoders of this kind, width and depth, if known.

    A ViT-S of MoCo v3 has 12, others 6, and MAE has no ViT-S. Files that name no method are
    recognised by the axis that fixed position embeddings encode first.
    """
    table = found.heads
    if table is _VIT_HEADS and first:
        table = _MOCO_HEADS if first == "row" else _MAE_HEADS
    return table.get(width_depth)


def to_transformers(state: State, decoder: State, of_clips: int = 0) -> dict[str, Tensor]:
    """Weights under the names of transformers' ``ViTModel``, or ViTMAE if there is a decoder.

    They are those of files on the Hugging Face hub, which every version of transformers reads.

    Args:
        of_clips: channels of a frame, of VideoMAE; 0 for images.
    """
    found: dict[str, Tensor] = {}
    back = [(ours, theirs) for theirs, ours in reversed(_EXPORTED)]
    if of_clips:
        state, decoder = clip_formats.to_theirs(state, decoder, of_clips)
    whole = "videomae." if of_clips else "vit."
    for prefix, part in ((whole if decoder else "", state), ("decoder.", decoder)):
        for name, tensor in part.items():
            halves = {name: tensor}
            if ".qkv." in name:
                names = [name.replace(".qkv.", f".{each}.") for each in _QKV]
                halves = dict(zip(names, tensor.chunk(3), strict=True))
            for half, value in halves.items():
                found[prefix + _replaced(half, back)] = value.contiguous()
    return clip_formats.as_exported(found) if of_clips else found


def _listed(content: Mapping[str, Any]) -> str:
    kinds = [getattr(value, "name", type(value).__name__) for value in content.values()]
    names = [f"{name!r} ({kind})" for name, kind in zip(content, kinds, strict=True)]
    return ", ".join(names[:5]) + (", ..." if len(names) > 5 else "") or "nothing"


def _fuse_queries_keys_values(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Join query, key and value into the matrix ``qkv`` that timm and MAE have."""
    fused = dict(state)
    for name in state:
        if ".attn.query." not in name:
            continue
        parts = [name.replace(".query.", f".{part}.") for part in _QKV]
        if all(part in state for part in parts):
            values = [fused.pop(part) for part in parts]
            fused[name.replace(".query.", ".qkv.")] = torch.cat(values)
    return fused
