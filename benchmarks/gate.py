"""Nobody's time counts who does not compute the same loss from the same weights and noise."""

from __future__ import annotations

import re
from dataclasses import replace

import timm.layers
import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contestants import CONTESTANTS, autocast

_TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}


def losses(case: Case, names: list[str], device: torch.device) -> dict[str, float]:
    """Each contestant's loss of one small batch, all with the weights of ours.

    Raises:
        ValueError: one computes another loss.
    """
    small = replace(case, batch_size=8)
    torch.manual_seed(0)
    source = CONTESTANTS["ours-fp32"].build(small)
    with torch.no_grad():
        for parameter in source.parameters():
            if parameter.ndim > 1:
                parameter.add_(0.02 * torch.randn_like(parameter))
    for slow, fast in (("momentum_encoder", "encoder"), ("momentum_projector", "projector")):
        if hasattr(source.method, slow):
            getattr(source.method, slow).load_state_dict(getattr(source.method, fast).state_dict())
    views = tuple(torch.randn(8, 3, small.image_size, small.image_size) for _ in range(2))
    noise = torch.rand(8, (small.image_size // small.patch_size) ** 2)
    found: dict[str, float] = {}
    for name in dict.fromkeys(["ours-fp32", *names]):
        contestant = CONTESTANTS[name]
        timm.layers.set_fused_attn(contestant.fused)
        model = contestant.build(small)
        _copy(source, model)
        model.to(device).train()
        with autocast(contestant, device), torch.no_grad():
            loss = model.loss(tuple(view.to(device) for view in views), noise.to(device))
        found[name] = loss.item()
        reference = found["ours-fp32"]
        if abs(found[name] - reference) > _TOLERANCE[contestant.precision] * abs(reference):
            raise ValueError(
                f"{contestant.title} computes a loss of {found[name]:.6f}, ours is {reference:.6f}"
            )
    return found


def _copy(source: nn.Module, target: nn.Module) -> None:
    """Give a contestant the source's weights, whatever it calls them."""
    weights = {_plain_name(name): value for name, value in source.state_dict().items()}
    renamed: dict[str, Tensor] = {}
    for name, value in target.state_dict().items():
        # What ours has not, such as lightly's mask token of the encoder, keeps its own value: if it
        # counted, the losses would differ.
        theirs = weights.get(_plain_name(name), value)
        if theirs.shape != value.shape:
            raise ValueError(
                f"{name!r} has the shape {tuple(value.shape)}, not {tuple(theirs.shape)}"
            )
        renamed[name] = theirs
    target.load_state_dict(renamed)


def _plain_name(name: str) -> str:
    name = re.sub(r"^method\.", "", name)
    name = re.sub(r"^encoder\.vit\.", "encoder.", name)
    name = re.sub(r"^decoder\.", "", name)
    return re.sub(r"(projector|predictor)\.layers\.", r"\1.", name)
