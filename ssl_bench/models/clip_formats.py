"""VideoMAE's weights in its authors' files and in transformers', and here.

Both have a convolution over two frames instead of a patch of twice the channels, a decoder that
predicts a tubelet's values frame by frame, no positions, as these are fixed, and no bias of keys,
which changes nothing (``modeling_pretrain.py``, ``modeling_finetune.py``, MCG-NJU/VideoMAE
``14ef8d8``; ``VideoMAEForPreTraining`` of transformers).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_bench.errors import require
from ssl_bench.models.video import TUBELET

State = Mapping[str, Tensor]
NAMES = (
    (".encoder.", "."),
    (".decoder.blocks.", ".decoder_blocks."),
    (".decoder.norm.", ".decoder_norm."),
    (".attention.q_bias", ".query.bias"),
    (".attention.v_bias", ".value.bias"),
    (".attn.q_bias", ".attn.query.bias"),
    (".attn.v_bias", ".attn.value.bias"),
)
"""Parts of names in the official files, and in those of transformers before 5, and here."""
FRAMES, SIDE = 16, 224
"""Of all published encoders."""
_DECODER = re.compile(r"(decoder_blocks|decoder_norm|decoder\.head|encoder_to_decoder)\..+")
BRIDGE = "encoder_to_decoder.weight"
"""What leads from the encoder to the decoder, if there is one."""
_HEAD, _MASK, _PROJECTION = "head", "mask_token", "patch_embed.proj.weight"
_HEAD_WIDTH = 64
"""Of an attention head of each official decoder."""


def from_theirs(state: State, where: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of an encoder and of its decoder, if there is one, under their names here.

    Args:
        state: with `NAMES` replaced, and queries, keys and values as one.

    Raises:
        UserError: a tubelet is not of two frames, or the decoder does not fit it.
    """
    encoder = {name: t for name, t in state.items() if not _is_of_decoder(name, state)}
    projection = encoder[_PROJECTION]
    frames, *sides = projection.shape[2:]
    require(
        frames == TUBELET,
        f"{where} has tubelets of {frames} frames; those of {TUBELET} are supported",
    )
    encoder[_PROJECTION] = projection.transpose(1, 2).flatten(1, 2)
    decoder = {
        name.replace(f"decoder.{_HEAD}.", f"{_HEAD}."): t
        for name, t in state.items()
        if name not in encoder
    }
    values = TUBELET * sides[0] * sides[1] * projection.shape[1]
    for name in (f"{_HEAD}.weight", f"{_HEAD}.bias"):
        if name in decoder:
            require(
                len(decoder[name]) == values,
                f"{where} has {len(decoder[name])} values in 'decoder.{name}', not {values}",
            )
            by_frame = decoder[name].unflatten(0, (TUBELET, *sides, -1))
            decoder[name] = by_frame.movedim(0, 2).flatten(0, 3)
    return encoder, decoder


def to_theirs(
    encoder: State, decoder: State, channels: int
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The inverse of `from_theirs`, without positions; names are ours still."""
    encoder = {name: tensor for name, tensor in encoder.items() if name != "pos_embed"}
    projection = encoder[_PROJECTION].unflatten(1, (TUBELET, channels)).transpose(1, 2)
    sides = projection.shape[3:]
    by_frame = {
        name: tensor.unflatten(0, (*sides, TUBELET, channels)).movedim(2, 0).flatten(0, 3)
        for name, tensor in decoder.items()
        if name.startswith(f"{_HEAD}.")
    }
    return {**encoder, _PROJECTION: projection}, {**decoder, **by_frame}


def as_exported(state: State) -> dict[str, Tensor]:
    """Weights of ViTMAE's names in transformers under VideoMAE's, without biases of keys."""
    found = {}
    for name, tensor in state.items():
        if not name.endswith(".key.bias"):
            name = name.replace("decoder.decoder_norm.", "decoder.norm.")
            beside = name.removeprefix("decoder.")
            found[beside if beside in (BRIDGE, _MASK) else name] = tensor
    return found


def with_key_biases(state: State) -> dict[str, Tensor]:
    """Weights with biases of zero for keys, where queries and values have some."""
    found = dict(state)
    for name, tensor in state.items():
        if name.endswith(".attn.query.bias"):
            found.setdefault(name.replace(".query.", ".key."), torch.zeros_like(tensor))
    return found


def has_decoder(state: State) -> bool:
    """Whether VideoMAE's decoder is among these weights."""
    return BRIDGE in state


def flags(args: Mapping[str, Any], decoder: State) -> dict[str, Any]:
    """The flags of a pre-training, of the official code's own, or its defaults for a decoder."""
    if not has_decoder(decoder):
        return {}
    known = {
        "norm_pix_loss": args.get("normlize_target", True),
        "mask_ratio": args.get("mask_ratio", 0.9),
        "decoder_heads": max(1, len(decoder[BRIDGE]) // _HEAD_WIDTH),
    }
    return {name: value for name, value in known.items() if type(value) in (bool, int, float)}


def _is_of_decoder(name: str, state: State) -> bool:
    return has_decoder(state) and (name == _MASK or bool(_DECODER.fullmatch(name)))
