"""DINO against a naive float64 reference, and the order of its schedules."""

from __future__ import annotations

import dataclasses
import importlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import distillation
import helpers
import naive
import pytest
import torch
from distillation import TEMPERATURES, bottleneck, cross_entropy, logits, views_of
from helpers import SHAPE, batch_of, waves
from naive import Weights, under
from torch import Tensor

from ssl_bench.api import registry
from ssl_bench.api.method import total
from ssl_bench.api.step import Step
from ssl_bench.data import Dataset
from ssl_bench.errors import UserError
from ssl_bench.models import encoders
from ssl_bench.models.prototypes import PrototypeHead, between_views, sharpened, sinkhorn

DINO = registry.find("method", "dino")


def build(**changes: Any) -> Any:
    return distillation.build(DINO, **changes)


def class_tokens(weights: Weights, images: Tensor) -> Tensor:
    heads, patches = SHAPE["num_heads"], range(16)
    return torch.stack([naive.vit(weights, each, 4, heads, False, patches)[0] for each in images])


def reference(
    weights: Weights, views: list[Tensor], centers: Mapping[str, Tensor], step: int
) -> tuple[Tensor, Weights]:
    """Algorithm 1."""
    student, student_head, encoder, teacher_head = (
        under(weights, name) for name in ("student", "student_head", "encoder", "teacher_head")
    )
    ours = [logits(student_head, class_tokens(student, view)) for view in views]
    theirs = [logits(teacher_head, class_tokens(encoder, view)).detach() for view in views]
    losses = [
        cross_entropy(seen, other, centers["center_K"], TEMPERATURES[step // 2]).mean()
        for t, seen in enumerate(theirs)
        for s, other in enumerate(ours)
        if s != t
    ]
    return torch.stack(losses).mean(), {"center_K": torch.cat(theirs).mean(0)}


@pytest.mark.parametrize("norm_last_layer", [True, False])
def test_training_keeps_the_official_order_of_operations(
    norm_last_layer: bool, tiny: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients in each step; clipping, freezing, averages, centre, and temperature."""
    distillation.assert_trained_alike(
        DINO, reference, tiny, tmp_path, monkeypatch, norm_last_layer=norm_last_layer
    )


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


def test_koleo_spreads_the_large_crops_alone() -> None:
    method = build(koleo=0.3, local_crops=2)
    views = [torch.randn(4, 3, size, size) for size in (16, 16, 8, 8)]
    found = method.loss(batch_of(method, views), helpers.FIRST_STEP)["koleo"]
    code = importlib.import_module(DINO.load().__name__)
    large = [encoders.represent(method.student, view) for view in views[:2]]
    expected = 0.3 * (code.koleo(large[0]) + code.koleo(large[1]))
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_balanced_assignments_are_of_both_views_at_the_teachers_temperature() -> None:
    method = build(centering="sinkhorn")
    teacher = waves(8, 64, 0.3).detach().unflatten(0, (2, 4))
    temperature = method.teacher_temperature(helpers.FIRST_STEP)
    expected = sinkhorn(teacher.flatten(0, 1), temperature).unflatten(0, (2, 4))
    torch.testing.assert_close(method.assign(teacher, helpers.FIRST_STEP), expected)


def test_a_collapse_is_looked_for_in_the_students_features() -> None:
    method, views = build(), views_of(4)
    method.loss(batch_of(method, views), helpers.FIRST_STEP)
    torch.testing.assert_close(method.watched_BD, encoders.represent(method.student, views[0]))


def test_mixed_precision_rounds_the_networks_and_not_the_loss() -> None:
    method, outputs = build(), list[Tensor]()
    method.center_K.normal_(generator=torch.Generator().manual_seed(0))
    for head in (method.teacher_head, method.student_head):
        head.register_forward_hook(lambda *call: outputs.append(call[-1]))
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(batch_of(method, views_of(4)), helpers.FIRST_STEP)["dino"]
    teacher, student = outputs
    assert teacher.dtype == student.dtype == torch.bfloat16
    torch.testing.assert_close(method.mean_K, teacher.float().mean((0, 1)))
    assigned = sharpened(teacher.float(), method.center_K, TEMPERATURES[0])
    expected = between_views(student.float(), assigned)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("name", ["simdino", "koleo"])
def test_options_are_computed_in_full_precision(name: str) -> None:
    code = importlib.import_module(DINO.load().__name__)
    shape = (8, 6) if name == "koleo" else (2, 4, 6)
    shifts = (0.0,) if name == "koleo" else (0.0, 0.3)
    rounded = [waves(8, 6, shift).detach().view(shape).bfloat16() for shift in shifts]
    how = {} if name == "koleo" else {"epsilon": 0.05}
    with torch.autocast("cpu", torch.bfloat16):
        mixed = getattr(code, name)(*rounded, **how)
    exact = getattr(code, name)(*(each.float() for each in rounded), **how)
    torch.testing.assert_close(mixed, exact)


def test_simdino_has_no_prototypes_to_be_frozen() -> None:
    refuses = DINO.load_class().refuses
    assert refuses(DINO.config(simdino=True, freeze_last_layer=2), 8, 64, epochs=2) is None


def test_prototypes_are_trained_at_some_time() -> None:
    config, refuses = DINO.config(freeze_last_layer=2), DINO.load_class().refuses
    assert refuses(config, 8, 64, epochs=2.5) is None
    assert refuses(config, 8, 64, epochs=math.inf) is None
    assert "--freeze-last-layer 1 would" in refuses(config, 8, 64, epochs=2)
    assert "--freeze-last-layer 0 would" in refuses(config, 8, 64, epochs=0.1)


@pytest.mark.parametrize("keeps_norms", [False, True])
def test_heads_start_as_in_the_official_code(keeps_norms: bool) -> None:
    """``DINOHead``: normal of 0.02, cut at 2, no bias; prototypes of length 1, fixed if asked."""
    config = build().config
    changes = {"head_hidden_dim": 256, "head_bottleneck_dim": 64, "norm_last_layer": keeps_norms}
    head = PrototypeHead(96, 128, dataclasses.replace(config, **changes))
    for layer in head.mlp:
        if isinstance(layer, torch.nn.Linear):
            naive.assert_normal(layer.weight.detach(), 0.02)
            assert not layer.bias.any()
        else:
            assert isinstance(layer, torch.nn.GELU)
    assert head.last_layer.weight_g.requires_grad is not keeps_norms
    unit = torch.eye(64)
    torch.testing.assert_close(head.last_layer(unit).norm(dim=0), torch.ones(128))


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


def spread_views(weights: Weights, views: list[Tensor], epsilon: float) -> dict[str, Tensor]:
    """SimDINO's two losses, with the official code's factor."""
    ours = [
        bottleneck(under(weights, "student_head"), class_tokens(under(weights, "student"), view))
        for view in views
    ]
    theirs = [
        bottleneck(under(weights, "teacher_head"), class_tokens(under(weights, "encoder"), view))
        for view in views
    ]
    count, width = ours[0].shape
    cosines, rates = [], []
    for t, seen in enumerate(theirs):
        cosines += [(seen * other).sum(1).mean() for s, other in enumerate(ours) if s != t]
        middle = (seen + ours[t]) / 2
        eigenvalues = torch.linalg.eigvalsh(middle.T @ middle)
        rates.append((1 + width / (count * epsilon) * eigenvalues).log().sum() / 2)
    factor = (width + count) / (width * count)
    return {
        "agreement": -torch.stack(cosines).mean(),
        "coding rate": -factor * torch.stack(rates).mean(),
    }


def test_simdino_has_no_prototypes_and_the_papers_losses_and_gradients() -> None:
    method = build(simdino=True, coding_precision=0.3)
    assert not any("last_layer" in name for name, _ in method.named_parameters())
    naive.randomise(method.encoder, seed=1)
    weights, views = naive.weights_of(method), views_of(6)
    for name in ("encoder", "teacher_head"):
        for weight in under(weights, name).values():
            weight.requires_grad_(False)
    found = method.loss(batch_of(method, views), helpers.FIRST_STEP)
    expected = spread_views(weights, [view.double() for view in views], 0.3)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-5), name
    total(found).backward()
    total(expected).backward()
    assert max(naive.gradient_errors(method, weights).values()) < 1e-5
    method.after_optimizer_step(helpers.FIRST_STEP)
    assert method.center_K.numel() == 0


def test_simdino_has_nothing_for_sinkhorn_to_balance() -> None:
    with pytest.raises(UserError, match="leave --centering out"):
        build(simdino=True, centering="sinkhorn")
