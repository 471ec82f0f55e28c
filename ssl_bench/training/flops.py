"""Floating-point operations of a training step, counted."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Mapping
from dataclasses import fields
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ssl_bench.api.method import Method, total
from ssl_bench.api.step import Batch, Step
from ssl_bench.config.recipes import OptimizerChoiceConfig
from ssl_bench.distributed import collectives
from ssl_bench.errors import require
from ssl_bench.models import vocabulary
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.utils import rng
from ssl_bench.utils.rng import SampleRng

_OPTIMIZER = {field.name for field in fields(OptimizerChoiceConfig)}
_counted: dict[Hashable, int] = {}


def of_step(method: Method, spec: EncoderSpec, batch_size: int) -> int:
    """FLOPs of one step's forward and backward passes over a batch.

    Those of matrix products and convolutions are counted (``torch.utils.flop_counter``), two for
    each multiplication with its addition; element-wise operations and the optimiser are not.
    Attention counts as the two products that it is, whatever kernel computes it, so that the number
    is the same on every device.

    A loss sees pairs of images at most, so that its cost is a polynomial of second degree in the
    batch size: three small batches, really computed, tell it exactly.

    A copy of the method is used, on the CPU; the first step's cost stands for every step's.
    """
    if not method.trains:
        return 0
    # All that they depend on: not how large a step is taken.
    config = {k: v for k, v in vars(method.config).items() if k not in _OPTIMIZER}
    parameters = [(name, p.shape, p.requires_grad) for name, p in method.named_parameters()]
    what = type(method), repr(config), repr(spec), batch_size, repr(parameters)
    if what in _counted:
        return _counted[what]
    least = max(2, method.smallest_batch)
    if batch_size <= 3 * least:
        _counted[what], _ = _count(method, spec, batch_size)
        return _counted[what]
    one, two, three = (_count(method, spec, times * least)[0] for times in (1, 2, 3))
    # Newton's polynomial through the three.
    x = Fraction(batch_size, least) - 1
    _counted[what] = round(one + (two - one) * x + (three - 2 * two + one) * x * (x - 1) / 2)
    return _counted[what]


def terms_of_step(method: Method, spec: EncoderSpec) -> int:
    """How many terms a method's loss has, as a small batch of a copy of it tells."""
    return _count(method, spec, max(2, method.smallest_batch))[1]


def _count(method: Method, spec: EncoderSpec, batch_size: int) -> tuple[int, int]:
    """FLOPs and terms of a step, as one process takes it."""
    trial, batch = trial_step(method, spec, batch_size)
    terms = 0
    with (
        collectives.alone(),
        torch.random.fork_rng(devices=[]),
        FlopCounterMode(display=False) as counter,
    ):
        for term in trial.terms(batch, Step(0, 1, 1, batch_size)):
            _check_loss(trial, term)
            total(term).backward()
            terms += 1
    return counter.get_total_flops(), terms


def _check_loss(method: Method, loss: Any) -> None:
    """Require what the contract says of a loss."""
    losses = loss if isinstance(loss, Mapping) else {"loss": loss}
    require(
        bool(losses)
        and all(isinstance(each, Tensor) and not each.ndim for each in losses.values()),
        f"a loss of {type(method).__name__} is no scalar tensor, nor a mapping of names to scalar "
        f"tensors: {loss!r:.60}",
    )


def trial_step(method: Method, spec: EncoderSpec, batch_size: int) -> tuple[Method, Batch]:
    """A copy of a method, and a batch of noise for it, all of one label, on the CPU."""
    trial = copy.deepcopy(method).cpu().train()
    trial.fixed_shapes = True
    for module in trial.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False  # type: ignore[assignment]
    views = {
        name: torch.randn(
            batch_size,
            spec.input_channels,
            transform.size,
            transform.size,
            generator=rng.generator("count", number),
        )
        for number, (name, transform) in enumerate(trial.transforms().items())
    }
    labels_B = torch.zeros(batch_size, dtype=torch.long) if "label" in method.columns else None
    draws, captions_BL, is_next_B = SampleRng(0, 0, torch.arange(batch_size)), None, None
    if method.data.text and "caption" in method.columns:
        captions_BL = vocabulary.noise(method.data.text, draws)
        is_next_B = torch.arange(batch_size) % 2 == 0
    return trial, Batch(views, draws, labels_B, captions_BL=captions_BL, is_next_B=is_next_B)
