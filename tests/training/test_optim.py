"""Schedules and parameter groups against their formulas."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.models.vision_transformer import VisionTransformer

from ssl_bench.api import optimizers
from ssl_bench.api.step import Step
from ssl_bench.config.recipes import (
    OptimizerChoiceConfig,
    OptimizerConfig,
    SelfDistillationConfig,
)
from ssl_bench.errors import UserError
from ssl_bench.evaluation import finetuning
from ssl_bench.models import backbones
from ssl_bench.models.backbones import EncoderSpec
from ssl_bench.training.schedule import Schedule, whole_epochs


@given(st.integers(1, 50), st.integers(1, 20), st.integers(1, 30), st.floats(0, 0.9))
def test_learning_rate_warms_up_then_follows_a_cosine(
    batch_size: int, extra: int, epochs: int, warmup: float
) -> None:
    config = OptimizerConfig(base_lr=1e-3, warmup=warmup)
    schedule = Schedule(batch_size + extra, batch_size, epochs)
    recipe = optimizers.recipe(torch.nn.Linear(1, 1), config)
    peak = 1e-3 * batch_size / 256
    total, rising = schedule.steps, round(warmup * schedule.steps)
    for step in range(total):
        if step < rising:
            expected = peak * step / rising
        else:
            expected = 0.5 * peak * (1 + math.cos(math.pi * (step - rising) / (total - rising)))
        assert recipe.prepare(schedule.step(step)) == pytest.approx(expected)
        assert recipe.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@given(st.integers(1, 9), st.integers(1, 30), st.integers(0, 8))
def test_learning_rate_has_a_floor(per_epoch_steps: int, epochs: int, warmup_tenths: int) -> None:
    """``lr_sched.adjust_learning_rate`` of MAE."""
    warmup = warmup_tenths / 10
    schedule = Schedule(256 * per_epoch_steps, 256, epochs)
    # The warm-up ends on a step, so it is a share of the epochs but for that.
    warmup_epochs = round(warmup * schedule.steps) / per_epoch_steps
    for step in range(schedule.steps):
        epoch = step / per_epoch_steps
        if epoch < warmup_epochs:
            expected = 1e-3 * epoch / warmup_epochs
        else:
            done = (epoch - warmup_epochs) / (epochs - warmup_epochs)
            expected = 1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * done))
        found = optimizers.warmup_cosine(schedule.step(step), 1e-3, warmup, 1e-6)
        assert found == pytest.approx(expected)


@given(st.integers(1, 200), st.integers(1, 50), st.integers(1, 3))
def test_an_epoch_sees_each_image_at_most_once_and_drops_only_the_rest(
    images: int, batch_size: int, epochs: int
) -> None:
    batch_size = min(batch_size, images)
    schedule = Schedule(images, batch_size, epochs)
    per_epoch = schedule.steps_per_epoch
    for epoch in range(epochs):
        seen = [
            index
            for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)
            for index in schedule.batch(step, 0).tolist()
        ]
        assert len(set(seen)) == len(seen) == images - images % batch_size


def test_epochs_and_purposes_have_orders_of_their_own() -> None:
    schedule = Schedule(100, 100, 2)
    orders = [schedule.batch(step, 0, purpose) for step in (0, 1) for purpose in ("a", "b")]
    assert len({tuple(order.tolist()) for order in orders}) == 4


def test_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(UserError, match="--batch-size 64 is larger than the 10 training images"):
        Schedule(10, 64, 1)


def test_vectors_and_biases_are_exempt_from_decay(spec: EncoderSpec) -> None:
    encoder = backbones.build(spec, seed=0)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    decayed, exempt = optimizers.parameter_groups(encoder, OptimizerConfig(weight_decay=0.05))
    assert decayed["weight_decay"] == 0.05
    assert exempt["weight_decay"] == 0
    exempt_names = {names[p] for p in exempt["params"]}
    assert exempt_names == {
        name
        for name, p in encoder.named_parameters()
        if p.requires_grad and (p.ndim == 1 or name.endswith("bias"))
    }
    assert "cls_token" in {names[p] for p in decayed["params"]}
    count = len(decayed["params"]) + len(exempt["params"])
    assert count == sum(p.requires_grad for p in encoder.parameters())


@pytest.mark.parametrize("pooling", ["avg", "cls"])
@pytest.mark.parametrize("decays_all", [False, True])
def test_layer_decay_falls_from_the_head_to_the_embeddings(
    pooling: Literal["avg", "cls"], decays_all: bool
) -> None:
    """The rule of MAE's ``param_groups_lrd``, for every parameter that a ViT may have."""
    shape = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2}
    encoder = VisionTransformer(**shape, reg_tokens=2, pre_norm=True, init_values=1e-5)
    model = finetuning.Classifier(encoder, 3, pooling)
    config = OptimizerConfig(weight_decay=0.05, decay_norm_and_bias=decays_all)
    groups = optimizers.layer_decay_groups(model, config, 0.5)
    found = {p: (g["lr_scale"], g["weight_decay"]) for g in groups for p in g["params"]}
    layers = {"head": 4, "fc_norm": 4, "norm": 4, "blocks": None}
    for name, parameter in model.named_parameters():
        part, _, rest = name.removeprefix("encoder.").partition(".")
        layer = layers.get(part, 0)
        scale = 0.5 ** (4 - (int(rest[0]) + 1 if layer is None else layer))
        exempt = parameter.ndim == 1 or part in ("cls_token", "reg_token", "pos_embed")
        decay = 0.0 if exempt and not decays_all else 0.05
        assert found.pop(parameter) == (scale, decay), name
    assert not found


