"""DINO against a naive float64 reference, and the order of its schedules."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import helpers
import naive
import pytest
import torch
from helpers import CPU, SHAPE
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import optimizers, registry
from ssl_bench.api.step import Batch, Step
from ssl_bench.data import Dataset, Split
from ssl_bench.models import weights as stored
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.models.prototypes import between_views, sharpened, sinkhorn
from ssl_bench.training import pretrain, setup
from ssl_bench.utils.rng import SampleRng

DINO = registry.find("method", "dino")
SPEC = EncoderSpec("vit_micro", 16, 4, 3, (0.5,) * 3, (0.25,) * 3, SHAPE)
SMALL = {
    "prototypes": 12,
    "head_hidden_dim": 16,
    "head_bottleneck_dim": 8,
    "drop_path": 0.0,
    "local_crops": 0,
    "warmup_teacher_temp": 0.1,
    "teacher_temp": 0.2,
    "temp_warmup": 1.0,
}


def build(**changes: Any) -> Any:
    config = DINO.config(**(SMALL | changes))
    method: Any = setup.build_method(DINO.load_class(), config, SPEC, 3, seed=0)
    naive.randomise(method)
    method.encoder.load_state_dict(method.student.state_dict())
    method.teacher_head.load_state_dict(method.student_head.state_dict())
    return method.train()


def views_of(count: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(count, 3, 16, 16, generator=generator) for _ in "12"]


def batch_of(method: Any, views: list[Tensor], step: int = 0) -> Batch:
    named = dict(zip(method.transforms(), views, strict=True))
    return Batch(named, SampleRng(0, step, torch.arange(len(views[0]))))


def logits(weights: Weights, images: Tensor, encoder: str, head: str) -> Tensor:
    """Products of each image's normalised bottleneck with the prototypes: ``(B, K)``."""
    patches = range(16)
    rows = [
        naive.vit(under(weights, encoder), image, 4, SHAPE["num_heads"], False, patches)[0]
        for image in images
    ]
    x = torch.stack(rows)
    mlp = under(weights, f"{head}.mlp")
    for layer in (0, 2, 4):
        x = naive.linear(under(mlp, str(layer)), x)
        if layer < 4:
            x = x * (1 + torch.erf(x / math.sqrt(2))) / 2
    x = x / x.norm(dim=1, keepdim=True)
    last = under(weights, f"{head}.last_layer")
    prototypes = last["weight_g"] * last["weight_v"] / last["weight_v"].norm(dim=1, keepdim=True)
    return x @ prototypes.T


