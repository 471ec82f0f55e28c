"""DINO and iBOT in small, and a naive training by the papers' order of operations."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import CPU, SHAPE, batch_of
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import optimizers
from ssl_bench.api.registry import Plugin
from ssl_bench.data import Dataset, Split
from ssl_bench.models import weights as stored
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training import pretrain, setup

SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
TEMPERATURES = [0.1, 0.2]
"""Of a teacher in each of two epochs."""
SMALL = {
    "prototypes": 12,
    "head_hidden_dim": 16,
    "head_bottleneck_dim": 8,
    "drop_path": 0.0,
    "local_crops": 0,
    "warmup_teacher_temp": TEMPERATURES[0],
    "teacher_temp": TEMPERATURES[1],
    "temp_warmup": 1.0,
}
Reference = Callable[[Weights, list[Tensor], Mapping[str, Tensor], int], tuple[Tensor, Weights]]
"""Of weights, views, centres by name and the step: the loss, and what the centres move towards."""


def build(plugin: Plugin, **changes: Any) -> Any:
    """The method with weights as after some training, the teacher's being the student's."""
    config = plugin.config(**(SMALL | changes))
    method: Any = setup.build_method(plugin.load_class(), config, SPEC, 3, seed=0)
    naive.randomise(method)
    method.encoder.load_state_dict(method.student.state_dict())
    method.teacher_head.load_state_dict(method.student_head.state_dict())
    return method.train()


def views_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, 16, 16, generator=generator) for _ in "12"]


def bottleneck(head: Weights, x: Tensor) -> Tensor:
    for layer in (0, 2, 4):
        x = naive.linear(under(head, f"mlp.{layer}"), x)
        if layer < 4:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x / x.norm(dim=-1, keepdim=True)


def logits(head: Weights, x: Tensor) -> Tensor:
    """Products of the normalised bottleneck with the prototypes: ``(..., K)``."""
    last = under(head, "last_layer")
    prototypes = last["weight_g"] * last["weight_v"] / last["weight_v"].norm(dim=1, keepdim=True)
    return bottleneck(head, x) @ prototypes.T


def cross_entropy(teacher: Tensor, student: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Between the teacher's centred and sharpened logits and the student's: ``(...,)``."""
    target = ((teacher.detach() - center) / temperature).exp()
    target = target / target.sum(-1, keepdim=True)
    scaled = student / 0.1
    return -(target * (scaled - scaled.exp().sum(-1, keepdim=True).log())).sum(-1)


def assert_trained_alike(
    plugin: Plugin,
    reference: Reference,
    data: Dataset,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    **changes: Any,
) -> None:
    """Two epochs give the reference's losses, weights and centres, and hand the teacher over."""
    epochs, batch_size, per_epoch, base_lr, clip = 2, 8, 2, 0.5, 0.05
    recipe = {"base_lr": base_lr, "warmup": 0.0, "final_lr": 0.0, "momentum": 0.8}
    recipe |= {"clip_grad": clip, "freeze_last_layer": 1}
    method = build(plugin, **recipe, **changes)
    weights = naive.weights_of(method)
    batches = [views_of(batch_size, seed) for seed in range(epochs * per_epoch)]
    monkeypatch.setattr(
        setup, "batches", lambda *a: (batch_of(method, batches[d.step], d.step) for d in a[-1])
    )
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    count = batch_size * per_epoch
    train = Split(data.train.images_NCHW[:count], data.train.labels_N[:count])
    data = dataclasses.replace(data, train=train)
    plan = helpers.plan(plugin, SPEC, data)
    plan = dataclasses.replace(plan, epochs=epochs, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, folder, CPU)
    records = [json.loads(line) for line in (folder / "metrics.jsonl").open()]

    centers = {name: buffer.new_zeros(12).double() for name, buffer in method.named_buffers()}
    centers = {name: center for name, center in centers.items() if name.endswith("center_K")}
    total = epochs * per_epoch
    for step, record in enumerate(records):
        half_cosine = (1 + math.cos(math.pi * step / total)) / 2
        views = [view.double() for view in batches[step]]
        loss, means = reference(weights, views, centers, step)
        loss.backward()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-5), step
        rate = base_lr * batch_size / 256 * half_cosine
        decay = 0.4 + (0.04 - 0.4) * half_cosine
        with torch.no_grad():
            for name, weight in weights.items():
                if weight.grad is None:
                    continue
                gradient = weight.grad * min(1, clip / (weight.grad.norm() + 1e-6))
                weight.grad = None
                if "last_layer" in name and step < per_epoch:
                    continue
                if weight.ndim > 1:
                    gradient = gradient + decay * weight
                weight.sub_(rate * gradient)
            m = 1 - 0.2 * half_cosine
            for slow, fast in (("encoder", "student"), ("teacher_head", "student_head")):
                for name, weight in under(weights, slow).items():
                    weight.mul_(m).add_((1 - m) * weights[f"{fast}.{name}"])
        assert centers.keys() == means.keys()
        centers = {name: 0.9 * center + 0.1 * means[name] for name, center in centers.items()}
    for name, parameter in method.named_parameters():
        assert naive.relative_error(parameter, weights[name]) < 1e-5, name
    for name, center in centers.items():
        assert naive.relative_error(method.get_buffer(name), center) < 1e-5, name
    encoder, _ = stored.load(folder)
    assert torch.equal(encoder.norm.weight, method.encoder.norm.weight)
    assert not torch.equal(encoder.norm.weight, method.student.norm.weight)