def test_set_learning_rate_scales_each_group() -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    groups = [{"params": [p], "lr_scale": s} for p, s in zip(parameters, (1.0, 0.5), strict=True)]
    optimizer = optimizers.adamw(groups, 0.95)
    optimizers.set_learning_rate(optimizer, 0.1)
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.05]
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95)


@pytest.mark.parametrize(("weight_decay", "momentum"), [(0.0, 0.9), (0.1, 0.9), (0.1, 0.5)])
def test_lars_follows_its_formula(weight_decay: float, momentum: float) -> None:
    """Matrices, one of them zero at first, one without any gradient, one bias; five steps."""
    generator = torch.Generator().manual_seed(0)
    starts = {
        "matrix": torch.randn(3, 4, generator=generator),
        "kernel": torch.randn(2, 3, 2, 2, generator=generator),
        "zero": torch.zeros(2, 5),
        "still": torch.randn(2, 2, generator=generator),
        "bias": torch.randn(4, generator=generator),
    }
    parameters = {name: torch.nn.Parameter(start.clone()) for name, start in starts.items()}
    unused = torch.nn.Parameter(torch.ones(2, 2))
    trained = [*parameters.values(), unused]
    optimizer = optimizers.LARS(trained, weight_decay=weight_decay, momentum=momentum)
    values = {name: start.double().flatten().tolist() for name, start in starts.items()}
    speeds = {name: [0.0] * len(value) for name, value in values.items()}
    for step in range(5):
        rate = 3.0 / (1 + step)
        optimizers.set_learning_rate(optimizer, rate)
        for name, parameter in parameters.items():
            gradient = torch.randn(parameter.shape, generator=generator) * (name != "still")
            parameter.grad = gradient.clone()
            updates = gradient.double().flatten().tolist()
            if name != "bias":
                updates = [g + weight_decay * w for g, w in zip(updates, values[name], strict=True)]
                weight_norm = math.hypot(*values[name])
                update_norm = math.hypot(*updates)
                if weight_norm > 0 and update_norm > 0:
                    updates = [g * 0.001 * weight_norm / update_norm for g in updates]
            speeds[name] = [momentum * v + g for v, g in zip(speeds[name], updates, strict=True)]
            values[name] = [w - rate * v for w, v in zip(values[name], speeds[name], strict=True)]
        optimizer.step()
        for name, parameter in parameters.items():
            found = parameter.detach().double().flatten()
            expected = torch.tensor(values[name], dtype=torch.float64)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(unused, torch.ones(2, 2))


def test_lars_goes_on_from_its_state() -> None:
    def steps(optimizer: optimizers.LARS, weight: torch.nn.Parameter, numbers: range) -> None:
        for number in numbers:
            weight.grad = torch.full_like(weight, 1.0 + number)
            optimizer.step()

    whole, halved = (torch.nn.Parameter(torch.ones(2, 3)) for _ in "12")
    steps(optimizers.LARS([whole], lr=0.5), whole, range(4))
    first = optimizers.LARS([halved], lr=0.5)
    steps(first, halved, range(2))
    second = optimizers.LARS([halved], lr=0.5)
    second.load_state_dict(first.state_dict())
    steps(second, halved, range(2, 4))
    assert torch.equal(whole, halved)


def test_lars_takes_the_gradient_and_the_loss_of_a_closure() -> None:
    weight = torch.nn.Parameter(torch.ones(2, 2))

    def closure() -> float:
        loss = weight.square().sum()
        loss.backward()
        return loss.item()

    assert optimizers.LARS([weight], lr=1.0).step(closure) == 4
    assert (weight < 1).all()


def test_a_schedule_of_a_groups_own_is_scaled_as_the_common_one_is() -> None:
    groups = [
        {"params": [torch.nn.Parameter(torch.zeros(1))], "lr_scale": 0.5, **own}
        for own in ({}, {"schedule": "own"})
    ]
    recipe = optimizers.OptimizerSpec(
        optimizer=torch.optim.SGD(groups, lr=0.0),
        learning_rate=lambda step: 0.8,
        schedules={"own": lambda step: 0.2},
    )
    recipe.prepare(Step(0, 10, 10, 1))
    assert [group["lr"] for group in recipe.optimizer.param_groups] == [0.4, 0.1]