def reference(
    weights: Weights, views: list[Tensor], center: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Algorithm 1: the loss, and the mean of the teacher's logits."""
    student = [logits(weights, view, "student", "student_head") for view in views]
    teacher = [logits(weights, view, "encoder", "teacher_head").detach() for view in views]
    losses = []
    for t, seen in enumerate(teacher):
        for s, other in enumerate(student):
            if s != t:
                target = ((seen - center) / temperature).exp()
                target = target / target.sum(1, keepdim=True)
                scaled = other / 0.1
                log = scaled - scaled.exp().sum(1, keepdim=True).log()
                losses.append(-(target * log).sum(1).mean())
    return torch.stack(losses).mean(), torch.cat(teacher).mean(0)


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_training_keeps_the_official_order_of_operations(
    norm_last_layer: bool, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients in each step; clipping, freezing, averages, centre, and temperature."""
    epochs, batch_size, per_epoch, base_lr, clip = 2, 8, 2, 0.5, 0.05
    method = build(
        base_lr=base_lr,
        warmup=0.0,
        final_lr=0.0,
        momentum=0.8,
        clip_grad=clip,
        norm_last_layer=norm_last_layer,
    )
    weights = naive.weights_of(method)
    batches = [views_of(batch_size, seed) for seed in range(epochs * per_epoch)]
    monkeypatch.setattr(
        setup, "batches", lambda *a: (batch_of(method, batches[d.step], d.step) for d in a[-1])
    )
    monkeypatch.setattr(optimizers, "adamw", lambda groups, beta2: torch.optim.SGD(groups, lr=0.0))
    count = batch_size * per_epoch
    data = dataclasses.replace(
        tiny, train=Split(tiny.train.images_NCHW[:count], tiny.train.labels_N[:count])
    )
    plan = dataclasses.replace(helpers.plan(DINO, SPEC, data), epochs=epochs, batch_size=batch_size)
    pretrain.pretrain(method, data, plan, tmp_path, CPU)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]

    center = torch.zeros(12, dtype=torch.float64)
    total = epochs * per_epoch
    for step, record in enumerate(records):
        epoch, half_cosine = step // per_epoch, (1 + math.cos(math.pi * step / total)) / 2
        views = [view.double() for view in batches[step]]
        loss, mean = reference(weights, views, center, [0.1, 0.2][epoch])
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
                if "last_layer" in name and epoch == 0:
                    continue
                if weight.ndim > 1:
                    gradient = gradient + decay * weight
                weight.sub_(rate * gradient)
            m = 1 - 0.2 * half_cosine
            for slow, fast in (("encoder", "student"), ("teacher_head", "student_head")):
                for name, weight in under(weights, slow).items():
                    weight.mul_(m).add_((1 - m) * weights[f"{fast}.{name}"])
        center = 0.9 * center + 0.1 * mean
    for name, parameter in method.named_parameters():
        assert naive.relative_error(parameter, weights[name]) < 1e-5, name
    assert naive.relative_error(method.center_K, center) < 1e-5
    encoder, _ = stored.load(tmp_path)
    assert torch.equal(encoder.norm.weight, method.encoder.norm.weight)
    assert not torch.equal(encoder.norm.weight, method.student.norm.weight)


def waves(count: int, width: int, shift: float) -> Tensor:
    row, column = torch.meshgrid(torch.arange(count), torch.arange(width), indexing="ij")
    return torch.sin(0.7 * (row + 1.0).double() * (column + 2) + shift).requires_grad_()


def test_losses_are_those_of_the_official_code() -> None:
    """``DINOLoss`` of four crops with a teacher's temperature of 0.04, then of 0.055."""
    teacher, center = waves(8, 6, 0.3).detach().view(2, 4, 6), torch.zeros(6)
    for temperature, value, norm in (
        (0.04, 9.189345024, 2.647349340),
        (0.055, 9.150165679, 2.628478868),
    ):
        student = waves(16, 6, 0)
        loss = between_views(student.view(4, 4, 6), sharpened(teacher, center, temperature))
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-8)
        assert student.grad is not None and student.grad.norm().item() == pytest.approx(norm)
        center = 0.9 * center + 0.1 * teacher.mean(dim=(0, 1))


def test_sinkhorn_is_that_of_the_official_code() -> None:
    found = sinkhorn(waves(8, 6, 0.3).detach(), 0.07)
    assert found[0, :2].tolist() == pytest.approx([0.744433, 0.255567], abs=1e-6)
    columns = [1.28206, 1.31582, 1.37407, 1.30815, 1.36436, 1.35554]
    assert found.sum(0).tolist() == pytest.approx(columns, abs=1e-5)
    assert found.sum(1).tolist() == pytest.approx([1] * 8)


def test_koleo_is_that_of_the_official_code() -> None:
    import importlib

    code = importlib.import_module(DINO.load().__name__)
    features = waves(8, 6, 0)
    loss = code.koleo(features)
    loss.backward()
    assert loss.item() == pytest.approx(-0.01607548356, rel=1e-6)
    assert features.grad is not None
    assert features.grad.norm().item() == pytest.approx(0.2601849748, rel=1e-6)


@pytest.mark.parametrize("options", [{"koleo": 0.1}, {"centering": "sinkhorn"}])
def test_options_change_what_they_name(options: dict[str, Any]) -> None:
    batch = batch_of(build(), views_of(8))
    plain = build().loss(batch, helpers.FIRST_STEP)
    found = build(**options).loss(batch, helpers.FIRST_STEP)
    if "koleo" in options:
        assert found.keys() == {"dino", "koleo"} and found["dino"] == plain["dino"]
    else:
        assert found["dino"] != plain["dino"]


def test_prototypes_are_trained_at_some_time() -> None:
    config, refuses = DINO.config(freeze_last_layer=2), DINO.load_class().refuses
    assert refuses(config, 8, 64, epochs=2.5) is None
    assert refuses(config, 8, 64, epochs=math.inf) is None
    assert "--freeze-last-layer 1 would" in refuses(config, 8, 64, epochs=2)
    assert "--freeze-last-layer 0 would" in refuses(config, 8, 64, epochs=0.1)


def test_temperature_rises_in_equal_steps_by_epoch() -> None:
    method = build(warmup_teacher_temp=0.04, teacher_temp=0.07, temp_warmup=0.5)
    found = [method.teacher_temperature(Step(4 * epoch + 3, 40, 4, 8)) for epoch in range(10)]
    assert found == pytest.approx([0.04, 0.0475, 0.055, 0.0625, *[0.07] * 6])


def test_stochastic_depth_is_the_students_alone() -> None:
    method = build(drop_path=0.5)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in method.student.blocks]
    assert rates == [0.0, 0.5]
    assert not any("DropPath" in type(m).__name__ for m in method.encoder.modules())


def test_small_crops_reach_the_student_and_not_the_teacher() -> None:
    method = build(local_crops=2)
    sizes = [view.size for view in method.transforms().values()]
    assert sizes == [16, 16, 8, 8]
    views = [torch.randn(4, 3, size, size) for size in sizes]
    before = method.loss(batch_of(method, views), helpers.FIRST_STEP)["dino"]
    mean = method.mean_K
    after = method.loss(batch_of(method, [*views[:3], views[3] + 1]), helpers.FIRST_STEP)["dino"]
    assert before != after and torch.equal(mean, method.mean_K)
