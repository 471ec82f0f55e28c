"""How a method's weights start, measured on modules that have just been built.

Each fact is a short text under a name, as in `experiment.facts`. A distribution is told by what is
drawn: a constant, the range of a uniform one, the standard deviation of a normal one and where it
is cut. One cut many deviations from its mean, as timm's at 2, is a normal one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssl_bench.api.method import Method
from ssl_bench.models import encoders, video
from ssl_bench.models.backbones import EncoderSpec, timm_name

_UNIFORM, _CUT_AT_ONE, _CUT_AT_TWO = 3**0.5, 1.853, 2.274
"""Largest value of these distributions in standard deviations; of a normal one it is higher."""
_EACH = ", q, k and v one by one"
_MANY = 50_000
"""Values that are looked at, of those there are; where there are fewer, less is claimed."""
_ERRORS = 5
"""Standard errors by which a moment may be off: there are many layers."""
_FEW = 10_000
"""Fewer do not tell a uniform distribution from a normal one cut at one deviation."""


def narrow(spec: EncoderSpec) -> EncoderSpec:
    """The spec of a Transformer so narrow that it is drawn in no time, by the same rules."""
    name = timm_name(spec.backbone)
    if name.startswith("swin"):
        sizes = {"embed_dim": 48}
    elif spec.is_vit or name.startswith("beit"):
        sizes = {"embed_dim": 192, "num_heads": 3}
    else:
        sizes = {}
    return replace(spec, architecture={**spec.architecture, **sizes})


def of_method(method: Method) -> dict[str, str]:
    """Initial weights of the encoder, of its tokens and positions, and of what follows it."""
    encoder: Any = method.encoder
    inside = {
        id(part)
        for whole in method.modules()
        if type(whole) is type(encoder)
        for part in whole.modules()
    }
    linear: dict[str, list[str]] = {}
    for module in method.modules():
        if isinstance(module, nn.Linear):
            where = "" if id(module) in inside else " after the encoder"
            linear.setdefault(f"initial linear layers{where}", []).append(_layer(module))
    found = {name: _together(texts) for name, texts in linear.items()}
    if isinstance(
        project := getattr(getattr(encoder, "patch_embed", None), "proj", None), nn.Module
    ):
        found["initial patch embedding"] = _layer(project)
    for kind, names in (("class", ("cls_token",)), ("mask", ("mask_token", "masked_embed"))):
        tokens = [p for n, p in method.named_parameters() if n.rpartition(".")[2] in names]
        if tokens:
            found[f"initial {kind} token"] = _together(map(_drawn, tokens))
    if positions := of_positions(encoder):
        found["position embedding"] = positions
    last = [block.bn3.weight for block in encoder.modules() if hasattr(block, "bn3")]
    if last:
        found["last norm of a residual block"] = f"starts at scale {_together(map(_drawn, last))}"
    return found


def of_positions(encoder: Any) -> str:
    """What tells tokens their places, "" where nothing is known to.

    Fixed ones are compared with the tables that are known, unless they are on the meta device.
    """
    if encoders.is_swin(encoder) or (encoders.is_beit(encoder) and encoder.rel_pos_bias is None):
        return "relative, each block's own"
    if not encoders.is_vit(encoder) or encoder.pos_embed is None:
        return ""
    if encoder.pos_embed.requires_grad:
        return "learned"
    if encoder.pos_embed.is_meta:
        return "fixed"
    if encoders.is_video(encoder):
        table_TD = video.sinusoids(encoder.pos_embed.shape[1], encoder.embed_dim)
        tables = {"sines and cosines of the place in the row of tokens": table_TD}
    else:
        prefix = 0 if encoder.no_embed_class else encoder.num_prefix_tokens
        rows, columns = encoder.patch_embed.grid_size
        firsts: tuple[Literal["column", "row"], ...] = ("column", "row")
        tables = {
            f"fixed sin-cos, {first} first": encoders.sincos_2d(
                encoder.embed_dim, rows, columns, prefix, first
            )
            for first in firsts
        }
    found = (name for name, table in tables.items() if torch.equal(encoder.pos_embed[0], table))
    return next(found, "fixed, others")


def _layer(layer: Any) -> str:
    """Weights of a linear layer or a convolution, as a matrix, and biases."""
    weight_OI = layer.weight.flatten(1)
    out, into = weight_OI.shape
    usual = into**-0.5
    known = {"Xavier uniform": math.sqrt(6 / (into + out)), "torch's default": usual}
    if out == 3 * into:
        known[f"Xavier uniform{_EACH}"] = math.sqrt(6 / (into + out / 3))
    text = _drawn(weight_OI, known)
    if layer.bias is None:
        return text
    bias = _drawn(layer.bias, {"torch's default": usual})
    return text if bias == text else f"{text}, bias {bias}"


def _drawn(values: Tensor, bounds: Mapping[str, float] = MappingProxyType({})) -> str:
    """The distribution of values, of which a mean of 0 is expected.

    Args:
        bounds: names of uniform distributions, by their largest values.
    """
    numbers = values.detach().flatten()
    numbers = numbers[:: max(1, len(numbers) // _MANY)].double()
    if numbers.min() == numbers.max():
        return f"{float(numbers[0]):g}"
    top, std = float(numbers.abs().max()), float(numbers.std(correction=0))
    if abs(float(numbers.mean())) > _ERRORS * std / len(numbers) ** 0.5:
        return "other"
    reach = top / std
    if reach < (_UNIFORM + _CUT_AT_ONE) / 2:
        near = (name for name, bound in bounds.items() if 0.97 * bound < top < 1.001 * bound)
        found = next(near, "")
        if found or len(numbers) >= _FEW:
            return found or f"uniform, {top:.1g}"
    if reach < (_CUT_AT_ONE + _CUT_AT_TWO) / 2:
        return f"normal, {top:.1g}, cut at that"
    is_many = len(numbers) >= _MANY
    if is_many and reach < _CUT_AT_TWO + 0.2:
        return f"normal, {top / 2:.1g}, cut at twice that"
    if is_many and abs(float((numbers / std).pow(4).mean()) - 3) > 0.3:
        return "other"
    return f"normal, {_roundest(std, _ERRORS * std / (2 * len(numbers)) ** 0.5)}"


def _roundest(value: float, error: float) -> str:
    """The roundest number that is no farther from a value than that."""
    exponent = math.floor(math.log10(value))
    for digits, leading in (1, (1, 2, 5, 10)), (1, range(1, 10)), (2, range(10, 100)):
        near = [number * 10.0 ** (exponent + 1 - digits) for number in leading]
        best = min(near, key=lambda number: abs(number - value))
        if abs(best - value) <= error:
            return f"{best:.6g}"
    return f"{value:.3g}"


def _together(texts: Iterable[str]) -> str:
    """All texts; what one says of q, k and v or of biases is said of layers that have none, too."""
    each = {*texts}
    for text in [*each]:
        each -= {text.replace(_EACH, "")} if _EACH in text else set()
        each -= {text.partition(", bias")[0]} if ", bias" in text else set()
    return " or ".join(sorted(each))