def test_freeze_takes_whole_names_and_says_what_matches_nothing(spec: EncoderSpec) -> None:
    encoder = backbones.build(spec, seed=0).requires_grad_(True)
    optimizers.freeze(encoder, "patch_embed.proj", "cls_token")
    frozen = {name for name, p in encoder.named_parameters() if not p.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias", "cls_token"}
    for wrong in ("patch_embed.pro", "blocks.17", ""):
        with pytest.raises(UserError, match=f"nothing to freeze under '{wrong}'.*blocks"):
            optimizers.freeze(encoder, "norm", wrong)
    assert encoder.norm.weight.requires_grad


def test_adamw_is_the_papers(spec: EncoderSpec) -> None:
    """Whose epsilon and first decay are torch's defaults, as in the official codes."""
    [group] = optimizers.adamw([{"params": [torch.nn.Parameter(torch.ones(2))]}], 0.95).param_groups
    assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.95), 1e-8, False)


def chosen(name: str, **config: Any) -> optimizers.OptimizerSpec:
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
    return optimizers.recipe(module, OptimizerChoiceConfig(optimizer=name, **config))  # type: ignore[arg-type]


def test_sgd_is_the_papers() -> None:
    """Of MoCo and SimSiam: a momentum of 0.9, without Nesterov's."""
    for group in chosen("sgd").optimizer.param_groups:
        assert (group["momentum"], group["nesterov"], group["dampening"]) == (0.9, False, 0)


@pytest.mark.parametrize("decays_all", [False, True])
def test_lars_decays_no_norm_and_no_bias(decays_all: bool) -> None:
    recipe = chosen("lars", weight_decay=0.1, decay_norm_and_bias=decays_all)
    decays = {p.ndim: g["weight_decay"] for g in recipe.optimizer.param_groups for p in g["params"]}
    assert decays == {2: 0.1, 1: 0.0}
    assert all(g["trust"] == 0.001 for g in recipe.optimizer.param_groups)


def test_a_cosine_ends_at_a_share_of_the_peak() -> None:
    recipe = chosen("adamw", base_lr=0.4, final_lr=0.25, warmup=0.0)
    rates = [recipe.learning_rate(Step(number, 10, 10, 512)) for number in range(10)]
    expected = [0.2 + 0.6 * (1 + math.cos(math.pi * number / 10)) / 2 for number in range(10)]
    assert rates == pytest.approx(expected)


def test_self_distillation_decays_more_and_more_and_clips_each_gradient() -> None:
    """DINO's ``main_dino.py``: from 0.04 to 0.4 along a half cosine, each parameter by itself."""
    config = SelfDistillationConfig(weight_decay=0.04, final_weight_decay=0.4, clip_grad=2.0)
    recipe = optimizers.distillation_recipe(torch.nn.Linear(2, 2), config)
    assert recipe.weight_decay is not None
    decays = [recipe.weight_decay(Step(number, 8, 4, 256)) for number in range(8)]
    expected = [0.4 - 0.36 * (1 + math.cos(math.pi * number / 8)) / 2 for number in range(8)]
    assert decays == pytest.approx(expected)
    assert (recipe.clip_norm, recipe.clip_each) == (2.0, True)


def test_further_parameters_may_be_spared_from_decay() -> None:
    module = torch.nn.Linear(3, 2)
    groups = optimizers.parameter_groups(module, OptimizerConfig(), exempt=["weight"])
    assert [group["weight_decay"] for group in groups] == [0.0]


@pytest.mark.parametrize("epochs,steps", [(1.34, 13), (1.36, 14), (0.01, 1), (2, 20)])
def test_steps_are_the_nearest_whole_number(epochs: float, steps: int) -> None:
    assert Schedule(105, 10, epochs).steps == steps


def test_a_whole_number_of_epochs_is_one_however_it_is_given() -> None:
    assert [repr(whole_epochs(each)) for each in (8, 8.0, 8.5)] == ["8", "8", "8.5"]


@pytest.mark.parametrize("warmup,steps", [(0.14, 1), (0.16, 2)])
def test_steps_of_the_warmup_are_the_nearest_whole_number(warmup: float, steps: int) -> None:
    rates = [optimizers.warmup_cosine(Step(n, 10, 10, 1), 1.0, warmup) for n in range(4)]
    assert rates.index(max(rates)) == steps


@pytest.mark.parametrize("share,epochs,warm", [(0.29, 100, 29), (0.0375, 800, 30), (0.5, 3, 2)])
def test_a_ramp_takes_the_nearest_whole_number_of_epochs(
    share: float, epochs: int, warm: int
) -> None:
    """0.29 of 100 is a little less than 29 in floating point."""
    values = [Step(epoch, epochs, 1, 8).epoch_ramp(0.0, 1.0, share) for epoch in range(epochs)]
    expected = [min(1.0, epoch / (warm - 1)) for epoch in range(epochs)]
    assert values == pytest.approx(expected)
