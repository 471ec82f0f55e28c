"""Whether what a recipe asks for takes hold on the modules that are trained.

Layer decay, drop path and weight-decay groups find parameters by name and by shape, so that a
renamed module would switch them off and nothing would tell. Each check looks at the real modules
and their parameter groups, and raises `UserError` where something asked for reaches nothing.
What a method freezes goes through `optimizers.freeze`, which does the same.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import DropPath
from timm.models import group_parameters
from torch import nn

from ssl_bench.api.method import Method
from ssl_bench.api.optimizers import Group, OptimizerSpec
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset
from ssl_bench.distributed.device import Hardware
from ssl_bench.errors import require
from ssl_bench.evaluation.features import Encoder
from ssl_bench.models import backbones, encoders
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.text_encoder import ImageText

_SHOWN = 3


def method(module: Method) -> str:
    """Check a method's weight-decay groups; one line that sums them up."""
    if not module.trains:
        return "nothing is trained"
    recipe = module.optimizer()
    require(
        isinstance(recipe, OptimizerSpec),
        f"optimizer of {type(module).__name__} returns a {type(recipe).__name__}; an OptimizerSpec "
        "of ssl_bench.api would work",
    )
    groups = recipe.optimizer.param_groups
    config = module.config
    if type(module).optimizer is not Method.optimizer:  # the method's own, which knows what it does
        trained = [
            {**group, "params": [p for p in group["params"] if p.requires_grad]} for group in groups
        ]
        return weight_decay(module, trained, 0.0, exempts=False)
    return weight_decay(module, groups, config.weight_decay, exempts=not config.decay_norm_and_bias)


def evaluations(
    spec: EncoderSpec, evals: Mapping[Plugin, Any], data: Dataset, seed: int, hardware: Hardware
) -> tuple[dict[Plugin, Any], list[str], list[str]]:
    """Run ``supports`` and ``audit`` of each evaluation on an untrained encoder.

    Names and shapes are all that counts: it is on the meta device, without memory.

    Returns:
        The evaluations that encoder and data allow, a line about each other one, and what each
        ``audit`` tells.

    Raises:
        UserError: evaluations are asked for, and none of them is possible; or an audit fails.
    """
    kept: dict[Plugin, Any] = {}
    left_out, recipe = [], []
    nowhere = replace(hardware, device=torch.device("meta"), precision="fp32")
    with nowhere.device:
        pair = ImageText(spec.text) if spec.text and not spec.is_text else None
        encoder = Encoder(backbones.build(spec, seed), spec, nowhere, seed, pair=pair)
        for plugin, config in evals.items():
            evaluation = plugin.load_class()(config)
            reason = evaluation.supports(encoder, data)
            if spec.is_text and "image" in plugin.declared.columns:
                reason = "it takes images, and the encoder reads captions"
            if reason is not None:
                left_out.append(f"evaluation {plugin.name!r} is left out: {reason}")
                continue
            kept[plugin] = config
            line = evaluation.audit(encoder)
            recipe += [f"{plugin.name}: {line}"] if line else []
    require(not evals or bool(kept), "; ".join(left_out))
    return kept, left_out, recipe


