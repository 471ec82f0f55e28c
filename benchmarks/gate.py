"""Nobody's time counts who does not compute the same loss from the same weights and noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.contestants import (
    CONTESTANTS,
    Contestant,
    Model,
    backward_function,
    settle,
)

_LOSS_WITHIN = {"fp32": 1e-4, "bf16": 2e-2, "fp16": 5e-3}
_LEAST_LOSS = 0.1  # SimSiam's may be anything near zero
_GRADIENT_WITHIN = {"fp32": 2e-3, "bf16": 0.3, "fp16": 0.05}
_WEIGHT = "encoder.blocks.0.mlp.fc1.weight"
_IMAGES = 8


class Differs(Exception):
    """A contestant computes something else."""


@dataclass(frozen=True)
class _Found:
    loss: float
    gradient: Tensor

    def differs_from(self, reference: _Found, precision: str) -> str | None:
        scale = max(abs(reference.loss), _LEAST_LOSS)
        if abs(self.loss - reference.loss) > _LOSS_WITHIN[precision] * scale:
            return f"computes a loss of {self.loss:.6f}, not of {reference.loss:.6f}"
        error = (self.gradient - reference.gradient).norm() / reference.gradient.norm()
        if not error <= _GRADIENT_WITHIN[precision]:
            return f"has a gradient that is off by {error:.1%}"
        return None


def losses(case: Case, names: Iterable[str], device: torch.device) -> dict[str, float]:
    """Each contestant's loss of eight images, all with the weights of ours.

    The gradient of a weight of the first block, through which all of the backward pass goes, has
    to be the same too. Who compiles is given two blocks, as compiling more takes minutes.

    Raises:
        Differs: one computes another loss or gradient.
    """
    found: dict[str, float] = {}
    references: dict[tuple[Callable[[Case], Model], int], _Found] = {}
    for name in names:
        contestant = CONTESTANTS[name]
        width, _, heads = case.decoder
        small = replace(case, batch_size=_IMAGES)
        if contestant.compile:
            small = replace(small, depth=2, decoder=(width, 1, heads))
        build = contestant.reference or CONTESTANTS["ours-fp32"].build
        if (build, small.depth) not in references:
            plainest = replace(CONTESTANTS["ours-fp32"], build=build)
            references[(build, small.depth)] = _compute(plainest, small, device)
        computed = _compute(contestant, small, device)
        what = computed.differs_from(references[(build, small.depth)], contestant.precision)
        if what:
            raise Differs(f"{contestant.title} {what}")
        found[name] = computed.loss
    return found


def _compute(contestant: Contestant, case: Case, device: torch.device) -> _Found:
    views, noise = _inputs(case)
    settle(contestant, device)
    model = contestant.build(case)
    model.adopt(_weights(case))
    model.to(device).train()
    backward = backward_function(contestant, model, device, images_at_once=_IMAGES // 2)
    torch.manual_seed(0)  # of LeJEPA's directions
    loss = backward(tuple(view.to(device) for view in views), noise.to(device))
    [gradient] = [
        parameter.grad
        for name, parameter in model.named_parameters()
        if model.plain_name(name) == _WEIGHT
    ]
    assert gradient is not None
    return _Found(loss.item(), gradient.float().cpu())


def _inputs(case: Case) -> tuple[tuple[Tensor, ...], Tensor]:
    """Noisy views of images that each have a colour.

    Of noise alone, class tokens are nearly equal, and batch norm makes of bf16's rounding a third
    of MoCo v3's gradient, whoever computes it.
    """
    generator = torch.Generator().manual_seed(1)
    colours = 2 * torch.randn(case.batch_size, 3, 1, 1, generator=generator)
    shapes = [(case.batch_size, 3, size, size) for size in case.view_sizes]
    views = tuple(colours + torch.randn(shape, generator=generator) for shape in shapes)
    return views, torch.rand(case.batch_size, case.noise, generator=generator)


def _weights(case: Case) -> dict[str, Tensor]:
    """Those of ours, all matrices moved away from where they start, by the names of `plain`."""
    source = CONTESTANTS["ours-fp32"].build(case)
    generator = torch.Generator().manual_seed(0)
    weights = {source.plain_name(name): value for name, value in source.state_dict().items()}
    for name, value in weights.items():
        if value.ndim > 1 and not name.startswith("momentum_"):
            value.add_(0.02 * torch.randn(value.shape, generator=generator))
    for slow, fast in (("momentum_encoder.", "encoder."), ("momentum_projector.", "projector.")):
        for name in weights:
            if name.startswith(slow):
                weights[name] = weights[fast + name.removeprefix(slow)]
    return weights
