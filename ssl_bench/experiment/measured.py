"""Constants that no object shows, solved for by running the very code that has them.

A method's loss, or an evaluation, is given inputs of our making, so that what comes out depends on
the constant alone. Each fact is a short text under a name, as in `experiment.facts`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ssl_bench.api.evaluation import Evaluation
from ssl_bench.api.method import Method
from ssl_bench.api.registry import Plugin
from ssl_bench.api.step import Batch, Step
from ssl_bench.models import encoders
from ssl_bench.utils.rng import SampleRng

_OTHER = "other"


def of_method(plugin: Plugin, method: Method) -> dict[str, str]:
    """What a method's loss shows; it has weights, whatever they are."""
    measure = _METHODS.get(plugin.name) if plugin.is_ours else None
    return measure(method) if measure else {}


def of_evaluation(plugin: Plugin, evaluation: Evaluation) -> dict[str, str]:
    """What an evaluation's predictions show."""
    return _votes(evaluation) if plugin.is_ours and plugin.name == "knn" else {}


def _student_temperature(method: Any) -> dict[str, str]:
    """Of the softmax over K prototypes whose cross-entropy with the teacher's is the loss.

    Where a share h of the student's logits is x and the others are 0, the mean of the losses for x
    and -x does not depend on the teacher. With T for the temperature it is higher than log K, which
    is the loss for 0, by half of ``log(1 + 2 * h * (1 - h) * (cosh(x / T) - 1))``.
    """
    count = len(method.center_K)
    if not count:
        return {}
    x, is_one_K = 0.1, (torch.arange(count) < count // 2).float()
    h = is_one_K.mean().item()
    blank = _batch(method, 2, torch.zeros_like)
    up, down, level = (
        _losses(method, blank, method.student_head, each * is_one_K) for each in (x, -x, 0.0)
    )
    found = set()
    for name, weighted in level.items():
        rise = up[name] + down[name] - 2 * weighted
        if rise > 1e-4:  # otherwise it is no loss of prototypes, or nothing is hidden in any image
            rise *= math.log(count) / weighted
            found.add(f"{x / math.acosh(1 + math.expm1(rise) / (2 * h * (1 - h))):.3g}")
    return {"temperature of the student": " or ".join(sorted(found)) or _OTHER}


def _norm_of_a_patch(method: Any) -> dict[str, str]:
    """What a patch's values are divided by, told by the loss of predicting 0 everywhere.

    That is the patches' variance over the square of what they are divided by, which is their
    variance, by either estimate, and the same sum at any contrast; else it is something other.
    """

    def checked(blank: Tensor) -> Tensor:
        rows, columns = (torch.arange(side) for side in blank.shape[-2:])
        return ((rows[:, None] + columns) % 2 * 2.0 - 1).expand_as(blank)

    batch = _batch(method, 1, checked)
    patch = encoders.patchify(batch.views["image"], method.patch_size)[0, 0]
    variance, count = patch.var(correction=0).item(), len(patch)
    squares = {}
    for contrast in (1e-2, 1e-3):
        faint = replace(batch, views={"image": contrast * batch.views["image"]})
        losses = _losses(method, faint, method.decoder_pred, torch.zeros(()))
        squares[contrast] = contrast**2 * variance / sum(losses.values())
    if math.isclose(*squares.values(), rel_tol=1e-3):
        return {"norm of a patch": "not used"}
    text = _OTHER
    for name, factor in (("var", 1.0), ("unbiased var", count / (count - 1))):
        added = {
            f"{square - factor * contrast**2 * variance:.3g}"
            for contrast, square in squares.items()
        }
        if len(added) == 1:
            text = f"(x - mean) / sqrt({name} + {added.pop()})"
    return {"norm of a patch": text}


_METHODS: Mapping[str, Callable[[Any], dict[str, str]]] = {
    "dino": _student_temperature,
    "ibot": _student_temperature,
    "mae": _norm_of_a_patch,
}


def _batch(method: Method, images: int, made: Callable[[Tensor], Tensor]) -> Batch:
    """Some images, whose views are as large as the method's, made of empty ones."""
    channels = method.data.channels
    views = {
        name: made(torch.zeros(images, channels, view.size, view.size))
        for name, view in method.transforms().items()
    }
    return Batch(views, SampleRng(0, 0, torch.arange(images)))


@torch.no_grad()
def _losses(method: Method, batch: Batch, part: nn.Module, output: Tensor) -> dict[str, float]:
    """The losses of the first step if a part of the method gave that output instead of its own.

    Transformer blocks are left out: what they make of an image is replaced, or does not matter.
    """
    hook = part.register_forward_hook(lambda module, inputs, own: output.expand_as(own))
    blocks = [module for module in method.modules() if isinstance(module, Block)]
    try:
        for block in blocks:
            block.forward = lambda tokens_BTD, *_, **__: tokens_BTD
        with torch.random.fork_rng(devices=[]):
            losses = method.loss(batch, Step(0, 1, 1, len(batch)))
    finally:
        hook.remove()
        for block in blocks:
            del block.forward
    losses = losses if isinstance(losses, Mapping) else {"loss": losses}
    return {name: loss.item() for name, loss in losses.items()}


@dataclass(frozen=True)
class _Split:
    features_ND: Tensor
    labels_N: Tensor

    def __len__(self) -> int:
        return len(self.labels_N)


def _votes(evaluation: Evaluation) -> dict[str, str]:
    """How a neighbour's vote falls with its distance, and the temperature of that.

    Against one neighbour in one direction there are two, or three, in another at a right angle.
    Where cosines are d apart, and votes ``exp(cosine / T)``, the single one wins if d is above
    ``T * log(2)``, or of 3: whatever the features' lengths are, and for both the same T.
    """
    found = set()
    for odds in (2, 3):
        low, high = 0.0, 1.0
        for _ in range(4):
            apart_Q = torch.linspace(low, high, 257, dtype=torch.float64)
            wins_Q = _single_wins(evaluation, odds, apart_Q)
            first = int(wins_Q.int().argmax())
            if not first:  # a high temperature, at which the single one never wins
                return {}
            low, high = apart_Q[first - 1].item(), apart_Q[first].item()
        found.add(f"{(low + high) / 2 / math.log(odds):.4g}")
    if len(found) > 1:
        return {"weight of a vote": _OTHER}
    return {"temperature": found.pop(), "weight of a vote": "exp(cosine similarity / temperature)"}


def _single_wins(evaluation: Evaluation, odds: int, apart_Q: Tensor) -> Tensor:
    """Whether one neighbour outvotes several whose cosines are lower by that much."""
    angle_Q = (apart_Q / 2**0.5).acos() - math.pi / 4
    queries_QD = 3 * torch.stack([angle_Q.cos(), angle_Q.sin()], dim=1)
    bank_ND = torch.tensor([[1.0, 0.0], *[[0.0, 2.0]] * odds]).to(queries_QD)
    labels_N = torch.tensor([0, *[1] * odds])
    train = _Split(bank_ND, labels_N)
    test = _Split(queries_QD, torch.zeros(len(queries_QD)).long())
    data: Any = SimpleNamespace(train=train, test=test, classes=("one", "several"), fingerprint="")
    encoder: Any = SimpleNamespace(features=lambda split: {"made up": split.features_ND})
    of_all = type(evaluation)(replace(evaluation.config, neighbors=(len(train),)))
    predictions_Q = of_all.evaluate(encoder, data).predictions_N
    assert predictions_Q is not None
    return predictions_Q == 0