def weight_decay(
    module: nn.Module, groups: Sequence[Group], weight_decay: float, exempts: bool
) -> str:
    """Check that each trainable parameter is in one group, and that each kind of group is there.

    Args:
        groups: the optimiser's, of the module's parameters.
        weight_decay: what the recipe asks for.
        exempts: whether some parameters are meant to be exempt from it.

    Returns:
        How much is trained, decayed and frozen, for a person to read.

    Raises:
        UserError: a trainable parameter is in no group or in two, a frozen one is in a group, the
            weight decay or the exemption from it reaches no parameter, or nothing is meant to be
            exempt and something is.
    """
    seen = Counter(id(parameter) for group in groups for parameter in group["params"])
    for name, parameter in module.named_parameters():
        expected = int(parameter.requires_grad)
        require(
            seen[id(parameter)] == expected,
            f"the optimiser has parameter {name!r} in {seen[id(parameter)]} of its groups instead "
            f"of {expected}",
        )
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    decayed = sum(len(group["params"]) for group in groups if group["weight_decay"] > 0)
    require(
        decayed > 0 or weight_decay == 0,
        f"weight decay {weight_decay:g} reaches none of the {len(trained)} trained parameters; "
        "weight decay 0 would say so",
    )
    require(
        decayed < len(trained) or weight_decay == 0 or not exempts,
        f"weight decay {weight_decay:g} exempts norms and biases, and none of the {len(trained)} "
        "trained parameters is one",
    )
    require(
        decayed == len(trained) or weight_decay == 0 or exempts,
        f"weight decay {weight_decay:g} is to reach norms and biases too, and "
        f"{len(trained) - decayed} of the {len(trained)} trained parameters are exempt",
    )
    count = sum(parameter.numel() for parameter in trained)
    frozen = sum(1 for parameter in module.parameters() if not parameter.requires_grad)
    return (
        f"{count / 1e6:.1f} M parameters in {decayed} decayed and {len(trained) - decayed} "
        f"undecayed tensors, {frozen} frozen"
    )


def layer_decay(classifier: nn.Module, groups: Sequence[Group], factor: float) -> None:
    """Check that the learning rate falls by the factor from each layer to the one below it.

    Args:
        classifier: a module with ``encoder``, whose ``group_matcher`` tells timm its layers.
        groups: the optimiser's, of its parameters.
        factor: in (0, 1]; 1 asks for nothing.

    Raises:
        UserError: a layer or the head have no parameter at their own rate, or a parameter of a
            ViT other than its final norm's is taken for the head's.
    """
    if factor == 1:
        return
    scales = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    named = {
        name: scales[id(parameter)]
        for name, parameter in classifier.named_parameters()
        if parameter.requires_grad
    }
    matcher: Any = classifier.group_matcher
    layers = group_parameters(classifier, matcher(), reverse=True)
    top = max(layers.values())
    encoder: Any = classifier.encoder
    is_vit = encoders.is_vit(encoder)
    # Of other backbones that timm knows, it counts what comes last with the head.
    own = r"encoder\.(?!(fc_)?norm\.)" if is_vit or not hasattr(encoder, "group_matcher") else "$"
    lost = [name for name, scale in named.items() if scale == 1 and re.match(own, name)]
    shown = ", ".join(map(repr, lost[:_SHOWN]))
    shown += f" and {len(lost) - _SHOWN} more" if lost[_SHOWN:] else ""
    require(
        not lost,
        f"layer decay {factor:g} matches no layer for {shown}; it knows a backbone of timm "
        "by its names, and 1 would do without it",
    )
    for layer in range(top + 1):
        part = "the embeddings" if layer == 0 else f"{'block' if is_vit else 'layer'} {layer - 1}"
        scale = factor ** (top - layer)
        require(
            any(math.isclose(scale, other) for other in named.values()),
            f"layer decay {factor:g} matches no parameter of "
            f"{'the head' if layer == top else part}, whose rate would be {scale:.3g} of the "
            "head's; 1 would do without it",
        )


def drop_path(encoder: nn.Module, rate: float) -> None:
    """Check that some block of the encoder is skipped with a chance above 0.

    Raises:
        UserError: none is, though the rate is above 0.
    """
    rates = [layer.drop_prob for layer in encoder.modules() if isinstance(layer, DropPath)]
    count = f" of {len(encoder.blocks)}" if encoders.is_vit(encoder) else ""  # type: ignore[arg-type]
    require(
        rate == 0 or any(rates),
        f"drop path {rate:g} skips no block{count}: it rises from 0 at the first one; 2 blocks or "
        "more, or drop path 0, would work",
    )
