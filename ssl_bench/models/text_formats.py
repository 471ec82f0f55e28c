"""Other people's names for the weights of text encoders: transformers' BERT, and ALBEF's.

Like `formats`, this works on names and tensors; `checkpoints` reads files and builds encoders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ssl_bench.errors import require
from ssl_bench.models import formats
from ssl_bench.models.vocabulary import PAD, TextSpec

State = Mapping[str, Tensor]
_NAMES = (
    (r"LayerNorm\.gamma$", "LayerNorm.weight"),
    (r"LayerNorm\.beta$", "LayerNorm.bias"),
    (r"^bert\.", ""),
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "segments."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.(cross)?attention\.self\.", lambda m: ".cross_attention." if m[1] else ".attention."),
    (r"\.attention\.output\.dense\.", ".attention.out."),
    (r"\.attention\.output\.LayerNorm\.", ".attention_norm."),
    (r"\.crossattention\.output\.dense\.", ".cross_attention.out."),
    (r"\.crossattention\.output\.LayerNorm\.", ".cross_norm."),
    (r"\.intermediate\.dense\.", ".grow."),
    (r"\.output\.dense\.", ".shrink."),
    (r"\.output\.LayerNorm\.", ".norm."),
    (r"^pooler\.dense\.", "pooler."),
    (r"^cls\.seq_relationship\.", "follows."),
    (r"^cls\.predictions\.transform\.dense\.", "transform."),
    (r"^cls\.predictions\.transform\.LayerNorm\.", "transform_norm."),
    (r"^cls\.predictions\.bias$", "bias"),
)
"""Parts of names in transformers' BERT and ALBEF's `xbert`, and what they are here, in turn."""
_TIED = {"cls.predictions.decoder.weight": "words.weight", "cls.predictions.decoder.bias": "bias"}
_COUNTED = "embeddings.position_ids"
_READ = {"hidden_act": "gelu", "position_embedding_type": "absolute", "is_decoder": False}
"""What a configuration of transformers may say, and has to."""
_LAYER = re.compile(r"layers\.(\d+)\.")
IMAGE_SIDE, TEXT_SIDE, COPY = "visual_encoder", "text_encoder", "_m"
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""What ALBEF normalises images with (``dataset/__init__.py``, salesforce/ALBEF ``b9727e4``)."""


def bert(
    state: State, config: Mapping[str, Any], vocabulary: tuple[str, bool], where: str
) -> tuple[TextSpec, dict[str, Tensor], str]:
    """The spec and the weights of transformers' BERT: a model alone, or with heads for words.

    Args:
        config: of its ``config.json``.
        vocabulary: of `vocabulary.read_vocabulary`.

    Returns:
        The spec, the weights under the names of `text_encoder.TextEncoder`, and what is left out,
        in words.

    Raises:
        UserError: it is another kind of BERT, or the vocabulary is another one's.
    """
    for name, wanted in _READ.items():
        has = config.get(name, wanted)
        require(has == wanted, f"{where} has {name} {has!r}; {wanted!r} alone is read")
    eps = config.get("layer_norm_eps", 1e-12)
    require(eps == 1e-12, f"{where} has layer_norm_eps {eps!r}; 1e-12 alone is read")
    return _read(state, vocabulary, int(config["num_attention_heads"]), where, config)


def _read(
    state: State,
    vocabulary: tuple[str, bool],
    num_heads: int,
    where: str,
    config: Mapping[str, Any],
    image_width: int = 0,
) -> tuple[TextSpec, dict[str, Tensor], str]:
    found, tied, aside = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    has_heads = any(name.startswith("bert.") for name in state)
    for name, tensor in state.items():
        short = name.removeprefix("bert.")
        if has_heads and not name.startswith(("bert.", "cls.")):
            aside[name] = tensor  # the head of a task
        elif short in _TIED:
            tied[_TIED[short]] = tensor
        elif short != _COUNTED:
            found[_renamed(name)] = tensor
    for name in ("words.weight", "positions.weight", "segments.weight"):
        require(name in found, f"{where} is no BERT: it has no {name.partition('.')[0]} embeddings")
    for name, tensor in tied.items():
        require(
            name in found and torch.equal(tensor, found[name]),
            f"{where} predicts words by other weights than it reads them with; BERT's are tied",
        )
    words, lowercase = vocabulary
    rows, width = found["words.weight"].shape
    count, pad = words.count("\n") + 1, words.split("\n").index(PAD)
    require(
        count == rows,
        f"{where} was trained with a vocabulary of {rows:,} words, and the tokenizer has "
        f"{count:,}; the vocab.txt that came with it would work",
    )
    told = config.get("pad_token_id", pad)
    require(
        told == pad,
        f"{where} was trained with {PAD} as word {told}, and the tokenizer has it as word {pad}; "
        "the vocab.txt that came with it would work",
    )
    crossed = {int(m[1]) for name in found if (m := _LAYER.match(name)) and "cross_" in name}
    depth = 1 + max((int(m[1]) for name in found if (m := _LAYER.match(name))), default=-1)
    first = min(crossed, default=depth)
    require(
        crossed == set(range(first, depth)) and first > 0,
        f"{where} attends to images in layers {sorted(crossed)} of {depth}; the last ones alone "
        "would work",
    )
    hidden = found["layers.0.grow.weight"].shape[0]
    require(
        hidden == 4 * width,
        f"{where} has hidden layers of {hidden}; four times its width, {4 * width}, would work",
    )
    tells_order = {"pooler.weight", "follows.weight"} <= found.keys()
    if not tells_order:
        # A single text is a first one everywhere, so that its kind is a part of the positions.
        kinds_2D = found.pop("segments.weight")
        found["positions.weight"] = found["positions.weight"] + kinds_2D[0]
        lone = [name for name in found if name.startswith(("pooler.", "follows."))]
        aside |= {name: found.pop(name) for name in lone}
    predicts = "transform.weight" in found
    spec = TextSpec(
        words,
        lowercase,
        len(found["positions.weight"]),
        width,
        first,
        num_heads,
        fusion_depth=len(crossed),
        image_width=image_width if crossed else 0,
        next_sentence=tells_order,
        predicts=predicts,
    )
    named = {_fused(name, first): tensor for name, tensor in found.items()}
    notes = [] if predicts else ["it has no head that predicts hidden words"]
    notes.append(_left_out(aside))
    return spec, named, "; ".join(filter(None, notes))


def _left_out(values: Mapping[str, Any]) -> str:
    return formats.left_out((name.partition(".")[0], value) for name, value in values.items())


def _renamed(name: str) -> str:
    for pattern, ours in _NAMES:
        name = re.sub(pattern, ours, name)
    return name


def _fused(name: str, first: int) -> str:
    """A layer that attends to an image under the name that it has here."""
    found = _LAYER.match(name)
    if not found or int(found[1]) < first:
        return name
    return f"fusion.{int(found[1]) - first}.{name[found.end() :]}"


def is_albef(content: Mapping[str, Any]) -> bool:
    """Whether these are weights that ALBEF's official code saved, or BLIP's, which came of it."""
    names = [*map(str, _weights(content))]
    return all(any(n.startswith(f"{side}.") for n in names) for side in (IMAGE_SIDE, TEXT_SIDE))


def kind_of(content: Mapping[str, Any]) -> str:
    """Which of the two: BLIP's text encoder attends to images from its first layer on."""
    own = _under(_weights(content), TEXT_SIDE)
    return "BLIP" if any("layer.0.crossattention" in name for name in own) else "ALBEF"


def _weights(content: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = content.get("model")
    return inner if isinstance(inner, Mapping) else content


def albef_images(content: Mapping[str, Any], branch: str | None, where: str) -> dict[str, Tensor]:
    """The image encoder of ALBEF's weights, under timm's names.

    Args:
        branch: ``visual_encoder``, the default, or ``visual_encoder_m``, which follows it.
    """
    copy = _copy(branch, where)
    return _under(_weights(content), f"{IMAGE_SIDE}{copy}")


def albef_texts(
    content: Mapping[str, Any],
    branch: str | None,
    vocabulary: tuple[str, bool],
    num_heads: int,
    image_width: int,
    where: str,
) -> tuple[TextSpec, dict[str, Tensor], str]:
    """The same of what reads its texts: weights under the names of `text_encoder.ImageText`.

    Its official text and image encoders have as many heads.

    Raises:
        UserError: the vocabulary is another one's, or the weights are no BERT's.
    """
    copy, state = _copy(branch, where), _weights(content)
    own = _under(state, f"{TEXT_SIDE}{copy}")
    spec, named, note = _read(own, vocabulary, num_heads, where, {}, image_width)
    found = {f"text.{name}": tensor for name, tensor in named.items()}
    for theirs, ours in _heads(copy).items():
        found |= {f"{ours}.{kind}": each for kind, each in _under(state, theirs).items()}
    has_projection = "image_proj.weight" in found and "text_proj.weight" in found
    fields = {
        "embed_dim": len(found["text_proj.weight"]) if has_projection else 0,
        "matches": "match.weight" in found,
    }
    return TextSpec(**{**vars(spec), **fields}), found, note


def albef_left_out(content: Mapping[str, Any], branch: str | None, reads_texts: bool) -> str:
    """What else ALBEF's weights hold, in words: queues, the other copy, the optimiser's state."""
    copy, state = _copy(branch, ""), _weights(content)
    read = {f"{IMAGE_SIDE}{copy}"}
    read |= {f"{TEXT_SIDE}{copy}", *_heads(copy)} if reads_texts else set()
    beside = {} if state is content else {k: v for k, v in content.items() if k != "model"}
    others = {name: each for name, each in state.items() if name.partition(".")[0] not in read}
    return _left_out({**others, **beside})


def _heads(copy: str) -> dict[str, str]:
    """The official names of the heads, and ours; that of the matching has no copy."""
    return {
        f"vision_proj{copy}": "image_proj",
        f"text_proj{copy}": "text_proj",
        "itm_head": "match",
    }


def _copy(branch: str | None, where: str) -> str:
    known = (None, IMAGE_SIDE, IMAGE_SIDE + COPY)
    require(branch in known, f"{where} has no branch {branch!r}; it has {known[1]} and {known[2]}")
    return COPY if branch == known[2] else ""


def _under(state: Mapping[str, Any], module: str) -> dict[str, Tensor]:
    start = f"{module}."
    return {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
